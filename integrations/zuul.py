"""The adapter of the messages of Zuul's MQTT reporter.

An *item* of Zuul is a change, or several that depend on each other, in the queue of a pipeline. Its *buildset* is one
execution of its jobs, as *builds*. Zuul sends a message for each report on an item, with all builds and retried builds.

A fault in a build must affect only that build. So its fields are passed on unchecked, and `ciml.integrations.registry`
checks them run by run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ciml.errors import RejectedInput
from ciml.events.outcomes import outcome_of
from ciml.events.records import Phase
from ciml.integrations.adapter import Adapter, Delivery, Ignored, Reading, Run
from ciml.integrations.fields import (
    change_subjects,
    commit_subject,
    epoch_at,
    join_id,
    known_subjects,
    non_empty,
    objects_at,
    parse_epoch,
    required_object,
    required_text,
    text_at,
)
from ciml.limits import MAX_EVENT_RUNS

NOT_STARTED = "no build has an id yet"
NO_BUILD = "the report is about no build"

#: Begins the ``metadata.type`` of an artifact that is telemetry: ``dstat_csv``, ``dool``.
_TELEMETRY = ("dstat", "dool")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SEPARATORS = re.compile(r"[-_]")
#: The file in the folder of its logs to which Zuul writes what a build prints.
_OUTPUT_FILE = "job-output.txt"
_ITEM_TIMES = ("timestamp", "enqueue_time", "trigger_time")
#: The name in a change of each field of a run.
_CHANGE_FIELDS = {
    "project": "project",
    "branch": "branch",
    "change": "change",
    "patchset": "patchset",
    "owner": "owner",
    "head": "commit_id",
}


class _Report(NamedTuple):
    """A message of Zuul about an item, without the item's builds.

    Attributes:
      body: the whole message.
      buildset: of the message.
      has_several_changes: whether the item has several changes. The message's own fields then describe only the first.
      change_by_job: the changes that builds name, by `_job_key`. Retried builds name none.
    """

    body: Mapping[str, Any]
    buildset: Mapping[str, Any]
    has_several_changes: bool
    change_by_job: Mapping[str, Any]


def read(delivery: Delivery) -> Reading | Ignored:
    """Read the builds that have an id. Each report on a buildset is an event of its own, by its action."""
    body = delivery.json()
    action = required_text(body, "action")
    buildset = required_object(body, "buildset")
    item_id = text_at(buildset, "uuid") or text_at(body, "uuid") or text_at(body, "zuul_event_id")
    if not item_id:
        raise RejectedInput("missing_field", "buildset.uuid")
    event = f"{item_id}/{action}"
    builds = objects_at(body, "buildset", "builds", most=MAX_EVENT_RUNS)
    retried_builds = objects_at(body, "buildset", "retry_builds", most=MAX_EVENT_RUNS)
    has_several_changes = len(objects_at(body, "changes", most=MAX_EVENT_RUNS)) > 1
    change_by_job = {_job_key(build): build["change"] for build in builds if "change" in build}
    report = _Report(body, buildset, has_several_changes, change_by_job)
    runs = tuple(_run(build, report, _outcome(build, buildset)) for build in builds if _has_id(build))
    # Zuul gives each retried build the result RETRY, which the job's own message may hide.
    runs += tuple(_run(build, report, "error") for build in retried_builds if _has_id(build))
    if not runs:
        return Ignored(event, action, NOT_STARTED if builds else NO_BUILD)
    return Reading(event, action, epoch_at(body, "timestamp"), runs)


def _has_id(build: Mapping[str, Any]) -> bool:
    return build.get("uuid") not in (None, "")


def _run(build: Mapping[str, Any], report: _Report, outcome: str | None) -> Run:
    phase, start, end = _progress(build, report.body)
    change = _change_fields(_change(build, report))
    project, number, patchset = (_text(change.get(name)) for name in ("project", "change", "patchset"))
    fields = non_empty(
        id=build["uuid"],
        job=build.get("job_name"),
        result=build.get("result"),
        outcome=outcome,
        start_time=start,
        end_time=end,
        pipeline=report.body.get("pipeline"),
        **change,
        url=build.get("web_url"),
        log_url=_artifact(build, _is_telemetry) or _log_folder(build),
        output_url=_output_address(build),
        attempt_of=_attempt_of(build, report),
        # A build of several changes executes all of them: no review of one is a review of what it executed.
        subjects=() if report.has_several_changes else _subjects(project, number, patchset),
        labels=non_empty(tenant=report.body.get("tenant"), queue=report.body.get("queue"), voting=build.get("voting")),
    )
    return Run(phase, fields)


def _progress(build: Mapping[str, Any], body: Mapping[str, Any]) -> tuple[Phase, Any, Any]:
    """Return how far a build is, and its start and end, which are unchecked and None if unknown."""
    start = parse_epoch(build.get("start_time"))
    end = parse_epoch(build.get("end_time"))
    if build.get("result") in (None, ""):
        return "queued" if start is None else "started", start, end
    if start is None and end is None:
        # A build with a result that never started ended when Zuul decided so.
        decided = (build.get("execute_time"), *(body.get(name) for name in _ITEM_TIMES))
        end = next((parse_epoch(time) for time in decided if time is not None), None)
    return "finished", start, end


def _outcome(build: Mapping[str, Any], buildset: Mapping[str, Any]) -> str | None:
    """Return the outcome of a build whose result is a message of its job, if it is certain; None for any other build.

    Zuul reports a buildset as SUCCESS only if each voting build succeeded or was skipped; a skipped one never started.
    """
    result = build.get("result")
    if type(result) is not str or not result or outcome_of(result):
        return None
    has_passed = buildset.get("result") == "SUCCESS" and build.get("voting") is True
    return "success" if has_passed and build.get("start_time") is not None else None


def _change(build: Mapping[str, Any], report: _Report) -> Any:
    """Return the change that a build tests, unchecked; None or {} if it is unknown."""
    if "change" in build:
        return build["change"]
    # A retried build names no change: it tested the change of its job's last build.
    job_change = report.change_by_job.get(_job_key(build))
    if job_change is not None:
        return job_change
    # Nothing tells which of several changes a build tested. A wrong one would let a review count for another change.
    if report.has_several_changes:
        return {}
    # Versions of Zuul whose builds name no change have the only one in the message itself.
    return report.body


def _change_fields(change: Any) -> dict[str, Any]:
    """Return the fields of a run that its change has, unchecked."""
    if change is None:
        return {}
    if type(change) is not dict:
        return {"project": [change]}  # the check of the run rejects the list, and so this build alone
    return {field: change.get(name) for field, name in _CHANGE_FIELDS.items()}


def _job_key(build: Mapping[str, Any]) -> str:
    """Return the uuid of a build's job and change, from Zuul 10 on; for earlier versions the name of the job."""
    return _text(build.get("job_uuid")) or _text(build.get("job_name"))


def _attempt_of(build: Mapping[str, Any], report: _Report) -> str:
    """Return the id that the attempts of a job share. Changes of one item may have jobs of the same name."""
    parts = [_text(report.buildset.get("uuid")), _text(build.get("job_name"))]
    return join_id(*parts, _job_key(build)) if report.has_several_changes else join_id(*parts)


def _subjects(project: str, number: str, patchset: str) -> tuple[str, ...]:
    """Return the subjects of a build's change. The patch set of a pull request of GitHub is its head commit."""
    commit = commit_subject(project, patchset) if _COMMIT.fullmatch(patchset) else ""
    return (*change_subjects(project, number, patchset), *known_subjects(commit))


def _log_folder(build: Mapping[str, Any]) -> Any:
    """Return the address of the folder of a build's logs, unchecked; None or "" without one."""
    folder = build.get("log_url")
    return f"{folder}/" if type(folder) is str and folder and not folder.endswith("/") else folder


def _output_address(build: Mapping[str, Any]) -> str:
    """Return the address of what a build printed: the job's own artifact, or Zuul's file in the folder of its logs."""
    folder = _text(_log_folder(build))
    return _artifact(build, _is_output) or (f"{folder}{_OUTPUT_FILE}" if folder else "")


def _artifact(build: Mapping[str, Any], is_wanted: Callable[[str, str], bool]) -> str:
    """Return the address of the first artifact of ``zuul_return`` whose type and name are wanted; "" without one."""
    artifacts = build.get("artifacts")
    for artifact in artifacts if type(artifacts) is list else ():
        metadata = artifact.get("metadata") if type(artifact) is dict else None
        kind = _text(metadata.get("type")) if type(metadata) is dict else ""
        if type(artifact) is not dict or not is_wanted(kind, _text(artifact.get("name"))):
            continue
        url = _text(artifact.get("url"))
        if "://" in url:
            return url
    return ""


def _is_telemetry(kind: str, _: str) -> bool:
    return kind.startswith(_TELEMETRY)


def _is_output(kind: str, name: str) -> bool:
    return any(_SEPARATORS.sub(" ", word).casefold() == "job output" for word in (kind, name))


def _text(content: Any) -> str:
    """Return a text or a number as text; "" for any other value."""
    return str(content) if type(content) in (str, int) else ""


ADAPTER = Adapter("zuul", ("topic",), read)
