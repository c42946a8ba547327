"""Artifacts of CI systems: which of a workflow run's artifacts is a job's, by names and times. Pure.

GitHub lists the artifacts of all jobs and attempts of a run together, and does not say which job made one. The log
of another job would train a model on the wrong run. So an artifact must name its job, and must have been made while the
job ran: a rerun that cannot replace an artifact leaves that of the attempt before.

Places of logs: an address leads to a log itself, to a folder of logs, or to an archive of a CI system.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ciml.errors import RejectedInput
from ciml.events.fields import time_field
from ciml.events.json_input import parse_json
from ciml.events.records import RunFacts
from ciml.events.run_id import RunId
from ciml.globs import glob_pattern
from ciml.http.addresses import Address, below
from ciml.limits import MAX_ARTIFACTS_PAGES
from ciml.transforms.fetch.decompress import gunzip, is_archive, unzip
from ciml.transforms.fetch.files import first_found
from ciml.transforms.fetch.policy import FetchPolicy, LogUnavailableError

if TYPE_CHECKING:
    from ciml.transforms.fetch.http import HttpLogs  # imports an HTTP client, which is rarely needed

_MAX_NAME = 256
PAGE = 100  # artifacts of a page: the most that GitHub gives

_LIST = re.compile(r"(?:/[^?]*)?/repos/[^/?]+/[^/?]+/actions/runs/[0-9]+/artifacts")
_OF_JOB = re.compile(r"(?:/[^?]*)?/api/v4/projects/[^/?]+/jobs/[0-9]+/artifacts")
_OTHER = re.compile(r"[\W_]+")
_SLACK_US = 60_000_000  # of the times of a job and of its artifacts, which another service may take


def is_artifact_list(path: str) -> bool:
    """Return whether a path is GitHub's list of the artifacts of a workflow run."""
    return _LIST.fullmatch(path) is not None


def is_job_archive(path: str) -> bool:
    """Return whether a path is GitLab's archive of the artifacts of a job."""
    return _OF_JOB.fullmatch(path) is not None


class JobFacts(NamedTuple):
    """What decides which artifact is a job's: its id and name, its attempt, and when it ran (µs UTC)."""

    id: str
    name: str
    attempt: int
    start_us: int | None
    end_us: int | None


def job_facts(facts: RunFacts) -> JobFacts:
    """Return the job of a run."""
    try:
        run = RunId.decode(facts.run_id)
    except RejectedInput:
        return JobFacts(facts.build_uuid, facts.build_name, 1, facts.start_us, facts.end_us)
    return JobFacts(run.native_id, facts.build_name, run.attempt, facts.start_us, facts.end_us)


class Artifact(NamedTuple):
    """An artifact of a list."""

    id: int
    name: str
    made_us: int | None
    expired: bool


def artifacts_on(page: bytes) -> tuple[list[Artifact], bool]:
    """Return the artifacts on a page of a list, and whether there may be another page.

    Raises:
      LogUnavailableError: ``log_unavailable``, for anything else than a page.
    """
    try:
        document = parse_json(page)
    except RejectedInput as rejected:
        raise _no_list(rejected.detail) from None
    entries = document.get("artifacts") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise _no_list("no field artifacts")
    return [artifact for artifact in map(_artifact, entries) if artifact is not None], len(entries) >= PAGE


def _no_list(detail: str) -> LogUnavailableError:
    return LogUnavailableError("log_unavailable", f"the answer is no list of artifacts: {detail}")


def _artifact(entry: Any) -> Artifact | None:
    if not isinstance(entry, dict):
        return None
    number = entry.get("id")
    name = entry.get("name")
    if type(number) is not int or not 0 < number < 1 << 63 or type(name) is not str or len(name) > _MAX_NAME:
        return None
    return Artifact(number, name, _time_us(entry), entry.get("expired") is True)


def _time_us(entry: Mapping[str, Any]) -> int | None:
    try:
        return time_field(entry, "created_at")
    except RejectedInput:
        return None


def artifact_of(job: JobFacts, artifacts: Iterable[Artifact], names: Iterable[str]) -> Artifact:
    """Return the artifact with a job's log: with the first of the names, and of these the newest.

    Args:
      job: the job.
      artifacts: of its run.
      names: `FetchPolicy.artifact_names`.

    Raises:
      LogUnavailableError: ``log_not_found``.
    """
    candidates = list(artifacts)
    expired = 0
    for name in names:
        pattern = _pattern(name, job)
        if pattern is None:
            continue
        named = [
            artifact for artifact in candidates if pattern.fullmatch(_plain(artifact.name)) and _in_time(artifact, job)
        ]
        unexpired = [artifact for artifact in named if not artifact.expired]
        if unexpired:
            return max(unexpired, key=lambda artifact: (artifact.made_us or 0, artifact.id))
        expired += len(named)
    if expired:
        raise LogUnavailableError("log_not_found", "the artifact of this job has expired")
    raise LogUnavailableError("log_not_found", f"none of {len(candidates)} artifacts is of this job")


def _in_time(artifact: Artifact, job: JobFacts) -> bool:
    created_us = artifact.made_us
    early = created_us is not None and job.start_us is not None and created_us < job.start_us - _SLACK_US
    late = created_us is not None and job.end_us is not None and created_us > job.end_us + _SLACK_US
    return not early and not late


def _pattern(name: str, job: JobFacts) -> re.Pattern[str] | None:
    """Return the pattern of a name for a job; None where the job has no such fact."""
    facts = {"{id}": _plain(job.id), "{job}": _plain(job.name), "{attempt}": str(job.attempt)}
    parts = [name]
    for word, fact in facts.items():
        if word in name and not fact:
            return None
        parts = [part.replace(word, fact) for part in parts]
    pieces = [_OTHER.sub("-", piece.casefold()) for piece in parts[0].split("*")]
    return glob_pattern(("*".join(pieces).strip("-"),))


def _plain(text: str) -> str:
    """Return a text as names are compared: in lower case, its letters and digits with single dashes between."""
    return _OTHER.sub("-", text.casefold()).strip("-")


_IN_MEMORY = 1 << 18  # of an archive; most are smaller. The rest is in an unnamed file
_PIECE = 1 << 18


def read_http(
    http: HttpLogs, policy: FetchPolicy, address: Address, job: JobFacts | None, grow: Callable[[int], None] | None
) -> bytes:
    """Fetch the log that an http or https address leads to, unpacked.

    Args:
      http: fetches each part; all together have the limits of one log.
      policy: names the paths of logs and the artifacts.
      address: of a log; of a folder, where it ends with a slash; GitHub's list of the artifacts of a workflow run; or
        GitLab's archive of a job.
      job: the job whose log it is, for a list of artifacts.
      grow: as in `ciml.transforms.fetch.decompress.gunzip`.

    Raises:
      RejectedInput, LogUnavailableError: as `HttpLogs.fetch`, and ``corrupt_archive``.
    """
    with http.one_log():
        if address.is_folder:
            return first_found(below(address, policy.log_paths), lambda each: http.fetch(each, grow))
        if is_artifact_list(address.path):
            return _archived(http, policy, _artifact_address(http, policy, address, job), grow)
        if is_job_archive(address.path):
            return _archived(http, policy, address, grow)
        return http.fetch(address, grow)


def _artifact_address(http: HttpLogs, policy: FetchPolicy, address: Address, job: JobFacts | None) -> Address:
    """Return the address of the artifact with a job's log: on the API of its list, by the id in the list."""
    pages: list[Artifact] = []
    for number in range(1, MAX_ARTIFACTS_PAGES + 1):
        page = replace(address, path=f"{address.path}?per_page={PAGE}&page={number}")
        page_artifacts, more = artifacts_on(http.page(page))
        pages += page_artifacts
        if not more:
            break
    artifact = artifact_of(job or JobFacts("", "", 1, None, None), pages, policy.artifact_names)
    actions = address.path.rpartition("/runs/")[0]
    return replace(address, path=f"{actions}/artifacts/{artifact.id}/zip")


def _archived(http: HttpLogs, policy: FetchPolicy, address: Address, grow: Callable[[int], None] | None) -> bytes:
    """Return the log in an archive, or the file itself where it is none: GitHub keeps a single file as it is."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        try:
            http.download(address, file)
            chunks = unzip(file, policy.log_paths) if is_archive(file) else _pieces(file)
            return gunzip(chunks, policy.max_bytes, grow)
        except OSError as error:
            raise LogUnavailableError("log_unavailable", f"cannot store the archive: {error.strerror}") from None


def _pieces(file: IO[bytes]) -> Iterable[bytes]:
    file.seek(0)
    return iter(lambda: file.read(_PIECE), b"")
