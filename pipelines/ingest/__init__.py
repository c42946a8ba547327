"""Ingest: CI events from Kafka to the raw store, its committer, deferred logs, and replay of dead letters.

Uses `ciml.transforms.ingest` and `ciml.pipelines.kafka`. It does not keep itself running: `services` does.
"""
