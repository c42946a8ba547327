"""Training: snapshots, normalisation, estimators, evaluation, the gate, export, and the steps of a refresh.

Uses stored examples. It pushes nothing: a refresh ends with a candidate and a decision.
"""

#: The extra that installs the libraries of this room.
EXTRA = "train"
