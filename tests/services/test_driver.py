"""The foreground driver with a service in memory: when it works, waits, ends and fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.services import driver
from ciml.services.decide import ServiceProgress
from ciml.services.driver import EndCondition, Outage, drive
from ciml.services.options import KINDS, options_of
from ciml.services.service import NotReadyError, Service
from tests.services.supervising import options_for


class Listed(Service):
    """Processes the numbers of a list, two at a time; ``raised`` are errors of its next calls."""

    poll_s = 0.01
    retry_s = (0.01, 0.01)

    def __init__(self, numbers: int, raised: list[CimlError | None] | None = None) -> None:
        super().__init__("listed")
        self.end, self.done, self.raised = numbers, 0, raised or []
        self.calls: list[str] = []
        self.published: list[int] = []

    def publish(self) -> None:
        self.published.append(self.done)

    def _raise(self) -> None:
        if self.raised and (error := self.raised.pop(0)) is not None:
            raise error

    def open(self) -> None:
        self.calls.append("open")

    def observe(self) -> ServiceProgress:
        self._raise()
        return ServiceProgress(self.done, {0: self.done}, {0: self.end - self.done}, ends={0: self.end})

    def ready(self) -> str:
        self._raise()
        return "ready"

    def plan(self, ends: Mapping[int, int] | None = None, *, bounded: bool = True) -> int | None:
        end = self.end if ends is None else min(self.end, ends[0])
        return min(2, end - self.done) or None

    def run(self, work: int) -> None:
        self._raise()
        self.done += work
        self.end += 1  # it never catches up
        assert self.end < 100, "the driver goes on beyond the first observed end"

    def close(self) -> None:
        self.calls.append("close")


@dataclass
class Words:
    """Records reports, and stops the driver at a word."""

    at: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    reports: list[tuple[int, str]] = field(default_factory=list)

    def __call__(self, progress: ServiceProgress, word: str) -> None:
        self.reports.append((progress.behind, word))
        if word == self.at:
            self.stop.set()


def test_until_the_end_stops_at_the_first_observed_end() -> None:
    service, words = Listed(5), Words()
    drive(service, until="end", report=words)
    assert service.done == 5
    assert [word for _, word in words.reports] == ["ready", "ready", "ready", "done"]
    assert service.calls == ["open", "close"]
    assert service.published == [0, 2, 4, 5]  # also what the last work item committed


def test_it_stops_after_the_present_work_item() -> None:
    service, words = Listed(5), Words(at="ready")
    drive(service, stop=words.stop, report=words)
    assert (service.done, service.calls) == (2, ["open", "close"])


def test_a_service_that_is_not_ready_waits_without_working_and_fails_with_until() -> None:
    unready = [None, NotReadyError("no model"), None, NotReadyError("no model again")]
    words = Words(at="ready")
    drive(Listed(2, list(unready)), stop=words.stop, report=words)
    assert words.reports[0] == (2, "waits: no model")
    assert words.reports[-2:] == [(2, "waits: no model again"), (2, "ready")]
    service = Listed(2, list(unready))
    with pytest.raises(NotReadyError, match="no model"):
        drive(service, until="end")
    assert (service.done, service.calls) == (0, ["open", "close"])


def test_an_outage_is_waited_for_within_the_limit() -> None:
    away: list[CimlError | None] = [EngineError("Kafka does not answer")] * 4
    service = Listed(2, away)
    drive(service, until="end", patience_s=None)
    assert service.done == 2
    with pytest.raises(EngineError, match="does not answer"):
        drive(Listed(2, [EngineError("Kafka does not answer")]), until="end", patience_s=0.0)


def test_what_is_not_ready_has_answered_and_ends_an_outage() -> None:
    away = EngineError("Kafka does not answer")
    words = Words(at="ready")
    drive(
        Listed(2, [away, *[None, NotReadyError("no model")] * 10, away]), stop=words.stop, report=words, patience_s=0.05
    )
    assert [word for _, word in words.reports][-2:] == ["waits: Kafka does not answer", "ready"]


@pytest.mark.parametrize(
    ("outages", "patience_s", "fails"), [([], 0.0, False), ([1], 300.0, False), ([1], 0.0, True), ([0], 300.0, True)]
)
def test_a_job_that_cannot_be_renewed_is_submitted_again_within_the_limit(
    outages: list[int], patience_s: float, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    submissions = 0
    words = Words()

    def submit(*_: object, **__: object) -> SimpleNamespace:
        nonlocal submissions
        submissions += 1
        if submissions - 1 in outages:
            raise EngineError("Kafka does not answer")
        if submissions > 2:
            words.stop.set()
        return SimpleNamespace(state="RUNNING", over=False, id="1", name="j", check=lambda: None, cancel=lambda: None)

    monkeypatch.setattr(driver, "submit_to_flink", submit)
    service = Listed(0)
    service.renew_s = 0.02
    with pytest.raises(EngineError, match="Kafka does not answer") if fails else nullcontext():
        drive(service, "flink:1", stop=words.stop, report=words, patience_s=patience_s)
    assert (submissions > 2) is not fails


def test_a_permanent_error_ends_it_and_a_service_that_needs_flink_says_so() -> None:
    service = Listed(2, [IntegrityError("recreated")])
    with pytest.raises(IntegrityError, match="recreated"):
        drive(service, patience_s=None)
    assert service.calls == ["open", "close"]
    service = Listed(2)
    service.needs_flink = "it needs Flink"  # type: ignore[misc]
    with pytest.raises(CimlError, match="it needs Flink"):
        drive(service)
    assert service.calls == []


def test_pauses_of_an_outage_double_and_are_reset() -> None:
    outage, error = Outage(None, 2.0, 10.0), EngineError("away")
    assert [outage.pause_after(error) for _ in range(4)] == [2.0, 4.0, 8.0, 10.0]
    outage.end()
    assert outage.pause_after(error) == 2.0


def test_the_limit_counts_each_outage_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr("ciml.services.driver.time.monotonic", lambda: now_s[0])
    outage, error = Outage(10.0), EngineError("away")
    for began_s in (0.0, 9.0, 18.0):
        for now_s[0] in (began_s, began_s + 8.0):
            outage.pause_after(error)
        outage.end()
    outage.pause_after(error)
    now_s[0] += 10.0
    with pytest.raises(EngineError, match="away"):
        outage.pause_after(error)


def test_idle_is_without_commits_lag_and_waiting() -> None:
    now = 0.0
    idle = EndCondition(5.0, clock=lambda: now)
    assert not idle.observe(ServiceProgress(1))
    now = 4.0
    assert not idle.observe(ServiceProgress(2))  # a commit
    now = 8.0
    assert not idle.observe(ServiceProgress(2, lag={0: 1}))
    now = 13.0
    assert not idle.observe(ServiceProgress(2, waiting=True))
    assert idle.observe(ServiceProgress(2))
    assert not EndCondition(None, clock=lambda: now).observe(ServiceProgress(2))


@pytest.mark.parametrize("kind", KINDS)
def test_options_of_each_kind_survive_their_json(kind: str) -> None:
    options = options_for(kind, data_path="d", kafka="k:1", kafka_options=["a=b"])
    assert (options.kind, type(options).from_json(json.loads(json.dumps(options.to_json())))) == (kind, options)
    assert set(options.to_json()) == set(options.names())


def test_wrong_options_are_named() -> None:
    with pytest.raises(CimlError, match="unknown kind of service 'x'; choose from ingest, predict"):
        options_of("x")
    with pytest.raises(CimlError, match=r"service ingest: unknown option 'colour'; choose from .*, kafka, "):
        options_of("ingest").from_json({"data_path": "d", "kafka": "k:1", "colour": "red"})
    with pytest.raises(CimlError, match="service trainer: Object missing required field `dataset`"):
        options_of("trainer").from_json({"data_path": "d"})
