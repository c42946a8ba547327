"""Candidates predict the stream beside the served versions, in the process of their service."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError
from ciml.kafka import KafkaOptions
from ciml.pipelines.predict import PredictConfig
from ciml.services.driver import drive, launch_on_dataflow
from ciml.services.options import PredictOptions
from ciml.services.predict import PredictService
from ciml.serving.predict.log import read_predictions, stream_of
from ciml.serving.predict.predictor import PredictPolicy
from ciml.transforms.examples.prepare import prepare
from tests.messages import published
from tests.pipelines.predict.predicting import World, predict_config, telemetry
from tests.pipelines.predict.test_predict import announce
from tests.scraping import collected
from tests.serving.models_fixture import DEFINITION
from tests.training.candidates import expected, neighbours, record_kept


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
    return predict_config(world, kafka, topic, server="", candidate=True)


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
    for each in (replace(config, server=world.address, candidate=False), config):
        drive(PredictService(each), until="end")
    later = list(read_predictions(world.data.predictions))[20:]
    assert Counter(stream_of(one) for one in later) == {"m": 21, "m/candidate": 1}
    (late,) = [one for one in later if one["version"] is None]
    shares = np.array(list(late["probabilities"].values()), np.float32)
    np.testing.assert_array_equal(
        shares, expected(second, prepare(world.tables["zuul~late~1"], DEFINITION)[0][None])[0]
    )
    assert len(published(kafka, config.predictions_topic, "predictions")) == 42
