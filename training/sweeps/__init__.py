"""Sweeps: an experiment over axes of data sets and hyper-parameters, one trial a combination.

Uses optuna to propose and prune. It starts no processes: `ciml.training.trainer` does.
"""
