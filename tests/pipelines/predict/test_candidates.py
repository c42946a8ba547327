"""Candidates predict the stream beside the served versions: neither counts for the other, or is mistaken for it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError
from ciml.events.records import OffsetRange
from ciml.kafka import KafkaOptions
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import ManifestLog
from ciml.metrics import Board
from ciml.pipelines.predict import PredictConfig, render_predictions
from ciml.services.driver import drive, launch_on_dataflow
from ciml.services.options import PredictOptions
from ciml.services.predict import PredictService
from ciml.serving.predict.log import (
    Predicted,
    candidate_stream,
    prediction_families,
    prediction_id,
    read_predictions,
    stream_of,
)
from ciml.serving.predict.predictor import PredictPolicy
from ciml.storage import open_store
from ciml.transforms.examples.prepare import prepare
from tests.messages import published
from tests.pipelines.predict.predicting import Predictions, World, telemetry
from tests.pipelines.predict.test_predict import announce
from tests.scraping import collected
from tests.serving.models_fixture import DEFINITION
from tests.training.candidates import expected, neighbours, record_kept

NAME = "0123456789abcdef"


def made(start: int, end: int, candidate: str = "") -> Predicted:
    """What version 1 of m, or its candidate, makes of a range of announcements."""
    named: dict[str, Any] = {"version": 1}
    if candidate:
        named = {"version": None, "candidate": {"id": candidate, "blessed": False, "reasons": ["no"]}}
    records = [
        {
            "id": prediction_id(f"r{at}", "m", candidate or 1),
            "offset": at,
            "run_id": f"r{at}",
            "model": "m",
            "verdict": {"cause": "code", "outside": {}},
            "latency_ms": 100.0,
            **named,
        }
        for at in range(start, end)
    ]
    return Predicted(OffsetRange("runs", "T", 0, start, end), records)


def test_the_candidates_of_a_model_and_its_versions_cover_and_count_their_own_runs(tmp_path: Path) -> None:
    limits = Limits(deltas=2)
    served, candidates = (Predictions(open_store(tmp_path), name, limits) for name in ("m", candidate_stream("m")))
    assert candidates.commit([made(0, 3, NAME)]) == 1
    assert served.commit([made(0, 5)]) == 2
    assert candidates.commit([made(3, 4, "f" * 16)]) == 3
    while served.maintain():
        pass
    restored = Predictions(open_store(tmp_path), candidate_stream("m"), limits)
    with served.state() as of_served, candidates.state() as of_candidates, restored.state() as after_checkpoint:
        assert after_checkpoint.restored >= 2
        for state, covered, name, version, number in (
            (of_served, 5, "m", "1", 5),
            (of_candidates, 4, "m/candidate", "candidate", 4),
            (after_checkpoint, 4, "m/candidate", "candidate", 4),
        ):
            assert list(state.covered("runs", 0)) == [(0, covered)]
            board = Board()
            board.put_observed(prediction_families(state))
            shown = collected(board)
            assert shown["ciml_predictions_total"] == {(name, version): number}
            assert shown["ciml_verdicts_total"] == {("code", name): number}
            assert shown["ciml_verdicts_outside_total"] == {(name,): number}
            assert shown["ciml_prediction_latency_seconds_count"] == {(name,): number}
        keys = {("m", 1): 5, ("m/candidate", NAME): 3, ("m/candidate", "f" * 16): 1}
        assert dict(after_checkpoint.predicted) == keys
    for _, delta in ManifestLog(open_store(tmp_path)).since(0):
        streams = {stream_of(prediction) for prediction in delta["predictions"]}
        assert streams == {delta["model"]}


def test_a_stream_publishes_its_own_predictions_under_its_own_type(tmp_path: Path) -> None:
    delta = {"predictions": [*made(0, 2).predictions, *made(1, 3, NAME).predictions]}
    for stream, keys, source, kind in (
        ("m", [b"r0", b"r1"], b"/ciml/models/m", b"dev.ciml.prediction.v1"),
        ("m/candidate", [b"r1", b"r2"], b"/ciml/models/m/candidate", b"dev.ciml.candidate.prediction.v1"),
    ):
        messages = list(render_predictions(delta, stream))
        assert [key for key, _, _ in messages] == keys
        for _, _, headers in messages:
            assert (dict(headers)["ce_source"], dict(headers)["ce_type"]) == (source, kind)


def test_the_options_of_a_candidate_are_those_of_its_command() -> None:
    given = {"data_path": "data", "kafka": "k:1", "model": "m", "candidate": True, "allow_modules": ["mine"]}
    config = PredictOptions.from_json(given).open()
    assert (config.candidate, config.allow_modules, config.server) == (True, ("mine",), "")
    assert PredictOptions.from_json(PredictOptions.from_json(given).to_json()) == PredictOptions.from_json(given)
    earlier = {"data_path": "data", "kafka": "k:1", "model": "m", "server": "s:1", "label": "stable"}
    assert PredictOptions.from_json(earlier).open().stream == "m"
    for wrong, text in (
        ({**given, "label": "canary"}, "--candidate excludes --label"),
        ({**earlier, "allow_modules": ["mine"]}, "--allow-module: only with --candidate"),
        ({name: value for name, value in earlier.items() if name != "server"}, "no model server: start one"),
    ):
        with pytest.raises(CimlError, match=text):
            PredictOptions.from_json(wrong).open()


def test_a_candidate_runs_in_the_services_own_process(tmp_path: Path) -> None:
    config = PredictConfig(
        DataRoot.open(tmp_path), "", PredictPolicy("m"), kafka=KafkaOptions("127.0.0.1:1"), candidate=True
    )
    service = PredictService(config)
    assert service.name == "ciml-predict-m-candidate"
    with pytest.raises(CimlError, match=r"predicts in the service's own process.*--engine micro-batches"):
        drive(service, "127.0.0.1:2")
    with pytest.raises(CimlError, match="its files are on this machine"):
        launch_on_dataflow(service, Mock(), "x")


# ---- with a broker ----


@pytest.fixture
def config(world: World, kafka: str, topic: Callable[..., str]) -> PredictConfig:
    topics = {"runs_topic": topic(1, "runs"), "predictions_topic": topic(1, "predictions")}
    kafka_options = KafkaOptions(kafka)
    return PredictConfig(
        world.data, "", PredictPolicy("m"), kafka=kafka_options, cycle_messages=7, candidate=True, **topics
    )


@pytest.mark.engines
def test_a_kept_estimator_predicts_announced_runs_and_its_successor_follows(
    world: World, folders: list[Path], config: PredictConfig, tmp_path: Path
) -> None:
    kafka = config.kafka.bootstrap
    announced = [world.put(f"zuul~{number}~1", telemetry(number)) for number in range(20)]
    announce(kafka, config.runs_topic, announced)
    with pytest.raises(EngineError, match="model m has no candidate: train one by ciml refresh"):
        drive(PredictService(config), until="end")
    first, second = neighbours(1), neighbours(2)
    notice = record_kept(world.data, tmp_path / "first", first, "no conversion")
    service = PredictService(config)
    words: list[str] = []
    drive(service, until="end", report=lambda progress, word: words.append(word))
    assert words[0] == f"candidate {notice.id}, rejected by the gate, not served"
    found = list(read_predictions(world.data.predictions))
    assert Counter(one["run_id"] for one in found) == Counter(f"zuul~{number}~1" for number in range(20))
    inputs = np.stack([prepare(world.tables[one["run_id"]], DEFINITION)[0] for one in found])
    shares = np.array([list(one["probabilities"].values()) for one in found], np.float32)
    np.testing.assert_array_equal(shares, expected(first, inputs))
    messages = published(kafka, config.predictions_topic, "predictions")
    for message, one in zip(messages, found, strict=True):
        assert json.loads(message.value or b"") == {name: item for name, item in one.items() if name != "offset"}
        assert one["candidate"] == notice.to_json()
    assert service.facts()["counts"] == {f"by m/candidate {notice.id}": 20}
    assert collected(service.board)["ciml_predictions_total"] == {("m/candidate", "candidate"): 20}

    # The served version predicts all runs itself, and the successor of the candidate what is announced from now on.
    world.push(folders[0])
    record_kept(world.data, tmp_path / "second", second, "no conversion")
    announce(kafka, config.runs_topic, [world.put("zuul~late~1", telemetry(99))])
    topics = {"runs_topic": config.runs_topic, "predictions_topic": config.predictions_topic}
    served = PredictConfig(world.data, world.address, PredictPolicy("m"), kafka=config.kafka, **topics)
    for each in (served, config):
        drive(PredictService(each), until="end")
    later = list(read_predictions(world.data.predictions))[20:]
    assert Counter(stream_of(one) for one in later) == {"m": 21, "m/candidate": 1}
    (late,) = [one for one in later if one["version"] is None]
    shares = np.array(list(late["probabilities"].values()), np.float32)
    np.testing.assert_array_equal(
        shares, expected(second, prepare(world.tables["zuul~late~1"], DEFINITION)[0][None])[0]
    )
    assert len(published(kafka, config.predictions_topic, "predictions")) == 42
