"""Materialises a snapshot: writes its normalised examples as TFRecord files, and tf.Transform's transform.

The work is a batch pipeline (`ciml.training.data.materialise_beam`), imported lazily, since the import takes seconds.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ciml.errors import IntegrityError
from ciml.storage import Store
from ciml.training.data.analysis import AnalysisCache, analyse
from ciml.training.data.snapshot import RECORDS_FOLDER, ROLES, TRANSFORM_FOLDER, Role, Snapshot, no_training_runs

_MANIFEST = "materialised.json"


@dataclass(frozen=True)
class Materialised:
    """Normalised examples on local disk.

    Attributes:
      folder: the root of all files.
      snapshot: digest of the snapshot.
      counts: number of examples by role.
      shards: names of the files by role, in order. They are TFRecords of ``tf.Example`` with ``inputs`` (L * F floats,
        row after row), ``n_windows``, ``label`` and ``ordinal`` (the run's position in `Snapshot.runs()`).
      analysed: number of spans whose analysis was computed.
      cached: number of spans whose analysis was cached.
    """

    folder: Path
    snapshot: str
    counts: Mapping[Role, int]
    shards: Mapping[Role, tuple[str, ...]]
    analysed: int
    cached: int

    @property
    def transform_folder(self) -> Path:
        """The folder for ``tft.TFTransformOutput``."""
        return self.folder / TRANSFORM_FOLDER

    def paths(self, role: Role) -> list[str]:
        """Return the file paths of a role, in order."""
        return [str(self.folder / RECORDS_FOLDER / shard) for shard in self.shards[role]]


def materialise(root: Store, snapshot: Snapshot, folder: Path, *, cache: AnalysisCache | None = None) -> Materialised:
    """Write the normalised examples of a snapshot and the transform.

    Args:
      root: the folder of the snapshot's data set.
      snapshot: the runs to write.
      folder: on local disk; recreated.
      cache: analyses by span; None analyses every span.

    Raises:
      CimlError: if the snapshot has no training run.
      IntegrityError: if files and snapshot disagree.
    """
    expected: Counter[Role] = Counter(run.role for run in snapshot.runs())
    if not any(run.split == "train" for run in snapshot.runs()):
        raise no_training_runs(snapshot)
    from ciml.training.data.materialise_beam import run_pipeline

    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    analysis = analyse(root, snapshot, cache)
    run_pipeline(root, snapshot, folder, analysis.normalisation)
    shards = _shards(folder / RECORDS_FOLDER)
    counts = {role: sum(shards[role].values()) for role in ROLES}
    if counts != {role: expected[role] for role in ROLES}:
        raise IntegrityError(f"materialised {counts}, but the snapshot has {dict(expected)}: its files lack runs")
    names = {role: tuple(sorted(shards[role])) for role in ROLES}
    materialised = Materialised(folder, snapshot.digest, counts, names, analysis.analysed, analysis.cached)
    manifest = {name: value for name, value in asdict(materialised).items() if name != "folder"}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))  # last: marks the folder as complete
    return materialised


def is_materialised(folder: Path) -> bool:
    """Return whether `materialise` completed a folder."""
    return (folder / _MANIFEST).is_file()


def _shards(folder: Path) -> dict[Role, dict[str, int]]:
    """Return the number of rows of each file by role and name; see `ciml.training.data.snapshot.shard_name`."""
    rows: dict[Role, dict[str, int]] = {role: {} for role in ROLES}
    for role in ROLES:
        for path in (folder / role).glob("*.tfrecord"):
            rows[role][f"{role}/{path.name}"] = int(path.stem.partition("-")[2])
    return rows
