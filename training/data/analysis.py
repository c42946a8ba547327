"""Analyses the training examples of spans for normalisation, and caches the analysis of each span.

The analysis of a snapshot is that of its spans, added in their order, so it is the same to the last bit whether a span
is analysed or taken from the cache. A refresh reads for it only spans that are new or have changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from ciml.datasets.definition import ResolvedDefinition
from ciml.digest import canonical_json, sha256_json
from ciml.errors import IntegrityError
from ciml.storage import Store
from ciml.training.data.examples import file_tasks, read_rows
from ciml.training.data.snapshot import Snapshot, SnapshotSpan
from ciml.training.normalise import Normalisation

_FORMAT = 4


class SpanAnalysis(msgspec.Struct, frozen=True):
    """What normalisation needs of a span. Arrays [L, F] are little-endian bytes, base64 in JSON.

    Attributes:
      count: number of training examples.
      total: float64, their sums.
      low, high: float32, their least and largest values.
    """

    count: int
    total: bytes
    low: bytes
    high: bytes

    @classmethod
    def of(cls, parts: Iterable[np.ndarray], windows: int, features: int) -> SpanAnalysis:
        """Analyse the inputs float32 [n, L, F] of the files of a span."""
        count, total = 0, np.zeros((windows, features))
        low, high = (np.full((windows, features), start, np.float32) for start in (np.inf, -np.inf))
        for inputs in parts:
            count += len(inputs)
            total += inputs.sum(axis=0, dtype=np.float64)
            low = np.minimum(low, inputs.min(axis=0, initial=np.inf))
            high = np.maximum(high, inputs.max(axis=0, initial=-np.inf))
        return cls(count, total.astype("<f8").tobytes(), low.astype("<f4").tobytes(), high.astype("<f4").tobytes())


class Analysis(NamedTuple):
    """The analysis of a snapshot.

    Attributes:
      normalisation: of its training examples.
      analysed: number of spans that were analysed.
      cached: number of spans whose analysis was in the cache.
    """

    normalisation: Normalisation
    analysed: int
    cached: int


def analyse(root: Store, snapshot: Snapshot, cache: AnalysisCache | None = None) -> Analysis:
    """Analyse the training examples of a snapshot, one at least, and cache the analysis of each span.

    Raises:
      IntegrityError: if files and snapshot disagree.
    """
    resolved = snapshot.resolved
    spans = [span for span in snapshot.spans if any(run.split == "train" for run in span.runs)]
    keys = {span.span: analysis_key(span, resolved) for span in spans}
    name = cache_key(resolved)
    cached = {} if cache is None else cache.read(name, resolved)
    new = [span for span in spans if keys[span.span] not in cached]
    made = {keys[span.span]: _analyse_span(root, snapshot, span) for span in new}
    analyses = {key: cached.get(key) or made[key] for key in keys.values()}
    if cache is not None and new:
        cache.write(name, analyses)
    return Analysis(normalisation_of(list(analyses.values()), resolved), len(new), len(spans) - len(new))


def _analyse_span(root: Store, snapshot: Snapshot, span: SnapshotSpan) -> SpanAnalysis:
    resolved = snapshot.resolved
    tasks = [task for task in file_tasks(snapshot.replace(spans=(span,))) if task.split == "train"]
    parts = (read_rows(root, task, resolved).inputs for task in tasks)
    analysis = SpanAnalysis.of(parts, resolved.windows, len(resolved.features))
    expected = sum(run.split == "train" for run in span.runs)
    if analysis.count != expected:
        raise IntegrityError(f"the files of span {span.span} lack some of its {expected:,} training runs")
    return analysis


def normalisation_of(analyses: Sequence[SpanAnalysis], resolved: ResolvedDefinition) -> Normalisation:
    """Return the normalisation of all analysed examples, one at least."""
    shape = (len(analyses), resolved.windows, len(resolved.features))
    total = np.frombuffer(b"".join(analysis.total for analysis in analyses), "<f8").reshape(shape).sum(axis=0)
    low = np.frombuffer(b"".join(analysis.low for analysis in analyses), "<f4").reshape(shape).min(axis=0)
    high = np.frombuffer(b"".join(analysis.high for analysis in analyses), "<f4").reshape(shape).max(axis=0)
    return Normalisation.of_range(total / sum(analysis.count for analysis in analyses), low, high)


def cache_key(resolved: ResolvedDefinition) -> str:
    """Return the name of the file of all analyses with a shape."""
    return sha256_json({"format": _FORMAT, "shape": [resolved.windows, list(resolved.features)]})


def analysis_key(span: SnapshotSpan, resolved: ResolvedDefinition) -> str:
    """Return a digest of all that the analysis of a span depends on."""
    return sha256_json(
        {
            "format": _FORMAT,
            "span": [span.span, span.version],
            "runs": [[run.run_id, run.digest] for run in span.runs if run.split == "train"],
            "shape": [resolved.windows, list(resolved.features)],
        }
    )


class AnalysisCache:
    """The files ``<key>.json`` below a store, such as ``DATA/trainer/<model>/analyses``.

    Each has the analyses of one shape. A file that is broken, or has another key, counts as none.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def read(self, key: str, resolved: ResolvedDefinition) -> dict[str, SpanAnalysis]:
        """Return the analyses of spans by `analysis_key`; empty without a usable file."""
        size = resolved.windows * len(resolved.features)
        try:
            analyses = msgspec.convert(self._content(key), dict[str, SpanAnalysis])
        except msgspec.ValidationError:
            return {}
        sizes = {(len(analysis.total), len(analysis.low), len(analysis.high)) for analysis in analyses.values()}
        return analyses if sizes <= {(8 * size, 4 * size, 4 * size)} else {}

    def write(self, key: str, analyses: Mapping[str, SpanAnalysis]) -> None:
        """Replace the analyses of a shape."""
        value = msgspec.to_builtins(analyses)
        self.store.replace(f"{key}.json", canonical_json({"key": key, "digest": sha256_json(value), "analysis": value}))

    def is_whole(self, key: str) -> bool:
        """Return whether a file, also one of an older version, has its key and digest."""
        return self._content(key) is not None

    def _content(self, key: str) -> object:
        try:
            value = json.loads(self.store.read(f"{key}.json"))
            whole = value["key"] == key and value["digest"] == sha256_json(value["analysis"])
            return value["analysis"] if whole else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
