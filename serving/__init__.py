"""The registry of models, push and rollback, the model server and its client."""
