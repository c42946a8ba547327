"""Zuul: the adapter of its MQTT reporter's messages, and the text of ``ciml connect zuul``.

Zuul sends a message for each report on an item, with all its builds and retried builds. A build's fault costs that
build alone, so the fields of a build are passed on unchecked; `ciml.integrations.registry` checks them run by run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ciml.errors import RejectedInput
from ciml.events.outcomes import outcome_of
from ciml.events.records import Phase
from ciml.integrations.adapter import Adapter, Delivery, Ignored, Reading, Run
from ciml.integrations.fields import (
    change_subjects,
    commit_subject,
    epoch,
    filled,
    inner,
    joined,
    known,
    moment,
    needed,
    objects,
    word,
)
from ciml.limits import MAX_EVENT_RUNS

NOT_STARTED = "no build has an id yet"
NO_BUILD = "the report is about no build"

#: Begins the ``metadata.type`` of an artifact that is telemetry: ``dstat_csv``, ``dool``.
_TELEMETRY = ("dstat", "dool")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ITEM_TIMES = ("timestamp", "enqueue_time", "trigger_time")


class _Item(NamedTuple):
    """The parts of a message that its builds share."""

    body: Mapping[str, Any]
    buildset: Mapping[str, Any]
    several: bool  # changes: the fields of the message describe the first alone
    own_changes: Mapping[str, Any]  # of the builds, by job; retried builds lack them


def read(delivery: Delivery) -> Reading | Ignored:
    """Read the builds that have an id. Each report on a buildset is an event of its own, by its action."""
    body = delivery.json()
    action = needed(body, "action")
    buildset = inner(body, "buildset")
    event = word(buildset, "uuid") or word(body, "uuid") or word(body, "zuul_event_id")
    if not event:
        raise RejectedInput("missing_field", "buildset.uuid")
    event = f"{event}/{action}"
    builds = objects(body, "buildset", "builds", most=MAX_EVENT_RUNS)
    retried = objects(body, "buildset", "retry_builds", most=MAX_EVENT_RUNS)
    several = len(objects(body, "changes", most=MAX_EVENT_RUNS)) > 1
    item = _Item(body, buildset, several, {_job(build): build["change"] for build in builds if "change" in build})
    runs = tuple(_run(build, item, _outcome(build, item)) for build in builds if _has_id(build))
    # Zuul gives each retried build the result RETRY, which the job's own message may hide.
    runs += tuple(_run(build, item, "error") for build in retried if _has_id(build))
    if not runs:
        return Ignored(event, action, NOT_STARTED if builds else NO_BUILD)
    return Reading(event, action, moment({"timestamp": epoch(body.get("timestamp"))}, "timestamp"), runs)


def _has_id(build: Mapping[str, Any]) -> bool:
    return build.get("uuid") not in (None, "")


def _run(build: Mapping[str, Any], item: _Item, outcome: str | None) -> Run:
    body = item.body
    result = build.get("result")
    start = epoch(build.get("start_time"))
    end = epoch(build.get("end_time"))
    phase: Phase = "finished"
    if result is None or result == "":
        phase = "queued" if start is None else "started"
    elif start is None and end is None:  # never started: the time at which Zuul decided so
        times = (build.get("execute_time"), *(body.get(name) for name in _ITEM_TIMES))
        end = next((epoch(time) for time in times if time is not None), None)
    change = _change(build, item)
    project, number, patchset = (_field(change, name) for name in ("project", "change", "patchset"))
    fields = filled(
        id=build["uuid"],
        job=build.get("job_name"),
        result=result,
        outcome=outcome,
        start_time=start,
        end_time=end,
        pipeline=body.get("pipeline"),
        project=project,
        branch=_field(change, "branch"),
        change=number,
        patchset=patchset,
        owner=_field(change, "owner"),
        head=_field(change, "commit_id"),
        url=build.get("web_url"),
        log_url=_log(build),
        attempt_of=_attempt_of(build, item),
        # A build of several changes executes all of them: no review of one is a review of what it executed.
        subjects=() if item.several else _subjects(_text(project), _text(number), _text(patchset)),
        labels=filled(tenant=body.get("tenant"), queue=body.get("queue"), voting=build.get("voting")),
    )
    return Run(phase, fields)


def _outcome(build: Mapping[str, Any], item: _Item) -> str | None:
    """Return the outcome of a build whose result is its job's own message, where it is certain; None for a known word.

    Zuul reports a buildset as SUCCESS only if each voting build succeeded or was skipped; a skipped one never started.
    """
    result = build.get("result")
    if type(result) is not str or not result or outcome_of(result):
        return None
    passed = item.buildset.get("result") == "SUCCESS" and build.get("voting") is True
    return "success" if passed and build.get("start_time") is not None else None


def _change(build: Mapping[str, Any], item: _Item) -> Any:
    """Return the change that a build tests: its own field decides; in a message of one change, the message's."""
    if "change" in build:
        return build["change"]
    own_change = item.own_changes.get(_job(build))
    return own_change if own_change is not None else {} if item.several else item.body


def _job(build: Mapping[str, Any]) -> str:
    """Return a key of a build's job: unique for job and change, where Zuul says so (from version 10)."""
    return _text(build.get("job_uuid")) or _text(build.get("job_name"))


def _attempt_of(build: Mapping[str, Any], item: _Item) -> str:
    """Return what the attempts of a job share: buildset and job. Changes of one item may have jobs of the same name."""
    parts = [_text(item.buildset.get("uuid")), _text(build.get("job_name"))]
    return joined(*parts, _job(build)) if item.several else joined(*parts)


def _subjects(project: str, number: str, patchset: str) -> tuple[str, ...]:
    """Return the subjects of a build's change. The patch set of a GitHub pull request is its head commit."""
    commit = commit_subject(project, patchset) if _COMMIT.fullmatch(patchset) else ""
    return (*change_subjects(project, number, patchset), *known(commit))


def _log(build: Mapping[str, Any]) -> Any:
    """Return the address of the telemetry that the job named by ``zuul_return``, else the folder of its logs."""
    artifacts = build.get("artifacts")
    for artifact in artifacts if type(artifacts) is list else ():
        if type(artifact) is dict and type(metadata := artifact.get("metadata")) is dict:
            url = _text(artifact.get("url"))
            if _text(metadata.get("type")).startswith(_TELEMETRY) and "://" in url:
                return url
    folder = build.get("log_url")
    return f"{folder}/" if type(folder) is str and folder and not folder.endswith("/") else folder


def _field(found: Any, name: str) -> Any:
    """Return a field of an object. What is no object is returned itself, so that the check of the run rejects it."""
    return found.get(name) if type(found) is dict else found


def _text(found: Any) -> str:
    return str(found) if type(found) in (str, int) else ""


ADAPTER = Adapter("zuul", ("topic",), read)
