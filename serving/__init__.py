"""Serving: the registry of models, push and rollback, the model server and its client, predictions of runs.

Only the server and the checks before a push use TensorFlow. It trains nothing; the gate decides about pushes.
"""
