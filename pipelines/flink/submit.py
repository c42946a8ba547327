"""Runs a pipeline: bounded in this process, or on Flink with this process's workers or a pool.

The portable form of a pipeline, which every engine receives, can be checked and drawn.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_job_api_pb2_grpc as job_api
from apache_beam.portability.api import beam_runner_api_pb2 as api
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.portable_runner import JobServiceHandle, PortableRunner
from apache_beam.transforms.environments import ExternalEnvironment, python_sdk_capabilities

from ciml.errors import CimlError, EngineError
from ciml.pipelines.flink.jobs import OVER, cancel_job, cancel_orphans
from ciml.transforms.guard import kept_error

_PRIMITIVES = common_urns.primitives
_COMBINES = common_urns.combine_components
#: Transforms that every engine knows. Engines execute the first three themselves, Python workers all others.
_KINDS = {
    _PRIMITIVES.IMPULSE.urn: "Impulse",
    _PRIMITIVES.FLATTEN.urn: "Flatten",
    _PRIMITIVES.GROUP_BY_KEY.urn: "GroupByKey",
    _PRIMITIVES.PAR_DO.urn: "ParDo",
    _PRIMITIVES.ASSIGN_WINDOWS.urn: "Window",
    _COMBINES.COMBINE_PER_KEY_PRECOMBINE.urn: "Combine",
    _COMBINES.COMBINE_PER_KEY_MERGE_ACCUMULATORS.urn: "Combine",
    _COMBINES.COMBINE_PER_KEY_EXTRACT_OUTPUTS.urn: "Combine",
    _COMBINES.COMBINE_GROUPED_VALUES.urn: "Combine",
}
_PYTHON_FUNCTIONS = (python_urns.PICKLED_DOFN_INFO, python_urns.KEY_WITH_NONE_DOFN)
_PYTHON = "beam:version:sdk_base:apache/beam_python"
_ELSEWHERE = ("external", "xlang", "schematransform", "org.apache.beam", "javasdk", "go:")
_NOISY = (
    "apache_beam.runners.common",
    "apache_beam.runners.portability.fn_api_runner.worker_handlers",
    "apache_beam.runners.worker.data_plane",
    "apache_beam.runners.worker.sdk_worker",
)
_POLL_S = 0.3


def portable(build: Callable[[beam.Pipeline], object]) -> api.Pipeline:
    """Return the portable form of the pipeline that ``build`` wires, without running it or using a network."""
    environment = ExternalEnvironment("localhost:50000", capabilities=python_sdk_capabilities())
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    build(pipeline)
    return pipeline.to_runner_api(default_environment=environment)


def is_unbounded(proto: api.Pipeline) -> bool:
    """Return whether the pipeline is unbounded."""
    collections = proto.components.pcollections.values()
    return any(collection.is_bounded == api.IsBounded.UNBOUNDED for collection in collections)


def foreign(proto: api.Pipeline) -> list[str]:
    """Return why a pipeline needs more than Python workers: a line for each such stage or coder.

    A stage expanded by another language runs in that language's environment, so an engine would need its containers; a
    stage that only some runners know (a Java source by its URN) would not run on the others.
    """
    parts = proto.components
    transforms = []
    python = {
        name
        for name, environment in parts.environments.items()
        if any(capability.startswith(_PYTHON) for capability in environment.capabilities)
    }
    for transform in parts.transforms.values():
        urn = transform.spec.urn
        stage = transform.unique_name or "pipeline"
        if transform.environment_id and transform.environment_id not in python:
            transforms.append(f"{stage}: its environment {transform.environment_id} is not Python's")
        if any(word in urn for word in _ELSEWHERE):
            transforms.append(f"{stage}: {urn} is from another language")
        elif _works(transform) and urn not in _KINDS:
            transforms.append(f"{stage}: {urn} is not known to every engine")
        if urn == _PRIMITIVES.PAR_DO.urn:
            function = api.ParDoPayload.FromString(transform.spec.payload).do_fn.urn
            if function not in _PYTHON_FUNCTIONS:
                transforms.append(f"{stage}: its function is {function}")
    for name, coder in parts.coders.items():
        if any(word in coder.spec.urn for word in _ELSEWHERE):
            transforms.append(f"coder {name}: {coder.spec.urn} is from another language")
    return transforms


def stages(proto: api.Pipeline) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield (stage, kind, input stages) of all executed stages, each after its inputs."""
    parts = proto.components.transforms
    makers: dict[str, str] = {}
    names: dict[str, str] = {}

    def walk(identity: str) -> Iterator[str]:
        for child in parts[identity].subtransforms:
            yield from walk(child)
        if _works(parts[identity]):
            yield identity

    ordered = [identity for root in proto.root_transform_ids for identity in walk(root)]
    for identity in ordered:
        names[identity] = parts[identity].unique_name
        makers.update(dict.fromkeys(parts[identity].outputs.values(), identity))
    for identity in ordered:
        transform = parts[identity]
        reads = [names[makers[collection]] for collection in sorted(transform.inputs.values()) if collection in makers]
        yield names[identity], _kind(transform), tuple(dict.fromkeys(reads))


def _works(transform: api.PTransform) -> bool:
    """Return whether a transform does work: it is not a composite, and not an identity."""
    return not transform.subtransforms and not set(transform.outputs.values()) <= set(transform.inputs.values())


def _kind(transform: api.PTransform) -> str:
    urn = transform.spec.urn
    kind = str(_KINDS.get(urn, urn))
    if urn == _PRIMITIVES.PAR_DO.urn:
        payload = api.ParDoPayload.FromString(transform.spec.payload)
        marks = [
            *(["splittable"] if payload.restriction_coder_id else []),
            *(["state"] if payload.state_specs else []),
            *(["timers"] if payload.timer_family_specs else []),
        ]
        kind += f" ({', '.join(marks)})" if marks else ""
    return kind


def as_text(name: str, proto: api.Pipeline) -> str:
    """Render a pipeline as text: a line for each stage, with the numbers of its inputs."""
    rows = list(stages(proto))
    number = {stage: place for place, (stage, _, _) in enumerate(rows, 1)}
    width = max(len(kind) for _, kind, _ in rows)
    kind = "unbounded" if is_unbounded(proto) else "bounded"
    elsewhere = foreign(proto)
    workers = "only Python workers" if not elsewhere else "NOT ONLY PYTHON"
    lines = [f"{name}: {kind}, {len(rows)} stages, {workers}"]
    for stage, description, reads in rows:
        read = f"  <- {', '.join(str(number[source]) for source in reads)}" if reads else ""
        lines.append(f"{number[stage]:>3}  {description:<{width}}  {stage}{read}")
    return "\n".join([*lines, *elsewhere])


def as_dot(proto: api.Pipeline) -> str:
    """Render a pipeline for Graphviz, with composites as clusters."""
    from apache_beam.runners.render import PipelineRenderer, RenderOptions

    return str(PipelineRenderer(proto, RenderOptions([])).to_dot())


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


Build = Callable[[beam.Pipeline], object]

#: A checkpoint every 3 s, and bundle limits: without them no data flows, and without the last one a source sometimes
#: never starts.
_FLINK: Mapping[str, Any] = {
    "parallelism": 1,
    "checkpointing_interval": 3000,
    "max_bundle_size": 1000,
    "max_bundle_time_mills": 500,
}


def run_here(build: Build) -> None:
    """Run a bounded pipeline in this process to its end.

    Raises:
      CimlError: the error of a stage.
    """
    kept_error(clear=True)
    _keep_workers_quiet()
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))  # the default may be another runner
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
    process, and `ciml.pipelines.flink.jobs.find` finds it by name.
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


def check_runner(runner: str, job_endpoint: str) -> None:
    """Raise `CimlError` for a runner that `run_bounded` does not have, or flink without a job server."""
    if runner not in ("fnapi", "flink"):
        raise CimlError(f"unknown runner {runner!r}; choose from fnapi, flink")
    if runner == "flink" and not job_endpoint:
        raise CimlError("runner flink needs the job server's host:port; start one with ciml up flink")


def run_bounded(
    build: Build,
    runner: str,
    job_endpoint: str,
    name: str,
    *,
    extra: Sequence[str] = (),
    poll: Callable[[], object] | None = None,
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
        if poll is None:
            run_here(build)
            return
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run_here, build)
            while not wait([running], _POLL_S).done:
                poll()
            running.result()
        return
    job = FlinkJob(build, flink_options(job_endpoint, name, streaming=False, extra=extra))
    try:
        while not job.over and not (stop and stop.is_set()):
            job.check()
            if poll is not None:
                poll()
            time.sleep(_POLL_S)
    finally:
        job.cancel()
    if stop and stop.is_set():
        return
    job.check()
    if job.state != "DONE":
        raise EngineError(f"the job {name} on Flink ended with state {job.state}")
