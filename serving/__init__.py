"""Serving: the registry of models, push and rollback, the model server and its client, predictions of runs.

Only the server and the checks before a push use TensorFlow. It trains nothing; the gate decides about pushes.
"""

#: The extra that installs the libraries of this room.
EXTRA = "serve"
