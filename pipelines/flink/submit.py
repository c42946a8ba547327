"""Runs a pipeline: bounded in this process, or on Flink with this process's workers or a pool."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

from ciml.errors import CimlError, EngineError
from ciml.pipelines.flink.jobs import cancel_job, cancel_orphans
from ciml.pipelines.flink.runner import SetOptionsRunner
from ciml.transforms.ingest.errors import kept_error

EngineName = Literal["flink", "micro-batches"]
ENGINES: tuple[EngineName, ...] = ("flink", "micro-batches")
Build = Callable[[beam.Pipeline], object]

#: A checkpoint every 3 s, and bundle limits: without them no data flows, and without the last one a source sometimes
#: never starts.
_FLINK: Mapping[str, Any] = {
    "parallelism": 1,
    "checkpointing_interval": 3000,
    "max_bundle_size": 1000,
    "max_bundle_time_mills": 500,
}
_NOISY = (
    "apache_beam.runners.common",
    "apache_beam.runners.portability.fn_api_runner.worker_handlers",
    "apache_beam.runners.worker.data_plane",
    "apache_beam.runners.worker.sdk_worker",
)
_OVER = frozenset({"DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED"})


def run_here(build: Build) -> None:
    """Run a bounded pipeline in this process to its end.

    Raises:
      CimlError: the error of a stage.
    """
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner  # explicit: the default runner may be another

    kept_error(clear=True)
    _keep_workers_quiet()
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    build(pipeline)
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:  # noqa: BLE001  # Beam turns a stage's error into a RuntimeError
        raise kept_error() or error from None


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
    flags = [
        f"--job_endpoint={endpoint}",
        f"--job_name={name}-{secrets.token_hex(4)}",
        "--finish_bundle_before_checkpointing",
    ]
    flags += [f"--environment_type={'EXTERNAL' if workers else 'LOOPBACK'}"]
    if workers:
        # The second switches chaining *off* (its default is true, and Beam makes a switch of it). Chains depend on the
        # parallelism, the names of operators on the chains, and a savepoint finds its operators by their names.
        flags += [f"--environment_config={workers}", "--operator_chaining"]
    flags += [f"--{key}={value}" for key, value in {**_FLINK, **(changes or {})}.items()]
    flags += [f"--savepoint_path={savepoint}"] * bool(savepoint)
    if streaming:
        flags.append("--streaming")
    return PipelineOptions([*flags, *extra])


def _keep_workers_quiet() -> None:
    """Suppress Beam's logs and prints of a worker's failure that is raised here as well."""
    from apache_beam.runners.worker import sdk_worker

    def print_other(*words: object, **options: Any) -> None:
        if kept_error() is None and "Channel closed prematurely" not in str(words[:1]):
            print(*words, **options)

    sdk_worker.print = print_other
    for name in _NOISY:
        logger = logging.getLogger(name)
        if _no_kept_error not in logger.filters:
            logger.addFilter(_no_kept_error)


def _no_kept_error(record: logging.LogRecord) -> bool:
    return kept_error() is None


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


class FlinkJob:
    """A submitted job.

    With LOOPBACK it ends with this process's workers; with a pool of workers (EXTERNAL) it does not depend on this
    process, and `ciml.pipelines.flink.rest.find` finds it by name.
    """

    def __init__(self, build: Build, options: PipelineOptions) -> None:
        kept_error(clear=True)
        _keep_workers_quiet()
        # Beam warns about options that only the job server knows, and repeats meaningless warnings each second.
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
        return self.state in _OVER

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
