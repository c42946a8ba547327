"""Backfill: the runs of a listing into the raw store, in threads or in bounded Beam pipelines.

Uses `ciml.transforms.ingest`, with the same stages and the same commit as for events. It reads no Kafka.
"""
