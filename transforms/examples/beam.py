"""PTransforms of the functions of data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.digest import canonical_json
from ciml.storage import Store
from ciml.transforms.examples.plan import SpanPlan
from ciml.transforms.examples.prepare import Examples, Excluded
from ciml.transforms.examples.spans import examples_of, guarded_examples, result_path, write_span
from ciml.transforms.guard import keep_error

#: A part of a span in a pipeline: (span and version, (part number, its Arrow bytes, exclusions)).
_Part = tuple[str, tuple[int, bytes, list[tuple[str, str, str]]]]


class MakeExamples(beam.PTransform):
    """(part number, `SpanPlan`) to examples, keyed by span version: `ciml.transforms.examples.spans.examples_of`."""

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
    """The examples of each span's version to its files: `ciml.transforms.examples.spans.write_span`.

    The manifest's record of it goes to ``results`` of the data set's folder, for the caller to commit. All of this may
    be
    repeated: files are named by content, and a result holds the same for every writer.
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


def _make(part: tuple[int, SpanPlan], raw: Store, resolved: ResolvedDefinition) -> _Part:
    number, plan = part
    with keep_error():
        examples = guarded_examples(plan, lambda some: examples_of(raw, some, resolved), resolved)
    sink = pa.BufferOutputStream()
    # mostly padding: compressed, it is a small part of its size in memory
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, examples.table.schema, options=options) as writer:
        writer.write_table(examples.table)
    return _key(plan), (
        number,
        bytes(sink.getvalue()),
        [(exclusion.run_id, exclusion.reason, exclusion.detail) for exclusion in examples.excluded],
    )


def _write(
    element: tuple[str, Iterable[tuple[int, bytes, list[tuple[str, str, str]]]]],
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


def _read(parts: Iterable[tuple[int, bytes, list[tuple[str, str, str]]]]) -> Iterator[Examples]:
    for _, data, excluded in sorted(parts, key=lambda part: part[0]):
        with pa.ipc.open_stream(data) as reader:
            yield Examples(reader.read_all(), tuple(Excluded(*exclusion) for exclusion in excluded))
