"""Validates a data set: statistics of its spans, and drift against earlier spans, another data set or a model's runs.

Statistics are computed once and stored in ``datasets/NAME/statistics``. They are a cache: a file's name is derived from
its inputs, so it is valid or unused, and all files may be removed. A later version of a span has other examples, but
the same runs with the same columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import count
from typing import Any, TypeVar

import pyarrow as pa

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.definition import ResolvedDefinition
from ciml.datasets.schema import schema_of
from ciml.datasets.state import DatasetState, ExampleFile, SpanVersion
from ciml.digest import canonical_json, sha256_json
from ciml.errors import CimlError, IntegrityError
from ciml.pipelines.datasets.update import StoredRuns
from ciml.progress import Progress
from ciml.runs.reader import read_columns
from ciml.runs.run_log import RunDelta
from ciml.storage import Store
from ciml.storage.json_files import read_object, seal
from ciml.telemetry import telemetry_columns
from ciml.training.data.snapshot import Snapshot, read_snapshot
from ciml.transforms.drift.compare import Report, Side, compare
from ciml.transforms.drift.counts import Columns, add_columns, columns_from_json, columns_to_json
from ciml.transforms.drift.detect import DriftPolicy
from ciml.transforms.drift.statistics import Statistics, columns_needed, merge, statistics
from ciml.transforms.examples.spans import read_examples

FOLDER = "statistics"
_FORMAT = 1
_AHEAD = 16  # spans whose statistics are read concurrently
_RUNS = 500  # raw runs whose columns are read together

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Piece:
    """The selected examples of one span: all of a version, or the runs of a snapshot."""

    span: int
    version: int
    files: Mapping[str, Sequence[ExampleFile]]
    runs: tuple[str, ...] | None = None


def kept_statistics(root: Store, resolved: ResolvedDefinition, pieces: Sequence[Piece]) -> Iterator[Statistics]:
    """Yield the statistics of each piece of a data set, from the cache or computed and cached.

    Args:
      root: the data set's folder.
      resolved: its definition.
      pieces: the selected examples.

    Raises:
      IntegrityError: if a file of examples is missing or broken.
    """

    def computed(piece: Piece) -> dict[str, Any]:
        return merge(_compute(root, resolved, piece)).to_json()

    for entry in _kept(root, pieces, partial(_statistics_path, resolved), Statistics.from_json, computed):
        if entry is not None:
            yield entry


def _statistics_path(resolved: ResolvedDefinition, piece: Piece) -> str:
    key = {
        "format": _FORMAT,
        "files": {split: [file.to_json() for file in files] for split, files in sorted(piece.files.items())},
        "features": [resolved.windows, list(resolved.features), list(resolved.definition.aggregation_functions)],
        "runs": None if piece.runs is None else sorted(piece.runs),
    }
    return f"{FOLDER}/span-{piece.span}/version-{piece.version}-{sha256_json(key)[:16]}.json"


def _compute(root: Store, resolved: ResolvedDefinition, piece: Piece) -> Iterator[Statistics]:
    """Yield the statistics of each file, after empty ones, since a span may have no example."""
    names = ["run_id", *columns_needed(resolved)]
    yield statistics(schema_of(resolved).empty_table(), resolved)
    for files in piece.files.values():
        for file in files:
            table = read_examples(root, file, names)
            if piece.runs is not None:
                table = table.filter(_is_in(table, piece.runs))
            yield statistics(table, resolved)


def _is_in(table: pa.Table, runs: Sequence[str]) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    return pc.is_in(table.column("run_id"), pa.array(runs, pa.string()))


def kept_columns(raw: Store, root: Store, spans: Sequence[SpanVersion]) -> Columns | None:
    """Return the recorded columns of the selected runs of spans, or None if the raw store does not know them.

    Raises:
      IntegrityError: if a raw object is missing or broken.
    """
    source = StoredRuns(raw)
    read = lru_cache(maxsize=1)(source.log.read)
    computed = partial(_columns_of, source, read)
    total: Columns = {}
    for columns in _kept(root, spans, _columns_path, columns_from_json, computed):
        if columns is None:
            return None
        total = add_columns([total, columns])
    return total


def _columns_path(span: SpanVersion) -> str:
    """Return the path of a span's columns: all its versions have the same runs, and the same rows except reclaims."""
    key = sha256_json({"format": _FORMAT, "runs": sorted(span.run_ids()), "rows": sorted(span.selected)})
    return f"{FOLDER}/span-{span.span}/columns-{key[:16]}.json"


def _columns_of(source: StoredRuns, read: Callable[[int], RunDelta], span: SpanVersion) -> dict[str, Any] | None:
    """Return the columns of a span's selected runs as JSON values, or None if the raw manifest lacks them."""
    run_ids = set(span.run_ids())
    counts: Counter[tuple[str, str, tuple[str, ...]]] = Counter()
    for positions in _parts(span.selected, _RUNS):
        try:
            rows = [read(version).rows[index] for version, index in positions]
        except (FileNotFoundError, IndexError):
            return None
        if not run_ids.issuperset(row.mention.run_id for row in rows):
            return None  # not the raw store of the data set
        for row, names in zip(rows, read_columns(source.raw, [row.file for row in rows]), strict=True):
            counts[row.mention.build_name, row.mention.provider or "", telemetry_columns(names)] += 1
    return columns_to_json(dict(counts))


def _kept(
    root: Store,
    items: Sequence[K],
    path_of: Callable[[K], str],
    parse: Callable[[Mapping[str, Any]], T],
    compute: Callable[[K], Mapping[str, Any] | None],
) -> Iterator[T | None]:
    """Yield the cached content of each item; content that is missing is computed and cached, unless it is None."""
    for part in _parts(items, _AHEAD):
        paths = [path_of(item) for item in part]
        with ThreadPoolExecutor(_AHEAD) as pool:
            stored = list(pool.map(partial(_read, root, parse), paths))
        for item, path, entry in zip(part, paths, stored, strict=True):
            if entry is None and (content := compute(item)) is not None:
                data = seal(canonical_json(content))
                if not root.create(path, data):  # another process wrote it meanwhile, or it is broken and replaced here
                    root.replace(path, data)
                entry = parse(content)
            yield entry


def _read(root: Store, parse: Callable[[Mapping[str, Any]], T], path: str) -> T | None:
    """Read a cached file; return None if it is missing or unusable."""
    try:
        return parse(read_object(root.read(path), root.url(path)))
    except FileNotFoundError:
        return None
    except (IntegrityError, ValueError, KeyError, TypeError, IndexError):
        return None


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def validate_dataset(
    data: DataRoot,
    name: str,
    *,
    last: int | None = None,
    against: str | None = None,
    model: str | None = None,
    policy: DriftPolicy | None = None,
    progress: Progress | None = None,
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
    dataset = data.dataset(name)
    state = dataset.state()
    spans = state.latest()
    resolved = _resolved(name, state)
    if model is not None:
        snapshot = champions_snapshot(data, model)
        if snapshot.dataset != name:
            raise CimlError(f"model {model!r} was trained on {snapshot.dataset!r}; use ciml drift {snapshot.dataset}")
        snapshot_spans = {span.span for span in snapshot.spans}
        newest = [span for span in spans if span.span > max(snapshot_spans, default=0)][-(last or len(spans)) :]
        if not newest:
            raise CimlError(f"data set {name!r} has no span that model {model!r} was not trained on")
        pieces = [Piece(s.span, s.version, s.files, tuple(run.run_id for run in s.runs)) for s in snapshot.spans]
        older = [span for span in spans if span.span in snapshot_spans]
        base = _Selection(dataset, snapshot.resolved, f"training runs of {model}", older, pieces)
    elif against is not None:
        newest = spans[-(last or 1) :]
        other_state = data.dataset(against).state()
        base = _Selection(data.dataset(against), _resolved(against, other_state), against, other_state.latest())
        _check_alike(name, resolved, against, base.resolved)
    else:
        last = last or 1
        newest = spans[-last:]
        if not (older := spans[:-last]):
            raise CimlError(
                f"data set {name!r} has {_count(spans)}, none before the last {last}; add runs, "
                "or name another data set with --against"
            )
        base = _Selection(dataset, resolved, f"{name}, {_spans(older)}", older)
    compared = _Selection(dataset, resolved, f"{name}, {_spans(newest)}", newest)
    total = len(base.pieces) + len(compared.pieces)
    numbers = count(1)

    def done() -> None:
        if progress:
            progress("spans", next(numbers), total)

    before = base.side(done)
    after = compared.side(done)
    if before.columns is None or after.columns is None:
        before = replace(before, columns=None)
        after = replace(after, columns=None)
    return compare(before, after, policy)


@dataclass
class _Selection:
    """Spans of a data set that are compared, or the ``pieces`` of them that are selected."""

    dataset: StoredDataset
    resolved: ResolvedDefinition
    label: str
    spans: Sequence[SpanVersion]
    pieces: Sequence[Piece] = ()

    def __post_init__(self) -> None:
        self.pieces = self.pieces or [Piece(span.span, span.version, span.files) for span in self.spans]

    def side(self, done: Callable[[], None]) -> Side:
        """Return the statistics; ``done`` is called after each piece."""

        def counted() -> Iterator[Statistics]:
            for entry in kept_statistics(self.dataset.store, self.resolved, self.pieces):
                yield entry
                done()

        merged = merge(counted())
        columns = kept_columns(self.dataset.raw(), self.dataset.store, self.spans)
        excluded = Counter(exclusion["reason"] for span in self.spans for exclusion in span.excluded)
        return Side(self.label, merged, columns, dict(sorted(excluded.items())))


def _resolved(name: str, state: DatasetState) -> ResolvedDefinition:
    if state.resolved is None or not state.spans:
        raise CimlError(f"data set {name!r} has no sealed span yet: ciml dataset update {name} --seal")
    return state.resolved


def _check_alike(name: str, one: ResolvedDefinition, against: str, other: ResolvedDefinition) -> None:
    """Raise `CimlError` if the features of two data sets are not comparable."""
    for key in ("sample_interval", "sample_statistic", "aggregation_functions", "count_first_sample"):
        value = getattr(one.definition, key)
        base_value = getattr(other.definition, key)
        if value != base_value:
            raise CimlError(
                f"{name!r} and {against!r} cannot be compared: {key} is {value!r} in one, {base_value!r} in the other"
            )


def _spans(spans: Sequence[SpanVersion]) -> str:
    first = spans[0].span
    last = spans[-1].span
    return f"span {first}" if first == last else f"spans {first} to {last}"


def _count(spans: Sequence[SpanVersion]) -> str:
    return "1 span" if len(spans) == 1 else f"{len(spans)} spans"


def champions_snapshot(data: DataRoot, model: str) -> Snapshot:
    """Return the champion's snapshot. Raises `CimlError` without a champion."""
    from ciml.serving.registry import Registry

    state = Registry(data, model).state
    if state.champion is None:
        raise CimlError(f"model {model!r} has no champion in {data.url}; train and push one, or omit --model")
    candidate = state.candidates[state.versions[state.champion].candidate]
    if not (digest := candidate.facts.get("snapshot")):
        raise CimlError(f"model {model!r}: its champion has no recorded snapshot")
    return read_snapshot(data.trainer(model), digest)
