"""A Python worker of a job: ``python -m engines.flink.worker PARENT``; `worker_pool` starts it.

It imports what a job needs, and waits for one line on its standard input: the control address and its own id.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
#: Imported while there is time. Left to a job's start, they would take seconds of it.
_MODULES = ("apache_beam.runners.worker.sdk_worker", "pipelines.ingest.pipeline", "pipelines.predict.pipeline")


def main(parent: int) -> None:
    """Work for one job until that closes its stream, or the pool is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that took effect
        return
    for name in _MODULES:
        with contextlib.suppress(ImportError):  # an extra that is not installed: what needs it says so
            importlib.import_module(name)
    control, _, worker_id = sys.stdin.readline().strip().partition(" ")
    if not worker_id:
        return
    from apache_beam.runners.worker.sdk_worker import SdkHarness

    SdkHarness(control, worker_id=worker_id, state_cache_size=0, data_buffer_time_limit_ms=-1).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
