"""Two models, or a model and its candidates, predict the runs of one data root into one manifest and one topic."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from ciml.data_root import DataRoot
from ciml.errors import EngineError
from ciml.events.records import OffsetRange
from ciml.kafka import KafkaOptions
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import ManifestLog
from ciml.metrics import Board
from ciml.pipelines.kafka import publish
from ciml.pipelines.predict import PredictConfig, PredictProcessor, predictor, render_predictions
from ciml.pipelines.processor import Processor
from ciml.services.driver import drive
from ciml.services.predict import PredictService
from ciml.serving.predict.log import (
    Predicted,
    PredictionState,
    candidate_stream,
    prediction_families,
    prediction_id,
    read_predictions,
    reconcile,
    stream_of,
)
from ciml.serving.predict.predictor import PredictPolicy
from ciml.storage import open_store
from tests.messages import published
from tests.pipelines.ingest.ingesting import need_real
from tests.pipelines.predict.predicting import Predictions, World, client_of, predict_config, telemetry
from tests.pipelines.predict.test_predict import announce
from tests.scraping import collected

CANDIDATES = ("0123456789abcdef", "f" * 16)


def answers(start: int, end: int, model: str = "a", candidate: str = "") -> Predicted:
    """The answers of version 1 of a model, or of its candidate, to announcements: the last one is unpredictable."""
    named: dict[str, Any] = {"version": 1}
    if candidate:
        named = {"version": None, "candidate": {"id": candidate, "blessed": False, "reasons": ["no"]}}
    found = [
        {
            "id": prediction_id(f"r{at}", model, candidate or 1),
            "offset": at,
            "run_id": f"r{at}",
            "model": model,
            "verdict": {"cause": "code", "outside": {}},
            "latency_ms": 100.0,
            **named,
        }
        for at in range(start, end - 1)
    ]
    unpredictable = [{"offset": end - 1, "run_id": "x", "reason": "empty"}]
    return Predicted(OffsetRange("runs", "T", 0, start, end), found, unpredictable)


@pytest.mark.parametrize(
    ("stream", "candidates", "version"), [("b", ("", ""), "1"), (candidate_stream("a"), CANDIDATES, "candidate")]
)
def test_each_stream_covers_and_counts_its_own_offsets_of_one_manifest(
    tmp_path: Path, stream: str, candidates: tuple[str, str], version: str
) -> None:
    """Two models, or a model and its candidates."""
    limits = Limits(deltas=4)
    first, second = (Predictions(open_store(tmp_path), name, limits) for name in ("a", stream))
    model = stream.partition("/")[0]
    assert second.commit([answers(0, 3, model, candidates[0])]) is not None
    for number in range(4):
        assert first.commit([answers(5 * number, 5 * number + 5)]) is not None
        assert first.commit([answers(5 * number, 5 * number + 5)]) is None
    assert second.commit([answers(3, 6, model, candidates[1])]) is not None
    while first.maintain():
        pass
    fresh = Predictions(open_store(tmp_path), stream, limits)  # from a checkpoint that the other made
    with first.state() as of_first, second.state() as of_second, fresh.state() as restored:
        assert restored.restored == 4
        assert of_first.snapshot() == of_second.snapshot() == restored.snapshot()
        for state, name, shown_version, covered, predicted, rejected in (
            (of_first, "a", "1", 20, 16, 4),
            (of_second, stream, version, 6, 4, 2),
            (restored, stream, version, 6, 4, 2),
        ):
            assert list(state.covered("runs", 0)) == [(0, covered)]
            board = Board()
            board.put_observed(prediction_families(state))
            shown = collected(board)
            assert shown["ciml_predictions_total"] == {(name, shown_version): predicted}
            assert shown["ciml_unpredictable_total"] == {("empty",): rejected}
            assert shown["ciml_verdicts_total"] == {("code", name): predicted}
            assert shown["ciml_verdicts_outside_total"] == {(name,): predicted}
            assert shown["ciml_prediction_latency_seconds_count"] == {(name,): predicted}
        by_version = Counter((stream, candidate or 1) for candidate in candidates for _ in range(2))
        assert dict(restored.predicted) == {("a", 1): 16} | by_version
    with Predictions(open_store(tmp_path), "").state() as of_all:
        assert list(of_all.covered("runs", 0)) == [(0, 20)]
    assert len(list(read_predictions(open_store(tmp_path)))) == 20
    for _, delta in ManifestLog(open_store(tmp_path)).since(0):
        assert {stream_of(prediction) for prediction in delta["predictions"]} == {delta["model"]}


def test_a_stream_publishes_its_own_predictions_under_its_own_type() -> None:
    streams = [answers(0, 3), answers(1, 4, "b"), answers(2, 5, "a", CANDIDATES[0])]
    delta = {"predictions": [prediction for stream in streams for prediction in stream.predictions]}
    for stream, keys, kind in (
        ("a", [b"r0", b"r1"], b"dev.ciml.prediction.v1"),
        ("b", [b"r1", b"r2"], b"dev.ciml.prediction.v1"),
        ("a/candidate", [b"r2", b"r3"], b"dev.ciml.candidate.prediction.v1"),
    ):
        messages = list(render_predictions(delta, stream))
        assert [key for key, _, _ in messages] == keys
        for _, _, headers in messages:
            assert dict(headers)["ce_source"] == f"/ciml/models/{stream}".encode()
            assert dict(headers)["ce_type"] == kind


def test_a_state_whose_update_was_interrupted_is_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Predictions(open_store(tmp_path), "a")
    with replica.state() as state:
        assert state.version == 0
    Predictions(open_store(tmp_path), "a").commit([answers(0, 5)])
    with monkeypatch.context() as patch:
        patch.setattr(PredictionState, "has", Mock(side_effect=[False, KeyboardInterrupt]))
        with pytest.raises(KeyboardInterrupt), replica.state():
            pass
    with replica.state() as state:
        assert (state.version, dict(state.predicted), state.torn) == (1, {("a", 1): 4}, False)


def test_each_model_has_its_own_replica_and_predictor(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path)
    for model in "ab":
        config = PredictConfig(data, "127.0.0.1:1", PredictPolicy(model), kafka=KafkaOptions("127.0.0.1:1"))
        with PredictProcessor(config).replica().state() as state:
            assert state.model == model
        assert client_of(predictor(config)).model == model


def test_what_earlier_versions_covered_is_covered_for_every_model(tmp_path: Path) -> None:
    earlier = PredictionState()
    delta = reconcile(earlier, [answers(0, 5)], 1)
    assert delta is not None
    assert "model" not in delta
    assert ManifestLog(open_store(tmp_path)).try_append(1, delta)
    a, b = (Predictions(open_store(tmp_path), model) for model in "ab")
    assert a.commit([answers(0, 5)]) is None
    assert b.commit([answers(3, 8, "b")]) == 2
    with a.state() as of_a, b.state() as of_b:
        assert list(of_a.covered("runs", 0)) == [(0, 5)]
        assert list(of_b.covered("runs", 0)) == [(0, 8)]
    offsets = {"runs": {**delta["offsets"]["runs"], "partitions": {"0": [[8, 9]]}}}  # an earlier version runs once more
    again = {**delta, "offsets": offsets, "predictions": [], "unpredictable": [], "repeats": []}
    assert ManifestLog(open_store(tmp_path)).try_append(3, again)
    c = Predictions(open_store(tmp_path), "c")
    for model, covered in ((a, [(0, 5), (8, 9)]), (b, [(0, 9)]), (c, [(0, 5), (8, 9)])):
        assert model.commit([answers(8, 9, "d")]) is None
        with model.state() as state:
            assert list(state.covered("runs", 0)) == covered


@pytest.fixture
def configs(world: World, folders: list[Path], kafka: str, topic: Callable[..., str]) -> tuple[PredictConfig, ...]:
    need_real(kafka)
    world.push(folders[0])
    world.push(folders[1], "other")
    config = predict_config(world, kafka, topic)
    return config, replace(config, policy=PredictPolicy("other"))


@pytest.mark.engines
def test_two_models_at_once_predict_each_run_once_each(
    world: World, configs: tuple[PredictConfig, PredictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka, names = configs[0].kafka.bootstrap, [f"zuul~{number}~1" for number in range(60)]
    announce(kafka, configs[0].runs_topic, [world.put(name, telemetry(at)) for at, name in enumerate(names)])
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(drive, PredictService(each), until="end", patience_s=60.0) for each in configs]:
            done.result(120)
    every = Counter((name, model) for name in names for model in ("m", "other"))
    found = list(read_predictions(world.data.predictions))
    assert Counter((each["run_id"], each["model"]) for each in found) == every
    topic = configs[0].predictions_topic
    messages = published(kafka, topic, "predictions")
    values: list[Any] = [json.loads(message.value or b"") for message in messages]
    assert Counter((value["run_id"], value["model"]) for value in values) == every

    # One model alone: it dies between commit and publication. What it had not published, it publishes when it is back.
    announce(kafka, configs[0].runs_topic, [world.put("zuul~late~1", telemetry(99))])
    real = Processor.commit

    def dies(self: Any, ranges: Any) -> int | None:
        real(self, ranges)
        raise EngineError("killed")

    monkeypatch.setattr(Processor, "commit", dies)
    with pytest.raises(EngineError, match="killed"):
        drive(PredictService(configs[1]), until="end", patience_s=0.0)
    monkeypatch.undo()
    drive(PredictService(configs[0]), until="end")
    assert len(published(kafka, topic, "predictions")) == 121
    publish._projections._objects.clear()  # another process has no cursor yet
    drive(PredictService(configs[1]), until="end")
    drive(PredictService(configs[0]), until="end")
    last = [json.loads(message.value or b"") for message in published(kafka, topic, "predictions")[120:]]
    assert [(each["run_id"], each["model"]) for each in last] == [("zuul~late~1", "m"), ("zuul~late~1", "other")]
