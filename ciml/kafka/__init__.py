"""Connections to Kafka: options with librdkafka's properties, clients, and one line for each of their errors.

Uses confluent-kafka. It reads no partition and tracks no offsets: `ciml.pipelines.kafka` does.
"""
