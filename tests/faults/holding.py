"""What has to hold of a data root, whoever died in it: read from the outside."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.events.records import RawFile
from ciml.runs.reader import read_run
from ciml.runs.state import open_raw
from ciml.storage import open_store
from ciml.transforms.examples.spans import verify_span
from tests.faults import datasets
from tests.faults.judge import Delivery, accepted, judge
from tests.faults.offline import DATASETS, TOPIC
from tests.faults.oracle import Ledger, Objects, open_objects


class Packed(Objects):
    """Objects of a raw store, where a run that moved into a pack is read from there."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._objects, self._store = open_objects(root), open_store(root)

    def read(self, path: str) -> bytes | None:
        found = self._objects.read(path)
        if found is not None or not path.startswith("runs/"):
            return found
        try:
            table = read_run(self._store, path)
        except CimlError:
            return None
        out = io.BytesIO()
        pq.write_table(table, out)
        return out.getvalue()

    def names(self, folder: str) -> list[str]:
        return self._objects.names(folder)


def read(data: str) -> Ledger:
    """All deltas there are."""
    ledger = Ledger(Packed(f"{data}/raw"))
    ledger.poll()
    return ledger


def sound(data: str, before: Ledger | None = None) -> list[str]:
    """I3 and I4 at any time: the manifests can be read, what they name is there and whole, nothing old is another.

    Args:
      data: the data root.
      before: as it was read earlier: the present has to begin with it.
    """
    try:
        ledger = read(data)
    except (ValueError, KeyError) as error:
        return [f"I3: a delta is half there: {error}"]
    wrong = list(ledger.faults)
    if before is not None:
        if ledger.version < before.version:
            wrong.append(f"I4: version {ledger.version} after {before.version}")
        old = {run: entries[0].record for run, entries in before.rows.items()}
        now = {run: entries[0].record for run, entries in ledger.rows.items()}
        wrong += [f"I4: the row of {run} is gone, or another" for run in old if now.get(run) != old[run]]
    try:
        least = ledger.version
        _, state = open_raw(DataRoot.open(data).raw)
        ledger.poll()  # others may be at work
        if not least <= state.version <= ledger.version:
            wrong.append(f"I3: ciml reads up to version {state.version}, and there are {least} to {ledger.version}")
        wrong += _rows_there(data, ledger)
        wrong += _spans_there(data)
    except CimlError as error:
        wrong.append(f"I3: {error}")
    return wrong


def _rows_there(data: str, ledger: Ledger) -> Iterable[str]:
    raw = DataRoot.open(data).raw
    for run_id, entries in ledger.rows.items():
        try:
            read_run(raw, RawFile.from_json(entries[0].record["file"]))
        except CimlError as error:
            yield f"I3: {run_id}: {error}"


def _spans_there(data: str) -> Iterable[str]:
    root = DataRoot.open(data)
    for name in root.dataset_names():
        dataset = root.dataset(name)
        state = dataset.state()
        for span in state.latest():
            if state.resolved is not None:
                yield from (f"I3: {line}" for line in verify_span(dataset.store, span, state.resolved))


def exact(data: str, sent: Sequence[Delivery]) -> list[str]:
    """I1 and I2 when everything is done: the accounting, each row and each example against the direct computation."""
    ledger = read(data)
    wrong = judge(TOPIC, sent, ledger)
    return wrong + datasets.check(open_objects(data), accepted(sent), ledger.outcome, odd=True, names=DATASETS)


def leftovers(data: str) -> list[str]:
    """Deltas in places that were emptied: a writer that woke up late has to have taken them back."""
    objects = open_objects(f"{data}/raw")
    names = [Path(name) for name in objects.names("_manifest")]
    single = [int(name.stem) for name in names if name.parent.name == "_manifest" and name.stem.isdigit()]
    wrong = []
    ledger = read(data)
    for version in single:
        archived = ledger._archived(version)
        if archived is not None and json.loads(objects.read(f"_manifest/{version:012d}.json") or b"{}") != archived:
            wrong.append(f"I4: delta {version} is not what its segment says")
    return wrong
