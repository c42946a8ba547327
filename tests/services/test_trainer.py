"""The trainer as a service: it waits for data, and refreshes when there is more."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.errors import (
    CimlError,
    InvalidSettingError,
    MissingExtraError,
    NoTrainingDataError,
    UnknownDatasetError,
    UnknownEstimatorError,
)
from ciml.services import trainer as trainer_module
from ciml.services.driver import drive
from ciml.services.service import NotReadyError
from ciml.services.trainer import TrainerService
from ciml.training.exclusions import Exclusion, add
from ciml.training.refresh import ModelLockedError, TrainConfig
from ciml.training.trainer import TrainResult
from tests.scraping import collected


def test_watch_waits_for_data_and_refreshes_when_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(DataRoot.open(tmp_path), "d", "m")
    log = config.data.dataset("d").store.child("_manifest")
    stop, words, results = threading.Event(), [], []
    calls: list[int] = []

    def once(_: TrainConfig, **__: Any) -> TrainResult:
        calls.append(1)
        if len(calls) == 1:
            log.create("000000000001.json", b"{}")
            raise UnknownDatasetError("no data set 'd'")
        if len(calls) == 2:
            return TrainResult("nothing_new", ("too little",))
        stop.set()
        return TrainResult("pushed", ("better",), version=1, seconds={"push": 0.25})

    def progress(word: str, done: int, total: int | None) -> None:
        words.append(word)

    monkeypatch.setattr(trainer_module, "run_once", once)

    def grow() -> None:
        while len(calls) < 2:
            pass
        log.create("000000000002.json", b"{}")

    thread = threading.Thread(target=grow)
    thread.start()
    service = TrainerService(config, results.append, progress)
    service.poll_s = 0.02
    drive(service, stop=stop)
    thread.join()
    assert words == ["waits: no data set 'd'"]
    assert [one.outcome for one in results] == ["pushed"]
    assert len(calls) == 3
    shown = {name: found for each in service.timings() for name, found in collected(each).items()}
    assert shown["ciml_training_errors_total"] == {("data", "m"): 1, ("engine", "m"): 0}
    assert shown["ciml_training_step_seconds_sum"] == {("m", "push"): 0.25}
    assert shown["ciml_training_refresh_timestamp_seconds"][("m",)] > 0


def test_watch_refreshes_when_runs_are_excluded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(DataRoot.open(tmp_path), "d", "m")
    config.data.dataset("d").store.child("_manifest").create("000000000001.json", b"{}")
    monkeypatch.setattr(trainer_module, "run_once", lambda *_, **__: TrainResult("nothing_new", ("the same",)))
    service = TrainerService(config)
    work = service.plan()
    assert work == (1, 0)
    assert work is not None
    service.run(work)
    assert service.plan() is None
    add(config.data.exclusions, [Exclusion("disk was full", job="unit")])
    assert service.plan() == (1, 1)


def test_a_model_without_news_is_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of `ciml_training_refresh_timestamp_seconds` moves on while nothing is new, and not after a failure."""
    config = TrainConfig(DataRoot.open(tmp_path), "d", "m")
    log = config.data.dataset("d").store.child("_manifest")
    service = TrainerService(config)

    def run_planned() -> None:
        work = service.plan()
        assert work is not None
        service.run(work)

    def refreshed_s() -> float:
        (found,) = [one for each in service.timings() for name, one in collected(each).items() if "timestamp" in name]
        return float(found["m",])

    def after_a_plan() -> float:
        service.observe()
        assert service.plan() is None
        return refreshed_s()

    monkeypatch.setattr(trainer_module, "run_once", lambda *_, **__: TrainResult("nothing_new", ("too little",)))
    run_planned()
    first = refreshed_s()
    assert after_a_plan() > first
    later = refreshed_s()
    assert service.plan() is None
    assert refreshed_s() == later  # a plan only queries

    def fails(*_: Any, **__: Any) -> TrainResult:
        raise NoTrainingDataError("too few runs")

    monkeypatch.setattr(trainer_module, "run_once", fails)
    log.create("000000000001.json", b"{}")
    run_planned()
    last = refreshed_s()
    assert after_a_plan() == last


@pytest.mark.parametrize(
    "error", [UnknownEstimatorError("dn"), InvalidSettingError("tolerance"), MissingExtraError("train"), CimlError("x")]
)
def test_an_error_that_more_data_cannot_repair_ends_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: CimlError
) -> None:
    def fails(*_: Any, **__: Any) -> TrainResult:
        raise error

    monkeypatch.setattr(trainer_module, "run_once", fails)
    config = TrainConfig(DataRoot.open(tmp_path), "d", "m")
    config.data.dataset("d").store.child("_manifest").create("000000000001.json", b"{}")
    with pytest.raises(type(error)):
        drive(TrainerService(config), until="end", patience_s=0.0)


def test_a_model_in_training_elsewhere_is_refreshed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> TrainResult:
        raise ModelLockedError("model 'm' is being trained by another process")

    monkeypatch.setattr(trainer_module, "run_once", fails)
    config = TrainConfig(DataRoot.open(tmp_path), "d", "m")
    config.data.dataset("d").store.child("_manifest").create("000000000001.json", b"{}")
    service = TrainerService(config)
    work = service.plan()
    assert work is not None
    with pytest.raises(NotReadyError, match="by another process"):
        service.run(work)
    assert service.plan() == work
