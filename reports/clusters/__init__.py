"""The cluster report: groups of runs, compared with labels and metadata, as a page and as JSON.

Uses `ciml.training.experiments.clustering` for the groups.
"""
