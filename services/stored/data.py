"""Verifies the raw store, data sets, and the logs with checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ciml.data_root import DataRoot, StoredDataset
from ciml.digest import sha256_hex
from ciml.events.payloads import message_of, read_payload
from ciml.manifest.checkpoints import Checkpointed
from ciml.manifest.log import ManifestLog
from ciml.manifest.verify import What, verify_log
from ciml.pipelines.datasets.build import DEFINITION
from ciml.pipelines.datasets.update import verify_dataset
from ciml.pipelines.raw_store.verify import verify_raw
from ciml.services.stored.findings import Findings, Progress
from ciml.services.stored.kinds import Kind, kind_of
from ciml.storage.open import Store
from ciml.tables.parts import part_of

_RAW: Mapping[str, Kind] = {
    "delta": "raw deltas", "segment": "segments", "checkpoint": "checkpoints", "index": "id index", "run": "runs",
    "pack": "packs", "pack delta": "pack deltas",
}  # fmt: skip


def check_raw(data: DataRoot, found: Findings, progress: Progress) -> None:
    """Verify manifest, runs and packs, as `ciml runs verify` does, and the messages of dead letters."""
    result = verify_raw(data.raw, progress=progress)
    for what, number in result.broken.items():
        found.broken[_RAW[what]] += number
    found.faults += result.findings
    found.notes += result.notes
    if result.older:
        found.rewritten["checkpoints"] = sum(1 for _ in data.raw.entries("_manifest/checkpoints"))
        found.rewritten["id index"] = sum(1 for _ in data.raw.entries("_manifest/index"))
    found.formats["runs"].update(result.formats["run"])
    found.formats["packs"].update(result.formats["pack"])
    found.read |= {"raw deltas", "segments", "checkpoints", "id index", "pack deltas"}
    if result.version or not result.broken:
        found.read |= {"runs", "packs", "dead letters"}
        _check_dead_letters(data.raw, found, progress)


def _check_dead_letters(raw: Store, found: Findings, progress: Progress) -> None:
    """Read each message that a dead letter may need again."""
    last = ""
    for version, delta in ManifestLog(raw).since(0):
        for record in (*delta.get("dead_letters", ()), *delta.get("deferred", ())):
            payload = record.get("payload")
            path = payload.get("object", "") if payload else ""
            if payload and (not path or path != last):  # the runs of one message share it
                last = path
                with found.guard("dead letters" if path else "raw deltas", f"version {version}, a dead letter"):
                    read = read_payload(raw, payload)
                    if "value" in read:  # that of a message above a limit is not stored
                        message_of(read, 0)
        progress("dead letters", version, None)


def check_datasets(data: DataRoot, found: Findings, progress: Progress) -> None:
    """Verify each data set, as `ciml dataset verify` does."""
    found.read |= {"data set deltas", "examples"}
    examples = found.formats["examples"]
    # Not `DataRoot.dataset_names`, which finds those that have a first delta.
    paths = (entry.path for entry in data.datasets.entries())
    names = {path.split("/")[0] for path in paths if kind_of(f"datasets/{path}") in ("data set deltas", "examples")}
    for name in sorted(names):
        with found.guard("data set deltas", f"data set {name}"):
            dataset = data.dataset(name)
            for line in verify_dataset(dataset, progress=partial(progress, name), formats=examples):
                found.find("examples", f"data set {name}: {line}")
            _check_definition(dataset, found)


def _check_definition(dataset: StoredDataset, found: Findings) -> None:
    """Compare the definition beside the examples with that in the manifest. It is a copy for people."""
    definition = dataset.state().definition
    try:
        copy = dataset.store.read(DEFINITION)
    except FileNotFoundError:
        return
    if definition is None or copy != definition.to_toml().encode():
        found.notes.append(
            f"{dataset.store.url(DEFINITION)} is not the definition of the data set; delete it, and "
            "ciml dataset build writes it again"
        )


def check_tables(data: DataRoot, found: Findings, progress: Progress) -> None:
    """Compare the files of Delta tables with the digests in their names. They are copies for other engines."""
    for number, entry in enumerate(data.tables.entries(), 1):
        progress("tables", number, None)
        name, _, path = entry.path.partition("/")
        if part_of(path) is not None and sha256_hex(data.tables.read(entry.path))[:32] != path.split(".")[1]:
            found.notes.append(
                f"{data.tables.url(entry.path)} differs from its digest; delete {data.tables.url(name)}, and "
                "ciml tables publish writes it again"
            )


def check_log(store: Store, kind: Checkpointed[Any], deltas: Kind, found: Findings, progress: Progress) -> None:
    """Verify a log with checkpoints that is not the raw manifest.

    Args:
      store: where it is.
      kind: its kind of state.
      deltas: the kind of its deltas.
    """
    kinds: dict[What, Kind] = {
        "delta": deltas, "segment": "segments", "checkpoint": "checkpoints", "index": "id index",
        "older": "checkpoints",
    }  # fmt: skip
    for fault in verify_log(ManifestLog(store), kind, partial(progress, deltas)):
        if fault.what == "unsealed":
            found.notes.append(f"{store.url()}: {fault.text}")
        else:
            found.find(kinds[fault.what], fault.text)
    found.read |= set(kinds.values())
