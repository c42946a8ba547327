"""Calibration: probabilities that mean what they say, and the sets of classes that a run may have.

Fitted on held-out dev runs, never on test runs. The calibrator goes into the exported graph, the sets' numbers into the
model's assets. Uses scipy, scikit-learn and crepes; serving uses none of them.
"""
