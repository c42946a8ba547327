"""A backup that is copied under traffic, in the order of docs/backup.md, and what must be true of it."""

from __future__ import annotations

from collections.abc import Callable

from ciml.data_root import DataRoot
from ciml.digest import sha256_json
from ciml.errors import EngineError
from ciml.events.records import RawFile, rows_of
from ciml.manifest.log import ManifestLog
from ciml.runs.reader import verify_run
from ciml.runs.state import open_raw
from ciml.training.data.snapshot import facts_of_spans
from ciml.transforms.examples.spans import verify_span
from tests.simulation.fakes import Disk, SimStore
from tests.simulation.scheduler import Violation
from tests.simulation.world import Process

#: The passes of a copy. What refers to other objects comes before these.
PASSES: tuple[Callable[[str], bool], ...] = (
    lambda path: "/_manifest/" in path and not path.startswith("raw/_manifest/"),
    lambda path: path.startswith("raw/_manifest/"),
    lambda path: "/_manifest/" not in path,
)
#: Copies of a world that are checked.
_MOST = 5


def backup(process: Process) -> None:
    """Copy the data root again and again. Copies are kept that took less than half of the grace, and met commits."""
    world = process.world

    def work() -> bool:
        began_s, version = process.clock(), world.model.version
        copied = Disk()
        store = process.data.store
        for is_copied in PASSES:
            for entry in store.entries():
                if is_copied(entry.path):
                    try:
                        copied.objects[entry.path] = (store.read(entry.path), process.now_us())
                    except FileNotFoundError:
                        continue  # removed since it was listed
        is_in_time = process.clock() - began_s < world.chaos.grace_s / 2
        if is_in_time and world.model.version > version and len(world.copies) < _MOST:
            world.copies.append(copied)
        return False

    process.cycle(work, once_s=0.5)


def check_copy(process: Process, copied: Disk) -> None:
    """Raise `Violation` unless a copy is a data root as it was at some time, with everything that it names."""
    root = DataRoot(SimStore(f"{process.data.url}/copy", copied, process.world.scheduler, None))
    try:
        _check(process, root)
    except (EngineError, FileNotFoundError) as error:
        raise Violation(f"the copy cannot be read: {error}") from error


def _check(process: Process, root: DataRoot) -> None:
    original = {version: sha256_json(delta) for version, delta in ManifestLog(process.data.raw).since(0)}
    files: dict[str, RawFile] = {}
    for version, delta in ManifestLog(root.raw).since(0):
        if sha256_json(delta) != original[version]:
            raise Violation(f"the copy has another version {version}")
        files |= {record["mention"]["run_id"]: RawFile.from_json(record["file"]) for record in rows_of(delta)}
    open_raw(root.raw)  # by its newest checkpoint
    for run_id, file in files.items():
        if wrong := verify_run(root.raw, run_id, file):
            raise Violation(f"the copy lacks a run: {wrong}")
    for name in root.dataset_names():
        dataset = root.dataset(name)
        state = dataset.state()
        facts_of_spans(root.raw, state.latest())
        for span in state.latest():
            for wrong in verify_span(dataset.store, span, state.resolved) if state.resolved else ():
                raise Violation(f"the copy lacks an example: {wrong}")
