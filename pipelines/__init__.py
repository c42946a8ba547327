"""Wiring only: ingest, data sets, the trainer, predict; and the Kafka source."""
