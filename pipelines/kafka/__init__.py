"""Kafka as a Beam source and sink: a splittable DoFn over partitions, watermarks, and publishing of manifests.

Uses `ciml.kafka`. It commits no offsets to Kafka: a manifest holds what is covered.
"""
