"""The last act of the demo: failed runs of changes in a real Gerrit, and what ciml says on these changes.

A run's event goes its whole way: mosquitto, the receiver, Kafka, ingest, predict, feedback.
"""
