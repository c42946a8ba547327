"""The report of a data set: counts, features over time and examples, as plots and a page.

Uses stored spans. It normalises as an estimator would, and trains nothing.
"""
