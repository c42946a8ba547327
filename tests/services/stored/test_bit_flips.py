"""A flipped bit in a stored object of any kind is detected, or changes nothing that is read."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ciml.data_root import DataRoot
from ciml.digest import sha256_hex
from ciml.errors import CimlError, RejectedInput
from ciml.manifest.bookmarks import Bookmarks
from ciml.manifest.checkpoints import Checkpoint, Checkpoints
from ciml.manifest.log import ManifestLog
from ciml.recorder.spool.folder import open_private
from ciml.recorder.spool.recording import Recording
from ciml.runs.compact import CompactionCursor, load_cursor
from ciml.runs.state import RAW
from ciml.runs.tables.delta_log import DeltaLog
from ciml.services.stored.examine import examine
from ciml.services.stored.findings import kind_of
from ciml.serving.predict.log import prediction_checkpoints
from ciml.settings import read_toml
from ciml.storage.json_files import read_json, read_object
from ciml.training.data.analysis import AnalysisCache
from ciml.verdicts.feedback.state import FEEDBACK
from tests.services.stored.every_kind import make


class Place(NamedTuple):
    """An object: the folder of `make`, and its path there."""

    root: Path
    path: str

    @property
    def data(self) -> DataRoot:
        return DataRoot.open(self.root / "data")

    @property
    def below(self) -> str:
        """Its path below the data root."""
        return self.path.removeprefix("data/")


def deltas(place: Place) -> object:
    """Everything that is read of a log: its deltas."""
    folder, _, _ = place.below.partition("/_manifest/")
    if folder.startswith("raw/packs/"):
        log = ManifestLog(place.data.raw, f"{folder.removeprefix('raw/')}/_manifest")
    else:
        log = ManifestLog(place.data.store.child(folder))
    return list(log.since(0))


def verified(place: Place) -> object:
    """Nothing but the findings of the verifier, which `read` compares."""
    return None


def cursor(place: Place) -> object:
    found = load_cursor(place.data.raw)
    if found == CompactionCursor():
        raise CimlError("left aside: compaction examines everything again")
    return found


def definition(place: Place) -> object:
    return read_toml(place.root / place.path)


def table(place: Place) -> object:
    folder = place.below.partition("/_delta_log/")[0]
    state = DeltaLog(place.data.store.child(folder)).read()
    return state.files, state.metadata, state.protocol, state.transactions, state.version


def recording(place: Place) -> object:
    with open_private(place.root / "spool") as spool:
        (name,) = spool.names(10)
        found = Recording.take(spool, name)
        assert found is not None
        try:
            if (end := found.end()) is None:
                raise CimlError("its end is left aside: it is sent as an interrupted recording")
            return found.plan, end
        finally:
            found.release()


def bookmark(place: Place) -> object:
    log = ManifestLog(place.data.raw)
    parent, _, name = place.below.rpartition("/")
    digest_of: Callable[[int], str] = lambda version: sha256_hex(log.read_raw(version))  # noqa: E731
    found = Bookmarks(place.data.store.child(parent), name, "kind", digest_of).load()
    if found is None:
        raise CimlError("left aside: the reader begins with the first delta")
    return found


def cached_statistics(place: Place) -> object:
    return read_object(place.data.store.read(place.below), place.path)


def checkpoint(place: Place) -> object:
    return Checkpoint.decode(place.data.store.read(place.below), place.path)


def analysis(place: Place) -> object:
    folder, _, name = place.below.rpartition("/")
    if not AnalysisCache(place.data.store.child(folder)).is_whole(name.removesuffix(".json")):
        raise CimlError("left aside: the next refresh computes it again")
    return True


def index_rows(place: Place) -> object:
    folder = place.below.partition("/")[0]
    kind: Any = {"raw": RAW, "predictions": prediction_checkpoints(), "feedback": FEEDBACK}[folder]
    checkpoints = Checkpoints(ManifestLog(place.data.store.child(folder)), kind)
    tables = checkpoints.tables(checkpoints.newest())
    return {name: [rows.batch.to_pydict() for rows in table.scan()] for name, table in tables.items()}


#: How each kind is read; of the others, the verifier reads everything.
READERS: Mapping[str, Callable[[Place], object]] = {
    **{f"{name} deltas": deltas for name in ("raw", "pack", "data set", "registry", "predictions", "feedback")},
    **dict.fromkeys(("segments", "exclusions", "trust policies", "erasures", "corrections"), deltas),
    "checkpoints": checkpoint,
    "analyses": analysis,
    "id index": index_rows,
    "compaction cursor": cursor,
    "definition": definition,
    "Delta table log": table,
    "Delta table files": verified,
    "bookmarks": bookmark,
    "statistics": cached_statistics,
    "server configuration": verified,
    "service state": lambda place: read_json(place.root / place.path),
    "recorder spool": recording,
}
#: Kinds of which the verifier alone is asked.
VERIFIED = {
    "runs", "packs", "dead letters", "examples", "experiments", "results", "result predictions",
    "sweeps", "snapshots", "training metrics", "models",
}  # fmt: skip
#: Empty objects, and one whose text has no meaning but that it changes.
UNREAD = {"spool lock", "erasure mark"}


def name_of(path: str) -> str:
    """The kind of an object by its path below the folder of `make`; "" for a candidate's own files."""
    if path.startswith("home/"):
        return "service state"
    if path.startswith("spool/"):
        return "spool lock" if path.endswith("/lock") else "recorder spool"
    if path.startswith("model/"):
        return ""
    below = path.removeprefix("data/")
    if (kind := kind_of(below)) != "derived":
        return kind
    endings = {
        "/compaction.json": "compaction cursor", "/_definition.toml": "definition", "/models.config":
        "server configuration", "/_replay": "bookmarks", "/_neighbours": "bookmarks", "/rewritten": "erasure mark",
    }  # fmt: skip
    for ending, name in endings.items():
        if below.endswith(ending):
            return name
    if "/statistics/" in below:
        return "statistics"
    if "/_delta_log/" in below:
        return "Delta table log"
    return "Delta table files" if below.startswith("tables/") else "other"


def objects(root: Path) -> dict[str, list[str]]:
    """The paths of all objects below the folder of `make`, by kind."""
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and (name := name_of(below := str(path.relative_to(root)))):
            found.setdefault(name, []).append(below)
    return found


def outcome(place: Place, kind: str, before: object) -> str:
    """``read``: its reader rejects it; ``verified``: the verifier names it; ``same``: all that is read is equal."""
    if kind in READERS:
        try:
            after = READERS[kind](place)
        except (CimlError, RejectedInput):
            return "read"
        if after == before and READERS[kind] is not verified:
            return "same"
    found = examine(place.data)
    name = place.path.rpartition("/")[2]
    return "verified" if found.number or any(name in line for line in found.notes) else "MISSED"


@pytest.mark.whole
def test_a_flipped_bit_in_an_object_of_each_kind_is_detected_or_changes_nothing(tmp_path: Path) -> None:
    """A new kind of stored object needs a digest, and an entry here."""
    make(tmp_path)
    found = objects(tmp_path)
    assert found.keys() == READERS.keys() | VERIFIED | UNREAD
    undamaged = examine(DataRoot.open(tmp_path / "data"))
    assert (undamaged.findings, undamaged.notes) == ([], [])
    choose = random.Random(26)
    outcomes = []
    for kind, paths in sorted(found.items()):
        for path in choose.choices(paths, k=2) if kind not in UNREAD else ():
            place = Place(tmp_path, path)
            before = READERS[kind](place) if kind in READERS else None
            file = tmp_path / path
            good = file.read_bytes()
            bit = choose.randrange(8 * len(good))
            changed = bytearray(good)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            outcomes.append((outcome(place, kind, before), path, bit))
            file.write_bytes(good)
    assert [each for each in outcomes if each[0] == "MISSED"] == []
    assert sum(result == "same" for result, *_ in outcomes) <= len(outcomes) // 10
