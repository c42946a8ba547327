"""The watchdog of a service: it observes job and service, acts as `ciml.services.decide.decide` says, and reports.

It may be killed at any moment. The job keeps running without it, and the next supervisor finds it by its name.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.manifest.coverage import OtherTopicError
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
from ciml.services.files import Occurrence, SavepointEntry, Status, now_us
from ciml.services.service import NotReadyError, Service

_PAUSE_S = 1.0
_MAINTAIN_S = 5.0
_MOST_CONTRADICTIONS = 3  # successive ones are permanent; a single one may come of reading broker and store in turn
_MOST_RESUBMISSIONS = 20  # in the status
_QUIET_HEALTH = ("starting", "running", "stopping", "stopped")
_log = logging.getLogger(__name__)


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


class _Reading(NamedTuple):
    """The service as it is now.

    Attributes:
      progress: None if something does not answer, or the service is not ready.
      outage: the error of what does not answer, or why the service is not ready; "" for neither.
      is_unready: whether the outage only means that the service is not ready.
    """

    progress: ServiceProgress | None
    outage: str = ""
    is_unready: bool = False


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
      limits: of the watchdog.
      clock: returns the present time, seconds.
      pause_s: between two steps.
      level: log level of decisions that need no attention.
      progress: the last progress; None if something did not answer.
      error: the permanent error.
    """

    service: Service
    jobs: Jobs
    wanted: Callable[[], Wanted]
    report: Callable[[Status], None]
    status: Status = field(default_factory=Status)
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
        self._has_job = False  # submitted or taken over
        self._tried_savepoint: SavepointEntry | None = None  # the job started from it, and has not progressed yet
        self._contradictions = 0  # successive ones of broker and store
        self._fault = ""  # a permanent error of the service
        self._maintained_s = -_MAINTAIN_S
        self._logged = ("", "")  # the last logged decision: its kind and health
        self._has_failed = False  # whether the status has the permanent error as its last failure
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
            if action.health == "waiting" and self._has_moved():
                return action.health

    def _has_moved(self) -> bool:
        try:
            return self.moved()
        except Exception as error:  # noqa: BLE001  # the service must stay watched
            _log.warning("whether addresses have changed is unknown: %s", error)
            return False

    def step(self) -> Action:
        """Observe, decide, act and report once."""
        observation = self._observe()
        action = decide(observation, self.limits)
        self._log_decision(action)
        if action.health == "failed":
            self._fault = action.why
        self._act(action, observation)
        self._report(action)
        if action.kind == "carry_on" and not observation.outage:
            self._maintain()
        return action

    def _observe(self) -> Observation:
        job: JobStatus | None = None
        engine_outage = ""
        try:
            job = self.jobs.status()
            self._was_read("job")
        except EngineError as error:
            engine_outage = str(error)
        reading = self._read_service()
        if job is not None and job.waits and reading.progress is not None:
            reading = _Reading(reading.progress, job.waits, is_unready=True)
        if job is not None and job.fault:
            self.status["exit_code"] = job.exit_code
            self.status["needs_adoption"] = job.needs_adoption
        now_s = self.clock()
        if job is not None and not self._has_job and job.state not in ("missing", "over"):
            _log.log(self.level, "took over %s, which is %s", job.name or "a job", job.state)
            self._has_job = True
            self._tried_savepoint = self._unused_savepoint()
            self._tracker.submitted(now_s)
        observation = self._tracker.observe(
            now_s,
            self.wanted(),
            job,
            reading.progress,
            fault=self._fault,
            outage="; ".join(filter(None, [engine_outage, reading.outage])),
            unready=reading.is_unready and not engine_outage,
            from_savepoint=self._tried_savepoint is not None,
        )
        self._update_job(job)
        if job is not None and self._tried_savepoint is not None:
            self._follow_savepoint(self._tried_savepoint, observation, job)
        return observation

    def _read_service(self) -> _Reading:
        """Observe the service, and check that it is ready. Several contradictions in succession are a fault."""
        try:
            progress = self._observe_service()
            self.service.ready()
        except EngineError as error:
            return _Reading(None, str(error), isinstance(error, NotReadyError))
        except IntegrityError as error:
            self._contradictions += 1
            if self._contradictions >= _MOST_CONTRADICTIONS:
                self.error = error
                self._fault = str(error)
                self.status["needs_adoption"] = isinstance(error, OtherTopicError)
            return _Reading(None)
        self._contradictions = 0
        return _Reading(progress)

    def _observe_service(self) -> ServiceProgress:
        self.progress = None
        self.status["problems"] = self.service.problems()
        facts = self.service.facts()  # available even if the broker does not answer
        self.status |= cast("Status", facts)
        if facts:
            self._was_read("manifest")
        progress = self.progress = self.service.observe()
        self.status |= cast("Status", progress.to_json())
        if progress.lag:
            self._was_read("lag")
        return progress

    def _was_read(self, figures: str, time_us: int | None = None) -> None:
        """Record when figures of the status were read: those of the manifest, the lag, or the job."""
        self.status["read_us"] = {**self.status["read_us"], figures: now_us() if time_us is None else time_us}

    def _update_job(self, job: JobStatus | None) -> None:
        """Set job and checkpoint of the status; without an answer of the engine, the job's last names stay."""
        before = self.status.get("job") or {}
        if job is None:
            self.status["job"] = {**before, "state": "unknown"}
            return
        self.status["job"] = {
            "state": job.state,
            "id": job.id,
            "name": job.name,
            "how": job.how,
            "submitted_us": before.get("submitted_us") if job.began_s is None else int(job.began_s * 1e6),
            "restarts": job.restarts,
        }
        self.status["checkpoint"] = None
        if job.checkpoint_bytes is not None:
            time_us = int((job.checkpoint_s or 0) * 1e6)
            self.status["checkpoint"] = {"bytes": job.checkpoint_bytes, "time_us": time_us}
        if self.status.get("lag") is None:  # only its worker knows the position
            self.status |= cast("Status", job.progress)
            if job.progress.get("lag") is not None and job.progress_us is not None:
                self._was_read("lag", job.progress_us)

    def _follow_savepoint(self, savepoint: SavepointEntry, observation: Observation, job: JobStatus) -> None:
        """Note in a savepoint of the status whether the job that started from it works, or ended."""
        running_s = 0.0 if observation.running_s is None else observation.now_s - observation.running_s
        if observation.committed or (running_s >= self.limits.settled_s and not observation.behind):
            self._tried_savepoint = None
            savepoint["use"] = "resumed"
        elif job.state in ("missing", "over"):
            self._reject_savepoint(savepoint, job.how or "the job ended")

    def _reject_savepoint(self, savepoint: SavepointEntry, why: str) -> None:
        savepoint["use"] = "refused"  # the stored word
        savepoint["why"] = why
        self._tried_savepoint = None
        _log.warning("savepoint %s rejected (%s); continuing from the manifest", savepoint["path"], why)

    def _log_decision(self, action: Action) -> None:
        """Log a decision that differs from the last one."""
        decision = (action.kind, action.health)
        if decision != self._logged:
            level = self.level if action.health in _QUIET_HEALTH else logging.WARNING
            why = f": {action.why}" if action.why else ""
            _log.log(level, "%s: %s%s", action.health, action.kind.replace("_", " "), why)
        self._logged = decision

    def _act(self, action: Action, observation: Observation) -> None:
        if action.kind in ("submit", "replace"):
            self._submit(action)
        elif action.kind == "cancel":
            self.jobs.cancel()
        elif action.kind == "savepoint":
            self._savepoint()
        elif action.kind == "end" and not observation.engine_away:
            # The job may have ended between a commit and its publication.
            self._attempt(self.service.publish, "the next job publishes the rest")

    def _submit(self, action: Action) -> None:
        if action.kind == "replace":
            if self._tried_savepoint is not None:
                self._reject_savepoint(self._tried_savepoint, action.why)
            self.jobs.cancel()
        savepoint = None if self._has_job else self._unused_savepoint()
        self.jobs.submit("" if savepoint is None else savepoint["path"])  # if this raises, the savepoint stays unused
        self._tried_savepoint = savepoint
        if self._has_job:
            self.status["resubmitted"] += 1
            resubmission: Occurrence = {"time_us": now_us(), "why": action.why}
            self.status["resubmissions"] = [*self.status["resubmissions"], resubmission][-_MOST_RESUBMISSIONS:]
        self._has_job = True
        self._tracker.submitted(self.clock())
        self.status["job"] = {"state": "starting", "submitted_us": now_us()}

    def _unused_savepoint(self) -> SavepointEntry | None:
        savepoint = self.status["savepoint"]
        return None if savepoint is None or savepoint["use"] else savepoint

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
        now_s = self.clock()
        if self.maintains and now_s - self._maintained_s >= _MAINTAIN_S:
            self._maintained_s = now_s
            self._attempt(self.service.maintain, "the manifest is maintained later, until then commits take longer")

    def _attempt(self, work: Callable[[], None], consequence: str) -> None:
        try:
            work()
        except CimlError as error:
            _log.warning("%s; %s", error, consequence)

    def _report(self, action: Action) -> None:
        time_us = now_us()
        if (self.status.get("health"), self.status.get("why")) != (action.health, action.why):
            self.status["since_us"] = time_us
        self.status |= {
            "health": action.health,
            "why": action.why,
            "rate": self._tracker.rate(),
            "failures": self._tracker.observation.failures,
            "updated_us": time_us,
        }
        if action.health == "failed" and not self._has_failed:
            self._has_failed = True
            self.status["last_failure"] = {"time_us": time_us, "why": action.why}
        try:
            self.report(self.status)
        except Exception as error:  # noqa: BLE001  # the service must stay watched, even with a full disk
            _log.warning("the status cannot be written: %s", error)
