"""Local engines: a Kafka broker, Flink, an S3 endpoint, a log server and the model server.

`start` starts a choice of them and returns `Engines`, which is a context manager::

    with engines.start(["kafka", "flink"], home=folder) as running:
        running.kafka  # "127.0.0.1:41571"
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cli.engines.base import Settings
    from cli.engines.cluster import cluster_parts
    from cli.engines.http import s3_environment
    from cli.engines.kafka import create_topics, is_mock
    from cli.engines.launcher import ENGINES, Engines, start, stop
    from cli.engines.state import EngineState, default_home, read
    from pipelines.flink_jobs import Job, cancel_all_jobs, cancel_job, cancel_orphans, list_jobs

#: Where each name is. They are imported when they are asked for: most commands only look for a running broker.
_HOMES = {
    "Settings": "cli.engines.base",
    "cluster_parts": "cli.engines.cluster",
    "s3_environment": "cli.engines.http",
    "create_topics": "cli.engines.kafka",
    "is_mock": "cli.engines.kafka",
    "ENGINES": "cli.engines.launcher",
    "Engines": "cli.engines.launcher",
    "start": "cli.engines.launcher",
    "stop": "cli.engines.launcher",
    "EngineState": "cli.engines.state",
    "default_home": "cli.engines.state",
    "read": "cli.engines.state",
    "Job": "pipelines.flink_jobs",
    "cancel_all_jobs": "pipelines.flink_jobs",
    "cancel_job": "pipelines.flink_jobs",
    "cancel_orphans": "pipelines.flink_jobs",
    "list_jobs": "pipelines.flink_jobs",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
