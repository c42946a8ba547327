"""The supervisor's loop, on a real manifest, with a scripted engine and a topic as the broker lists it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from ciml.errors import EngineError, IntegrityError
from ciml.events.records import Batch, OffsetRange
from ciml.kafka import KafkaOptions
from ciml.pipelines.ingest.committer import IngestConfig, committer
from ciml.pipelines.kafka.broker import Listing
from ciml.services.decide import JobStatus, Limits, ServiceProgress, Wanted
from ciml.services.ingest import IngestService
from ciml.services.service import Service
from ciml.services.supervisor import Supervisor
from ciml.storage import open_store

MISSING, STARTS, RUNS = JobStatus("missing"), JobStatus("starting"), JobStatus("running", id="1", name="j", began_s=5.0)
KEPT = {"path": "s3://b/savepoint-1", "time_us": 1, "version": 0, "use": ""}
RESTARTS = JobStatus("restarting", id="1", name="j", how="Cannot decode the state")


@dataclass
class Script:
    """An engine that returns scripted statuses and records its calls."""

    statuses: list[JobStatus | None]
    calls: list[str] = field(default_factory=list)
    savepoint: str | None = "s3://b/savepoint-1"

    def status(self) -> JobStatus:
        one = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if one is None:
            raise EngineError("Flink does not answer")
        return one

    def submit(self, savepoint: str = "") -> None:
        self.calls.append(f"submit {savepoint}".strip())

    def cancel(self) -> None:
        self.calls.append("cancel")

    def stop_with_savepoint(self) -> str:
        self.calls.append("savepoint")
        if self.savepoint is None:
            raise EngineError("no space left")
        return self.savepoint


class Idle(Service):
    """A service with nothing to read."""

    def observe(self) -> ServiceProgress:
        return ServiceProgress(7, {0: 3}, {0: 0})


@dataclass
class World:
    """A supervisor with a clock that advances by a second a step."""

    config: IngestConfig | None = None
    bounds: tuple[int, int] = (0, 3)
    wanted: Wanted = "run"
    now: float = 0.0
    reports: list[dict[str, Any]] = field(default_factory=list)

    def supervisor(self, jobs: Script, **status: Any) -> Supervisor:
        service = Idle("idle") if self.config is None else IngestService(self.config)
        return Supervisor(
            service, jobs, lambda: self.wanted, lambda status: self.reports.append(dict(status)),
            dict(status), limits=Limits(savepoint_s=3.0), clock=lambda: self.now, pause_s=0.0,
        )  # fmt: skip

    def steps(self, supervisor: Supervisor, count: int) -> list[str]:
        done = []
        for _ in range(count):
            done.append(supervisor.step().kind)
            self.now += 1.0
        return done


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A supervisor of an ingest, on a topic with three messages."""
    made = World(IngestConfig(open_store(tmp_path / "raw"), "events", kafka=KafkaOptions("none:1"), runs_topic=""))
    monkeypatch.setattr("ciml.services.service.list_topic", lambda kafka, topic: Listing(topic, "T", {0: made.bounds}))
    return made


def cover(world: World, start: int, end: int) -> None:
    assert world.config is not None
    committer(world.config.raw).commit([Batch(OffsetRange("events", "T", 0, start, end))])


def test_a_job_is_submitted_once_and_its_status_reported(world: World) -> None:
    jobs = Script([MISSING, STARTS, RUNS])
    assert world.steps(world.supervisor(jobs), 4) == ["submit", "carry_on", "carry_on", "carry_on"]
    assert jobs.calls == ["submit"]
    assert [one["health"] for one in world.reports] == ["starting"] * 4
    last = world.reports[-1]
    assert (last["version"], last["behind"], last["lag"], last["deferred"]) == (0, 3, {"0": 3}, 0)
    assert last["job"]["submitted_us"] == 5_000_000
    assert (last["resubmitted"], last["resubmissions"]) == (0, [])
    running = Script([RUNS])  # it is taken over
    assert world.steps(world.supervisor(running), 3) == ["carry_on"] * 3
    assert running.calls == []


def test_a_job_that_never_reads_is_replaced_and_the_next_has_twice_the_time(world: World) -> None:
    jobs = Script([MISSING, RUNS])
    done = world.steps(world.supervisor(jobs), 150)
    assert [at for at, kind in enumerate(done) if kind != "carry_on"] == [0, 47, 139]
    assert jobs.calls == ["submit", "cancel", "submit", "cancel", "submit"]
    assert "it has committed nothing for 46 s, with 3 messages to read" in world.reports[-1]["resubmissions"][0]["why"]


def test_a_savepoint_is_used_once_and_a_rejected_one_is_reported(world: World) -> None:
    jobs = Script([MISSING, STARTS, JobStatus("over", how="Cannot map state"), STARTS])
    world.steps(world.supervisor(jobs, savepoint=dict(KEPT)), 5)
    assert jobs.calls == ["submit s3://b/savepoint-1", "submit"]
    assert world.reports[-1]["savepoint"] == {**KEPT, "use": "refused", "why": "Cannot map state"}
    # a resumed one is not used again: the manifest has passed it

    jobs = Script([MISSING, RUNS, RUNS, JobStatus("over", how="x"), STARTS])
    supervisor = world.supervisor(jobs, savepoint=dict(KEPT))
    world.steps(supervisor, 2)
    cover(world, 0, 1)
    world.steps(supervisor, 3)
    assert jobs.calls == ["submit s3://b/savepoint-1", "submit"]
    assert world.reports[-1]["savepoint"]["use"] == "resumed"


def test_a_stop_with_a_savepoint_and_one_that_fails(world: World) -> None:
    world.wanted = "savepoint"
    jobs = Script([RUNS, JobStatus("over")])
    assert world.steps(world.supervisor(jobs), 2) == ["savepoint", "end"]
    assert jobs.calls == ["savepoint"]
    kept = world.reports[-1]["savepoint"]
    assert (kept["path"], kept["version"], kept["use"]) == ("s3://b/savepoint-1", 0, "")
    assert world.reports[-1]["health"] == "stopped"
    jobs = Script([RUNS], savepoint=None)
    assert world.steps(world.supervisor(jobs), 6)[-1] == "cancel"
    assert world.reports[-1]["savepoint_failed"] == "no space left"
    assert world.reports[-1]["savepoint"] is None


def test_the_supervisor_survives_an_outage_and_a_bug(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = world.supervisor(Script([RUNS, None]))
    assert world.steps(supervisor, 400)[-1] == "carry_on"
    assert (world.reports[-1]["health"], world.reports[-1]["why"]) == ("waiting", "Flink does not answer")
    assert world.reports[-1]["job"]["state"] == "unknown"
    with monkeypatch.context() as patch:
        patch.setattr("ciml.services.service.list_topic", Mock(side_effect=EngineError("Kafka does not answer")))
        jobs = Script([MISSING])
        assert world.steps(world.supervisor(jobs), 3) == ["carry_on"] * 3
    assert (world.reports[-1]["health"], world.reports[-1]["why"]) == ("waiting", "Kafka does not answer")
    assert jobs.calls == []

    def status() -> JobStatus:
        if jobs.calls:
            world.wanted = "stop"
            return MISSING
        jobs.calls.append("status")
        raise ZeroDivisionError("a bug")

    jobs = Script([])
    monkeypatch.setattr(jobs, "status", status)
    assert world.supervisor(jobs).run() == "stopped"
    assert any("ZeroDivisionError" in one["why"] for one in world.reports)


def test_a_job_whose_worker_waits_is_reported_and_not_replaced(world: World) -> None:
    """Only the worker knows that it cannot load the model, say. It has committed nothing, with messages to read."""
    jobs = Script([replace(RUNS, waits="add --allow-module mine")])
    assert set(world.steps(world.supervisor(jobs), 150)) == {"carry_on"}
    assert (world.reports[-1]["health"], world.reports[-1]["why"]) == ("waiting", "add --allow-module mine")


def test_an_expired_offset_fails_the_service_if_it_is_seen_three_times_in_succession(world: World) -> None:
    """Broker and store are read in turn, so a single contradiction is no loss."""
    cover(world, 0, 1)
    jobs = Script([RUNS])
    supervisor = world.supervisor(jobs)
    for first in (2, 2, 0, 2, 2, 0):
        world.bounds = (first, 3)
        assert world.steps(supervisor, 1) == ["carry_on"]
    assert jobs.calls == []
    world.bounds = (2, 3)
    jobs.statuses = [RUNS, RUNS, RUNS, MISSING]
    assert world.steps(supervisor, 4) == ["carry_on", "carry_on", "cancel", "end"]
    assert world.reports[-1]["health"] == "failed"
    assert "offsets 1 to 2 expired before they were read" in world.reports[-1]["why"]


def test_what_expired_before_the_first_read_is_covered_so_that_a_later_loss_is_seen(world: World) -> None:
    assert world.config is not None
    world.bounds = (5, 9)
    for _ in range(2):
        IngestService(world.config).open()
    with IngestService(world.config).committing.state() as state:
        assert list(state.covered("events", 0)) == [(0, 5)]
    world.bounds = (6, 9)
    with pytest.raises(IntegrityError, match="offsets 5 to 6 expired before they were read"):
        IngestService(world.config).observe()


def test_the_status_has_the_reasons_of_the_last_resubmissions() -> None:
    world = World()
    jobs = Script([JobStatus("over", how=f"end {number}") for number in range(24)])
    supervisor = world.supervisor(jobs)
    supervisor.limits = Limits(pause_s=0.0)
    assert set(world.steps(supervisor, 24)) == {"submit"}
    assert supervisor.status["resubmitted"] == 23
    assert [one["why"] for one in supervisor.status["resubmissions"]] == [f"end {number}" for number in range(4, 24)]


def test_a_submission_that_fails_leaves_the_savepoint_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    jobs = Script([MISSING])
    supervisor = world.supervisor(jobs, savepoint=dict(KEPT))
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "submit", Mock(side_effect=EngineError("the earlier job is CANCELLING")))
        with pytest.raises(EngineError, match="CANCELLING"):
            supervisor.step()
    assert supervisor.status["savepoint"] == KEPT
    assert world.steps(supervisor, 1) == ["submit"]
    assert jobs.calls == ["submit s3://b/savepoint-1"]
    assert (supervisor.status["savepoint"], supervisor.status["resubmitted"]) == (KEPT, 0)


def test_a_check_of_the_addresses_that_fails_leaves_the_service_watched() -> None:
    checks = []

    def moved() -> bool:
        checks.append(world.wanted)
        world.wanted = "stop"
        raise OSError("no space left")

    world = World()
    supervisor = world.supervisor(Script([None, MISSING]))
    supervisor.moved = moved
    assert supervisor.run() == "stopped"
    assert checks == ["run"]


@pytest.mark.parametrize("flickers", [False, True])
def test_a_savepoint_that_no_restart_can_read_is_rejected(flickers: bool) -> None:
    """Its job restarts without end. The next one starts from the manifest, which has every commit."""
    world = World()
    restarts = [RESTARTS, RUNS] if flickers else [RESTARTS]
    jobs = Script([MISSING, STARTS, *restarts * 62])
    supervisor = world.supervisor(jobs, savepoint=dict(KEPT))
    done = world.steps(supervisor, 64)
    assert [step for step, kind in enumerate(done) if kind != "carry_on"] == [0, 62]
    assert jobs.calls == ["submit s3://b/savepoint-1", "cancel", "submit"]
    why = "it restarts for 60 s from its savepoint and never runs: Cannot decode the state"
    assert supervisor.status["savepoint"] == {**KEPT, "use": "refused", "why": why}


@pytest.mark.parametrize(
    ("statuses", "calls", "use"),
    [
        pytest.param([RESTARTS], ["cancel", "submit"], "refused", id="taken over"),
        pytest.param([MISSING, *[RUNS] * 62, RESTARTS], [f"submit {KEPT['path']}"], "resumed", id="has run"),
        pytest.param([MISSING, RESTARTS, *[None] * 100, RESTARTS], [f"submit {KEPT['path']}"], "", id="outage"),
    ],
)
def test_only_restarts_in_succession_before_it_ran_reject_a_savepoint(
    statuses: list[JobStatus | None], calls: list[str], use: str
) -> None:
    world = World()
    jobs = Script(statuses)
    supervisor = world.supervisor(jobs, savepoint=dict(KEPT))
    world.steps(supervisor, 62 if use == "refused" else 150)
    assert jobs.calls == calls
    assert supervisor.status["savepoint"]["use"] == use
