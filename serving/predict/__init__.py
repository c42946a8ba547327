"""Predictions of runs: announcements, examples, answers of a model server, and the manifest of predictions.

Uses `transforms.examples`, `serving.client`. Only `local` loads a model. It reads no topic; `pipelines.predict` does.
"""
