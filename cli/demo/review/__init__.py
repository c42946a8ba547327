"""The last act of the demo: failed runs of changes in a real Gerrit, and what ciml says on these changes.

A run's message goes the way of Zuul's: mosquitto, the receiver, Kafka, ingest, predict, feedback.
"""
