"""The report of a data set: counts, features over time and examples, as plots and a page.

Uses stored spans, normalised as for an estimator. It trains nothing.
"""
