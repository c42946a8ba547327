"""A running service predicts with a candidate: what is missing is waited for, and a successor needs no restart."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ciml.services.driver import drive
from ciml.services.options import PredictOptions
from ciml.serving.predict.log import read_predictions
from tests.pipelines.predict.predicting import World, telemetry
from tests.pipelines.predict.test_predict import announce
from tests.recorder.recorded import wait_for
from tests.training.candidates import fitted, neighbours, record_kept
from tests.training.estimators.user_models import Shares

USER = "tests.training.estimators.user_models"


@pytest.mark.engines
def test_a_running_service_waits_for_a_candidate_that_it_can_load_and_follows_its_successor(
    world: World, kafka: str, topic: Callable[..., str], tmp_path: Path
) -> None:
    runs = topic(1, "runs")
    announced = [world.put(f"zuul~{number}~1", telemetry(number)) for number in range(15)]
    given = {"data_path": world.data.url, "kafka": kafka, "model": "m", "candidate": True, "runs_topic": runs}
    options = PredictOptions.from_json({**given, "predictions_topic": topic(1, "predictions")})
    words: list[str] = []
    stop = threading.Event()
    arguments = {"stop": stop, "report": lambda progress, word: words.append(word)}
    thread = threading.Thread(target=drive, args=(options.service(),), kwargs=arguments)

    def predicted() -> Counter[str]:
        return Counter(one["candidate"]["id"] for one in read_predictions(world.data.predictions))

    def waits_for(text: str) -> None:
        wait_for(lambda: text in " ".join(words[-1:]))

    announce(kafka, runs, announced[:5])
    thread.start()
    try:
        waits_for("model m has no candidate: train one")
        first = record_kept(world.data, tmp_path / "first", neighbours(1), "no conversion")
        wait_for(lambda: predicted() == {first.id: 5})
        record_kept(world.data, tmp_path / "own", fitted(Shares()), "no conversion")
        announce(kafka, runs, announced[5:])
        waits_for(f"--allow-module {USER}")
        second = record_kept(world.data, tmp_path / "second", neighbours(2), "no conversion")
        wait_for(lambda: predicted() == {first.id: 5, second.id: 10})
        counts = {f"by m/candidate {name}": number for name, number in predicted().items()}
        assert options.service().facts()["counts"] == counts
    finally:
        stop.set()
        thread.join()
