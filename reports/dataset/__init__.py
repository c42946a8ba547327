"""The report of a data set (counts, features over time, examples) or of one log, as plots and a page.

Uses stored spans, normalised as for an estimator. It trains nothing.
"""
