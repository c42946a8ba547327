"""Beam transforms that make the examples of spans and write their files.

A *part* is the examples of some runs of a span version. A span version is keyed ``<span>-<version>``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

import apache_beam as beam
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.digest import canonical_json
from ciml.storage import Store
from ciml.transforms.examples.plan import SpanPlan
from ciml.transforms.examples.prepare import Examples, Excluded
from ciml.transforms.examples.spans import examples_of, guarded_examples, result_path, write_span
from ciml.transforms.guard import keep_error

#: A part between steps: its number in the span, its examples as Arrow IPC, and its exclusions as (run, reason, detail).
_Part = tuple[int, bytes, list[tuple[str, str, str]]]


class MakeExamples(beam.PTransform):
    """(part number, `SpanPlan`) to parts, keyed by span version: `ciml.transforms.examples.spans.examples_of`."""

    def __init__(self, raw: Store, resolved: ResolvedDefinition) -> None:
        super().__init__()
        self._raw = raw
        self._resolved = resolved

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        return (
            parts
            | "spread" >> beam.Reshuffle()
            | "make" >> beam.Map(_make, self._raw, self._resolved).with_output_types(tuple[str, tuple])
        )


class WriteSpans(beam.PTransform):
    """The parts of each span version to its files: `ciml.transforms.examples.spans.write_span`.

    The record of a span version is stored below ``results`` of the data set's folder, for the caller to commit. All of
    this may be repeated: files are named by content, and all writers store the same record.
    """

    def __init__(self, root: Store, plans: Sequence[SpanPlan], resolved: ResolvedDefinition, results: str) -> None:
        super().__init__()
        self._root = root
        self._resolved = resolved
        self._results = results
        self._plans = {_key(plan): plan for plan in plans}

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        return (
            parts
            | "by span" >> beam.GroupByKey()
            | "write" >> beam.Map(_write, self._root, self._plans, self._resolved, self._results)
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
