"""Verifies experiments, sweeps, exclusions and the files of trainers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ciml.data_root import DataRoot
from ciml.digest import sha256_hex
from ciml.errors import IntegrityError
from ciml.services.stored.findings import Findings, Progress
from ciml.services.stored.kinds import Kind, kind_of
from ciml.storage.open import Store
from ciml.training.data.analysis_cache import AnalysisCache
from ciml.training.data.snapshot import read_snapshot
from ciml.training.exclusion_store import read_state
from ciml.training.experiments.trials import RESULT, load_experiment, read_stored
from ciml.training.sweeps.store import read_outcome, sweep_store

_PREDICTIONS = re.compile(r"predictions-([0-9a-f]{16})\.parquet")
#: The format of results and of sweeps, which stands in them.
_FORMAT = 1


def check_experiments(data: DataRoot, found: Findings, progress: Progress) -> None:
    """Read each experiment and result; compare predictions with the digest in their name."""
    store, complete = data.experiments, set[str]()
    found.read |= {"experiments", "results", "result predictions"}
    for number, entry in enumerate(store.entries(), 1):
        progress("experiments", number, None)
        kind, (name, _, path) = kind_of(f"experiments/{entry.path}"), entry.path.partition("/")
        with found.guard(kind, f"experiment {name}"):
            if kind == "experiments" and (stored := load_experiment(store, name).name) != name:
                raise IntegrityError(f"{store.url(entry.path)} is of experiment {stored!r:.100}")
            if name not in complete:
                complete.add(name)
                if not store.exists(f"{name}/experiment.json"):
                    raise IntegrityError(f"{store.url(name)} has results, but no experiment.json")
            if kind == "results":
                _check_result(store, entry.path)
            elif kind == "result predictions":
                digest = path.rpartition("-")[2].removesuffix(".parquet")
                if sha256_hex(store.read(entry.path))[: len(digest)] != digest:
                    raise IntegrityError(f"{store.url(entry.path)} was altered: its digest differs")


def _check_result(store: Store, path: str) -> None:
    value = _json(store, path)
    if not path.endswith(f"/{RESULT}"):
        return
    if value.get("format") != _FORMAT:
        raise IntegrityError(f"{store.url(path)} has format {value.get('format')!r:.20}, not {_FORMAT}; upgrade ciml")
    name = str(value.get("predictions"))
    if not _PREDICTIONS.fullmatch(name) or not store.exists(f"{path.rpartition('/')[0]}/{name}"):
        raise IntegrityError(f"{store.url(path)}: its predictions {name!r:.60} are missing")


def check_sweeps(data: DataRoot, found: Findings, progress: Progress) -> None:
    """Read each sweep, and the outcomes of its trials."""
    complete = set[str]()
    found.read.add("sweeps")
    for number, entry in enumerate(data.sweeps.entries(), 1):
        progress("sweeps", number, None)
        name, _, path = entry.path.partition("/")
        with found.guard("sweeps", f"sweep {name}"):
            store = sweep_store(data.sweeps, name)
            if name not in complete:
                complete.add(name)
                _check_sweep(store)
            if path.startswith("trials/"):
                read_outcome(store, int(path.removeprefix("trials/").removesuffix(".json")))
            elif path.startswith("baselines/"):
                _json(store, path)


def _check_sweep(store: Store) -> None:
    value, where = _json(store, "sweep.json"), store.url("sweep.json")
    if value.get("format") != _FORMAT:
        raise IntegrityError(f"{where} has format {value.get('format')!r:.20}, not {_FORMAT}; upgrade ciml")
    if not isinstance(value.get("raw_version"), int) or not isinstance(value.get("sweep"), dict):
        raise IntegrityError(f"{where} is not a sweep")


def check_exclusions(data: DataRoot, found: Findings, progress: Progress) -> None:
    """Read the log of exclusions."""
    found.read.add("exclusions")
    with found.guard("exclusions", data.exclusions.url()):
        read_state(data.exclusions)


def check_trainers(data: DataRoot, found: Findings, progress: Progress) -> None:
    """Compare snapshots and analyses with their digests; read metrics."""
    found.read |= {"snapshots", "analyses", "training metrics"}
    for number, (model, kind, path) in enumerate(_trainer_files(data), 1):
        progress("trainers", number, None)
        trainer, name = data.trainer(model), path.rpartition("/")[2].removesuffix(".json")
        with found.guard(kind, f"trainer of {model}"):
            if kind == "snapshots":
                read_snapshot(trainer, name)
            elif kind == "training metrics":
                _json(trainer, path)
            elif AnalysisCache(trainer.child("analyses")).read(name) is None:
                raise IntegrityError(
                    f"{trainer.url(path)} differs from its digest; delete it, the next refresh computes it again"
                )


def _trainer_files(data: DataRoot) -> Iterator[tuple[str, Kind, str]]:
    """Yield (model, kind, path below its folder) of all files of trainers but their scratch."""
    for entry in data.trainers.entries():
        kind = kind_of(f"trainer/{entry.path}")
        if kind in ("snapshots", "analyses", "training metrics"):
            model, _, path = entry.path.partition("/")
            yield model, kind, path


def _json(store: Store, path: str) -> dict[str, Any]:
    value = read_stored(store, path)
    if value is None:
        raise IntegrityError(f"{store.url(path)} is missing")
    return value
