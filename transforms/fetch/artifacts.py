"""Choose the artifact with a job's log from the artifacts of a workflow run on GitHub, by names and times. Pure.

GitHub lists the artifacts of all jobs and attempts of a workflow run together, without the job that made each. The log
of another job would train a model on the wrong run. So an artifact must have one of the job's artifact names. If its
time is known, it must have been made while the job ran: a rerun whose upload does not overwrite the artifact of the
earlier attempt leaves that artifact in the list.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ciml.errors import LogUnavailableError, RejectedInput
from ciml.events.fields import parse_json, time_field
from ciml.events.records import RunFacts
from ciml.events.run_id import RunId

#: Artifacts on a page: GitHub's limit.
PAGE = 100
_MAX_NAME = 256  # characters
_SLACK_US = 60_000_000  # allowed difference between the clocks of a job and of the artifact store

_LIST = re.compile(r"(?:/[^?]*)?/repos/[^/?]+/[^/?]+/actions/runs/[0-9]+/artifacts")
_SEPARATORS = re.compile(r"[\W_]+")
_SEPARATORS_IN_GLOB = re.compile(r"(?:[^\w*]|_)+")


def is_artifact_list(path: str) -> bool:
    """Return whether a path is GitHub's list of the artifacts of a workflow run."""
    return _LIST.fullmatch(path) is not None


class JobFacts(NamedTuple):
    """The facts that identify a job's artifact: its id and name, its attempt, and when it ran (µs UTC)."""

    id: str
    name: str
    attempt: int
    start_us: int | None
    end_us: int | None


def job_facts(facts: RunFacts) -> JobFacts:
    """Return the facts of a run's job. If the run id is malformed, the id is the build's and the attempt is 1."""
    try:
        run = RunId.decode(facts.run_id)
    except RejectedInput:
        return JobFacts(facts.build_uuid, facts.build_name, 1, facts.start_us, facts.end_us)
    return JobFacts(run.native_id, facts.build_name, run.attempt, facts.start_us, facts.end_us)


class Artifact(NamedTuple):
    """An artifact in a list. ``made_us`` is the time of its creation (µs UTC), None if it is missing or malformed."""

    id: int
    name: str
    made_us: int | None
    expired: bool


def artifacts_on(page: bytes) -> tuple[list[Artifact], bool]:
    """Decode a page of a list: return its valid artifacts, and whether there may be another page.

    Raises:
      LogUnavailableError: ``log_unavailable`` if the response is not a list of artifacts.
    """
    try:
        document = parse_json(page)
    except RejectedInput as rejected:
        raise _not_a_list(rejected.detail) from None
    entries = document.get("artifacts") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise _not_a_list("no field artifacts")
    artifacts = [artifact for artifact in map(_artifact, entries) if artifact is not None]
    return artifacts, len(entries) >= PAGE


def _not_a_list(detail: str) -> LogUnavailableError:
    return LogUnavailableError("log_unavailable", f"the answer is not a list of artifacts: {detail}")


def _artifact(entry: Any) -> Artifact | None:
    """Decode an entry of a page; None for an invalid one."""
    if not isinstance(entry, dict):
        return None
    number = entry.get("id")
    name = entry.get("name")
    if type(number) is not int or not 0 < number < 1 << 63 or type(name) is not str or len(name) > _MAX_NAME:
        return None
    return Artifact(number, name, _made_us(entry), entry.get("expired") is True)


def _made_us(entry: Mapping[str, Any]) -> int | None:
    try:
        return time_field(entry, "created_at")
    except RejectedInput:
        return None


def artifact_of(job: JobFacts, artifacts: Iterable[Artifact], names: Iterable[str]) -> Artifact:
    """Choose the artifact with a job's log: the newest one with the first of the names that an unexpired artifact has.

    Args:
      job: the job.
      artifacts: the artifacts of its workflow run.
      names: `FetchPolicy.artifact_names`.

    Raises:
      LogUnavailableError: ``log_not_found`` if there is none, or if all have expired.
    """
    artifacts = list(artifacts)
    candidates = [(_normal(artifact.name), artifact) for artifact in artifacts if _is_in_time(artifact, job)]
    any_expired = False
    for name in names:
        pattern = _pattern(name, job)
        if pattern is None:
            continue
        named = [artifact for normal_name, artifact in candidates if pattern.fullmatch(normal_name)]
        unexpired = [artifact for artifact in named if not artifact.expired]
        if unexpired:
            return max(unexpired, key=lambda artifact: (artifact.made_us or 0, artifact.id))
        any_expired |= bool(named)
    if any_expired:
        raise LogUnavailableError("log_not_found", "the artifact of this job has expired")
    raise LogUnavailableError("log_not_found", f"none of {len(artifacts)} artifacts is of this job")


def _is_in_time(artifact: Artifact, job: JobFacts) -> bool:
    """Return whether an artifact may have been made while a job ran; an unknown time excludes nothing."""
    made_us = artifact.made_us
    if made_us is None:
        return True
    too_early = job.start_us is not None and made_us < job.start_us - _SLACK_US
    too_late = job.end_us is not None and made_us > job.end_us + _SLACK_US
    return not too_early and not too_late


def _pattern(name: str, job: JobFacts) -> re.Pattern[str] | None:
    """Return the pattern by which a name of the policy matches the `_normal` names of a job's artifacts.

    Returns:
      The pattern; None if the name needs a fact that the job lacks.
    """
    # A normal fact consists of letters, digits and dashes. So it adds neither a wildcard nor a word in braces.
    facts = {"{id}": _normal(job.id), "{job}": _normal(job.name), "{attempt}": str(job.attempt)}
    for word, fact in facts.items():
        if word in name and not fact:
            return None
        name = name.replace(word, fact)
    glob = _SEPARATORS_IN_GLOB.sub("-", name.casefold()).strip("-")  # ``*`` is the only wildcard that is left
    return re.compile(fnmatch.translate(glob))


def _normal(text: str) -> str:
    """Return a text in the form in which names are compared: casefolded, each run of other characters one dash."""
    return _SEPARATORS.sub("-", text.casefold()).strip("-")
