"""Materialising: a snapshot becomes normalised TFRecord files and the transform that made them.

The work is a batch pipeline (`training.data.materialise_beam`), imported when it is called, for it costs seconds.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciml.errors import CimlError, IntegrityError
from ciml.storage.open import Store
from training.data.layout import RECORDS_FOLDER, TRANSFORM_FOLDER
from training.data.snapshot import ROLES, Role, Snapshot

if TYPE_CHECKING:
    from training.data.analysis_cache import AnalysisCache

_MANIFEST = "materialised.json"


@dataclass(frozen=True)
class Materialised:
    """Normalised examples on local disk.

    Attributes:
      folder: holds all of it.
      snapshot: digest of the snapshot.
      counts: how many examples there are of each role.
      shards: their files, in order: TFRecord of ``tf.Example`` with ``inputs`` (L * F floats, row after row),
        ``n_windows``, ``label`` and ``ordinal`` (the run's place in `Snapshot.runs()`).
      analysed: spans that were analysed now.
      cached: spans whose analysis was there already.
    """

    folder: Path
    snapshot: str
    counts: Mapping[Role, int]
    shards: Mapping[Role, tuple[str, ...]]
    analysed: int
    cached: int

    @property
    def transform_folder(self) -> Path:
        """What ``tft.TFTransformOutput`` reads."""
        return self.folder / TRANSFORM_FOLDER

    def paths(self, role: Role) -> list[str]:
        """Return the files of a role, in order."""
        return [str(self.folder / RECORDS_FOLDER / shard) for shard in self.shards[role]]

    def to_json(self) -> dict[str, Any]:
        return {
            "snapshot": self.snapshot,
            "counts": dict(self.counts),
            "shards": {role: list(shards) for role, shards in self.shards.items()},
            "analysed": self.analysed,
            "cached": self.cached,
        }


def materialise(
    root: Store, snapshot: Snapshot, folder: Path, *, cache: AnalysisCache | None = None, runner: Any = None
) -> Materialised:
    """Write the normalised examples of a snapshot, and the transform.

    Args:
      root: the folder of the snapshot's data set.
      snapshot: what to write.
      folder: on local disk; made anew. Workers of a ``runner`` of one's own have to see it.
      cache: of analyses by span; None analyses everything.
      runner: a Beam runner; None runs in this process.

    Raises:
      CimlError: when the snapshot has no training run.
      IntegrityError: when files and snapshot do not agree.
    """
    wanted: Counter[Role] = Counter(run.role for run in snapshot.runs())
    if not any(run.split == "train" for run in snapshot.runs()):
        turned_away = sum(snapshot.untrusted.values())
        raise CimlError(
            f"data set {snapshot.dataset!r} has no run to train on: {turned_away} of its examples are untrusted, "
            f"{wanted['test']} are for tests"
        )
    from training.data.materialise_beam import run_pipeline

    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    analysed, cached = run_pipeline(root, snapshot, folder, cache=cache, runner=runner)
    shards = _shards(folder / RECORDS_FOLDER)
    counts: dict[Role, int] = {role: sum(shards[role].values()) for role in ROLES}
    if counts != {role: wanted[role] for role in ROLES}:
        raise IntegrityError(f"materialised {counts} of the snapshot's {dict(wanted)}: its files lack runs")
    done = Materialised(
        folder, snapshot.digest, counts, {role: tuple(sorted(shards[role])) for role in ROLES}, analysed, cached
    )
    (folder / _MANIFEST).write_text(json.dumps(done.to_json(), indent=1))  # last: with it the folder is whole
    return done


def is_materialised(folder: Path) -> bool:
    """Return whether a folder was written by `materialise`, to its end."""
    return (folder / _MANIFEST).is_file()


def _shards(folder: Path) -> dict[Role, dict[str, int]]:
    """Return the rows of each file, by role."""
    found: dict[Role, dict[str, int]] = {role: {} for role in ROLES}
    for role in ROLES:
        for path in (folder / role).glob("*.tfrecord"):
            found[role][f"{role}/{path.name}"] = int(path.stem.partition("-")[2])
    return found
