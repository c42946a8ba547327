"""Predictions of runs: announcements, examples, answers of a model server, and the manifest of predictions.

Uses `transforms.examples` and `serving.client`, and no TensorFlow. It reads no topic: `pipelines.predict` does.
"""
