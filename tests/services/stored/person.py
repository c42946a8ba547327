"""A data root with an object of each kind, and what one person's runs have left in it."""

from __future__ import annotations

import base64
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ciml.data_root import DataRoot
from ciml.digest import telemetry_digest
from ciml.events.payloads import payload_of
from ciml.events.records import Batch, FactUpdate, Message, OffsetRange, Origin, Outcome
from ciml.events.run_id import is_erased
from ciml.manifest.checkpoints import Checkpoints
from ciml.manifest.log import ManifestLog, catch_up
from ciml.pipelines.ingest.committer import Committer
from ciml.runs.compact import compact
from ciml.runs.latest_runs import StoredRun, latest_runs
from ciml.runs.reader import read_run
from ciml.runs.state import RAW, open_raw
from ciml.runs.tables.publish import publish_tables
from ciml.services.stored.examine import examine
from ciml.serving.predict.log import prediction_checkpoints
from ciml.storage import Store
from ciml.training.exclusions import Exclusion, add
from ciml.verdicts.feedback.state import FEEDBACK
from ciml.verdicts.feedback.truths import Correction, add_corrections
from ciml.verdicts.signatures.notes import Note, add_note
from tests.runs.scenes import RawStore
from tests.services.stored import every_kind
from tests.transforms.samples import corpus

OWNER = "alice.smith"
NATIVE = "43b0b00565024655a881c3639083a998"
RUNS = (f"zuul~{NATIVE}~1", "zuul~1~1", "zuul~2~1", "zuul~0~1")
OTHER = "zuul~bob~1"
WAITING = "zuul~waiting~1"
#: What must be gone; the last one is the native id as messages store it.
NAMES = (OWNER, NATIVE, *RUNS, WAITING, base64.b64encode(f"{NATIVE} of".encode()).decode()[:-4])
OUTPUT = b"started by alice.smith\nzuul~1~1: E AssertionError\n"


def make_world(folder: Path) -> DataRoot:
    """Write ``data``, a data root with an object of each kind, and the person's runs."""
    every_kind.make(folder)
    data = DataRoot.open(folder / "data")
    data.models.delete("models.config")
    add_person(data)
    return data


def add_person(data: DataRoot) -> None:
    """Add the runs of `OWNER`: rows with outputs, packed and not, messages that failed, updates and notes."""
    facts, tables, _ = corpus(8)
    raw = RawStore(data)
    named = [
        one.replace(
            run_id=run_id, build_uuid=run_id.split("~")[1], source="zuul", owner=OWNER, change="77",
            log_url=f"https://logs/{run_id}",
        )
        for run_id, one in zip((*RUNS, OTHER), facts, strict=False)
    ]  # fmt: skip
    named[-1] = named[-1].replace(owner="bob", change="78")
    rows = list(zip(named, tables, strict=False))
    raw.add(rows[:2] + rows[4:], outputs={RUNS[0]: OUTPUT, OTHER: b"another person's\n"})
    compact(data.raw, older_than_s=0, grace_s=0)
    raw.add(rows[2:4], corrections=[named[0].replace(outcome="error")], others=[(named[1], tables[6])])
    _add_messages(data)
    add(data.exclusions, [Exclusion("a forged result", run_id=RUNS[0]), Exclusion("tests it", owner=OWNER)], now_us=2)
    add_corrections(data, [Correction(RUNS[0], "machine", f"gerrit:{OWNER}", 2)])
    add_note(data.failures, Note("abc", OWNER, text=f"as in {RUNS[1]}"), now_us=3)
    data.lineage.create("1.json", f'{{"run":"{NATIVE}"}}'.encode())
    data.evidence.create(f"00/{1:032x}.svg", b"<svg/>")  # of the first prediction of `tests.services.stored.every_kind`
    assert any(table.committed for table in publish_tables(data))


def _add_messages(data: DataRoot) -> None:
    facts = corpus(1)[0][0]
    mine = facts.replace(run_id=RUNS[0], build_uuid=NATIVE, owner=OWNER)
    theirs = facts.replace(run_id=OTHER, build_uuid="bob", owner="bob")
    small = payload_of(Message(0, f"{NATIVE} of {OWNER}".encode(), (), timestamp_ms=7))
    large = payload_of(Message(1, f"{NATIVE} of {OWNER}".encode() * 1000, (), timestamp_ms=7))
    waiting = mine.replace(run_id=WAITING, build_uuid="waiting", change="77")
    review = FactUpdate("zuul", "change:78", {"approved": "yes"}, by=OWNER)
    outcomes = [
        Outcome("dead_letter", Origin("late", 0, 0), "zuul m0", mine, reason="bad_log", payload=small),
        Outcome("dead_letter", Origin("late", 0, 0), "zuul m0", theirs, reason="bad_log", payload=small),
        Outcome("dead_letter", Origin("late", 0, 1), "zuul m1", mine, reason="bad_log", payload=large),
        Outcome(
            "deferred", Origin("late", 0, 2), "zuul m2", waiting, reason="no_log", payload=small, not_before_us=9,
            first_seen_us=1,
        ),
        Outcome("update", Origin("late", 0, 3), "zuul m3", updates=(review,)),
    ]  # fmt: skip
    Committer(data.raw).commit([Batch(OffsetRange("late", "L", 0, 0, 4), settled=outcomes)])


def copy(source: Store, target: Store) -> None:
    """Copy all objects of a store."""
    for entry in source.entries():
        target.create(entry.path, source.read(entry.path))


def all_bytes(store: Store) -> Iterator[tuple[str, bytes]]:
    """Yield each object as it is stored and as any program decompresses it, with its path."""
    for entry in store.entries():
        data = store.read(entry.path)
        yield entry.path, entry.path.encode() + b"\0" + data
        if entry.path.endswith(".zst"):
            with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
                yield entry.path, stream.read()
        elif entry.path.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(data))
            texts = [
                column.cast(pa.string()).to_pylist()
                for column in table.columns
                if pa.types.is_string(column.type) or pa.types.is_dictionary(column.type)
            ]
            yield entry.path, repr((table.schema.metadata, texts)).encode()
        elif entry.path.endswith(".arrow"):
            yield entry.path, repr(pa.ipc.open_file(pa.BufferReader(data)).read_all().to_pylist()).encode()
        elif data[:2] == b"\x1f\x8b":
            yield entry.path, gzip.decompress(data)
        elif data[:1] == b"\x78":
            yield entry.path, zlib.decompress(data)


def left(store: Store, *words: str) -> list[tuple[str, str]]:
    """Return each object that has one of the words, with the word."""
    return [(path, word) for path, data in all_bytes(store) for word in words if word.encode() in data]


def broken(data: DataRoot) -> dict[str, list[str]]:
    """Return the broken objects that `examine` finds; {} without any."""
    findings = examine(data)
    return {"faults": [*findings.lines()]} if findings.broken.total() else {}


def others(data: DataRoot) -> dict[str, tuple[object, ...]]:
    """Return all runs of other people, with the digests of their telemetry."""
    return {
        run.facts.run_id: (run.own, run.outcome, run.trust, run.file, telemetry_digest(run.facts.run_id, table))
        for run in stored(data)
        if run.facts.run_id not in RUNS and not is_erased(run.facts.run_id)
        for table in [read_run(data.raw, run.file)]
    }


def stored(data: DataRoot) -> list[StoredRun]:
    """Return all runs of the raw store."""
    return list(latest_runs(*open_raw(data.raw)))


def read_all(data: DataRoot) -> None:
    """Read the logs as a process does that starts now, from the checkpoints and from the first delta."""
    for store, kind in ((data.raw, RAW), (data.predictions, prediction_checkpoints()), (data.feedback, FEEDBACK)):
        checkpoints: Checkpoints[Any] = Checkpoints(ManifestLog(store), kind)
        for state in (checkpoints.open(), checkpoints.restore(None)):
            catch_up(ManifestLog(store), state)
    assert data.dataset(every_kind.DATASET).state().version
    assert list(others(data))
