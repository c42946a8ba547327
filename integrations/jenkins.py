"""Jenkins: the events of its CloudEvents plugin, in binary mode. They have no signature.

A run's id is ``jenkins-``, the job's full name and the build's number, as `ciml record` has it. For a job outside of
folders this is the variable ``BUILD_TAG``. It has dashes for slashes, so ``a-b/c`` and ``a/b-c`` are the same in it.

A matrix project runs each configuration as a build of its own, of the job ``NAME/AXIS=VALUE,AXIS=VALUE`` and with the
number of the project's build, which is an event and a run of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from ciml.errors import RejectedInput
from ciml.events.fields import kind_of
from ciml.events.records import Phase
from ciml.events.redaction import shown
from ciml.events.run_id import bounded_id
from ciml.integrations.adapter import Adapter, Delivery, Ignored, Reading, Run
from ciml.integrations.cloudevents import HEADERS, open_delivery
from ciml.integrations.fields import (
    address_at,
    commit_subject,
    known_subjects,
    non_empty,
    object_at,
    phases_by_status,
    required_text,
    text_at,
    time_at,
    value_at,
)

NO_BUILD = "an event of a job's configuration reports no build"
QUEUE = "an event of the queue names no build"
NODE = "an event of a node reports no build"

_NUMBER = re.compile(r"[1-9][0-9]{0,9}")
_TYPE = re.compile(r"org\.jenkinsci\.(job|queue|node)\.([a-z_]+)")
#: Owner and name at the end of a repository's address, as GitHub names it in its own events.
_REPOSITORY = re.compile(r"[/:]([^/:]+/[^/:]+?)(?:\.git)?/?$")
#: A configuration of a matrix project. No axis has ``,`` or ``=`` in its name, no value a comma; without axes: default.
_CONFIGURATION = re.compile(r"default|[^,=/]+=[^,]+(?:,[^,=/]+=[^,]+)*")
_IGNORED = {"queue": QUEUE, "node": NODE}
#: ``failed`` repeats ``finalized`` for failures; the plugin's documents also spell it ``finalzed``.
_PHASES = phases_by_status(started="started", finished="completed finalized finalzed failed")


def read(delivery: Delivery) -> Reading | Ignored:
    """Read the build of an event. Each of ``completed`` and ``finalized`` reports the finished build."""
    attributes, data = open_delivery(delivery)
    event = required_text(attributes, "id")
    kind = required_text(attributes, "type")
    match = _TYPE.fullmatch(kind)
    if not match:
        raise RejectedInput("unknown_type", f"type: {shown(kind)}")
    if match[1] in _IGNORED:
        return Ignored(event, kind, _IGNORED[match[1]])
    if data.get("build") is None:
        return Ignored(event, kind, NO_BUILD)
    phase = _PHASES.get(match[2])
    if phase is None:
        raise RejectedInput("unknown_type", f"type: {shown(kind)}")
    return Reading(event, kind, time_at(attributes, "time"), (Run(phase, _build(data, phase)),))


def _build(data: Mapping[str, Any], phase: Phase) -> dict[str, Any]:
    number = required_text(data, "build", "number")
    if not _NUMBER.fullmatch(number):
        raise RejectedInput("bad_field", f"build.number: want a number from 1, not {shown(number)}")
    names, configuration = _names(data)
    full = [*names, configuration] if configuration else names
    page = address_at(data, "build", "fullUrl")
    source = object_at(data, "build", "scmState")
    commit = text_at(source, "commit")
    repository = _REPOSITORY.search(text_at(source, "url"))
    subject = commit_subject(repository[1], commit) if repository else ""
    start, end = _times(data, phase)
    return non_empty(
        id=bounded_id(f"jenkins-{'/'.join(full)}-{number}"),
        job="/".join(full[len(names) - 1 :]),
        result=text_at(data, "build", "status") if phase == "finished" else "",
        start_time=start,
        end_time=end,
        project="/".join(names),
        branch=_branch(text_at(source, "branch"), names[-1]),
        change=commit,
        patchset=commit,
        head=commit,
        url=page,
        log_url=f"{page.rstrip('/')}/artifact/" if page else "",
        output_url=f"{page.rstrip('/')}/consoleText" if page else "",
        subjects=known_subjects(subject),
    )


def _branch(name: str, job: str) -> str:
    """Return a branch without the name of its remote.

    The job of a branch in a multibranch project is called as the branch, whose name has no remote: anybody may call a
    branch ``origin/main``.
    """
    return name if unquote(job) == name else name.removeprefix("origin/")


def _names(data: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the names of a job's folders and of the job, and its configuration if it is of a matrix project, else "".

    Its address is ``job/FOLDER/job/NAME/``, and ``job/FOLDER/job/NAME/AXIS=VALUE,AXIS=VALUE/`` for a configuration.
    """
    parts = [unquote(part) for part in required_text(data, "url").strip("/").split("/")]
    configuration = parts.pop() if len(parts) % 2 else ""
    if (
        not parts
        or (configuration and not _CONFIGURATION.fullmatch(configuration))
        or any(part != "job" for part in parts[::2])
        or not all(parts)
        or any("/" in part for part in parts)
    ):
        raise RejectedInput(
            "bad_field",
            "url: want job/NAME/, with job/FOLDER/ before it for each folder, and AXIS=VALUE,…/ after it for a matrix",
        )
    return parts[1::2], configuration


def _times(data: Mapping[str, Any], phase: Phase) -> tuple[float | None, float | None]:
    """Return start and end. ``timestamp`` is the time of the event, ``duration`` that of the build, in milliseconds."""
    event_s = _seconds(data, "timestamp")
    duration = _seconds(data, "duration")
    if phase == "started" or event_s is None:
        return event_s, None
    return event_s - duration if duration else None, event_s


def _seconds(data: Mapping[str, Any], name: str) -> float | None:
    milliseconds = value_at(data, "build", name)
    if milliseconds is None:
        return None
    if type(milliseconds) is not int or not 0 <= milliseconds < 1 << 53:
        raise RejectedInput("bad_field", f"build.{name}: want milliseconds, not {kind_of(milliseconds)}")
    return milliseconds / 1000


ADAPTER = Adapter("jenkins", HEADERS, read)
