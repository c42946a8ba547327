"""A candidate predicts under a supervisor: what is missing is waited for, and not restarted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ciml.serving.predict.log import read_predictions
from tests.pipelines.ingest.ingesting import need_real
from tests.pipelines.predict.predicting import World, telemetry
from tests.pipelines.predict.test_predict import announce
from tests.scraping import scrape
from tests.services.supervising import supervised
from tests.training.candidates import fitted, neighbours, record_kept
from tests.training.estimators.user_models import Shares

pytestmark = [pytest.mark.engines, pytest.mark.timeout(240)]
USER = "tests.training.estimators.user_models"


def test_a_candidate_predicts_under_a_supervisor_which_waits_for_what_is_missing(
    world: World, kafka: str, topic: Callable[..., str], tmp_path: Path
) -> None:
    need_real(kafka)
    runs = topic(1, "runs")
    announced = [world.put(f"zuul~{number}~1", telemetry(number)) for number in range(15)]
    announce(kafka, runs, announced[:5])
    words = (
        "--model", "m", "--candidate", "--data-path", world.data.url, "--kafka", kafka, "--runs-topic", runs,
        "--predictions-topic", topic(1, "predictions"), "--metrics-port", "0", "--wait", "0",
    )  # fmt: skip

    def predicted() -> Counter[str]:
        return Counter(one["candidate"]["id"] for one in read_predictions(world.data.predictions))

    with supervised(tmp_path / "home") as one:
        rejected = one.begin("predict", *words, "--engine", "flink:127.0.0.1:1")
        assert "a candidate predicts in the service's own process" in str(rejected.exception)
        done = one.begin("predict", *words, "--engine", "micro-batches")
        assert done.exception is None, done.exception
        one.wait(lambda: "model m has no candidate: train one" in one.status()["why"], "it does not wait")
        first = record_kept(world.data, tmp_path / "first", neighbours(1), "no conversion")
        one.wait(lambda: predicted().total() == 5, "not all is predicted")
        one.kill_worker()
        announce(kafka, runs, announced[5:10])
        one.wait(lambda: predicted().total() == 10, "the killed worker has no successor")
        record_kept(world.data, tmp_path / "own", fitted(Shares()), "no conversion")
        announce(kafka, runs, announced[10:])
        one.wait(lambda: f"--allow-module {USER}" in one.status()["why"], "it does not say what to allow")
        assert (one.status()["health"], one.status()["resubmitted"]) == ("waiting", 1)
        second = record_kept(world.data, tmp_path / "second", neighbours(2), "no conversion")
        one.wait(lambda: predicted().total() == 15, "the next candidate does not predict")
        assert predicted() == {first.id: 10, second.id: 5}
        counts = {f"by m/candidate {name}": number for name, number in predicted().items()}
        one.wait(lambda: one.status()["counts"] == counts, "not all is counted")
        assert one.status()["resubmitted"] == 1
        assert scrape(one.status()["metrics"])["ciml_predictions_total"] == {("m/candidate", "candidate"): 15}
        one.run("stop", "one")
