"""Predict, and live windows on Flink, under a supervisor: started, their worker killed, stopped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.kafka import KafkaOptions
from ciml.pipelines.live import LiveConfig
from ciml.serving.predict.log import read_predictions
from ciml.transforms.live.windows import LiveDataset
from tests.corpus import STABLE
from tests.pipelines.ingest.ingesting import need_real
from tests.pipelines.live.living import Kept, replayed
from tests.pipelines.live.living import send as send_samples
from tests.pipelines.predict.predicting import World, telemetry
from tests.pipelines.predict.test_predict import announce
from tests.scraping import scrape
from tests.services.supervising import supervised
from tests.transforms.samples import corpus, make_examples

pytestmark = [pytest.mark.engines, pytest.mark.timeout(240)]


def test_predict_waits_for_a_model_and_two_models_predict_each_run_once(
    world: World, folders: list[Path], kafka: str, topic: Callable[..., str], tmp_path: Path
) -> None:
    need_real(kafka)
    runs = topic(1, "runs")
    announced = [world.put(f"zuul~{number}~1", telemetry(number)) for number in range(10)]
    announce(kafka, runs, list(announced[:5]))
    words = (
        "--server", world.address, "--data-path", world.data.url, "--kafka", kafka, "--runs-topic", runs,
        "--predictions-topic", topic(1, "predictions"), "--engine", "micro-batches", "--metrics-port", "0",
    )  # fmt: skip

    def predicted() -> Counter[tuple[str, str]]:
        return Counter((each["run_id"], each["model"]) for each in read_predictions(world.data.predictions))

    with supervised(tmp_path / "home") as one:
        done = one.begin("predict", "--model", "m", *words, "--wait", "0")
        assert done.exception is None, done.exception
        one.wait(lambda: "no version of m is served" in one.status()["why"], "it does not wait")
        seen = one.status()
        assert (seen["health"], seen["behind"], seen["worker"]) == ("waiting", 5, None)
        world.push(folders[0])
        world.push(folders[1], "other")
        one.wait(lambda: predicted().total() == 5, "not all is predicted")
        one.kill_worker()
        rejected = str(one.begin("predict", "--model", "other", *words).exception)
        assert "a service named one is already running" in rejected
        assert "choose another --name" in rejected
        one.run("start", "predict", "--name", "two", "--tied-to", str(os.getpid()), "--model", "other", *words)
        announce(kafka, runs, list(announced[5:]))
        every = Counter((f"zuul~{number}~1", model) for number in range(10) for model in ("m", "other"))
        one.wait(lambda: predicted().total() >= 20, "not all is predicted by both")
        assert predicted() == every
        one.wait(lambda: one.status()["counts"] == {"by m 1": 10}, "not all is counted, or the other model too")
        found = scrape(one.status()["metrics"])
        assert found["ciml_service_health"][("running", "predict")] == 1
        assert found["ciml_service_resubmissions_total"] == {("predict",): 1}
        assert found["ciml_predictions_total"] == {("m", "1"): 10}
        one.run("stop", "two")
        one.run("stop", "one")
        assert (one.status()["health"], one.code()) == ("stopped", 1)


def test_live_examples_equal_the_batch_result_after_a_worker_died(
    kafka: str, topic: Callable[..., str], tmp_path: Path, flink_jobs: str, data: DataRoot
) -> None:
    need_real(kafka)
    resolved = data.dataset("providers").state().resolved
    assert resolved is not None
    sets = (LiveDataset("providers", resolved),)
    config = LiveConfig(
        KafkaOptions(kafka), sets, topic(2, "samples"), topic(2, "windows"), topic(1, "examples"), topic(1, "letters")
    )
    messages = replayed(6, seed=5)
    half = len(messages) // 2
    send_samples(kafka, config.topic, messages[:half], 2)
    kept = Kept(config.kafka, config)
    with supervised(tmp_path / "home") as one:
        arguments = (
            "--data-path", data.url, "--kafka", kafka, "--dataset", "providers", "--samples-topic", config.topic,
            "--windows-topic", config.windows_topic, "--examples-topic", config.examples_topic,
            "--dead-letters-topic", config.dead_letters_topic,
        )  # fmt: skip
        rejected = one.begin("live", *arguments, "--engine", "micro-batches")
        assert "live windows need Flink" in str(rejected.exception)
        assert not one.files.was_started
        done = one.begin("live", *arguments, "--engine", f"flink:{flink_jobs}", "--metrics-port", "0")
        assert done.exception is None, done.exception
        one.wait(lambda: bool(kept.look().windows), "no windows come")
        one.kill_worker()
        send_samples(kafka, config.topic, messages[half:], 2)
        run_ids = {run_id for run_id, _ in messages}
        one.wait(lambda: kept.look().ended() == run_ids, "not all runs end")
        one.wait(lambda: one.status()["lag"] == {"0": 0, "1": 0}, "the lag of its worker is not shown")
        assert one.status()["counts"]["messages read"] > 0
        found = scrape(one.status()["metrics"])
        assert found["ciml_lag_messages"] == {("0", config.topic): 0, ("1", config.topic): 0}
        runs, tables, _ = corpus(STABLE)
        classes = resolved.definition.classes or ()
        for run, table in zip(runs, tables, strict=True):
            if run.run_id in run_ids:
                named = run.replace(provider=classes[0])  # live examples need no label, those of the batch do
                [digest] = make_examples([named], [table], resolved).table.column("digest").to_pylist()
                assert kept.examples[run.run_id, "providers"]["digest"] == digest
        one.run("stop")
    kept.close()
