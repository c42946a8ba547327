"""The watchdog of an ingest, with its hands: looks, does what `services.decide.decide` says, and tells.

It may be killed at any moment. What is at work goes on without it, and the next supervisor finds it by its name.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.raw.accounting import RawState
from ciml.storage.open import Store
from pipelines.ingest.committer import committer
from pipelines.kafka.client import KafkaOptions, list_topic
from pipelines.kafka.plan import plan
from pipelines.kafka.publish import Render, projection
from services.decide import Action, Health, Limits, Observation, Wanted, decide
from services.metrics import IngestBoard
from services.progress import lag_by_partition
from services.tracker import Covered, JobStatus, Tracker

_PAUSE_S = 1.0
_MAINTAIN_S = 5.0
_OVERDUE_US = 300_000_000  # what was handed out to a worker that died is handed out again after this
_FAULTS = 3  # so often in a row: a look at the broker and one at the store are not of one moment
_KEPT = 20
_log = logging.getLogger(__name__)

Status = dict[str, Any]


class Jobs(Protocol):
    """An engine, and the one job in it that is watched. Every method raises `EngineError` when it does not answer."""

    def look(self) -> JobStatus:
        """The job as it is; several of the name are made one."""

    def submit(self, savepoint: str = "") -> None:
        """Begins to start a job, from the manifest or a savepoint, after what is left of an older one is gone."""

    def cancel(self) -> None:
        """Ends the job, and waits until it is over."""

    def stop_with_savepoint(self) -> str:
        """Ends the job with a savepoint; its path, or "" where the engine needs none."""


@dataclass(frozen=True)
class Watched:
    """What is watched: the raw store, the topic, and what is told of the manifest on which other topics."""

    raw: Store
    kafka: KafkaOptions
    topic: str
    told: tuple[tuple[str, Render], ...] = ()


@dataclass
class Supervisor:
    """Keeps one ingest at work until it is told to stop, or must not go on.

    Attributes:
      watched: what.
      jobs: where.
      wanted: what the operator wants now.
      tell: is given the status after each look. What it raises is logged.
      status: of an earlier supervisor of this ingest, to go on from: its savepoint and its counts.
      maintains: whether it also maintains the manifest; else the job does.
      board: shown each look, for Prometheus.
      limits, clock, pause_s: for the watchdog.
    """

    watched: Watched
    jobs: Jobs
    wanted: Callable[[], Wanted]
    tell: Callable[[Status], None]
    status: Status = field(default_factory=dict)
    maintains: bool = True
    board: IngestBoard = field(default_factory=IngestBoard)
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.monotonic
    pause_s: float = _PAUSE_S

    def __post_init__(self) -> None:
        self._tracker = Tracker(self.limits)
        self._submitted = self._from_savepoint = False
        self._faults = 0
        self._maintained = -_MAINTAIN_S
        self._said = ("", "")
        self.status.setdefault("resubmitted", 0)
        self.status.setdefault("resubmissions", [])
        self.status.setdefault("savepoint", None)

    def run(self, leave: threading.Event | None = None) -> Health:
        """Watches until the ingest is stopped, or must not go on. ``leave`` ends the watch alone.

        Returns:
          ``stopped`` or ``failed``; the last health when it left.
        """
        leave = leave or threading.Event()
        while True:
            try:
                action = self.step()
            except CimlError as error:
                action = Action("carry_on", "waiting", str(error))
                self._tell(action)
            except Exception as error:  # noqa: BLE001  # whatever it is, the ingest is watched on
                _log.exception("the watchdog stumbled")
                action = Action("carry_on", "waiting", f"the watchdog stumbled: {type(error).__name__}: {error}")
                self._tell(action)
            if action.kind == "end" or leave.wait(self.pause_s):
                return action.health

    def step(self) -> Action:
        """One look, what follows from it, and the telling."""
        look = self._look()
        action = decide(look, self.limits)
        said = (action.kind, action.health)
        if said != self._said:
            _log.warning(
                "%s: %s%s", action.health, action.kind.replace("_", " "), f": {action.why}" if action.why else ""
            )
        self._said = said
        self._do(action, look)
        self._tell(action)
        if action.kind == "carry_on" and not look.away:
            self._maintain()
        return action

    def _look(self) -> Observation:
        away: list[str] = []
        job: JobStatus | None = None
        try:
            job = self.jobs.look()
        except EngineError as error:
            away.append(str(error))
        covered, fault = None, ""
        try:
            covered = self._covered()
            self._faults = 0
        except EngineError as error:
            away.append(str(error))
        except IntegrityError as error:
            self._faults += 1
            fault = str(error) if self._faults >= _FAULTS else ""
        now = self.clock()
        self._take_over(now, job)
        look = self._tracker.look(now, self.wanted(), job, covered, fault=fault, away="; ".join(away))
        self._see_job(look, job)
        return look

    def _covered(self) -> Covered:
        committing, watched = committer(self.watched.raw), self.watched
        with committing.state() as state:
            self._see_state(state)
        listing = list_topic(watched.kafka, watched.topic)  # after the manifest: nothing is covered that is not there
        with committing.state() as state:
            self.board.see(state, listing)
            plan(state, listing, bounded=False)  # raises what must not go on
            lag = lag_by_partition(state, listing)
            self.status.update(behind=sum(lag.values()), lag={str(number): value for number, value in lag.items()})
            due = state.next_due_us()
            return Covered(
                state.version,
                {part: state.covered(watched.topic, part).first_missing(first) for part, (first, _) in
                 listing.bounds.items()},
                lag,
                due if due is not None and due < time.time() * 1e6 - _OVERDUE_US else None,
            )  # fmt: skip

    def _see_state(self, state: RawState) -> None:
        self.status.update(
            version=state.version,
            last_commit_us=state.time_us or None,
            counts=state.totals(),
            deferred=len(state.deferred),
        )

    def _take_over(self, now_s: float, job: JobStatus | None) -> None:
        """A job that an earlier supervisor started is this one's now."""
        if job is not None and not self._submitted and job.state not in ("missing", "over"):
            _log.warning("took over %s, which is %s", job.name or "a job", job.state)
            self._submitted = True
            self._tracker.submitted(now_s)

    def _see_job(self, look: Observation, job: JobStatus | None) -> None:
        if job is None:
            self.status["job"] = {**(self.status.get("job") or {}), "state": "unknown"}
            return
        before = self.status.get("job") or {}
        since = before.get("submitted_us") if job.began_s is None else int(job.began_s * 1e6)
        self.status["job"] = {
            "state": job.state, "id": job.id, "name": job.name, "how": job.how, "submitted_us": since,
            "restarts": job.restarts,
        }  # fmt: skip
        size, at = job.checkpoint_bytes, job.checkpoint_s
        self.status["checkpoint"] = None if size is None else {"bytes": size, "time_us": int((at or 0) * 1e6)}
        kept = self.status["savepoint"]
        if self._from_savepoint and kept:
            if look.committed or (look.running_s is not None and not look.behind):
                self._from_savepoint, kept["use"] = False, "resumed"
            elif job.state in ("missing", "over"):
                self._refuse(job.how or "the job ended")

    def _refuse(self, why: str) -> None:
        kept = self.status["savepoint"]
        kept["use"], kept["why"] = "refused", why
        self._from_savepoint = False
        _log.warning("the savepoint %s is of no use (%s): on from the manifest", kept["path"], why)

    def _do(self, action: Action, look: Observation) -> None:
        if action.kind in ("submit", "replace"):
            self._submit(action)
        elif action.kind == "cancel":
            self.jobs.cancel()
        elif action.kind == "savepoint":
            self._savepoint()
        elif action.kind == "end" and not look.engine_away:
            self._announce()

    def _submit(self, action: Action) -> None:
        if action.kind == "replace":
            if self._from_savepoint:
                self._refuse(action.why)
            self.jobs.cancel()
        kept = self.status["savepoint"]
        path = kept["path"] if kept and not kept["use"] and not self._submitted else ""
        if self._submitted:
            self.status["resubmitted"] += 1
            again = [*self.status["resubmissions"], {"time_us": int(time.time() * 1e6), "why": action.why}]
            self.status["resubmissions"] = again[-_KEPT:]
        self._submitted, self._from_savepoint = True, bool(path)
        self._tracker.submitted(self.clock())
        self.status["job"] = {"state": "starting", "submitted_us": int(time.time() * 1e6)}
        self.jobs.submit(path)

    def _savepoint(self) -> None:
        try:
            path = self.jobs.stop_with_savepoint()
        except EngineError as error:
            _log.warning("%s", error)
            self.status["savepoint_failed"] = str(error)
            return
        self.status["savepoint_failed"] = ""
        if path:
            self.status["savepoint"] = {
                "path": path, "time_us": int(time.time() * 1e6), "version": self.status.get("version"), "use": "",
            }  # fmt: skip

    def _announce(self) -> None:
        """The job may have ended between a commit and its announcement."""
        for topic, render in self.watched.told:
            announcer = projection(committer(self.watched.raw).log, topic, render, self.watched.kafka)
            try:
                announcer.announce()
            except CimlError as error:
                _log.warning("%s; the next job announces what is missing", error)
            finally:
                announcer.close()

    def _maintain(self) -> None:
        now = self.clock()
        if not self.maintains or now - self._maintained < _MAINTAIN_S:
            return
        self._maintained = now
        try:
            committer(self.watched.raw).maintain()
        except CimlError as error:  # commits go on; they only cost more
            _log.warning("the manifest is not maintained: %s", error)

    def _tell(self, action: Action) -> None:
        now_us = int(time.time() * 1e6)
        if (self.status.get("health"), self.status.get("why")) != (action.health, action.why):
            self.status["since_us"] = now_us
        self.status.update(health=action.health, why=action.why, rate=self._tracker.rate(), updated_us=now_us)
        self.status["failures"] = self._tracker.failures
        self.board.see_status(self.status)
        try:
            self.tell(self.status)
        except Exception as error:  # noqa: BLE001  # a full disk is no reason to leave the ingest alone
            _log.warning("the status cannot be written: %s", error)
