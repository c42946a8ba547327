"""Profiles: the usual telemetry of the passing runs of each job, and where a run departs from it.

Pure functions over Arrow tables and numpy. They read no store; `ciml.serving.evidence` makes sentences of what they
find.
"""
