"""The reports of experiments: scores with intervals, curves and errors, alone and in comparison.

Uses the stored results of `ciml.training.experiments`. It evaluates no model.
"""
