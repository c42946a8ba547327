"""Drift: statistics of examples, tests of two sides, and findings with the numbers that they follow from.

Uses scipy. It reads no data set: `ciml.pipelines.datasets` gives it statistics.
"""
