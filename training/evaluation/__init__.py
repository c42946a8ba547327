"""Evaluation: scores with intervals, baselines, cross-validation, the comparison with the champion, and the gate.

Uses probabilities and labels of held-out runs. It pushes nothing.
"""
