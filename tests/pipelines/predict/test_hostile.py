"""Predict and hostile input: an announcement, a run and what the model makes of it cost only themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ciml.digest import canonical_json
from ciml.errors import EngineError
from ciml.serving.client import ClientPolicy, Prediction
from ciml.serving.predict.predictor import PredictPolicy
from ciml.serving.server.manager import ModelChoice
from ciml.serving.server.model.messages import Signature
from tests.pipelines.predict.predicting import World, batch, client_of, telemetry
from tests.serving.models_fixture import save_model

HOSTILE: list[dict[str, Any]] = [
    {"path": "runs/job=a/date=2026-03-04/" + "x" * 300},
    {"path": "x" * 5000},
    {"path": "runs/job=a/../../x"},
    {"path": "../../etc/passwd"},
    {"path": "runs"},
    {"path": "."},
    {"path": "/"},
    {"path": "a\ud800b"},
    {"path": "runs/job=\ud800/date=2026-03-04/x.parquet"},
    {"path": "a\u0000b"},
    {"path": ["runs"]},
    {"run_id": "\ud800"},
    {"run_id": "zuul~../../x~1"},
    {"run_id": "zuul~another~1"},
    {"build_name": "a\ud800"},
    {"build_name": "a\nb"},
    {"build_name": "a" * 5000},
    {"digest": "0"},
    {"digest": "../"},
    {"digest": "F" * 64},
]


def test_hostile_announcements_cost_only_themselves(world: World, folders: list[Path]) -> None:
    world.push(folders[0])
    fine = world.put("zuul~fine~1", telemetry(1))
    hostile = [json.dumps({**json.loads(fine), **change}).encode() for change in HOSTILE]
    values = [*hostile, fine, b"[" * 100_000, b"{", b'{"run_id": "x"}']
    done = world.predictor().predict(batch(values))
    assert [(one["run_id"], one["offset"]) for one in done.predictions] == [("zuul~fine~1", len(hostile))]
    offsets = [offset for offset in range(len(values)) if offset != len(hostile)]
    assert [(one["offset"], one["reason"]) for one in done.unpredictable] == [
        (offset, "bad_announcement") for offset in offsets
    ]
    assert canonical_json(done.to_json())


def huge(seed: int) -> pa.Table:
    """Telemetry that the fixture's models fail for, depending on how they are spoilt."""
    table = telemetry(seed)
    return table.set_column(3, table.column_names[3], pa.array([2e6] * len(table)))


@pytest.mark.parametrize(
    ("spoil", "detail"), [("strict", "INVALID_ARGUMENT"), ("hang", "DEADLINE_EXCEEDED"), ("overflow", "not finite")]
)
def test_runs_that_the_model_fails_for_cost_only_themselves(
    world: World, tmp_path: Path, spoil: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.push(save_model(tmp_path / "m", spoil=spoil))
    process = world.server.manager.find(ModelChoice("m"))[1].process
    run = process.run

    def run_in_time(signature: Signature, inputs: Sequence[Any], timeout_s: float) -> Any:
        """Only the runs that the model hangs for have little time."""
        return run(signature, inputs, 0.3 if spoil == "hang" and max(map(np.max, inputs)) > 1e6 else timeout_s)

    monkeypatch.setattr(process, "run", run_in_time)
    monkeypatch.setattr("ciml.serving.predict.predictor._DIVIDED_TIMEOUT_S", 30.0)
    values = [world.put(f"zuul~{n}~1", huge(n) if n in (3, 8) else telemetry(n)) for n in range(10)]
    policy = PredictPolicy("m", rows=7, client=ClientPolicy(timeout_s=30, budget_s=60))
    done = world.predictor(policy).predict(batch(values))
    assert {one["run_id"] for one in done.predictions} == {f"zuul~{n}~1" for n in range(10) if n not in (3, 8)}
    assert [(one["run_id"], one["reason"]) for one in done.unpredictable] == [
        ("zuul~3~1", "model_error"),
        ("zuul~8~1", "model_error"),
    ]
    assert all(detail in one["detail"] for one in done.unpredictable)
    assert canonical_json(done.to_json())


def test_model_that_answers_nothing_stops_the_batch(
    world: World, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run is unpredictable for what is wrong with the model."""
    world.push(folders[0])
    number, model = world.server.manager.find(ModelChoice("m"))
    assert number == 1

    def hangs(signature: Signature, inputs: Sequence[Any], timeout_s: float) -> Any:
        time.sleep(timeout_s + 0.2)

    monkeypatch.setattr(model.process, "run", hangs)
    policy = PredictPolicy("m", client=ClientPolicy(timeout_s=0.3, budget_s=20))
    with pytest.raises(EngineError, match="DEADLINE_EXCEEDED"):
        world.predictor(policy).predict(batch([world.put("zuul~a~1", telemetry(1))]))


def test_runs_are_not_divided_for_ever(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the budget a part that failed is refused as a whole: other parts, and other batches, go on."""
    world.push(save_model(tmp_path / "m", spoil="strict"))
    values = [world.put(f"zuul~{n}~1", huge(n) if n == 3 else telemetry(n)) for n in range(8)]
    policy = PredictPolicy("m", rows=4, client=ClientPolicy(timeout_s=30, budget_s=0.0))
    predictor = world.predictor(policy)
    predict = client_of(predictor).predict
    timeouts_s: list[float | None] = []

    def timed(*arrays: Any, timeout_s: float | None = None, **version: int) -> Prediction:
        timeouts_s.append(timeout_s)
        return predict(*arrays, **version)  # whatever a busy machine takes

    monkeypatch.setattr(client_of(predictor), "predict", timed)
    done = predictor.predict(batch(values))
    assert timeouts_s == [None, None, 2.0]  # a call that fails, zeros, and the calls after it
    assert [one["offset"] for one in done.predictions] == [4, 5, 6, 7]
    assert {(one["offset"], one["reason"]) for one in done.unpredictable} == {(n, "model_error") for n in range(4)}
