"""Predictions of runs: announcements, examples, answers of a model server, and the manifest of predictions.

Uses `ciml.transforms.examples`, `ciml.serving.client`. Only `local` loads a model. It reads no topic;
`ciml.pipelines.predict` does.
"""
