"""Packs: the runs of one job and day in one file, and the small manifest that says which packs there are.

A manifest's path of a run is its *name*: ``runs/<folder>/<file>``, where the folder is ``job=…/date=…``. The run is
read from the object of that name, or from a pack of the same folder that holds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any

from ciml.errors import IntegrityError
from ciml.events.records import LISTS, Record
from ciml.manifest.log import Delta, ManifestLog
from ciml.storage.open import Store

RUNS, PACKS = "runs", "packs"
#: Where unnamed objects wait before they are gone for good: ``swept/runs/job=…``.
SWEPT = "swept"


def split_path(path: str) -> tuple[str, str] | None:
    """Return (folder, file name) of a run's path; None for a path that is no run's, and so never in a pack."""
    prefix, _, name = path.rpartition("/")
    folder = _folder(prefix)
    return None if folder is None else (folder, name)


@lru_cache(maxsize=4096)
def _folder(prefix: str) -> str | None:
    parts = prefix.split("/")
    if len(parts) != 3 or parts[0] != RUNS or not parts[1].startswith("job=") or not parts[2].startswith("date="):
        return None
    return f"{parts[1]}/{parts[2]}"


def run_of(name: str) -> str:
    """Return the run id in a file name ``<run id>.<digest>.parquet``."""
    return name.rsplit(".", 2)[0]


def day_ends_s(folder: str) -> float:
    """When the day of a folder is over, epoch seconds; never for what is no day."""
    try:
        day = date.fromisoformat(folder.rpartition("/date=")[2])
        return (datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)).timestamp()
    except (ValueError, OverflowError):
        return float("inf")


class NamedRun(Record, frozen=True, gc=False):
    """A raw object as a raw manifest names it: of a run, or the other log of a run that is told again."""

    folder: str
    name: str
    digest: str
    rows: int

    @property
    def path(self) -> str:
        return f"{RUNS}/{self.folder}/{self.name}"

    @property
    def run_id(self) -> str:
        return run_of(self.name)


def named_runs(delta: Delta) -> Iterator[NamedRun]:
    """Yield all raw objects that a delta of the raw manifest names, whatever the record."""
    for list_name in LISTS.values():
        for record in delta.get(list_name, ()):
            file = record.get("file")
            if file is not None and (place := split_path(file["path"])) is not None:
                yield NamedRun(*place, file["digest"], file["rows"])


@dataclass(frozen=True, slots=True)
class PackFile:
    """One pack, as its folder's manifest describes it.

    Attributes:
      path: below the raw store; the name is the head of the bytes' sha256.
      size: of the object, bytes.
      footer: the last so many bytes are Parquet's own description of the file.
      footer_digest: the head of their sha256: what describes a file is believed only when it is whole.
      rows: of all runs.
      runs: how many.
      columns: a digest of the names and types of the columns, which all its runs share.
    """

    path: str
    size: int
    footer: int
    footer_digest: str
    rows: int
    runs: int
    columns: str

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "size": self.size,
            "footer": self.footer,
            "footer_digest": self.footer_digest,
            "rows": self.rows,
            "runs": self.runs,
            "columns": self.columns,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PackFile:
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Alone:
    """A run that stays an object of its own: ``why`` is "" where there were too few, else what is wrong with it."""

    digest: str
    rows: int
    why: str = ""

    def to_json(self) -> list[Any]:
        return [self.digest, self.rows, self.why]


class PackState:
    """What the deltas of a folder's pack manifest add up to.

    Attributes:
      version: that of the last delta applied, 0 for a folder without packs.
      packs: the present packs by path, in the order in which they came.
      replaced: the packs that others have taken the place of, by path. Their objects go after a while.
      since_us: when each of either was committed or replaced.
      alone: the runs that were looked at and left as objects of their own, by name.
    """

    def __init__(self) -> None:
        self.version = 0
        self.packs: dict[str, PackFile] = {}
        self.replaced: dict[str, PackFile] = {}
        self.since_us: dict[str, int] = {}
        self.alone: dict[str, Alone] = {}

    def apply(self, version: int, delta: Delta) -> None:
        """Take in the delta that follows. Raises `IntegrityError` when it does not."""
        if version != self.version + 1:
            raise IntegrityError(f"pack manifest: version {version} after {self.version}")
        for path in delta["replaces"]:
            if path not in self.packs:
                raise IntegrityError(f"pack manifest: version {version} replaces {path}, which is not there")
            self.replaced[path] = self.packs.pop(path)
            self.since_us[path] = delta["time_us"]
        for value in delta["packs"]:
            pack = PackFile.from_json(value)
            self.packs[pack.path] = pack
            self.since_us[pack.path] = delta["time_us"]
            self.replaced.pop(pack.path, None)
        self.alone = {name: Alone(*value) for name, value in delta["alone"].items()}
        self.version = version


def pack_log(raw: Store, folder: str) -> ManifestLog:
    """Return the manifest of the packs of a folder."""
    return ManifestLog(raw, f"{PACKS}/{folder}/_manifest")


def pack_state(raw: Store, folder: str) -> PackState:
    """Return the packs of a folder at present.

    Their manifest is short and never shortened: a listing and its few deltas are less to ask for than `catch_up` does.
    """
    log, state = pack_log(raw, folder), PackState()
    for path in raw.list(log.folder):
        version = state.version + 1
        if path != log.path(version):
            break  # what a listing misses while it is written is later than what it shows
        state.apply(version, log.parse(version, raw.read(path)))
    return state
