"""The names of runs and packs, and the small manifest that lists the packs of a folder.

The raw manifest names a run by a path: ``runs/<folder>/<file name>``, where the folder ``job=…/date=…`` has the runs of
a job and a day. The run is in the object of that name, or in a pack of the same folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

from ciml.errors import IntegrityError
from ciml.events.records import LISTS, RawFile, Record
from ciml.manifest.log import Delta, ManifestLog
from ciml.storage import Store

RUNS = "runs"
PACKS = "packs"
#: Folder of unnamed objects before their deletion: ``swept/runs/job=…``.
SWEPT = "swept"
_RUN_PATH = re.compile(rf"{RUNS}/(job=[^/]*/date=[^/]*)/([^/]*)", re.DOTALL)


def split_path(path: str) -> tuple[str, str] | None:
    """Return (folder, file name) of a run's path; None for another path, which is never in a pack."""
    match = _RUN_PATH.fullmatch(path)
    return None if match is None else (match[1], match[2])


def split_pack(path: str) -> tuple[str, str] | None:
    """Return (folder, file name) of a pack's path; None for other paths, such as those of the table's log."""
    if not path.startswith(f"{PACKS}/") or not path.endswith(".parquet"):
        return None
    return split_path(f"{RUNS}/{path.removeprefix(f'{PACKS}/')}")


def run_of(path: str) -> str:
    """Return the run id in a path that ends in ``<run id>.<digest>.parquet``."""
    return path.rpartition("/")[2].rsplit(".", 2)[0]


def day_ends_s(folder: str) -> float:
    """Return the end of a folder's day, epoch seconds; infinity for a folder without a day."""
    try:
        day = date.fromisoformat(folder.rpartition("/date=")[2])
        return (datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)).timestamp()
    except (ValueError, OverflowError):
        return float("inf")


class NamedRun(Record, frozen=True, gc=False):
    """A raw object in a raw manifest: of a run, or a different log of a known run."""

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

    @property
    def file(self) -> RawFile:
        """The object as manifests name it; its size is unknown."""
        return RawFile(self.path, self.digest, self.rows, 0)


def named_runs(delta: Delta) -> Iterator[NamedRun]:
    """Yield all raw objects in a delta of the raw manifest, of any kind of record."""
    for list_name in LISTS.values():
        for record in delta.get(list_name, ()):
            file = record.get("file")
            if file is not None and (parts := split_path(file["path"])) is not None:
                yield NamedRun(*parts, file["digest"], file["rows"])


class PackFile(Record, frozen=True, gc=False):
    """One pack, as described in its folder's manifest.

    Attributes:
      path: below the raw store; the name is the head of the bytes' sha256.
      size: of the object, bytes.
      footer: size of Parquet's footer, bytes.
      footer_digest: the head of the footer's sha256: a footer is used only when it is undamaged.
      rows: number of rows of all runs.
      runs: number of runs.
      columns: digest of the names and types of the columns that all its runs share.
    """

    path: str
    size: int
    footer: int
    footer_digest: str
    rows: int
    runs: int
    columns: str


class Alone(Record, frozen=True, array_like=True, gc=False):
    """A run that is kept as an object of its own: ``why`` is its fault, or "" if there were too few runs."""

    digest: str
    rows: int
    why: str = ""


class PackState:
    """The state of a folder's pack manifest.

    Attributes:
      version: the version of the last delta applied; 0 for a folder without packs.
      packs: the present packs by path, in the order of their commits.
      replaced: packs that others replaced, by path. Their objects are removed after the grace.
      since_us: commit time of each present pack and replacement time of each replaced one, epoch microseconds.
      alone: runs that were examined and left as objects of their own, by name.
    """

    def __init__(self) -> None:
        self.version = 0
        self.packs: dict[str, PackFile] = {}
        self.replaced: dict[str, PackFile] = {}
        self.since_us: dict[str, int] = {}
        self.alone: dict[str, Alone] = {}

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta.

        Raises:
          IntegrityError: it is not the next one.
        """
        if version != self.version + 1:
            raise IntegrityError(f"pack manifest: version {version} after {self.version}")
        for path in delta["replaces"]:
            if path not in self.packs:
                raise IntegrityError(f"pack manifest: version {version} replaces {path}, which does not exist")
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

    Their manifest is short and never pruned: a listing and a few deltas take fewer requests than `catch_up`.
    """
    log = pack_log(raw, folder)
    state = PackState()
    for version, data in log.raw_of_listing(raw.list(log.folder)):
        state.apply(version, log.parse(version, data))
    return state
