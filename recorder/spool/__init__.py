"""The spool: recordings as folders on disk, their seals, and their delivery to Kafka and a log store.

Uses `ciml.events` and `ciml.kafka`. It takes no samples.
"""
