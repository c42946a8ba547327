"""The cache of tf.Transform's analyses, a JSON file a span version.

tf.Transform's own cache files are pickles: a writer of them could run code in the trainer. This cache stores the
analyzers' accumulators, which tf.Transform encodes as JSON, without pickle, beside the data. A broken file, or one
with another key, is ignored.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ciml.digest import canonical_json, sha256_json
from ciml.storage import Store
from ciml.training.data.snapshot import SnapshotSpan

_FORMAT = 1


@dataclass(frozen=True)
class SpanAnalysis:
    """The analyzers' accumulators over the training runs of a span.

    Attributes:
      entries: encoded accumulators by tf.Transform's key of the analyzer.
      size: bytes of the analysed data.
    """

    entries: Mapping[bytes, Sequence[bytes]]
    size: int

    def to_json(self) -> dict[str, Any]:
        entries = {_text(key): [_text(value) for value in values] for key, values in self.entries.items()}
        return {"entries": entries, "size": self.size}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SpanAnalysis:
        entries = {_bytes(key): tuple(_bytes(each) for each in values) for key, values in value["entries"].items()}
        return cls(entries, int(value["size"]))


def analysis_key(span: SnapshotSpan, features: Sequence[str], windows: int, transform: str) -> str:
    """Return the cache key: digest of the span version, its training runs that remain, and the transform."""
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

    def read(self, key: str) -> SpanAnalysis | None:
        """Return the analysis of that key, or None without a usable file."""
        try:
            value = json.loads(self.store.read(f"{key}.json"))
            if value["key"] != key or value["digest"] != sha256_json(value["analysis"]):
                return None
            return SpanAnalysis.from_json(value["analysis"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
            return None

    def write(self, key: str, analysis: SpanAnalysis) -> None:
        """Store an analysis."""
        value = analysis.to_json()
        self.store.replace(f"{key}.json", canonical_json({"key": key, "digest": sha256_json(value), "analysis": value}))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
