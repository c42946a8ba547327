"""Writes the spans of a data set in one bounded Beam pipeline (`build_spans`).

A *part* is the examples of some runs of a span version. A span version is keyed ``<span>-<version>``.

The process that waits for a pipeline commits its spans (`write_spans`). Where no process waits, as on Dataflow, the
last stage of the pipeline does (`commit_spans`).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter

import apache_beam as beam
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.digest import canonical_json
from ciml.pipelines.datasets.commit import WrittenStep, commit_steps, read_results, remove_results
from ciml.pipelines.flink.submit import run_bounded
from ciml.storage import Store
from ciml.transforms.examples.plan import SpanPlan, Step
from ciml.transforms.examples.prepare import Examples, Excluded
from ciml.transforms.examples.spans import batches_of, examples_of, guarded_examples, result_path, write_span
from ciml.transforms.guard import keep_error

#: A part between steps: its number in the span, its examples as Arrow IPC, and its exclusions as (run, reason, detail).
_Part = tuple[int, bytes, list[tuple[str, str, str]]]


def write_spans(
    raw: Store, root: Store, steps: Sequence[Step], *, runner: str, job_endpoint: str = ""
) -> list[WrittenStep]:
    """Make and write the spans of all steps in one bounded pipeline, and wait for it to end.

    Args:
      raw: the raw store.
      root: the data set's folder.
      steps: at least one, in order.
      runner: ``fnapi`` (in this process) or ``flink``.
      job_endpoint: ``host:port`` of Beam's job server, for ``flink``.

    Returns:
      The steps with their spans, in order.

    Raises:
      CimlError, EngineError: see `ciml.pipelines.flink.submit.run_bounded`.
      IntegrityError: a result is missing.
    """
    results = new_results_folder()
    try:
        build = partial(build_spans, raw=raw, root=root, steps=steps, results=results)
        run_bounded(build, runner, job_endpoint, "ciml-dataset")
        return [read_results(root, results, step) for step in steps]
    finally:
        remove_results(root, results, steps)


def new_results_folder() -> str:
    """Return a path that no other updater uses."""
    return f"results/{uuid.uuid4().hex}"


def build_spans(
    pipeline: beam.Pipeline, raw: Store, root: Store, steps: Sequence[Step], results: str
) -> beam.PCollection[str]:
    """Wire the bounded pipeline of spans.

    The record of a span version is stored in the folder ``results`` of ``root``, for the caller to commit. All of this
    may be repeated: files are named by content, and all writers store the same record.

    Returns:
      The paths of the records.
    """
    resolved: ResolvedDefinition = steps[0].resolved
    plans = {_key(plan): plan for step in steps for plan in step.spans}
    parts = [part for plan in plans.values() for part in enumerate(batches_of(plan, resolved))]
    return (
        pipeline
        | "parts" >> beam.Create(parts)
        | "MakeExamples/spread" >> beam.Reshuffle()
        | "MakeExamples/make" >> beam.Map(_make, raw, resolved).with_output_types(tuple[str, tuple])
        | "WriteSpans/by span" >> beam.GroupByKey()
        | "WriteSpans/write" >> beam.Map(_write, root, plans, resolved, results)
    )


def _key(plan: SpanPlan) -> str:
    return f"{plan.span}-{plan.version}"


def _make(numbered: tuple[int, SpanPlan], raw: Store, resolved: ResolvedDefinition) -> tuple[str, _Part]:
    number, plan = numbered
    with keep_error():
        examples = guarded_examples(plan, lambda part: examples_of(raw, part, resolved), resolved)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")  # examples are mostly padding
    with pa.ipc.new_stream(sink, examples.table.schema, options=options) as writer:
        writer.write_table(examples.table)
    exclusions = [(excluded.run_id, excluded.reason, excluded.detail) for excluded in examples.excluded]
    return _key(plan), (number, bytes(sink.getvalue()), exclusions)


def _write(
    element: tuple[str, Iterable[_Part]],
    root: Store,
    plans: dict[str, SpanPlan],
    resolved: ResolvedDefinition,
    results: str,
) -> str:
    key, parts = element
    with keep_error():
        span = write_span(root, plans[key], list(_read(parts)), resolved)
        path = result_path(results, span.span, span.version)
        root.replace(path, canonical_json(span.to_json()))
    return path


def _read(parts: Iterable[_Part]) -> Iterator[Examples]:
    for _, data, exclusions in sorted(parts, key=itemgetter(0)):
        with pa.ipc.open_stream(data) as reader:
            yield Examples(reader.read_all(), tuple(Excluded(*exclusion) for exclusion in exclusions))


def commit_spans(
    written: beam.PCollection[str], root: Store, steps: Sequence[Step], results: str
) -> beam.PCollection[int]:
    """Wire the commit of all spans once they are written. It may run twice: committed steps are skipped.

    Args:
      written: the paths that `build_spans` returns.
      root: the data set's folder.
      steps: of the plan, in order.
      results: the folder of the results.

    Returns:
      The number of committed steps.
    """
    # The commit takes the runs from the records of the written spans, so the job description need not hold them.
    steps = [replace(step, spans=tuple(replace(plan, runs=()) for plan in step.spans)) for step in steps]
    return (
        written
        | "CommitSpans/key" >> beam.Map(lambda path: ("", path)).with_output_types(tuple[str, str])
        | "CommitSpans/all" >> beam.GroupByKey()
        | "CommitSpans/commit" >> beam.Map(_commit, root, steps, results).with_output_types(int)
    )


def _commit(element: tuple[str, Iterable[str]], root: Store, steps: Sequence[Step], results: str) -> int:
    with keep_error():
        return commit_steps(root, steps, results)
