"""Local engines: a Kafka broker, Flink, an S3 endpoint, a log server and the model server.

`start` starts a choice of them and returns `Engines`, which is a context manager::

    with engines.start(["kafka", "flink"], home=folder) as running:
        running.kafka  # "127.0.0.1:41571"
"""

from __future__ import annotations

from cli.engines.base import Settings
from cli.engines.cluster import cluster_parts
from cli.engines.http import s3_environment
from cli.engines.kafka import create_topics, is_mock
from cli.engines.launcher import ENGINES, Engines, start, stop
from cli.engines.state import EngineState, default_home, read
from pipelines.flink_jobs import Job, cancel_all_jobs, cancel_job, cancel_orphans, list_jobs

__all__ = [
    "ENGINES",
    "EngineState",
    "Engines",
    "Job",
    "Settings",
    "cancel_all_jobs",
    "cancel_job",
    "cancel_orphans",
    "cluster_parts",
    "create_topics",
    "default_home",
    "is_mock",
    "list_jobs",
    "read",
    "s3_environment",
    "start",
    "stop",
]
