"""The report of a data set (counts, features over time, examples) or of one log, as plots and a page.

Uses stored spans. It normalises as an estimator would, and trains nothing.
"""
