"""The kinds of objects below a data root, by their paths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

Kind = Literal[
    "raw deltas", "segments", "checkpoints", "id index", "runs", "packs", "pack deltas", "dead letters",
    "data set deltas", "examples", "experiments", "results", "result predictions", "sweeps", "exclusions", "snapshots",
    "analyses", "training metrics", "registry deltas", "models", "predictions deltas", "feedback deltas", "corrections",
    "derived", "unreferenced", "scratch", "other",
]  # fmt: skip

_DELTA = r"_manifest/[0-9]{12}\.json"
_LOGS = r"(raw|predictions|feedback)/_manifest"
#: The kinds in the order of the work, and the paths of their objects.
KINDS: Mapping[Kind, str] = {
    "raw deltas": rf"raw/{_DELTA}",
    "segments": rf"{_LOGS}/segments/[0-9]{{6}}/[0-9]{{12}}\.jsonl\.zst",
    "checkpoints": rf"{_LOGS}/checkpoints/[0-9]{{12}}\.json",
    "id index": rf"{_LOGS}/index/[0-9a-f]{{32}}\.arrow",
    "runs": r"raw/runs/.+\.parquet",
    "packs": r"raw/packs/.+/[0-9a-f]{32}\.parquet",
    "pack deltas": rf"raw/packs/.+/{_DELTA}",
    "dead letters": r"raw/letters/[0-9a-f]{64}\.json",
    "data set deltas": rf"datasets/[^/]+/{_DELTA}",
    "examples": r"datasets/[^/]+/span-[0-9]+/version-[0-9]+/.+\.parquet",
    "experiments": r"experiments/[^/]+/experiment\.json",
    "results": r"experiments/[^/]+/results/[^/]+/[^/]+/[^/]+\.json",
    "result predictions": r"experiments/[^/]+/results/[^/]+/[^/]+/predictions-[0-9a-f]{16}\.parquet",
    "sweeps": r"sweeps/[^/]+/(sweep|trials/[0-9]{6,}|baselines/[0-9]+)\.json",
    "exclusions": rf"exclusions/{_DELTA}",
    "snapshots": r"trainer/[^/]+/snapshots/[0-9a-f]{64}\.json",
    "analyses": r"trainer/[^/]+/analyses/[0-9a-f]{64}\.json",
    "training metrics": r"trainer/[^/]+/metrics/[^/]+\.json",
    "registry deltas": rf"registry/[^/]+/{_DELTA}",
    "models": r"models/[^/]+/[0-9]+/.+",
    "predictions deltas": rf"predictions/{_DELTA}",
    "feedback deltas": rf"feedback/{_DELTA}",
    "corrections": rf"feedback/corrections/{_DELTA}",
    # Written again from the others when they are needed; not verified.
    "derived": r"models/models\.config|raw/packs/compaction\.json|datasets/[^/]+/statistics/.+"
    r"|datasets/[^/]+/_definition\.toml|datasets/[^/]+/_analyses/.+|predictions/evidence/.+|demo/.+"
    r"|datasets/[^/]+/_replay|predictions/_neighbours|feedback/_causes"
    r"|(raw|datasets|tables)/(.+/)?_delta_log/.+|tables/.+|lineage/.+",
    "unreferenced": r"raw/swept/.+",
    "scratch": r"trainer/[^/]+/work/.+|models/[^/]+/staging-.+|datasets/[^/]+/results/.+",
    "other": r".*",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}


def kind_of(path: str) -> Kind:
    """Return the kind of an object by its path below the data root."""
    return next(kind for kind in _candidates(path.partition("/")[0]) if _PATTERNS[kind].fullmatch(path))


@lru_cache(maxsize=64)
def _candidates(folder: str) -> tuple[Kind, ...]:
    """Return the kinds that may be in a folder: most objects are runs, and need not be compared with all patterns."""
    return tuple(kind for kind, pattern in KINDS.items() if folder in pattern or kind == "other")
