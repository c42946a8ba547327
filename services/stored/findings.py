"""What an examination of a data root finds: its objects by kind, and what is wrong with them.

The *kind* of an object follows from its path below the data root.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from ciml.errors import CimlError, EngineError
from ciml.manifest.verify import Findings

Kind = Literal[
    "raw deltas",
    "segments",
    "checkpoints",
    "id index",
    "runs",
    "packs",
    "pack deltas",
    "dead letters",
    "data set deltas",
    "examples",
    "experiments",
    "results",
    "result predictions",
    "sweeps",
    "exclusions",
    "snapshots",
    "analyses",
    "training metrics",
    "registry deltas",
    "models",
    "predictions deltas",
    "feedback deltas",
    "corrections",
    "derived",
    "unreferenced",
    "scratch",
    "other",
]

_DELTA_PATH = r"_manifest/[0-9]{12}\.json"
_LOGS = r"(raw|predictions|feedback)/_manifest"
#: The kinds in the order of the work, and the paths of their objects.
KINDS: Mapping[Kind, str] = {
    "raw deltas": rf"raw/{_DELTA_PATH}",
    "segments": rf"{_LOGS}/segments/[0-9]{{6}}/[0-9]{{12}}\.jsonl\.zst",
    "checkpoints": rf"{_LOGS}/checkpoints/[0-9]{{12}}\.json",
    "id index": rf"{_LOGS}/index/[0-9a-f]{{32}}\.arrow",
    "runs": r"raw/runs/.+\.parquet",
    "packs": r"raw/packs/.+/[0-9a-f]{32}\.parquet",
    "pack deltas": rf"raw/packs/.+/{_DELTA_PATH}",
    "dead letters": r"raw/letters/[0-9a-f]{64}\.json",
    "data set deltas": rf"datasets/[^/]+/{_DELTA_PATH}",
    "examples": r"datasets/[^/]+/span-[0-9]+/version-[0-9]+/.+\.parquet",
    "experiments": r"experiments/[^/]+/experiment\.json",
    "results": r"experiments/[^/]+/results/[^/]+/[^/]+/[^/]+\.json",
    "result predictions": r"experiments/[^/]+/results/[^/]+/[^/]+/predictions-[0-9a-f]{16}\.parquet",
    "sweeps": r"sweeps/[^/]+/(sweep|trials/[0-9]{6,}|baselines/[0-9]+)\.json",
    "exclusions": rf"exclusions/{_DELTA_PATH}",
    "snapshots": r"trainer/[^/]+/snapshots/[0-9a-f]{64}\.json",
    "analyses": r"trainer/[^/]+/analyses/[0-9a-f]{64}\.json",
    "training metrics": r"trainer/[^/]+/metrics/[^/]+\.json",
    "registry deltas": rf"registry/[^/]+/{_DELTA_PATH}",
    "models": r"models/[^/]+/[0-9]+/.+",
    "predictions deltas": rf"predictions/{_DELTA_PATH}",
    "feedback deltas": rf"feedback/{_DELTA_PATH}",
    "corrections": rf"feedback/corrections/{_DELTA_PATH}",
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
    return next(kind for kind in _kinds_in(path.partition("/")[0]) if _PATTERNS[kind].fullmatch(path))


@lru_cache(maxsize=64)
def _kinds_in(folder: str) -> tuple[Kind, ...]:
    """Return the kinds that may be in a folder, so that a run's path need not be compared with all patterns."""
    return tuple(kind for kind, pattern in KINDS.items() if folder in pattern or kind == "other")


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
        """Return the kinds with objects or faults, in the order of `KINDS`."""
        return [kind for kind in KINDS if self.objects[kind] or self.broken[kind]]

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
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            # JSON of another form than that of its kind.
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
