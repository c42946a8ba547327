"""Jenkins: the events of its CloudEvents plugin, in binary mode. They have no signature.

A run's id is ``jenkins-FULL_NAME-NUMBER``, as `ciml record` derives it. It is not the variable ``BUILD_TAG``, which
replaces slashes by dashes and so cannot tell ``a-b/c`` from ``a/b-c``.

A matrix project runs each configuration as a build of the job ``NAME/AXIS=VALUE,AXIS=VALUE``. The build has the number
of the project's own build, which is another event and another run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
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
    number_at,
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

_TYPE = re.compile(r"org\.jenkinsci\.(job|queue|node)\.([a-z_]+)")
#: Owner and name at the end of a repository's address, in the form of GitHub's events.
_REPOSITORY = re.compile(r"[/:]([^/:]+/[^/:]+?)(?:\.git)?/?$")
#: A configuration of a matrix project. The name of an axis has no ``,`` or ``=``, a value has no comma. A project
#: without axes has the configuration ``default``.
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
    return Reading(event, kind, time_at(attributes, "time"), (Run(phase, _run_fields(data, phase)),))


class _Job(NamedTuple):
    """The job of a build.

    Attributes:
      folders: names of the folders, the outermost first.
      name: of the job, or of its matrix project.
      configuration: of the matrix project; "" for other jobs.
    """

    folders: tuple[str, ...]
    name: str
    configuration: str

    @property
    def project(self) -> str:
        return "/".join((*self.folders, self.name))

    @property
    def suffix(self) -> str:
        return f"/{self.configuration}" if self.configuration else ""


def _run_fields(data: Mapping[str, Any], phase: Phase) -> dict[str, Any]:
    number = number_at(data, "build", "number")
    job = _job(data)
    page = address_at(data, "build", "fullUrl")
    source = object_at(data, "build", "scmState")
    commit = text_at(source, "commit")
    repository = _REPOSITORY.search(text_at(source, "url"))
    subject = commit_subject(repository[1], commit) if repository else ""
    start, end = _times(data, phase)
    return non_empty(
        id=bounded_id(f"jenkins-{job.project}{job.suffix}-{number}"),
        job=f"{job.name}{job.suffix}",
        result=text_at(data, "build", "status") if phase == "finished" else "",
        start_time=start,
        end_time=end,
        project=job.project,
        branch=_branch(text_at(source, "branch"), job),
        change=commit,
        patchset=commit,
        head=commit,
        url=page,
        log_url=f"{page.rstrip('/')}/artifact/" if page else "",
        output_url=f"{page.rstrip('/')}/consoleText" if page else "",
        subjects=known_subjects(subject),
    )


def _job(data: Mapping[str, Any]) -> _Job:
    """Return the job at the event's address.

    The address is ``job/FOLDER/job/NAME/``, and ``job/FOLDER/job/NAME/AXIS=VALUE,AXIS=VALUE/`` for a configuration.
    """
    parts = [unquote(part) for part in required_text(data, "url").strip("/").split("/")]
    configuration = parts.pop() if len(parts) % 2 else ""
    names = parts[1::2]
    is_job = bool(names) and parts[::2] == ["job"] * len(names) and all(name and "/" not in name for name in names)
    if not is_job or (configuration and not _CONFIGURATION.fullmatch(configuration)):
        raise RejectedInput(
            "bad_field",
            "url: want job/NAME/, with job/FOLDER/ before it for each folder, and AXIS=VALUE,…/ after it for a matrix",
        )
    return _Job(tuple(names[:-1]), names[-1], configuration)


def _branch(name: str, job: _Job) -> str:
    """Return a branch without the name of its remote.

    In a multibranch project, the job has the name of the branch, without a remote. Such a name is kept, because anyone
    can create a branch ``origin/main``.
    """
    return name if unquote(job.name) == name else name.removeprefix("origin/")


def _times(data: Mapping[str, Any], phase: Phase) -> tuple[float | None, float | None]:
    """Return start and end in epoch seconds. ``timestamp`` is the time of the event, ``duration`` is of the build."""
    event_s = _seconds(data, "timestamp")
    duration_s = _seconds(data, "duration")
    if phase == "started" or event_s is None:
        return event_s, None
    if not duration_s:
        return None, event_s
    if duration_s > event_s:
        raise RejectedInput("bad_field", "build.duration: exceeds build.timestamp")
    return event_s - duration_s, event_s


def _seconds(data: Mapping[str, Any], name: str) -> float | None:
    milliseconds = value_at(data, "build", name)
    if milliseconds is None:
        return None
    if type(milliseconds) is not int or not 0 <= milliseconds < 1 << 53:
        raise RejectedInput("bad_field", f"build.{name}: want milliseconds, not {kind_of(milliseconds)}")
    return milliseconds / 1000


ADAPTER = Adapter("jenkins", HEADERS, read)
