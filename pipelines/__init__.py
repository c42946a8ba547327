"""Pipelines: Beam wiring for ingest, backfill, data sets, live windows, predictions and training.

Uses `transforms`, `training` and `serving` for each computation. It computes nothing and keeps no process running.
"""

#: The extra that installs the libraries of this room.
EXTRA = "pipelines"
