"""Connections to Kafka: options with librdkafka's properties, clients, and a one-line message for each error.

Uses confluent-kafka. It reads no partition and tracks no offsets: `ciml.pipelines.kafka` does.
"""
