"""The watchdog of a service: it observes, runs the action of `ciml.services.decide.decide`, and reports.

It may be killed at any moment. The job keeps running without it, and the next supervisor finds it by its name.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.services.decide import (
    Action,
    Health,
    JobStatus,
    Limits,
    Observation,
    ServiceProgress,
    Tracker,
    Wanted,
    decide,
)
from ciml.services.files import now_us
from ciml.services.service import NotReadyError, Service

_PAUSE_S = 1.0
_MAINTAIN_S = 5.0
_FAULTS = 3  # successive errors that count as permanent: broker and store are not observed at the same moment
_KEPT = 20
_log = logging.getLogger(__name__)

Status = dict[str, Any]


class Jobs(Protocol):
    """An engine and the job that is watched in it. Every method raises `EngineError` if the engine does not answer."""

    def status(self) -> JobStatus:
        """Return the job's status; of several jobs of the name, cancel all but the newest."""

    def submit(self, savepoint: str = "") -> None:
        """Begin to start a job from the manifest or a savepoint, after the end of the previous one."""

    def cancel(self) -> None:
        """Cancel the job, and wait for its end."""

    def stop_with_savepoint(self) -> str:
        """Stop the job with a savepoint; return its path, or "" if the engine needs none."""


@dataclass
class Supervisor:
    """Keeps one service running until it is stopped, or has a permanent error.

    Attributes:
      service: the watched service.
      jobs: its jobs.
      wanted: returns the operator's request.
      report: called with the status after each step. Its errors are logged.
      status: of an earlier supervisor of this service, whose savepoint and counts are continued.
      maintains: whether it also maintains the manifest; else the job does.
      moved: returns whether what the service connects to has other addresses now; then the watch ends.
      limits, clock, pause_s: of the watchdog.
      level: log level of decisions that need no attention.
      progress: the last progress; None if something did not answer.
      error: the permanent error.
    """

    service: Service
    jobs: Jobs
    wanted: Callable[[], Wanted]
    report: Callable[[Status], None]
    status: Status = field(default_factory=dict)
    maintains: bool = True
    moved: Callable[[], bool] = lambda: False
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.monotonic
    pause_s: float = _PAUSE_S
    level: int = logging.WARNING
    progress: ServiceProgress | None = None
    error: CimlError | None = None

    def __post_init__(self) -> None:
        self._tracker = Tracker(self.limits)
        self._submitted = self._from_savepoint = False
        self._faults = 0
        self._fault = ""
        self._maintained = -_MAINTAIN_S
        self._logged = ("", "")
        self._failed = False
        earlier: Status = {"resubmitted": 0, "resubmissions": [], "savepoint": None, "last_failure": None}
        self.status = {**earlier, **self.status, "read_us": {}}

    def run(self, leave: threading.Event | None = None) -> Health:
        """Watch until the service is stopped or has failed. ``leave`` ends the watch, not the service.

        Returns:
          ``stopped``, ``failed``, or the last health after ``leave`` or a move.
        """
        leave = leave or threading.Event()
        while True:
            try:
                action = self.step()
            except Exception as error:  # noqa: BLE001  # the service must stay watched
                why = str(error)
                if not isinstance(error, CimlError):
                    _log.exception("the watchdog failed; retrying")
                    why = f"the watchdog failed: {type(error).__name__}: {error}"
                action = Action("carry_on", "waiting", why)
                self._report(action)
            if action.kind == "end" or leave.wait(self.pause_s):
                return action.health
            if action.health == "waiting" and self.moved():
                return action.health

    def step(self) -> Action:
        """Observe, decide, act and report once."""
        observation = self._observe()
        action = decide(observation, self.limits)
        decision = (action.kind, action.health)
        if decision != self._logged:
            level = self.level if action.health in ("starting", "running", "stopping", "stopped") else logging.WARNING
            _log.log(
                level, "%s: %s%s", action.health, action.kind.replace("_", " "), f": {action.why}" if action.why else ""
            )
        self._logged = decision
        if action.health == "failed":
            self._fault = action.why
        self._do(action, observation)
        self._report(action)
        if action.kind == "carry_on" and not observation.away:
            self._maintain()
        return action

    def _observe(self) -> Observation:
        away: list[str] = []
        job: JobStatus | None = None
        try:
            job = self.jobs.status()
            self._was_read("job")
        except EngineError as error:
            away.append(str(error))
        covered = None
        unready = False
        try:
            covered = self.progress = self._observe_service()
            self.service.ready()
            self._faults = 0
            if job is not None and job.waits:
                away.append(job.waits)
                unready = True
        except EngineError as error:
            away.append(str(error))
            unready = isinstance(error, NotReadyError) and len(away) == 1
            covered = None
        except IntegrityError as error:
            self._faults += 1
            if self._faults >= _FAULTS:
                self.error = error
                self._fault = str(error)
        if job is not None and job.fault:
            self.status["exit_code"] = job.exit_code
        now = self.clock()
        if job is not None and not self._submitted and job.state not in ("missing", "over"):
            _log.log(self.level, "took over %s, which is %s", job.name or "a job", job.state)
            self._submitted = True  # by an earlier supervisor
            self._tracker.submitted(now)
        observation = self._tracker.observe(
            now, self.wanted(), job, covered, fault=self._fault, away="; ".join(away), unready=unready
        )
        self._update_job(observation, job)
        return observation

    def _observe_service(self) -> ServiceProgress:
        self.progress = None
        self.status["problems"] = self.service.problems()
        facts = self.service.facts()  # available even if the broker does not answer
        self.status.update(facts)
        if facts:
            self._was_read("manifest")
        progress = self.service.observe()
        self.status.update(progress.to_json())
        if progress.lag:
            self._was_read("lag")
        return progress

    def _was_read(self, figures: str, time_us: int | None = None) -> None:
        """Record when figures of the status were read: those of the manifest, the lag, or the job."""
        self.status["read_us"] = {**self.status["read_us"], figures: now_us() if time_us is None else time_us}

    def _update_job(self, seen: Observation, job: JobStatus | None) -> None:
        if job is None:
            self.status["job"] = {**(self.status.get("job") or {}), "state": "unknown"}
            return
        before = self.status.get("job") or {}
        since = before.get("submitted_us") if job.began_s is None else int(job.began_s * 1e6)
        self.status["job"] = {
            "state": job.state,
            "id": job.id,
            "name": job.name,
            "how": job.how,
            "submitted_us": since,
            "restarts": job.restarts,
        }
        if self.status.get("lag") is None:  # only its worker knows the position
            self.status.update(job.progress)
            if job.progress.get("lag") is not None and job.progress_us is not None:
                self._was_read("lag", job.progress_us)
        size = job.checkpoint_bytes
        checkpoint_s = job.checkpoint_s
        self.status["checkpoint"] = None if size is None else {"bytes": size, "time_us": int((checkpoint_s or 0) * 1e6)}
        savepoint = self.status["savepoint"]
        if self._from_savepoint and savepoint:
            if seen.committed or (seen.running_s is not None and not seen.behind):
                self._from_savepoint = False
                savepoint["use"] = "resumed"
            elif job.state in ("missing", "over"):
                self._reject_savepoint(job.how or "the job ended")

    def _reject_savepoint(self, why: str) -> None:
        savepoint = self.status["savepoint"]
        savepoint["use"] = "refused"
        savepoint["why"] = why
        self._from_savepoint = False
        _log.warning("savepoint %s rejected (%s); continuing from the manifest", savepoint["path"], why)

    def _do(self, action: Action, seen: Observation) -> None:
        if action.kind in ("submit", "replace"):
            self._submit(action)
        elif action.kind == "cancel":
            self.jobs.cancel()
        elif action.kind == "savepoint":
            self._savepoint()
        elif action.kind == "end" and not seen.engine_away:  # commits of a job that ended before their publication
            self._attempt(self.service.publish, "the next job publishes the rest")

    def _submit(self, action: Action) -> None:
        if action.kind == "replace":
            if self._from_savepoint:
                self._reject_savepoint(action.why)
            self.jobs.cancel()
        savepoint = self.status["savepoint"]
        path = savepoint["path"] if savepoint and not savepoint["use"] and not self._submitted else ""
        if self._submitted:
            self.status["resubmitted"] += 1
            resubmissions = [*self.status["resubmissions"], {"time_us": now_us(), "why": action.why}]
            self.status["resubmissions"] = resubmissions[-_KEPT:]
        self._submitted = True
        self._from_savepoint = bool(path)
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
            version = self.status.get("version")
            self.status["savepoint"] = {"path": path, "time_us": now_us(), "version": version, "use": ""}

    def _maintain(self) -> None:
        now = self.clock()
        if self.maintains and now - self._maintained >= _MAINTAIN_S:
            self._maintained = now
            self._attempt(self.service.maintain, "the manifest is maintained later, until then commits take longer")

    def _attempt(self, work: Callable[[], None], consequence: str) -> None:
        try:
            work()
        except CimlError as error:
            _log.warning("%s; %s", error, consequence)

    def _report(self, action: Action) -> None:
        now = now_us()
        if (self.status.get("health"), self.status.get("why")) != (action.health, action.why):
            self.status["since_us"] = now
        self.status.update(health=action.health, why=action.why, rate=self._tracker.rate(), updated_us=now)
        self.status["failures"] = self._tracker.seen.failures
        if action.health == "failed" and not self._failed:
            self._failed = True
            self.status["last_failure"] = {"time_us": now, "why": action.why}
        try:
            self.report(self.status)
        except Exception as error:  # noqa: BLE001  # the service must stay watched, even with a full disk
            _log.warning("the status cannot be written: %s", error)
