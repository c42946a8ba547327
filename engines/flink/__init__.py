"""Flink on this machine: embedded in Beam's job server or as a standalone cluster, with Python workers and a watchdog.

Uses `engines.processes` and Maven's jars. It submits no jobs: `pipelines.flink` does.
"""
