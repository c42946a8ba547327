"""Runs a pipeline: bounded in this process, or on Flink with the workers of this process or of a pool."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from apache_beam.portability.api import beam_job_api_pb2_grpc as job_api
from apache_beam.runners.portability.portable_runner import JobServiceHandle, PortableRunner

from ciml.errors import CimlError, EngineError
from ciml.pipelines.flink.jobs import OVER, cancel_job, cancel_orphans
from ciml.transforms.beam import keep_workers_quiet, run_here
from ciml.transforms.guard import kept_error

_POLL_S = 0.3

#: A checkpoint every 3 s, and bundle limits: without them no data flows, and without the last one a source sometimes
#: never starts.
_FLINK: Mapping[str, Any] = {
    "parallelism": 1,
    "checkpointing_interval": 3000,
    "max_bundle_size": 1000,
    "max_bundle_time_mills": 500,
}

#: Wires a pipeline.
Build = Callable[[beam.Pipeline], object]


def run_bounded(
    build: Build,
    runner: str,
    job_endpoint: str,
    name: str,
    *,
    extra: Sequence[str] = (),
    poll: Callable[[], object] = lambda: None,
    stop: threading.Event | None = None,
) -> None:
    """Run a bounded pipeline to its end.

    Args:
      build: wires the pipeline.
      runner: ``fnapi`` (in this process) or ``flink``.
      job_endpoint: ``host:port`` of Beam's job server, for ``flink``.
      name: of the job on Flink.
      extra: further options of Beam, for ``flink``.
      poll: called a few times a second while the pipeline runs.
      stop: when set, cancels the job on Flink; a pipeline in this process runs to its end.

    Raises:
      CimlError: see `check_runner`; or the error of a stage.
      EngineError: if the pipeline fails.
    """
    check_runner(runner, job_endpoint)
    if runner == "fnapi":
        _run_here_polling(build, poll)
        return
    job = FlinkJob(build, flink_options(job_endpoint, name, streaming=False, extra=extra))
    try:
        while not job.over and not (stop and stop.is_set()):
            job.check()
            poll()
            time.sleep(_POLL_S)
    finally:
        job.cancel()
    if stop and stop.is_set():
        return
    job.check()
    if job.state != "DONE":
        raise EngineError(f"the job {name} on Flink ended with state {job.state}")


def check_runner(runner: str, job_endpoint: str) -> None:
    """Raise `CimlError` for a runner that `run_bounded` does not have, or flink without a job server."""
    if runner not in ("fnapi", "flink"):
        raise CimlError(f"unknown runner {runner!r}; choose from fnapi, flink")
    if runner == "flink" and not job_endpoint:
        raise CimlError("runner flink needs the job server's host:port; start one with ciml up flink")


def _run_here_polling(build: Build, poll: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_here, build)
        while not wait([running], _POLL_S).done:
            poll()
        running.result()


def flink_options(
    endpoint: str,
    name: str,
    *,
    workers: str | None = None,
    savepoint: str | None = None,
    streaming: bool = True,
    changes: Mapping[str, Any] | None = None,
    extra: Sequence[str] = (),
) -> PipelineOptions:
    """Return the options of a job on Flink.

    Args:
      endpoint: ``host:port`` of Beam's job server.
      name: the job's name, made unique, since Flink identifies jobs by it.
      workers: ``host:port`` of a pool of Python workers (EXTERNAL); None for threads of this process (LOOPBACK), which
        end the job with them.
      savepoint: URL of a savepoint or a retained checkpoint to start from.
      streaming: whether it is unbounded.
      changes: of ``parallelism``, ``checkpointing_interval`` (ms), ``max_bundle_size``, ``max_bundle_time_mills``, or
        any other option of Beam's Flink runner; see docs/cluster.md.
      extra: further options of Beam as command-line flags; they take precedence.
    """
    switches = ["--finish_bundle_before_checkpointing", *["--streaming"] * streaming]
    options = {"job_endpoint": endpoint, "job_name": f"{name}-{secrets.token_hex(4)}", "environment_type": "LOOPBACK"}
    if workers:
        options |= {"environment_type": "EXTERNAL", "environment_config": workers}
        # This switches chaining *off* (its default is true, and Beam makes a switch of it). Chains depend on the
        # parallelism, the names of operators on the chains, and a savepoint finds its operators by their names.
        switches.append("--operator_chaining")
    if savepoint:
        options["savepoint_path"] = savepoint
    flags = [f"--{key}={value}" for key, value in {**options, **_FLINK, **(changes or {})}.items()]
    return PipelineOptions([*flags, *switches, *extra])


class FlinkJob:
    """A submitted job.

    With LOOPBACK it ends with this process's workers; with a pool of workers (EXTERNAL) it does not depend on this
    process, and `ciml.pipelines.flink.jobs.find_rest_job` finds it by name.
    """

    def __init__(self, build: Build, options: PipelineOptions) -> None:
        kept_error(clear=True)
        keep_workers_quiet()
        # Beam warns of each option that only the job server knows.
        logging.getLogger("apache_beam.options.pipeline_options").setLevel(logging.ERROR)
        self._endpoint = str(options.view_as(PortableOptions).job_endpoint)
        if options.view_as(PortableOptions).environment_type == "LOOPBACK":
            cancel_orphans(self._endpoint)  # left by a killed process of this program
        pipeline = beam.Pipeline(runner=SetOptionsRunner(), options=options)
        build(pipeline)
        try:
            self._result = pipeline.run()
        except Exception as error:  # from gRPC, Beam, or a rejected option
            raise EngineError(f"Flink rejected the job: {str(error).strip().splitlines()[-1]:.300}") from error

        self.name = str(options.get_all_options().get("job_name"))
        self.id = str(self._result._job_id)

    @property
    def state(self) -> str:
        """Beam's state: ``RUNNING``, ``DONE``, ``FAILED``, …"""
        return str(self._result.state)

    @property
    def over(self) -> bool:
        return self.state in OVER

    def check(self) -> None:
        """Raise a stage's permanent error, or `EngineError` if the job has failed."""
        error = kept_error()
        if isinstance(error, CimlError) and not isinstance(error, EngineError):
            raise error
        if self.state == "FAILED":
            raise error or EngineError("the Flink job failed; see the job server's log (ciml status names it)")

    def cancel(self) -> None:
        """Cancel the job if it runs, and wait for its end in Flink too (Beam's own cancel does not)."""
        _expect_closed_streams()
        cancel_job(self._endpoint, self.id)


class SetOptionsRunner(PortableRunner):
    """Beam's portable runner, without unset options.

    Beam's own runner sends every default. Flink then writes them all, with Java's descriptions, into the name of every
    piece of state: about 5 KB at each rest of a source, in all later checkpoints.
    """

    def create_job_service_handle(
        self, job_service: job_api.JobServiceStub, options: PipelineOptions
    ) -> JobServiceHandle:
        """Return the job server's handle, with the set options only."""
        handle = super().create_job_service_handle(job_service, options)
        handle.options = SimpleNamespace(get_all_options=partial(options.get_all_options, drop_default=True))
        return handle


def _expect_closed_streams() -> None:
    """Ignore the stream errors of this process's worker threads after their job is cancelled."""
    import grpc

    logging.getLogger("apache_beam.runners.worker").setLevel(logging.CRITICAL)
    before = threading.excepthook

    def hook(raised: threading.ExceptHookArgs) -> None:
        error = raised.exc_value
        if not (isinstance(error, grpc.RpcError) and error.code() == grpc.StatusCode.CANCELLED):
            before(raised)

    threading.excepthook = hook
