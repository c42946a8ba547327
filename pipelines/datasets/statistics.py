"""The statistics of a data set's spans, computed once and kept beside them, in ``datasets/NAME/statistics``.

They are a cache: a file's name is derived from its inputs, so it is valid or unused, and all files may be removed. A
later version of a span has other examples, but the same runs with the same columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.datasets.state import ExampleFile, SpanVersion
from ciml.digest import canonical_json, sha256_json
from ciml.errors import IntegrityError
from ciml.events.records import RawFile, RunFacts, rows_of
from ciml.manifest.log import ManifestLog
from ciml.storage.json_seal import read_object, seal
from ciml.storage.open import Store
from ciml.telemetry import telemetry_columns
from ciml.transforms.drift.counts import Columns, add_columns, columns_from_json, columns_to_json
from ciml.transforms.drift.statistics import Statistics, columns_needed, merge, statistics
from ciml.transforms.examples.prepare import schema_of
from ciml.transforms.examples.spans import read_examples
from ciml.transforms.raw.reader import read_runs

FOLDER = "statistics"
_FORMAT = 1
_AHEAD = 16  # spans whose statistics are read concurrently
_RUNS = 500  # raw runs whose columns are read together

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
    for part in _parts(pieces, _AHEAD):
        paths = [_statistics_path(resolved, piece) for piece in part]
        found = _read_all(root, paths, Statistics.from_json)
        for piece, path, known in zip(part, paths, found, strict=True):
            if known is None:
                content = merge(_compute(root, resolved, piece)).to_json()
                _keep(root, path, content)
                known = Statistics.from_json(content)
            yield known


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
    find = _Raw(raw)
    total: Columns = {}
    for part in _parts(spans, _AHEAD):
        paths = [_columns_path(span) for span in part]
        for span, path, known in zip(part, paths, _read_all(root, paths, columns_from_json), strict=True):
            if known is None:
                known = find.columns(span)
                if known is None:
                    return None
                _keep(root, path, columns_to_json(known))
            total = add_columns([total, known])
    return total


def _columns_path(span: SpanVersion) -> str:
    """Return the path of a span's columns: all its versions have the same runs, and the same rows except reclaims."""
    key = sha256_json({"format": _FORMAT, "runs": sorted(span.run_ids()), "rows": sorted(span.selected)})
    return f"{FOLDER}/span-{span.span}/columns-{key[:16]}.json"


class _Raw:
    """Looks up raw records of spans; caches the last manifest version read."""

    def __init__(self, raw: Store) -> None:
        self._raw = raw
        self._log = ManifestLog(raw)
        self._last: tuple[int, Any] = (0, None)

    def _records(self, version: int) -> Any:
        if self._last[0] != version:
            self._last = version, rows_of(self._log.read(version))
        return self._last[1]

    def columns(self, span: SpanVersion) -> Columns | None:
        """Return the columns of a span's selected runs, or None if the raw manifest lacks them."""
        wanted = set(span.run_ids())
        found: Counter[tuple[str, str, tuple[str, ...]]] = Counter()
        for positions in _parts(span.selected, _RUNS):
            facts, files = list[RunFacts](), []
            for version, index in positions:
                try:
                    record = self._records(version)[index]
                except (FileNotFoundError, IndexError):
                    return None
                facts.append(RunFacts.from_json(record["mention"]))
                files.append(RawFile.from_json(record["file"]))
            if not wanted.issuperset(run.run_id for run in facts):
                return None  # not the raw store of the data set
            for run, table in zip(facts, read_runs(self._raw, files), strict=True):
                layout = telemetry_columns(table.column_names)
                found[run.build_name, run.provider or "", layout] += 1
        return dict(found)


def _read_all(root: Store, paths: Sequence[str], parse: Callable[[Mapping[str, Any]], T]) -> list[T | None]:
    with ThreadPoolExecutor(max(1, len(paths))) as pool:
        return list(pool.map(partial(_read, root, parse), paths))


def _read(root: Store, parse: Callable[[Mapping[str, Any]], T], path: str) -> T | None:
    """Read a cached file; return None if it is missing or unusable."""
    try:
        return parse(read_object(root.read(path), root.url(path)))
    except FileNotFoundError:
        return None
    except (IntegrityError, ValueError, KeyError, TypeError, IndexError):
        return None


def _keep(root: Store, path: str, content: Mapping[str, Any]) -> None:
    data = seal(canonical_json(content))
    if not root.create(path, data):  # another process wrote it meanwhile, or it is broken and replaced here
        root.replace(path, data)


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
