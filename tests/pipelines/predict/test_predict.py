"""Predict: each announced run is predicted once by each version, by the definition that the version carries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ciml.errors import EngineError, IntegrityError
from ciml.events.records import OffsetRange
from ciml.manifest.id_index import IdTable, PartFiles
from ciml.metrics import Board
from ciml.pipelines.predict import PredictConfig
from ciml.services.driver import drive
from ciml.services.predict import PredictService
from ciml.serving.client import ClientPolicy, NotServedError
from ciml.serving.predict import predictor as predict_runs
from ciml.serving.predict import prepared
from ciml.serving.predict.log import (
    LATENCIES_S,
    Predicted,
    PredictionState,
    prediction_checkpoints,
    prediction_families,
    prediction_id,
    read_predictions,
    reconcile,
)
from ciml.serving.predict.predictor import PredictPolicy
from ciml.storage import open_store
from tests.messages import published
from tests.pipelines.ingest.ingesting import produce
from tests.pipelines.poison import check_detail, fail_for
from tests.pipelines.predict.predicting import World, batch, client_of, predict_config, telemetry
from tests.scraping import collected
from tests.serving.models_fixture import DEFINITION, save_model


@pytest.mark.parametrize("stage", ["announcement", "predict"])
def test_a_poisoned_announcement_costs_itself_alone(
    world: World, folders: list[Path], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = world.push(folders[0])
    announced = [world.put(f"zuul~{number}~1", telemetry(number, 30 + number)) for number in range(7)]
    if stage == "predict":  # for all runs of the batch at once, as it has this one
        poison = lambda tables, *_: any(table.num_rows == 34 for table in tables)  # noqa: E731
        fail_for(monkeypatch, prepared, "prepare_many", poison, ZeroDivisionError(stage))
    else:
        poison = lambda message: b"zuul~4~1" in (message.value or b"")  # noqa: E731
        fail_for(monkeypatch, predict_runs, "read_announcement", poison, ZeroDivisionError(stage))
    done = world.predictor().predict(batch(announced, start=100))
    monkeypatch.undo()
    assert [one["run_id"] for one in done.predictions] == [f"zuul~{number}~1" for number in range(7) if number != 4]
    for one in done.predictions:
        expected = world.expected(folders[0], one["run_id"])
        np.testing.assert_allclose(list(one["probabilities"].values()), expected, atol=1e-5)
    (record,) = done.unpredictable
    assert (record["offset"], record["reason"]) == (104, "internal_error")
    check_detail(record["detail"], f"{stage}: ZeroDivisionError: ")
    if stage == "predict":
        assert (record["run_id"], record["model"], record["version"]) == ("zuul~4~1", "m", version)
    state = PredictionState()
    delta = reconcile(state, [done], 5)
    assert delta is not None
    assert delta["offsets"]["runs"]["partitions"] == {"0": [[100, 107]]}
    state.apply(1, delta)
    board = Board()
    board.put_observed(prediction_families(state))
    assert collected(board)["ciml_unpredictable_total"] == {("internal_error",): 1}


def test_predictions_equal_the_model_called_directly(world: World, folders: list[Path]) -> None:
    world.push(folders[0], facts={"snapshot": "5" * 64})
    announced = [world.put(f"zuul~{number}~1", telemetry(number, 20 + 7 * number)) for number in range(9)]
    predictor = world.predictor(PredictPolicy("m", rows=4), clock=lambda: 1002.5)
    done = predictor.predict(batch(announced, start=100))
    assert [one["run_id"] for one in done.predictions] == [f"zuul~{number}~1" for number in range(9)]
    assert done.unpredictable == []
    assert [one["batch"] for one in done.predictions] == [4, 4, 4, 4, 4, 4, 4, 4, 1]
    for place, one in enumerate(done.predictions):
        probabilities = world.expected(folders[0], one["run_id"])
        np.testing.assert_allclose(list(one["probabilities"].values()), probabilities, atol=1e-5)
        assert list(one["probabilities"]) == ["a", "b", "c", "d"]
        assert one["class"] == "abcd"[int(probabilities.argmax())]
        assert (one["model"], one["version"], one["label"], one["offset"]) == ("m", 1, "provider", 100 + place)
        assert (one["definition"], one["snapshot"]) == (DEFINITION.digest, "5" * 64)
        assert one["id"] == prediction_id(one["run_id"], "m", 1)
        assert one["latency_ms"] == 2500.0
        assert one["server_ms"] > 0
        assert one["prepare_ms"] > 0
    predictor.close()
    behind = world.predictor(clock=lambda: 999.0)  # the broker's is ahead
    assert [one["latency_ms"] for one in behind.predict(batch(announced[:2])).predictions] == [0.0, 0.0]


def test_what_cannot_be_predicted_is_named_and_holds_up_nothing(world: World, folders: list[Path]) -> None:
    other = DEFINITION.replace(definition=DEFINITION.definition.replace(build_name=("job*",)))
    world.push(save_model(Path(world.data.url) / "selective", 5, definition=other))
    fine = world.put("zuul~fine~1", telemetry(1))
    gone = world.put("zuul~gone~1", telemetry(2))
    world.data.raw.delete(json.loads(gone)["path"])
    broken = world.put("zuul~broken~1", telemetry(2))
    world.data.raw.replace(json.loads(broken)["path"], b"PAR1 no")
    values = [
        world.put("zuul~narrow~1", telemetry(3, columns=DEFINITION.columns[:2])),
        gone,
        None,  # the tombstone of an erased run, which is nothing to predict
        world.put("zuul~elsewhere~1", telemetry(4), job="other"),
        broken,
        world.put("zuul~empty~1", telemetry(3, rows=0)),
        fine,
    ]
    done = world.predictor().predict(batch(values))
    assert [one["run_id"] for one in done.predictions] == ["zuul~fine~1"]
    found = {one["offset"]: (one["run_id"], one["reason"]) for one in done.unpredictable}
    assert found.pop(5)[0] == "zuul~empty~1"
    assert found == {
        0: ("zuul~narrow~1", "missing_column"),
        1: ("zuul~gone~1", "raw_unreadable"),
        3: ("zuul~elsewhere~1", "job_not_selected"),
        4: ("zuul~broken~1", "raw_unreadable"),
    }


def test_version_that_is_replaced_between_question_and_call(
    world: World, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor has another L: what was prepared for the old version must not be sent to it."""
    world.push(folders[0])
    value = world.put("zuul~a~1", telemetry(1, 90))
    predictor = world.predictor()
    real = client_of(predictor).served_version
    asked: list[int] = []

    def swapped(label: str) -> int:
        asked.append(real(label))
        if len(asked) == 1:
            world.push(folders[1])
            world.push(folders[2])  # version 1 is unloaded: only 3 and its predecessor 2 are kept
        return asked[-1]

    monkeypatch.setattr(client_of(predictor), "served_version", swapped)
    (one,) = predictor.predict(batch([value])).predictions
    assert asked == [1, 3]
    assert one["version"] == 3
    from ciml.serving.contract import read_definition

    wider = read_definition((folders[2] / "assets" / "definition.json").read_bytes(), "c")
    np.testing.assert_allclose(
        list(one["probabilities"].values()), world.expected(folders[2], "zuul~a~1", wider), atol=1e-5
    )


def test_a_version_that_is_always_replaced_stops_the_batch(
    world: World, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.push(folders[0])
    predictor = world.predictor()
    versions: list[int] = []

    def replaced(*_: Any, version: int, **options: Any) -> None:
        versions.append(version)
        raise NotServedError("it was unloaded")

    monkeypatch.setattr(client_of(predictor), "predict", replaced)
    with pytest.raises(EngineError, match="the served version kept changing; gave up after 10 tries"):
        predictor.predict(batch([world.put("zuul~a~1", telemetry(1))]))
    assert versions == [1] * 10


def test_altered_definition_is_not_followed(world: World, folders: list[Path]) -> None:
    world.push(folders[0])
    asset = Path(world.data.url, "models", "m", "1", "assets", "definition.json")
    asset.write_bytes(asset.read_bytes().replace(b"10s", b"20s"))
    with pytest.raises(IntegrityError, match=r"definition\.json was altered"):
        world.predictor().predict(batch([world.put("zuul~a~1", telemetry(1))]))


def record(run_id: str, offset: int, version: int = 1) -> dict[str, Any]:
    identity = prediction_id(run_id, "m", version)
    return {"id": identity, "offset": offset, "run_id": run_id, "model": "m", "version": version}


def covers(start: int, end: int, topic_id: str = "T") -> OffsetRange:
    return OffsetRange("runs", topic_id, 0, start, end)


def test_reconcile_drops_replays_and_counts_repeats() -> None:
    state = PredictionState()
    unpredictable = [{"offset": 3, "run_id": "c", "reason": "empty"}]
    first = Predicted(covers(0, 4), [record("a", 0), record("b", 1), record("b", 2)], unpredictable)  # b twice
    delta = reconcile(state, [first, first], 5)
    assert delta is not None
    assert ([one["offset"] for one in delta["predictions"]], delta["repeats"]) == ([0, 1], ["b"])
    state.apply(1, {**delta, "version": 1})
    assert (dict(state.predicted), dict(state.unpredictable), state.repeats) == ({("m", 1): 2}, {"empty": 1}, 1)
    assert reconcile(state, [first], 6) is None

    # Overlapping: 3 was covered; 4 announces a again for the same version, 5 for another one.
    more = Predicted(covers(3, 6), [record("z", 3), record("a", 4), record("a", 5, version=2)], unpredictable)
    delta = reconcile(state, [more], 7)
    assert delta is not None
    assert [(one["run_id"], one["version"]) for one in delta["predictions"]] == [("a", 2)]
    assert (delta["repeats"], delta["unpredictable"]) == (["a"], [])
    assert delta["offsets"] == {"runs": {"id": "T", "partitions": {"0": [[4, 6]]}}}
    state.apply(2, {**delta, "version": 2})
    assert state.repeats == 2
    with pytest.raises(IntegrityError, match="created again"):
        reconcile(state, [Predicted(covers(6, 7, "U"))], 8)
    with pytest.raises(IntegrityError, match="outside of this range"):
        reconcile(state, [Predicted(covers(6, 7), [record("q", 7)])], 8)


def test_metrics_of_versions_have_bounds_and_outlive_a_checkpoint(tmp_path: Path) -> None:
    state = PredictionState()
    for version in range(1, 15):
        offset = version - 1
        one = record(f"run{version}", offset, version) | {"latency_ms": 50.0 * version}
        if version % 3:
            one["verdict"] = {"cause": "unknown", "outside": {}} if version % 3 == 1 else {"cause": "machine"}
        delta = reconcile(state, [Predicted(covers(offset, offset + 1), [one])], 5_000_000)
        assert delta is not None
        state.apply(version, {**delta, "version": version})
    tables = {
        name: IdTable(kind, (), PartFiles(open_store(tmp_path), "index"))
        for name, kind in prediction_checkpoints().tables.items()
    }
    restored = prediction_checkpoints().restore(14, json.loads(json.dumps(state.snapshot())), tables)
    for each in (state, restored):
        board = Board()
        board.put("predictions", prediction_families(each))
        shown = collected(board)
        latest = {("m", str(version)): 1 for version in range(5, 15)}
        assert shown["ciml_predictions_total"] == {("m", "older"): 4, **latest}
        assert shown["ciml_prediction_latency_seconds_bucket"]["0.25", "m"] == 5  # a bound belongs to its bucket
        assert shown["ciml_prediction_latency_seconds_bucket"]["1.0", "m"] == 14
        assert shown["ciml_prediction_latency_seconds_sum"] == {("m",): pytest.approx(0.05 * sum(range(1, 15)))}
        assert shown["ciml_verdicts_total"] == {("machine", "m"): 5, ("unknown", "m"): 5}
        assert shown["ciml_verdicts_outside_total"] == {("m",): 5}
        assert shown["ciml_manifest_commit_timestamp_seconds"] == {("predictions",): 5.0}
    before = {name: each for name, each in state.snapshot().items() if name not in ("verdicts", "outside")}
    older = prediction_checkpoints().restore(14, json.loads(json.dumps(before)), tables)
    assert (older.verdicts, older.outside) == ({}, {})


# ---- with a broker ----


def announce(kafka: str, topic: str, values: list[bytes]) -> None:
    produce(kafka, topic, [(value, ()) for value in values])


@pytest.fixture
def config(world: World, kafka: str, topic: Callable[..., str]) -> PredictConfig:
    policy = PredictPolicy("m", client=ClientPolicy(timeout_s=5, budget_s=20))
    return predict_config(world, kafka, topic, policy=policy)


@pytest.mark.engines
def test_micro_batches_predict_each_run_once(world: World, folders: list[Path], config: PredictConfig) -> None:
    kafka = config.kafka.bootstrap
    announced = [world.put(f"zuul~{number}~1", telemetry(number)) for number in range(20)]
    announce(kafka, config.runs_topic, [*announced, announced[3], b"broken"])
    with pytest.raises(EngineError, match="push a model first"):
        drive(PredictService(config), until="end")
    world.push(folders[0])
    words: list[tuple[int, str]] = []
    service = PredictService(config)
    drive(service, until="end", report=lambda progress, word: words.append((progress.behind, word)))

    found = list(read_predictions(world.data.predictions))
    assert Counter(one["run_id"] for one in found) == Counter(f"zuul~{number}~1" for number in range(20))
    for one in found:
        probabilities = list(one["probabilities"].values())
        np.testing.assert_allclose(probabilities, world.expected(folders[0], one["run_id"]), atol=1e-5)
    messages = published(kafka, config.predictions_topic, "predictions")
    assert [message.key for message in messages] == [one["run_id"].encode() for one in found]
    for message, one in zip(messages, found, strict=True):
        headers = dict(message.headers)
        assert (headers["ce_id"], headers["ce_type"]) == (one["id"].encode(), b"dev.ciml.prediction.v1")
        assert json.loads(message.value or b"") == {name: item for name, item in one.items() if name != "offset"}
    assert words[0][1].startswith("version 1")
    shown = collected(service.board)
    latencies_s = [one["latency_ms"] / 1000 for one in found]
    assert shown["ciml_predictions_total"] == {("m", "1"): 20}
    assert shown["ciml_unpredictable_total"] == {("bad_announcement",): 1}
    assert shown["ciml_prediction_repeats_total"] == {(): 1}
    assert shown["ciml_lag_messages"] == {("0", config.runs_topic): 0}
    assert shown["ciml_prediction_latency_seconds_count"] == {("m",): 20}
    assert shown["ciml_prediction_latency_seconds_sum"][("m",)] == pytest.approx(sum(latencies_s))
    for bound in LATENCIES_S:
        faster = sum(latency_s <= bound for latency_s in latencies_s)
        assert shown["ciml_prediction_latency_seconds_bucket"][str(bound), "m"] == faster

    # Another version predicts only what is announced from now on.
    world.push(folders[1])
    announce(kafka, config.runs_topic, [announced[0]])
    drive(PredictService(config), until="end")
    later = list(read_predictions(world.data.predictions))[20:]
    assert [(one["run_id"], one["version"]) for one in later] == [("zuul~0~1", 2)]
