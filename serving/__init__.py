"""Serving: the registry of models, push and rollback, the model server and its client, predictions of runs.

Uses TensorFlow in the server and in checks before a push alone. It trains nothing and decides no push: the gate does.
"""
