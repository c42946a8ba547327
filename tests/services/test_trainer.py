"""The trainer as a service: it waits for data, and refreshes when there is more."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from filelock import FileLock

from ciml.data_root import DataRoot
from ciml.errors import (
    CimlError,
    EngineError,
    IntegrityError,
    NoTrainingDataError,
    UnknownDatasetError,
    UnknownEstimatorError,
)
from ciml.metrics import Board
from ciml.services import trainer as trainer_module
from ciml.services.canary import Shares
from ciml.services.decide import ServiceProgress
from ciml.services.driver import drive
from ciml.services.service import NotReadyError
from ciml.services.trainer import Drift, News, ServedAccuracy, TrainerService, Triggers, news_of, registry_families
from ciml.serving.registry import Candidate, Decision, Registry, RegistryState
from ciml.stored_trust import apply_policy
from ciml.training.data.snapshot import make_snapshot, snapshot_path, write_snapshot
from ciml.training.evaluation.sequential import Arm
from ciml.training.exclusions import Exclusion, add
from ciml.training.experiment import Experiment
from ciml.training.refresh import TrainConfig
from ciml.training.trainer import TrainResult
from tests.scraping import Samples, collected
from tests.services.supervising import run_planned

GOLDEN = Path(__file__).parents[1] / "golden/data_root/data"


def test_watch_waits_for_data_and_the_store_and_refreshes_when_there_is_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(DataRoot.open(tmp_path), "d", "m")
    log = config.data.dataset("d").store.child("_manifest")
    stop, words, results = threading.Event(), [], []
    reports: list[str] = []

    def report(_: ServiceProgress, word: str) -> None:
        reports.append(word)
        if len(reports) == 100:  # a few are needed
            stop.set()

    def refreshes() -> Iterator[TrainResult | CimlError]:
        log.create("000000000001.json", b"{}")
        yield UnknownDatasetError("no data set 'd'")
        yield EngineError("the store does not answer")  # the same version is tried again
        log.create("000000000002.json", b"{}")
        yield TrainResult("nothing_new", ("too little",))
        stop.set()
        yield TrainResult("pushed", ("better",), version=1, seconds={"push": 0.25})

    monkeypatch.setattr(trainer_module, "run_once", Mock(side_effect=refreshes()))
    service = TrainerService(config, results.append, lambda word, done, total: words.append(word))
    service.poll_s, service.retry_s = 0.02, (0.01, 0.01)
    drive(service, stop=stop, report=report)
    assert words == ["waits: no data set 'd'", "waits: the store does not answer"]
    assert [one.outcome for one in results] == ["pushed"]
    assert len(reports) < 100
    shown = metrics(service)
    assert shown["ciml_training_errors_total"] == {("data", "m"): 1, ("engine", "m"): 1}
    assert shown["ciml_training_step_seconds_sum"] == {("m", "push"): 0.25}
    assert shown["ciml_training_refresh_timestamp_seconds"][("m",)] > 0


def metrics(service: TrainerService) -> Samples:
    return {name: samples for each in service.timings() for name, samples in collected(each).items()}


@pytest.fixture
def stored(tmp_path: Path) -> DataRoot:
    """A data root with the data set ``provider``, on which a model can be trained."""
    shutil.copytree(GOLDEN, tmp_path / "data", ignore=shutil.ignore_patterns("models", "registry", "trainer"))
    return DataRoot.open(tmp_path / "data")


@contextmanager
def delta_is(data: DataRoot, content: str | None) -> Iterator[None]:
    """Replace the last delta of the data set, by a folder for None."""
    path = Path(data.dataset("provider").store.url("_manifest/000000000002.json"))
    kept = path.rename(path.with_suffix(".kept"))
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    yield
    if content is None:
        path.rmdir()
        kept.rename(path)


@contextmanager
def locked(data: DataRoot) -> Iterator[None]:
    folder = Path(data.trainer("m").url("work"))
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        yield


@pytest.mark.parametrize(
    ("fault", "changes", "error", "handled", "counted"),
    [
        (nullcontext, {"dataset": "none"}, None, True, "data"),
        (nullcontext, {"experiment": Experiment(estimator="dn")}, UnknownEstimatorError, False, "data"),
        (locked, {}, NotReadyError, False, "data"),
        (partial(delta_is, content=None), {}, EngineError, False, "engine"),
        (partial(delta_is, content="{}"), {}, IntegrityError, False, ""),
    ],
)
def test_an_error_of_a_refresh_waits_for_another_version_or_is_tried_again_or_ends_the_service(
    fault: Callable[[DataRoot], AbstractContextManager[None]],
    changes: dict[str, Any],
    error: type[CimlError] | None,
    handled: bool,
    counted: str,
    stored: DataRoot,
) -> None:
    service = TrainerService(TrainConfig(**{"data": stored, "dataset": "provider", "model": "m", **changes}))
    work = service.plan()
    assert work is not None
    with fault(stored), pytest.raises(error) if error else nullcontext():
        service.run(work)
    assert service.plan() == (None if handled else work)
    assert metrics(service)["ciml_training_errors_total"] == {
        (kind, "m"): int(kind == counted) for kind in ("data", "engine")
    }


def test_watch_refreshes_when_runs_are_excluded_or_trusted_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(DataRoot.open(tmp_path), "d", "m")
    config.data.dataset("d").store.child("_manifest").create("000000000001.json", b"{}")
    monkeypatch.setattr(trainer_module, "run_once", lambda *_, **__: TrainResult("nothing_new", ("the same",)))
    service = TrainerService(config)
    run_planned(service)
    assert service.plan() is None
    add(config.data.exclusions, [Exclusion("disk was full", job="unit")])
    assert service.plan() == (1, 1, 0)
    run_planned(service)
    rules = [{"name": "all", "trusted": True, "source": ["*"]}]
    apply_policy(config.data.trust, {"globs": 2, "rule": rules}, "ann", "a trial")
    assert service.plan() == (1, 1, 1)


def test_a_model_without_news_is_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of `ciml_training_refresh_timestamp_seconds` moves on while nothing is new, and not after a failure."""
    config = TrainConfig(DataRoot.open(tmp_path), "d", "m")
    service = TrainerService(config)
    run_once = Mock(return_value=TrainResult("nothing_new", ("too little",)))
    monkeypatch.setattr(trainer_module, "run_once", run_once)

    def refreshed_s(*, observes: bool = True) -> float:
        if observes:
            service.observe()
        assert service.plan() is None
        return metrics(service)["ciml_training_refresh_timestamp_seconds"]["m",]

    run_planned(service)
    first = metrics(service)["ciml_training_refresh_timestamp_seconds"]["m",]
    later = refreshed_s()
    assert later > first
    assert refreshed_s(observes=False) == later  # a plan only queries
    run_once.side_effect = [NoTrainingDataError("too few runs"), run_once.return_value]
    config.data.dataset("d").store.child("_manifest").create("000000000001.json", b"{}")
    run_planned(service)
    last = metrics(service)["ciml_training_refresh_timestamp_seconds"]["m",]
    assert refreshed_s() == last
    assert service.observe().facts["waits_for"] == "too few runs"
    config.data.dataset("d").store.child("_manifest").create("000000000002.json", b"{}")
    run_planned(service)
    assert service.observe().facts["waits_for"] == ""


def test_metrics_sum_the_candidates_of_a_model() -> None:
    state = RegistryState()
    for version, (name, blessed, rejected) in enumerate(
        (("a", True, {"untrusted": 2, "excluded": 1}), ("b", False, {"untrusted": 3}), ("c", None, {})), 1
    ):
        state.candidates[name] = Candidate(name, name, {}, "", {"rejected": rejected}, version)
        if blessed is not None:
            state.decisions[name] = Decision(blessed, ())
    board = Board()
    board.put("registry", registry_families("m", state))
    shown = collected(board)
    assert shown["ciml_training_candidates_total"] == {("m", "blessed"): 1, ("m", "refused"): 1}
    assert shown["ciml_training_samples_rejected_total"] == {("m", "untrusted"): 5, ("m", "excluded"): 1}


DAY_US = 86_400_000_000


def accuracy(right: int, is_worse: bool) -> ServedAccuracy:
    return ServedAccuracy(Shares(3, right, 120, 130, 0.9, 0.02), Arm(47, 50), is_worse)


def test_a_reason_names_each_trigger_that_is_due() -> None:
    news = News(0, 60, "new trusted runs", Drift(2, 37), accuracy(60, True))
    assert news.due(Triggers(86_400, 60, True, True), 2 * DAY_US) == (
        "60 new trusted runs; 2 features or slices drift, the first since span 37; "
        "accuracy of version 3: 0.50 of 120 labelled runs, at its gate 0.94 of 50; due since 1970-01-02 00:00"
    )
    assert News(None, 5, "new trusted runs").due(Triggers(every_s=60), 0) == "no candidate yet"


def test_before_the_first_label_the_probabilities_say_what_to_expect() -> None:
    unlabelled = ServedAccuracy(Shares(3, 0, 0, 300, 0.925, 0.03), Arm(47, 50), is_worse=False)
    assert unlabelled.text() == (
        "accuracy of version 3: no labelled runs; 0.93 ± 0.03 expected of 300, at its gate 0.94 of 50"
    )
    none = ServedAccuracy(Shares(3, 0, 0, 0, None, None), None, is_worse=False)
    assert none.text() == "accuracy of version 3: no predictions yet, not known at its gate"


@pytest.mark.parametrize(
    ("triggers", "news", "waits"),
    [
        (Triggers(new_runs=60), News(0, 60, "new trusted runs"), ""),
        (Triggers(new_runs=60), News(0, 41, "new trusted runs with a known cause"),
         "41 of 60 new trusted runs with a known cause"),
        (Triggers(every_s=86_400), News(DAY_US, 5, "new trusted runs"), ""),
        (Triggers(every_s=86_400), News(DAY_US + 1, 5, "new trusted runs"), "due at 1970-01-03 00:00"),
        (Triggers(every_s=86_400), News(None, 5, "new trusted runs"), ""),
        (Triggers(on_drift=True), News(0, 5, "new trusted runs", Drift(1)), ""),
        (Triggers(on_drift=True), News(0, 5, "new trusted runs", Drift(0)), "no drift"),
        (Triggers(on_drift=True), News(0, 5, "new trusted runs"), "too few runs to see a drift"),
        (Triggers(86_400, 60, True), News(DAY_US + 1, 5, "new trusted runs", Drift(0)),
         "5 of 60 new trusted runs; no drift; due at 1970-01-03 00:00"),
        (Triggers(86_400, 60, True), News(DAY_US + 1, 5, "new trusted runs", Drift(2)), ""),
        (Triggers(on_accuracy=True), News(0, 5, "new trusted runs"), "no champion"),
        (Triggers(on_accuracy=True), News(0, 5, "new trusted runs", accuracy=accuracy(109, False)),
         "accuracy of version 3: 0.91 of 120 labelled runs, at its gate 0.94 of 50"),
        (Triggers(on_accuracy=True), News(0, 5, "new trusted runs", accuracy=accuracy(60, True)), ""),
        (Triggers(new_runs=60), News(0, 5, "new trusted runs", accuracy=accuracy(60, True)),
         "5 of 60 new trusted runs"),
    ],
)  # fmt: skip
def test_any_trigger_makes_a_refresh_due_and_the_others_say_what_is_missing(
    triggers: Triggers, news: News, waits: str
) -> None:
    now_us = 2 * DAY_US
    assert bool(news.due(triggers, now_us)) is (not waits)
    if waits:
        assert news.waits(triggers) == waits


def test_new_data_wait_for_a_trigger_and_exclusions_do_not(stored: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[str] = []
    config = TrainConfig(stored, "provider", "m")
    trusted = sum(1 for _ in make_snapshot(stored.dataset("provider"), config.trust.current()).runs())
    waiting = TrainerService(config, None, lambda word, *_: words.append(word), Triggers(new_runs=trusted + 1))
    assert waiting.plan() is None
    for _ in range(2):
        assert waiting.observe().facts["waits_for"] == f"{trusted} of {trusted + 1} new trusted runs"
    assert words == [f"waits: {trusted} of {trusted + 1} new trusted runs"]
    monkeypatch.setattr(trainer_module, "run_once", lambda *_, **__: TrainResult("nothing_new", ("the same",)))
    service = TrainerService(config, triggers=Triggers(new_runs=trusted))
    assert service.plan() is not None
    assert service.observe().facts["waits_for"] == ""
    run_planned(service)
    assert service.plan() is None
    add(stored.exclusions, [Exclusion("disk was full", job="unit")])
    assert service.plan() is not None


def test_runs_of_the_last_candidate_are_not_new(stored: DataRoot) -> None:
    config = TrainConfig(stored, "provider", "m")
    snapshot = make_snapshot(stored.dataset("provider"), config.trust.current())
    write_snapshot(stored.trainer("m"), snapshot)
    registry = Registry(stored, "m")
    candidate = {"id": "c", "digest": "d", "files": {}, "folder": "f", "facts": {"snapshot": snapshot.digest}}
    assert news_of(config, registry, Triggers(new_runs=1)).runs > 0
    registry.commit(lambda state: {"kind": "candidate", "candidate": candidate})
    news = news_of(config, registry, Triggers(new_runs=1))
    assert (news.runs, news.trained_us) == (0, registry.state.candidates["c"].time_us)
    stored.trainer("m").delete(snapshot_path(snapshot.digest))
    assert news_of(config, registry, Triggers(new_runs=1)).runs == sum(1 for _ in snapshot.runs())


def test_after_a_refresh_the_runs_are_counted_from_its_candidate(
    stored: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(stored, "provider", "m")
    snapshot = make_snapshot(stored.dataset("provider"), config.trust.current())
    registry = Registry(stored, "m")

    def run_once(*_: Any, **__: Any) -> TrainResult:
        write_snapshot(stored.trainer("m"), snapshot)
        facts = {"snapshot": snapshot.digest}
        candidate = {"id": "c", "digest": "d", "files": {}, "folder": "f", "facts": facts}
        registry.commit(lambda state: {"kind": "candidate", "candidate": candidate})
        return TrainResult("rejected", ("worse",))

    monkeypatch.setattr(trainer_module, "run_once", run_once)
    service = TrainerService(config, triggers=Triggers(new_runs=1))
    run_planned(service)
    assert service.observe().facts["waits_for"] == "0 of 1 new trusted runs"


def test_a_data_set_that_does_not_exist_yet_is_what_a_trigger_waits_for(stored: DataRoot) -> None:
    service = TrainerService(TrainConfig(stored, "later", "m"), triggers=Triggers(new_runs=1))
    assert service.plan() is None
    assert "later" in service.observe().facts["waits_for"]
