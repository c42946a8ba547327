"""Predictions: announcements on the topic `runs` to predictions, their manifest and the topic `predictions`.

Uses `ciml.serving.predict`. It loads no model: a model server does.
"""
