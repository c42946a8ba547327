"""The watchdog of a service: it looks, does what `services.decide.decide` says, and reports.

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
from services.decide import Action, Health, Limits, Observation, Wanted, decide
from services.files import now_us
from services.service import NotReadyError, Progress, Service
from services.tracker import JobStatus, Tracker

_PAUSE_S = 1.0
_MAINTAIN_S = 5.0
_FAULTS = 3  # so often in a row: a look at the broker and one at the store are not of one moment
_KEPT = 20
_log = logging.getLogger(__name__)

Status = dict[str, Any]


class Jobs(Protocol):
    """An engine, and the one job in it that is watched. Every method raises `EngineError` when it does not answer."""

    def look(self) -> JobStatus:
        """The job as it is; several of the name are made one."""

    def submit(self, savepoint: str = "") -> None:
        """Begin to start a job, from the manifest or a savepoint, after what is left of an older one is gone."""

    def cancel(self) -> None:
        """End the job, and wait until it is over."""

    def stop_with_savepoint(self) -> str:
        """End the job with a savepoint; its path, or "" where the engine needs none."""


@dataclass
class Supervisor:
    """Keeps one service at work until it is asked to stop, or must not go on.

    Attributes:
      service: what is watched.
      jobs: where it works.
      wanted: what the operator wants now.
      tell: is given the status after each look. What it raises is logged.
      status: of an earlier supervisor of this service, to go on from: its savepoint and its counts.
      maintains: whether it also maintains the manifest; else the job does.
      limits, clock, pause_s: for the watchdog.
      level: at which decisions are logged that need nobody's attention.
      progress: how far the service was at the last look; None where something did not answer.
      error: why the service must not go on.
    """

    service: Service
    jobs: Jobs
    wanted: Callable[[], Wanted]
    tell: Callable[[Status], None]
    status: Status = field(default_factory=dict)
    maintains: bool = True
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.monotonic
    pause_s: float = _PAUSE_S
    level: int = logging.WARNING
    progress: Progress | None = None
    error: CimlError | None = None

    def __post_init__(self) -> None:
        self._tracker = Tracker(self.limits)
        self._submitted = self._from_savepoint = False
        self._faults = 0
        self._fault = ""
        self._maintained = -_MAINTAIN_S
        self._said = ("", "")
        self.status.setdefault("resubmitted", 0)
        self.status.setdefault("resubmissions", [])
        self.status.setdefault("savepoint", None)

    def run(self, leave: threading.Event | None = None) -> Health:
        """Watch until the service is stopped, or must not go on. ``leave`` ends the watch alone.

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
            except Exception as error:  # noqa: BLE001  # whatever it is, the service is watched on
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
            level = self.level if action.health in ("starting", "running", "stopping", "stopped") else logging.WARNING
            _log.log(
                level, "%s: %s%s", action.health, action.kind.replace("_", " "), f": {action.why}" if action.why else ""
            )
        self._said = said
        if action.health == "failed":
            self._fault = action.why
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
        covered, unready = None, False
        try:
            covered = self.progress = self._observe()
            self.service.ready()
            self._faults = 0
        except EngineError as error:
            away.append(str(error))
            unready, covered = isinstance(error, NotReadyError) and len(away) == 1, None
        except IntegrityError as error:
            self._faults += 1
            if self._faults >= _FAULTS:
                self.error, self._fault = error, str(error)
        now = self.clock()
        self._take_over(now, job)
        look = self._tracker.look(
            now, self.wanted(), job, covered, fault=self._fault, away="; ".join(away), unready=unready
        )
        self._see_job(look, job)
        return look

    def _observe(self) -> Progress:
        self.progress = None
        self.status.update(self.service.facts())  # known also where the broker does not answer
        seen = self.service.observe()
        self.status.update(
            seen.facts, version=seen.version, behind=seen.behind, lag={str(part): lag for part, lag in seen.lag.items()}
        )
        return seen

    def _take_over(self, now_s: float, job: JobStatus | None) -> None:
        """A job that an earlier supervisor started is this one's now."""
        if job is not None and not self._submitted and job.state not in ("missing", "over"):
            _log.log(self.level, "took over %s, which is %s", job.name or "a job", job.state)
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
            self._publish()

    def _submit(self, action: Action) -> None:
        if action.kind == "replace":
            if self._from_savepoint:
                self._refuse(action.why)
            self.jobs.cancel()
        kept = self.status["savepoint"]
        path = kept["path"] if kept and not kept["use"] and not self._submitted else ""
        if self._submitted:
            self.status["resubmitted"] += 1
            again = [*self.status["resubmissions"], {"time_us": now_us(), "why": action.why}]
            self.status["resubmissions"] = again[-_KEPT:]
        self._submitted, self._from_savepoint = True, bool(path)
        self._tracker.submitted(self.clock())
        self.status["job"] = {"state": "starting", "submitted_us": now_us()}
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
                "path": path, "time_us": now_us(), "version": self.status.get("version"), "use": "",
            }  # fmt: skip

    def _publish(self) -> None:
        """The job may have ended between a commit and its publication."""
        try:
            self.service.publish()
        except CimlError as error:
            _log.warning("%s; the next job publishes what is missing", error)

    def _maintain(self) -> None:
        now = self.clock()
        if not self.maintains or now - self._maintained < _MAINTAIN_S:
            return
        self._maintained = now
        try:
            self.service.maintain()
        except CimlError as error:  # commits go on; they only cost more
            _log.warning("the manifest is not maintained: %s", error)

    def _tell(self, action: Action) -> None:
        now = now_us()
        if (self.status.get("health"), self.status.get("why")) != (action.health, action.why):
            self.status["since_us"] = now
        self.status.update(health=action.health, why=action.why, rate=self._tracker.rate(), updated_us=now)
        self.status["failures"] = self._tracker.failures
        try:
            self.tell(self.status)
        except Exception as error:  # noqa: BLE001  # a full disk is no reason to leave the service alone
            _log.warning("the status cannot be written: %s", error)
