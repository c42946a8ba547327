"""Experiments as stored objects: trials on a data set, their results, and clustering.

Uses estimators and evaluation. It draws nothing: `ciml.reports.experiments` does.
"""
