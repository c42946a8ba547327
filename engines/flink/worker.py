"""A Python worker of a job: ``python -m ciml.engines.flink.worker PARENT``; `worker_pool` starts it.

It imports a job's modules and waits for a line on standard input: the control address and its own id.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import sys

from ciml.tensorflow import own_process

_PR_SET_PDEATHSIG = 1
#: Imported in advance; at a job's start they would take seconds.
_MODULES = (
    "apache_beam.runners.worker.sdk_worker",
    "ciml.pipelines.ingest.pipeline",
    "ciml.pipelines.predict",
)


def main(parent: int) -> None:
    """Work for one job until it closes its stream, or the pool ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the signal was set
        return
    own_process()
    for name in _MODULES:
        with contextlib.suppress(ImportError):  # an extra is not installed; its users report that
            importlib.import_module(name)
    control, _, worker_id = sys.stdin.readline().strip().partition(" ")
    if not worker_id:
        return
    from apache_beam.runners.worker.sdk_worker import SdkHarness

    SdkHarness(control, worker_id=worker_id, state_cache_size=0, data_buffer_time_limit_ms=-1).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
