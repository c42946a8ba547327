"""The functions of data sets as PTransforms, and the batch pipeline that makes spans with them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from ciml.dataset_plan import SpanPlan
from ciml.dataset_state import SpanVersion
from ciml.definitions import ResolvedDefinition
from ciml.digest import canonical_json
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.storage import Store
from transforms.examples import Examples, Excluded
from transforms.spans import batches_of, examples_of, write_span

#: A part of a span on its way through a pipeline: (which span and version, (which part, its Arrow bytes, exclusions)).
_Part = tuple[str, tuple[int, bytes, list[tuple[str, str, str]]]]


class MakeExamples(beam.PTransform):
    """(part number, `SpanPlan`) to its examples, keyed by the span's version: `transforms.spans.examples_of`."""

    def __init__(self, raw: Store, resolved: ResolvedDefinition) -> None:
        super().__init__()
        self._raw, self._resolved = raw, resolved

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        return (
            parts
            | "spread" >> beam.Reshuffle()
            | "make" >> beam.Map(_make, self._raw, self._resolved).with_output_types(tuple[str, tuple])
        )


class WriteSpans(beam.PTransform):
    """The examples of each span's version to its files: `transforms.spans.write_span`.

    What the manifest is to hold of it goes to ``results`` of the data set's folder, for the caller to commit. All of it
    may happen again: files are named by content, and a result holds the same whoever writes it.
    """

    def __init__(self, root: Store, plans: Sequence[SpanPlan], resolved: ResolvedDefinition, results: str) -> None:
        super().__init__()
        self._root, self._resolved, self._results = root, resolved, results
        self._plans = {_key(plan): plan for plan in plans}

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        return (
            parts
            | "by span" >> beam.GroupByKey()
            | "write" >> beam.Map(_write, self._root, self._plans, self._resolved, self._results)
        )


def make_spans(
    raw: Store,
    root: Store,
    plans: Sequence[SpanPlan],
    resolved: ResolvedDefinition,
    *,
    runner: str,
    job_endpoint: str = "",
) -> dict[tuple[int, int], SpanVersion]:
    """Makes and writes spans in one batch pipeline.

    Args:
      raw: the raw store.
      root: the data set's folder.
      plans: the spans.
      resolved: the definition.
      runner: ``fnapi`` (in this process) or ``flink``.
      job_endpoint: ``host:port`` of Beam's job server, for ``flink``.

    Returns:
      What the manifest is to hold, by (span, version).

    Raises:
      CimlError: for another runner, or flink without an endpoint.
      EngineError: when the pipeline does not end well.
    """
    results = f"results/{uuid.uuid4().hex}"
    options = pipeline_options(runner, job_endpoint)
    parts = [part for plan in plans for part in enumerate(batches_of(plan, resolved))]
    pipeline = beam.Pipeline(options=options)
    (
        pipeline
        | "parts" >> beam.Create(parts)
        | "MakeExamples" >> MakeExamples(raw, resolved)
        | "WriteSpans" >> WriteSpans(root, plans, resolved, results)
    )
    made: dict[tuple[int, int], SpanVersion] = {}
    try:
        state = pipeline.run().wait_until_finish()
        if state != "DONE":
            raise EngineError(f"the pipeline that makes spans ended as {state}")
        for plan in plans:
            try:
                value = json.loads(root.read(f"{results}/{_key(plan)}.json"))
            except FileNotFoundError:
                raise IntegrityError(f"the pipeline that makes spans left out span {plan.span}") from None
            made[plan.span, plan.version] = SpanVersion.from_json(value)
    finally:
        for plan in plans:
            root.delete(f"{results}/{_key(plan)}.json")
    return made


def pipeline_options(runner: str, job_endpoint: str = "") -> PipelineOptions:
    """Options of a batch pipeline on a named runner; never Beam's default, which is another one from time to time."""
    if runner == "fnapi":
        return PipelineOptions([], runner="FnApiRunner")
    if runner == "flink":
        if not job_endpoint:
            raise CimlError("runner flink: want the job server's host:port; ciml up flink starts one")
        return PipelineOptions(
            [], runner="PortableRunner", job_endpoint=job_endpoint, environment_type="LOOPBACK", parallelism=1
        )
    raise CimlError(f"runner {runner!r}: want fnapi or flink, or none")


def _key(plan: SpanPlan) -> str:
    return f"{plan.span}-{plan.version}"


def _make(part: tuple[int, SpanPlan], raw: Store, resolved: ResolvedDefinition) -> _Part:
    number, plan = part
    examples = examples_of(raw, plan, resolved)
    sink = pa.BufferOutputStream()
    # mostly padding: compressed, it is a small part of its size in memory
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, examples.table.schema, options=options) as writer:
        writer.write_table(examples.table)
    return _key(plan), (
        number,
        bytes(sink.getvalue()),
        [(each.run_id, each.reason, each.detail) for each in examples.excluded],
    )


def _write(
    element: tuple[str, Iterable[tuple[int, bytes, list[tuple[str, str, str]]]]],
    root: Store,
    plans: dict[str, SpanPlan],
    resolved: ResolvedDefinition,
    results: str,
) -> str:
    key, parts = element
    span = write_span(root, plans[key], list(_read(parts)), resolved)
    path = f"{results}/{key}.json"
    root.replace(path, canonical_json(span.to_json()))
    return path


def _read(parts: Iterable[tuple[int, bytes, list[tuple[str, str, str]]]]) -> Iterator[Examples]:
    for _, data, excluded in sorted(parts, key=lambda part: part[0]):
        with pa.ipc.open_stream(data) as reader:
            yield Examples(reader.read_all(), tuple(Excluded(*each) for each in excluded))
