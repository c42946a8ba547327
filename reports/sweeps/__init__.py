"""The report of a sweep: trials in order, the best by axis, and maps of two axes.

Uses the stored outcomes of `ciml.training.sweeps`.
"""
