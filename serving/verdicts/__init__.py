"""Verdicts on failed runs: from a prediction, the run's facts and the rules in the model's assets.

Uses `ciml.verdicts`; needs neither crepes nor TensorFlow. Texts, evidence and messages are made elsewhere.
"""
