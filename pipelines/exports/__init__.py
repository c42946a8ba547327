"""Exports to the registries of others: MLflow.

Uses `training` and `serving.registry`. ciml never reads what it exports: its own stores are the ledger.
"""
