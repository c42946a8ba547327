"""Removes old checkpoints of jobs that failed, were cancelled, or lost their JobManager.

Flink retains them for restarts and never removes them.
"""

from __future__ import annotations

import json
import urllib.request

from ciml.errors import EngineError
from ciml.storage.open import open_store


def sweep_checkpoints(state: str, rest: str, before_s: float) -> list[str]:
    """Remove the checkpoints of jobs that Flink does not know and that wrote none since ``before_s``.

    Savepoints are kept.

    Args:
      state: a folder or an ``s3://`` prefix; the checkpoints are in its ``checkpoints/JOB``.
      rest: the URL of Flink's REST API.
      before_s: epoch seconds.

    Returns:
      The ids of the jobs whose checkpoints were removed.

    Raises:
      EngineError: if Flink or the storage does not answer. Earlier removals are not undone.
    """
    try:
        with urllib.request.urlopen(f"{rest}/jobs", timeout=10) as answer:  # noqa: S310 (our own loopback)
            known = {job["id"] for job in json.load(answer)["jobs"]}
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"Flink at {rest} does not list its jobs: {error}") from error
    top = open_store(state)
    store = top.child("checkpoints")
    paths: dict[str, list[str]] = {}
    youngest: dict[str, float] = {}
    for entry in store.entries():
        job = entry.path.partition("/")[0]
        paths.setdefault(job, []).append(entry.path)
        youngest[job] = max(youngest.get(job, 0.0), entry.modified_s)
    old = sorted(job for job, last_s in youngest.items() if job not in known and last_s < before_s)
    for job in old:
        for path in paths[job]:
            store.delete(path)
    top.delete_leftovers("checkpoints", before_s)
    return old
