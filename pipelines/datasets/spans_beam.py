"""Builds the spans of a data set in one batch pipeline: examples by `MakeExamples`, files by `WriteSpans`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from functools import partial

import apache_beam as beam

from ciml.datasets.definition import ResolvedDefinition
from ciml.datasets.state import SpanVersion
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.pipelines.flink.submit import Build, FlinkJob, flink_options, run_here
from ciml.storage import Store
from ciml.transforms.examples.beam import MakeExamples, WriteSpans, result_path
from ciml.transforms.examples.plan import SpanPlan
from ciml.transforms.examples.spans import batches_of

_POLL_S = 0.2


def make_spans(
    raw: Store,
    root: Store,
    plans: Sequence[SpanPlan],
    resolved: ResolvedDefinition,
    *,
    runner: str,
    job_endpoint: str = "",
) -> dict[tuple[int, int], SpanVersion]:
    """Make and write spans in one batch pipeline.

    Args:
      raw: the raw store.
      root: the data set's folder.
      plans: the spans.
      resolved: the definition.
      runner: ``fnapi`` (in this process) or ``flink``.
      job_endpoint: ``host:port`` of Beam's job server, for ``flink``.

    Returns:
      The records for the manifest, by (span, version).

    Raises:
      CimlError: for an unknown runner, or flink without an endpoint; or the error of a stage.
      EngineError: if the pipeline fails.
    """
    results = f"results/{uuid.uuid4().hex}"  # unique to this call: another updater may run concurrently
    build = partial(build_spans, raw=raw, root=root, plans=plans, resolved=resolved, results=results)
    versions: dict[tuple[int, int], SpanVersion] = {}
    try:
        _run(build, runner, job_endpoint)
        for plan in plans:
            try:
                value = json.loads(root.read(result_path(results, plan.span, plan.version)))
            except FileNotFoundError:
                raise IntegrityError(f"the pipeline returned no result for span {plan.span}") from None
            versions[plan.span, plan.version] = SpanVersion.from_json(value)
    finally:
        for plan in plans:
            root.delete(result_path(results, plan.span, plan.version))
    return versions


def build_spans(
    pipeline: beam.Pipeline,
    raw: Store,
    root: Store,
    plans: Sequence[SpanPlan],
    resolved: ResolvedDefinition,
    results: str,
) -> beam.PCollection[str]:
    """Wire the bounded pipeline of spans; return the paths written to ``results``, a folder of ``root``."""
    parts = [part for plan in plans for part in enumerate(batches_of(plan, resolved))]
    return (
        pipeline
        | "parts" >> beam.Create(parts)
        | "MakeExamples" >> MakeExamples(raw, resolved)
        | "WriteSpans" >> WriteSpans(root, plans, resolved, results)
    )


def _run(build: Build, runner: str, job_endpoint: str) -> None:
    if runner == "fnapi":
        run_here(build)
    elif runner == "flink":
        if not job_endpoint:
            raise CimlError("runner flink needs the job server's host:port; start one with ciml up flink")
        job = FlinkJob(build, flink_options(job_endpoint, "ciml-dataset", streaming=False))
        try:
            while not job.over:
                job.check()
                time.sleep(_POLL_S)
        finally:
            job.cancel()
        job.check()
        if job.state != "DONE":
            raise EngineError(f"the pipeline of the spans ended with state {job.state}")
    else:
        raise CimlError(f"unknown runner {runner!r}; choose from fnapi, flink")
