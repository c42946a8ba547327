"""Pipelines on Flink: submission to Beam's job server, jobs and savepoints over REST.

Uses Beam and httpx. It starts no Flink: `ciml.engines.flink` does.
"""
