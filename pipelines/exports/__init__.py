"""Exports to the registries of others: MLflow.

Uses `training` and `ciml.serving.registry`. ciml never reads what it exports: its own stores are the ledger.
"""
