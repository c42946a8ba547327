"""Flink on this machine: embedded in Beam's job server or as a standalone cluster, with Python workers and a watchdog.

Uses `ciml.engines.processes` and Maven's jars. It submits no jobs: `ciml.pipelines.flink` does.
"""
