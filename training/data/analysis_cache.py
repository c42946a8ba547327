"""The cache of tf.Transform's analyses: a JSON file for each shape of examples, of all spans that were analysed so far.

A refresh analyses new spans only, and adds their accumulators. One file of all spans costs one branch of the pipeline;
a file of each span would cost one for each, which takes longer than to analyse them again.

tf.Transform's own cache files are pickles, so their writer could run code in the trainer. This cache stores the
accumulators of the analyzers, which tf.Transform encodes as JSON. A broken file, or one with another key, is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

from ciml.digest import canonical_json, sha256_json
from ciml.storage import Store
from ciml.training.data.snapshot import SnapshotSpan

_FORMAT = 1


class Analysis(msgspec.Struct, frozen=True):
    """The analyzers' accumulators over the training runs of spans; bytes are base64 in JSON.

    Attributes:
      entries: encoded accumulators by tf.Transform's key of the analyzer. It merges those of an analyzer.
      spans: the `analysis_key` of each span.
    """

    entries: dict[bytes, tuple[bytes, ...]]
    spans: tuple[str, ...] = ()

    def joined(self, other: Analysis) -> Analysis:
        """Return the analysis of the spans of both, which must be different ones."""
        keys = dict.fromkeys((*self.entries, *other.entries))
        entries = {key: (*self.entries.get(key, ()), *other.entries.get(key, ())) for key in keys}
        return Analysis(entries, (*self.spans, *other.spans))


def cache_key(features: Sequence[str], windows: int, transform: str) -> str:
    """Return the name of the analysis of all spans with a shape."""
    return sha256_json({"format": 3, "shape": [windows, list(features)], "transform": transform})


def analysis_key(span: SnapshotSpan, features: Sequence[str], windows: int, transform: str) -> str:
    """Return a digest of a span version, its training runs in the snapshot, the shape and the transform."""
    return sha256_json(
        {
            "format": _FORMAT,
            "span": [span.span, span.version],
            "runs": [[run.run_id, run.digest] for run in span.runs if run.split == "train"],
            "shape": [windows, list(features)],
            "transform": transform,
        }
    )


class AnalysisCache:
    """The files ``<key>.json`` below a store, such as ``DATA/trainer/<model>/analyses``."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def read(self, key: str) -> Analysis | None:
        """Return the analysis of that key, or None without a usable file."""
        try:
            value = json.loads(self.store.read(f"{key}.json"))
            if value["key"] == key and value["digest"] == sha256_json(value["analysis"]):
                return msgspec.convert(value["analysis"], Analysis)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        return None

    def write(self, key: str, analysis: Analysis) -> None:
        """Store an analysis."""
        value = msgspec.to_builtins(analysis)
        self.store.replace(f"{key}.json", canonical_json({"key": key, "digest": sha256_json(value), "analysis": value}))
