"""What receivers of CI systems' deliveries share: their configuration, their secrets, the producer, the service.

A receiver verifies a delivery and produces its raw body to Kafka; ingest calls the adapter when it decodes.
"""
