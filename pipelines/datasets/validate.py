"""Compares spans of a data set with its earlier spans, another data set or a model's training runs, and reports drift.

Each side of a comparison is a *selection*: *pieces*, which are the selected examples of one span each. The statistics
of a piece and the recorded columns of a span are computed once and cached in ``datasets/NAME/statistics``. A cached
file is named by a digest of its inputs, so it is never outdated, and all of them may be removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import pyarrow as pa

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.definition import ResolvedDefinition
from ciml.datasets.schema import schema_of
from ciml.datasets.state import ExampleFile, SpanVersion
from ciml.digest import canonical_json, sha256_json
from ciml.errors import CimlError, IntegrityError
from ciml.pipelines.datasets.update import StoredRuns
from ciml.progress import Progress, no_progress
from ciml.runs.reader import read_columns
from ciml.runs.run_log import RunRecord
from ciml.storage import Store
from ciml.storage.json_files import read_object, seal, seal_of
from ciml.telemetry import telemetry_columns
from ciml.training.data.snapshot import Snapshot, read_snapshot
from ciml.transforms.drift.change_points import with_change_points
from ciml.transforms.drift.compare import Report, Side, compare
from ciml.transforms.drift.counts import Columns, add_columns, columns_from_json, columns_to_json
from ciml.transforms.drift.detect import DriftPolicy
from ciml.transforms.drift.statistics import Statistics, columns_needed, merge, statistics
from ciml.transforms.examples.spans import read_examples

_FOLDER = "statistics"
_FORMAT = 1  # of the cached files
_READ_AHEAD = 16  # cached files that are read concurrently
_RUNS_AT_ONCE = 500  # raw runs whose columns are read together
#: Two data sets are comparable if these keys of their definitions are equal.
_COMPARABLE_KEYS = ("sample_interval", "sample_statistic", "aggregation_functions", "count_first_sample")


@dataclass(frozen=True, slots=True)
class Piece:
    """The selected examples of one span: all of a version, or only those of ``runs``."""

    span: int
    version: int
    files: Mapping[str, Sequence[ExampleFile]]
    runs: tuple[str, ...] | None = None


def validate_dataset(
    data: DataRoot,
    name: str,
    *,
    last: int | None = None,
    against: str | None = None,
    model: str | None = None,
    policy: DriftPolicy | None = None,
    progress: Progress = no_progress,
) -> Report:
    """Compare the newest spans of a data set with earlier ones, another data set, or a model's training runs.

    Args:
      data: the data root.
      name: name of the data set.
      last: number of newest spans: 1 by default; with ``model``, all spans it was not trained on.
      against: another data set to compare with, all spans of it.
      model: a model whose champion's snapshot is compared with.
      policy: thresholds of drift.
      progress: called after each span.

    Raises:
      CimlError: if there is no such data set or model, or nothing to compare with.
      IntegrityError: if the stored data are inconsistent.
    """
    dataset = _SealedDataset.open(data.dataset(name))
    if model is not None:
        earlier, newer = _compare_with_training(dataset, data, model, last)
    elif against is not None:
        earlier, newer = _compare_with_dataset(dataset, _SealedDataset.open(data.dataset(against)), last or 1)
    else:
        earlier, newer = _compare_with_earlier(dataset, last or 1)
    pieces = len(earlier.pieces)
    total = pieces + len(newer.pieces)
    before = _side_of(earlier, progress, 0, total)
    after = _side_of(newer, progress, pieces, total)
    if before.columns is None or after.columns is None:  # columns of one side alone cannot be compared
        before = replace(before, columns=None)
        after = replace(after, columns=None)
    report = compare(before, after, policy)
    return report if against is not None else with_change_points(report, _spans_of(earlier, newer))


def _spans_of(*selections: _Selection) -> Iterator[tuple[int, Statistics]]:
    for selection in selections:
        spans = [piece.span for piece in selection.pieces]
        yield from zip(spans, selection.statistics(), strict=True)


class _Selection(NamedTuple):
    """One side of a comparison.

    Attributes:
      dataset: the data set.
      resolved: the definition by which the examples were made.
      label: for people.
      spans: whose columns and excluded runs count.
      pieces: whose examples count.
    """

    dataset: StoredDataset
    resolved: ResolvedDefinition
    label: str
    spans: Sequence[SpanVersion]
    pieces: Sequence[Piece]

    def statistics(self) -> Iterator[Statistics]:
        """Yield the statistics of each piece."""
        return statistics_of_pieces(self.dataset.store, self.resolved, self.pieces)


#: The two sides: before and after.
_Sides = tuple[_Selection, _Selection]


class _SealedDataset(NamedTuple):
    """A data set with the last version of each of its spans, at least one."""

    stored: StoredDataset
    resolved: ResolvedDefinition
    spans: Sequence[SpanVersion]

    @classmethod
    def open(cls, stored: StoredDataset) -> _SealedDataset:
        """Read the state of a data set. Raises `CimlError` if it has no span."""
        state = stored.state()
        spans = state.latest()
        if state.resolved is None or not spans:
            raise CimlError(
                f"data set {stored.name!r} has no sealed span yet: ciml dataset update {stored.name} --seal"
            )
        return cls(stored, state.resolved, spans)

    def select(self, spans: Sequence[SpanVersion], label: str = "") -> _Selection:
        """Select all examples of some spans. They are labelled by the numbers of the spans by default."""
        pieces = [Piece(span.span, span.version, span.files) for span in spans]
        label = label or f"{self.stored.name}, {_span_numbers(spans)}"
        return _Selection(self.stored, self.resolved, label, spans, pieces)


def _compare_with_earlier(dataset: _SealedDataset, last: int) -> _Sides:
    older = dataset.spans[:-last]
    if not older:
        number = len(dataset.spans)
        raise CimlError(
            f"data set {dataset.stored.name!r} has {number} {'span' if number == 1 else 'spans'}, none before the last "
            f"{last}; add runs, or name another data set with --against"
        )
    return dataset.select(older), dataset.select(dataset.spans[-last:])


def _compare_with_dataset(dataset: _SealedDataset, other: _SealedDataset, last: int) -> _Sides:
    """Raises `CimlError` if the features of the two data sets are not comparable."""
    for key in _COMPARABLE_KEYS:
        value = getattr(dataset.resolved.definition, key)
        other_value = getattr(other.resolved.definition, key)
        if value != other_value:
            raise CimlError(
                f"{dataset.stored.name!r} and {other.stored.name!r} cannot be compared: {key} is {value!r} in one, "
                f"{other_value!r} in the other"
            )
    return other.select(other.spans, other.stored.name), dataset.select(dataset.spans[-last:])


def _compare_with_training(dataset: _SealedDataset, data: DataRoot, model: str, last: int | None) -> _Sides:
    """Raises `CimlError` if the model learned another data set, or all spans of this one."""
    name = dataset.stored.name
    snapshot = _champion_snapshot(data, model)
    if snapshot.dataset != name:
        raise CimlError(f"model {model!r} was trained on {snapshot.dataset!r}; use ciml drift {snapshot.dataset}")
    trained_spans = {span.span for span in snapshot.spans}
    newer = [span for span in dataset.spans if span.span > max(trained_spans, default=0)]
    if not newer:
        raise CimlError(f"data set {name!r} has no span that model {model!r} was not trained on")
    pieces = [
        Piece(span.span, span.version, span.files, tuple(run.run_id for run in span.runs)) for span in snapshot.spans
    ]
    spans = [span for span in dataset.spans if span.span in trained_spans]
    trained = _Selection(dataset.stored, snapshot.resolved, f"training runs of {model}", spans, pieces)
    return trained, dataset.select(newer[-last:] if last else newer)


def _champion_snapshot(data: DataRoot, model: str) -> Snapshot:
    """Read the snapshot of a model's champion. Raises `CimlError` without one."""
    from ciml.serving.registry import Registry  # only for a comparison with a model

    state = Registry(data, model).state
    if state.champion is None:
        raise CimlError(f"model {model!r} has no champion in {data.url}; train and push one, or omit --model")
    candidate = state.candidates[state.versions[state.champion].candidate]
    digest = candidate.facts.get("snapshot")
    if not digest:
        raise CimlError(f"model {model!r}: its champion has no recorded snapshot")
    return read_snapshot(data.trainer(model), digest)


def _span_numbers(spans: Sequence[SpanVersion]) -> str:
    first = spans[0].span
    last = spans[-1].span
    return f"span {first}" if first == last else f"spans {first} to {last}"


def _side_of(selection: _Selection, progress: Progress, done: int, total: int) -> Side:
    """Compute the statistics of a selection. ``done`` of ``total`` pieces were reported to ``progress`` before."""

    def reported_statistics() -> Iterator[Statistics]:
        for number, part in enumerate(selection.statistics(), done + 1):
            yield part
            progress("spans", number, total)

    merged = merge(reported_statistics())
    columns = columns_of_spans(selection.dataset.raw(), selection.dataset.store, selection.spans)
    excluded = Counter(exclusion["reason"] for span in selection.spans for exclusion in span.excluded)
    return Side(selection.label, merged, columns, dict(sorted(excluded.items())))


def statistics_of_pieces(root: Store, resolved: ResolvedDefinition, pieces: Sequence[Piece]) -> Iterator[Statistics]:
    """Yield the statistics of each piece of a data set, from the cache or computed and cached.

    Args:
      root: the data set's folder.
      resolved: its definition.
      pieces: the selected examples.

    Raises:
      IntegrityError: if a file of examples is missing or broken.
    """
    paths = [_statistics_path(resolved, piece) for piece in pieces]
    for piece, path, content in zip(pieces, paths, _read_cached(root, paths), strict=True):
        if content is None:
            content = merge(_compute_statistics(root, resolved, piece)).to_json()
            _write_cached(root, path, content)
        yield Statistics.from_json(content)


def _statistics_path(resolved: ResolvedDefinition, piece: Piece) -> str:
    key = {
        "format": _FORMAT,
        "files": {split: [file.to_json() for file in files] for split, files in sorted(piece.files.items())},
        "features": [resolved.windows, list(resolved.features), list(resolved.definition.aggregation_functions)],
        "runs": None if piece.runs is None else sorted(piece.runs),
    }
    return f"{_FOLDER}/span-{piece.span}/version-{piece.version}-{sha256_json(key)[:16]}.json"


def _compute_statistics(root: Store, resolved: ResolvedDefinition, piece: Piece) -> Iterator[Statistics]:
    """Yield the statistics of each file, after empty ones, since a span may have no example."""
    import pyarrow.compute as pc  # takes long to import, and a cached piece does not need it

    names = ["run_id", *columns_needed(resolved)]
    yield statistics(schema_of(resolved).empty_table(), resolved)
    for files in piece.files.values():
        for file in files:
            table = read_examples(root, file, names)
            if piece.runs is not None:
                table = table.filter(pc.is_in(table.column("run_id"), pa.array(piece.runs, pa.string())))
            yield statistics(table, resolved)


def columns_of_spans(raw: Store, root: Store, spans: Sequence[SpanVersion]) -> Columns | None:
    """Count the recorded columns of the selected runs of spans; None if the raw store does not know these runs.

    Raises:
      IntegrityError: if a raw object is missing or broken.
    """
    source = StoredRuns(raw)
    paths = [_columns_path(span) for span in spans]
    total: Columns = {}
    for span, path, content in zip(spans, paths, _read_cached(root, paths), strict=True):
        if content is None:
            columns = _count_columns(source, span)
            if columns is None:
                return None
            content = columns_to_json(columns)
            _write_cached(root, path, content)
        total = add_columns([total, columns_from_json(content)])
    return total


def _columns_path(span: SpanVersion) -> str:
    """Return the path of a span's columns, which its versions share unless a reclaim has replaced a row."""
    key = sha256_json({"format": _FORMAT, "runs": sorted(span.run_ids()), "rows": sorted(span.selected)})
    return f"{_FOLDER}/span-{span.span}/columns-{key[:16]}.json"


def _count_columns(source: StoredRuns, span: SpanVersion) -> Columns | None:
    """Count the columns of a span's selected runs; None if the raw manifest lacks one of the runs."""
    rows: list[RunRecord] = []
    try:
        for version, positions in groupby(span.selected, key=itemgetter(0)):
            stored_rows = source.log.read(version).rows
            rows += [stored_rows[index] for _, index in positions]
    except (FileNotFoundError, IndexError):
        return None
    if not set(span.run_ids()).issuperset(row.mention.run_id for row in rows):
        return None  # the raw store is not that of the data set
    counts: Counter[tuple[str, str, tuple[str, ...]]] = Counter()
    for start in range(0, len(rows), _RUNS_AT_ONCE):
        part = rows[start : start + _RUNS_AT_ONCE]
        for row, names in zip(part, read_columns(source.raw, [row.file for row in part]), strict=True):
            counts[row.mention.build_name, row.mention.provider or "", telemetry_columns(names)] += 1
    return dict(counts)


def _read_cached(root: Store, paths: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """Yield the content of each cached file; None for one that is missing or damaged."""
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        for start in range(0, len(paths), _READ_AHEAD):
            yield from pool.map(partial(_read_sealed, root), paths[start : start + _READ_AHEAD])


def _read_sealed(root: Store, path: str) -> dict[str, Any] | None:
    where = root.url(path)
    try:
        content = root.read(path)
        return read_object(content, where) if seal_of(content, where) else None
    except (FileNotFoundError, IntegrityError):
        return None


def _write_cached(root: Store, path: str, content: Mapping[str, Any]) -> None:
    sealed = seal(canonical_json(content))
    if not root.create(path, sealed):  # a damaged file, or another process has written it meanwhile
        root.replace(path, sealed)
