"""What an examination of a data root finds: its objects by kind, and what is wrong with them.

The *kind* of an object follows from its path below the data root.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Self

from ciml.errors import CimlError, EngineError
from ciml.manifest.verify import Findings

_DELTA_PATH = r"_manifest/[0-9]{12}\.json"
_LOGS = r"(raw|predictions|feedback)/_manifest"


class Kind(StrEnum):
    """The kinds of objects in the order of the work, each with the pattern of its paths."""

    pattern: re.Pattern[str]

    def __new__(cls, name: str, pattern: str) -> Self:
        kind = str.__new__(cls, name)
        kind._value_ = name
        kind.pattern = re.compile(pattern)
        return kind

    RAW_DELTAS = "raw deltas", rf"raw/{_DELTA_PATH}"
    SEGMENTS = "segments", rf"{_LOGS}/segments/[0-9]{{6}}/[0-9]{{12}}\.jsonl\.zst"
    CHECKPOINTS = "checkpoints", rf"{_LOGS}/checkpoints/[0-9]{{12}}\.json"
    ID_INDEX = "id index", rf"{_LOGS}/index/[0-9a-f]{{32}}\.arrow"
    RUNS = "runs", r"raw/runs/.+\.parquet"
    PACKS = "packs", r"raw/packs/.+/[0-9a-f]{32}\.parquet"
    PACK_DELTAS = "pack deltas", rf"raw/packs/.+/{_DELTA_PATH}"
    OUTPUTS = "outputs", r"raw/outputs/(text|templates)/.+\.zst"
    DEAD_LETTERS = "dead letters", r"raw/letters/[0-9a-f]{64}\.json"
    DATA_SET_DELTAS = "data set deltas", rf"datasets/[^/]+/{_DELTA_PATH}"
    EXAMPLES = "examples", r"datasets/[^/]+/span-[0-9]+/version-[0-9]+/.+\.parquet"
    EXPERIMENTS = "experiments", r"experiments/[^/]+/experiment\.json"
    RESULTS = "results", r"experiments/[^/]+/results/[^/]+/[^/]+/[^/]+\.json"
    RESULT_PREDICTIONS = (
        "result predictions",
        r"experiments/[^/]+/results/[^/]+/[^/]+/predictions-[0-9a-f]{16}\.parquet",
    )
    SWEEPS = "sweeps", r"sweeps/[^/]+/(sweep|trials/[0-9]{6,}|baselines/[0-9]+)\.json"
    EXCLUSIONS = "exclusions", rf"exclusions/{_DELTA_PATH}"
    TRUST = "trust policies", rf"trust/{_DELTA_PATH}"
    ERASURES = "erasures", rf"erasures/({_DELTA_PATH}|plan\.json)"
    FAILURE_NOTES = "failure notes", rf"failures/{_DELTA_PATH}"
    SNAPSHOTS = "snapshots", r"trainer/[^/]+/snapshots/[0-9a-f]{64}\.json"
    ANALYSES = "analyses", r"trainer/[^/]+/analyses/[0-9a-f]{64}\.json"
    TRAINING_METRICS = "training metrics", r"trainer/[^/]+/metrics/[^/]+\.json"
    REGISTRY_DELTAS = "registry deltas", rf"registry/[^/]+/{_DELTA_PATH}"
    MODELS = "models", r"models/[^/]+/[0-9]+/.+"
    PREDICTIONS_DELTAS = "predictions deltas", rf"predictions/{_DELTA_PATH}"
    FEEDBACK_DELTAS = "feedback deltas", rf"feedback/{_DELTA_PATH}"
    CORRECTIONS = "corrections", rf"feedback/corrections/{_DELTA_PATH}"
    # Written again from the others when they are needed; not verified.
    DERIVED = (
        "derived",
        r"models/models\.config|raw/packs/compaction\.json|raw/outputs/retention\.json|datasets/[^/]+/statistics/.+"
        r"|datasets/[^/]+/_definition\.toml|datasets/[^/]+/_analyses/.+|predictions/evidence/.+|demo/.+"
        r"|datasets/[^/]+/_replay|predictions/_neighbours|feedback/_causes|failures/_signatures"
        r"|(raw|datasets|tables)/(.+/)?_delta_log/.+|tables/.+|lineage/.+|(raw|predictions|feedback)/_manifest/rewritten",
    )
    UNREFERENCED = "unreferenced", r"raw/swept/.+"
    SCRATCH = "scratch", r"trainer/[^/]+/work/.+|models/[^/]+/staging-.+|datasets/[^/]+/results/.+"
    OTHER = "other", r".*"


def kind_of(path: str) -> Kind:
    """Return the kind of an object by its path below the data root."""
    return next(kind for kind in _kinds_in(path.partition("/")[0]) if kind.pattern.fullmatch(path))


@lru_cache(maxsize=64)
def _kinds_in(folder: str) -> tuple[Kind, ...]:
    """Return the kinds that may be in a folder, so that a run's path need not be compared with all patterns."""
    return tuple(kind for kind in Kind if folder in kind.pattern.pattern or kind is Kind.OTHER)


@dataclass(slots=True)
class RootFindings(Findings):
    """The objects of a data root, and what is wrong with them.

    Attributes:
      objects: objects by kind, as listed.
      read: the kinds that were read completely. Where a manifest is damaged, the objects that it names are not read.
      rewritten: objects by kind that `ciml.services.stored.examine.rewrite` makes again.
    """

    objects: Counter[Kind] = field(default_factory=Counter)
    read: set[Kind] = field(default_factory=set)
    rewritten: Counter[Kind] = field(default_factory=Counter)

    def present(self) -> list[Kind]:
        """Return the kinds with objects or faults, in the order of `Kind`."""
        return [kind for kind in Kind if self.objects[kind] or self.broken[kind]]

    @contextmanager
    def guard(self, kind: Kind, where: str) -> Iterator[None]:
        """Turn an error of reading into a fault, so that a broken object affects only itself.

        Args:
          kind: the kind of object that is read.
          where: begins the fault's line.

        Raises:
          EngineError: the store does not answer.
        """
        try:
            yield
        except EngineError:
            raise
        except CimlError as error:
            self.add_fault(kind, f"{where}: {error}")
        except (LookupError, TypeError, ValueError, AttributeError, FileNotFoundError) as error:
            # JSON of another form than that of its kind; or an object that is missing, or was removed meanwhile.
            self.add_fault(kind, f"{where} cannot be read: {type(error).__name__}: {error}")

    def verified(self, kind: Kind) -> int | None:
        """Return the number of verified objects of a kind; None for one that was not read."""
        if kind not in self.read:
            return None
        formats = self.formats.get(kind)
        return max(0, self.objects[kind] - self.broken[kind]) if formats is None else formats.total()

    def formats_of(self, kind: Kind) -> dict[str, int]:
        """Return the number of verified objects of a kind by format."""
        formats = self.formats.get(kind)
        verified = self.verified(kind)
        return dict(sorted(formats.items())) if formats else {"1": verified} if verified else {}
