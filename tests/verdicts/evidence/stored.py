"""A data root with failed runs, the assets of a model that was pushed, and its predictions with verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ciml.data_root import DataRoot
from ciml.events.records import OffsetRange, RunFacts
from ciml.manifest.log import ManifestLog
from ciml.serving.predict.answers import recorded_verdict
from ciml.serving.predict.log import Predicted, PredictionState, prediction_id, reconcile
from ciml.serving.registry import Decision, Registry
from ciml.transforms.profiles import Profiles
from ciml.verdict_rules import Group, LearnedRanges, VerdictRules
from tests.runs.scenes import RawStore
from tests.transforms.profiles.tables import STEAL, facts_of
from tests.verdicts.evidence.subjects import profiles, run_of

MODEL = "cause"
RULES = VerdictRules(
    ("code", "machine"),
    0.9,
    {"method": "temperature"},
    {"": Group(19, {"code": 0.6, "machine": 0.4}, {"": tuple(number / 50 for number in range(19))})},
)
RANGES = LearnedRanges(19, ("usr",), (0.0,), (1.0,), 0.1)
#: Starved from second 20 on, and killed.
FAILED: RunFacts = facts_of(outcome="failure", number=99).replace(
    labels={"exit_code": "-9", "secret": "x"}, change="7", log_url="file:///x"
)
STARVED = run_of({STEAL: [0.0] * 20 + [41.3] * 40}).table


def push(data: DataRoot, folder: Path, known: Profiles | None, ranges: LearnedRanges | None = RANGES) -> None:
    """Push a version of the model, of which only the assets are there: nothing here loads it."""
    rules = json.dumps(RULES.replace(ranges=ranges).to_json()).encode()
    files = {"assets/definition.json": b"{}", "saved_model.pb": b"none", "assets/verdicts.json": rules}
    if known is not None:
        files["assets/profiles.json"] = json.dumps(known.to_json()).encode()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    registry = Registry(data, MODEL)
    one = registry.record_candidate(DataRoot.open(folder).store)
    registry.record_decision(one.id, Decision(True, (), {}))
    number = len(registry.state.versions) + 1
    for kind in ("staged", "pushed"):
        registry.commit(lambda _, kind=kind: {"kind": kind, "candidate": one.id, "model_version": number})  # type: ignore[misc]
    for name, content in files.items():
        registry.folder(number).create(name, content)


def store_runs(data: DataRoot, runs: Sequence[tuple[RunFacts, Any]]) -> dict[str, str]:
    """Store runs, and return the paths of their objects by run id."""
    version = RawStore(data).add(runs=runs)
    rows = ManifestLog(data.raw).read(version)["runs"]
    return {row["mention"]["run_id"]: row["file"]["path"] for row in rows}


def prediction(
    facts: RunFacts,
    path: str,
    version: int = 1,
    code: float = 0.05,
    model: str = MODEL,
    rules: VerdictRules = RULES,
    value: float = 0.0,
    without_telemetry: bool = False,
) -> dict[str, Any]:
    """The record of a prediction, as the predictor makes it; ``value`` is that of the one feature of the run."""
    shares = {"code": code, "machine": round(1 - code, 2)}
    windows = np.full((1, 1), value, np.float32)
    verdict = recorded_verdict(facts, shares, rules, windows, without_telemetry=without_telemetry)
    likely = max(shares, key=lambda one: shares[one])
    identity = {"id": prediction_id(facts.run_id, model, version), "offset": 0, "run_id": facts.run_id}
    answer = {"model": model, "version": version, "class": likely, "probabilities": shares, "time_us": 5}
    return {**identity, "build_name": facts.build_name, **answer, **(verdict and {**verdict, "path": path})}


def commit(data: DataRoot, records: Sequence[Mapping[str, Any]]) -> None:
    """Commit predictions."""
    made = [{**one, "offset": at} for at, one in enumerate(records)]
    state = PredictionState()
    delta = reconcile(state, [Predicted(OffsetRange("runs", "", 0, 0, len(made)), made)], 5)
    assert delta is not None
    assert ManifestLog(data.predictions).try_append(1, delta)


def made(folder: Path, known: Profiles | None = None) -> tuple[DataRoot, dict[str, Any]]:
    """Return a data root with the starved run and the prediction of it, committed."""
    data = DataRoot.open(folder / "data")
    push(data, folder / "candidate", known or profiles(60))
    path = store_runs(data, [(FAILED, STARVED)])[FAILED.run_id]
    record = prediction(FAILED, path)
    commit(data, [record])
    return data, record
