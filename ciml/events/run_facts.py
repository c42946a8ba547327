"""Conversion of one run of an event or a listing to `RunFacts` and back: every field is checked by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from ciml.errors import CimlError, RejectedInput
from ciml.events.fields import identifier, iso_time, label_text, labels, needed_text, text, time_us
from ciml.events.outcomes import OUTCOMES, normal_word, outcome_of
from ciml.events.records import OutcomeWord, Phase, RunFacts
from ciml.events.redaction import redact_url, shown
from ciml.events.run_id import RunId, path_safe
from ciml.limits import MAX_JOB_PATH_CHARACTERS, MAX_LABELS, MAX_SUBJECTS, MAX_URL_CHARACTERS

#: The `RunFacts.event` of a run from a listing. Messages that claim it are rejected, so a policy can rely on it.
LISTING = "listing"

_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_OTHER_CHARACTERS = re.compile(r"[^a-z0-9]+")
#: In the order of the fields of `RunFacts`, which are given by position: decoding is a hot path.
_TEXTS = ("pipeline", "project", "branch", "change", "patchset", "review", "provider", "region", "flavour")
#: Fields that adapters fill. A producer of ciml's own events may too. ``auth`` is none: only a receiver sets it.
_FURTHER = frozenset({"fork", "owner", "head", "url", "attempt_of", "subjects"})
_LISTING_NAMES = {"provider": "node_provider", "region": "node_region", "flavour": "node_flavor"}
_LISTING_TAKEN = {
    *"build_uuid build_name attempt outcome result start_time end_time log_path log_url labels".split(),
    *_TEXTS,
    *_LISTING_NAMES.values(),
}


#: In a mapping of source names: any CloudEvent source without an entry of its own.
ANY_SOURCE = "*"


def source_name(source: str, names: Mapping[str, str] | None = None) -> str:
    """Return the run ids' source for a CloudEvent source: its configured name, or the source itself.

    A source without an entry must be a valid name itself, so that two sources never become one.

    Args:
      source: the CloudEvent's source.
      names: CloudEvent source -> name; under `ANY_SOURCE` the name of all others.

    Raises:
      RejectedInput: ``bad_field``, it has no name, or another source has its name.
    """
    names = names or {}
    named = names.get(source) or names.get(ANY_SOURCE)
    if named:
        return named
    if not _SLUG.fullmatch(source):
        proposal = (
            _OTHER_CHARACTERS.sub("-", re.sub(r"^https?:", "", source.lower())).strip("-")[:63].rstrip("-") or "NAME"
        )
        quoted = shown(source)
        raise RejectedInput("bad_field", f"source: {quoted} has no configured name; add --source {quoted}={proposal}")
    if source in names.values():
        raise RejectedInput("bad_field", f"source: {source} is the configured name of another source")
    return source


def check_source_name(name: str) -> str:
    """Return the name if it is a valid source name.

    Raises:
      CimlError: the name is invalid.
    """
    if not _SLUG.fullmatch(name):
        raise CimlError(f"{name!r:.80} is not a source name; use lower-case letters, digits and dashes")
    return name


def source_names(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Check pairs of a CloudEvent source (or `ANY_SOURCE`) and its name.

    Raises:
      CimlError: an invalid name, or two names for one source.
    """
    names: dict[str, str] = {}
    for source, name in pairs:
        if names.setdefault(source, check_source_name(name)) != name:
            raise CimlError(f"--source: {source!r:.80} has two names, {names[source]} and {name}; give one")
    return tuple(names.items())


def run_identity(run: Mapping[str, Any], source: str, where: str = "", name: str = "id") -> RunId:
    """Return the identity of a run: its ``id`` and ``attempt`` (1 where it has none) at the source.

    Raises:
      RejectedInput: ``missing_field`` or ``bad_run_id``.
    """
    native = identifier(run, name, where, "bad_run_id")
    if not native:
        raise RejectedInput("missing_field", f"{where}{name}")
    attempt = run.get("attempt")
    if attempt is None:
        attempt = 1
    elif type(attempt) is not int or not 1 <= attempt < 1_000_000_000:
        raise RejectedInput("bad_run_id", f"{where}attempt: want a whole number from 1")
    try:
        return RunId(source, native, attempt)
    except RejectedInput as rejected:
        raise RejectedInput("bad_run_id", f"{where}{name}: {rejected.detail}") from None


def facts_from_run(run: Mapping[str, Any], identity: RunId, phase: Phase, where: str = "") -> tuple[RunFacts, str]:
    """Parse the run object of an event.

    Args:
      run: the object; unknown fields are ignored, so producers may add some.
      identity: from `run_identity`.
      phase: from the event's type. Only a finished run needs an outcome and a time.
      where: prefix of field names in the detail of a rejection.

    Returns:
      (the facts, the log's full address). The facts' own `log_url` holds no secret; only it may be stored.

    Raises:
      RejectedInput: ``missing_field``, ``bad_field`` or ``bad_time``.
    """
    job, outcome, result, start_us, end_us = _ending(run, "job", phase, where)
    event = text(run, "event", where)
    if event == LISTING:
        raise RejectedInput("bad_field", f"{where}event: {LISTING!r} is reserved for listings")
    address = text(run, "log_url", where, MAX_URL_CHARACTERS, keep_secrets=True)
    texts = [text(run, name, where) for name in _TEXTS]
    values: list[Any] = [identity.encode(), identity.native_id, job, phase, outcome, result, identity.source, event]
    values += [*texts, redact_url(address), start_us, end_us, labels(run.get("labels"), where)]
    facts = RunFacts(*values)
    if run.keys() & _FURTHER:
        facts = facts.replace(**_further(run, where))
    return facts, address


def _ending(
    run: Mapping[str, Any], job: str, phase: Phase, where: str
) -> tuple[str, OutcomeWord | None, str, int | None, int | None]:
    """Return job, outcome, result, start and end of a run. ``job`` is the name of the job's field."""
    job_name = needed_text(run, job, where)
    _check_job(job_name, f"{where}{job}")
    start_us, end_us = _times(run, where)
    result = text(run, "result", where)
    if phase != "finished":
        return job_name, None, result, start_us, end_us
    outcome = _outcome(run, result, where)
    if start_us is None and end_us is None:
        raise RejectedInput("missing_field", f"{where}start_time")
    return job_name, outcome, result, start_us, end_us


def _further(run: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {
        "fork": _fork(run, where),
        "owner": text(run, "owner", where),
        "head": text(run, "head", where),
        "url": text(run, "url", where, MAX_URL_CHARACTERS),
        "attempt_of": identifier(run, "attempt_of", where),
        "subjects": _subjects(run.get("subjects"), where),
    }


def _fork(run: Mapping[str, Any], where: str) -> str:
    value = run.get("fork")
    forms = {None: "", "": "", "yes": "yes", "no": "no", True: "yes", False: "no"}
    if type(value) in (str, bool, type(None)) and value in forms:
        return forms[value]
    raise RejectedInput("bad_field", f"{where}fork: want yes or no")


def _subjects(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if type(value) not in (list, tuple) or len(value) > MAX_SUBJECTS:
        raise RejectedInput("bad_field", f"{where}subjects: want a list of at most {MAX_SUBJECTS} texts")
    return tuple(identifier({"subjects": subject}, "subjects", where) for subject in value)


def run_from_facts(facts: RunFacts) -> dict[str, Any]:
    """Return the run object that `facts_from_run` parses to ``facts``."""
    identity = RunId.decode(facts.run_id)
    run: dict[str, Any] = {"id": identity.native_id}
    if identity.attempt > 1:
        run["attempt"] = identity.attempt
    run["job"] = facts.build_name
    if facts.outcome:
        run["outcome"] = facts.outcome
    if facts.start_us is not None:
        run["start_time"] = iso_time(facts.start_us)
    if facts.end_us is not None:
        run["end_time"] = iso_time(facts.end_us)
    if facts.event and facts.event != LISTING:
        run["event"] = facts.event
    for name in ("result", *_TEXTS, "log_url", "fork", "owner", "head", "url", "attempt_of"):
        if value := getattr(facts, name):
            run[name] = value
    if facts.subjects:
        run["subjects"] = list(facts.subjects)
    if facts.labels:
        run["labels"] = dict(facts.labels)
    return run


def facts_from_listing(
    line: Mapping[str, Any], source: str = "backfill", logs: str = "", runs_of: str = ""
) -> RunFacts:
    """Parse the run in a line of a listing.

    Args:
      line: the JSON object: ``build_uuid``, ``build_name``, ``result`` (or ``outcome``), ``start_time``, ``end_time``
        (one at least), ``log_path``; optional ``attempt``, ``node_provider``, ``node_region``, ``node_flavor``, and the
        names of event fields. Any other text, number or boolean becomes a label; lists and objects are ignored.
      source: the name of the listing's source, as in the trust policy.
      logs: the folder, ``s3://`` prefix or ``https://`` address below which ``log_path`` lies; "" leaves the path
        unchanged.
      runs_of: the source in the run ids, where it is not ``source``: that of the runs' own events.

    Returns:
      Facts of a finished run whose `event` is ``listing``.

    Raises:
      RejectedInput: as for events, with the listing's field names.
    """
    return listed_run(line, run_identity(line, runs_of or source, name="build_uuid"), source, logs)[0]


def listed_run(line: Mapping[str, Any], identity: RunId, source: str, logs: str) -> tuple[RunFacts, str]:
    """Return the facts of a listed run whose identity is known, and the log's full address.

    Raises:
      RejectedInput: ``missing_field``, ``bad_field`` or ``bad_time``.
    """
    job, outcome, result, start_us, end_us = _ending(line, "build_name", "finished", "")
    texts = [text(line, _LISTING_NAMES.get(name, name)) or text(line, name) for name in _TEXTS]
    addresses = (text(line, name, limit=MAX_URL_CHARACTERS, keep_secrets=True) for name in ("log_path", "log_url"))
    address = next(filter(None, addresses), "")
    if logs and address:
        address = log_address(logs, address)
    more = labels(line.get("labels"))
    further = dict[str, str]()
    for name, value in line.items():
        if name in _LISTING_TAKEN or value is None or type(value) in (list, dict):
            continue
        label = label_text(value)
        if label is None:
            raise RejectedInput("bad_field", f"{shown(name)}: too long, unprintable or not a finite number")
        further[name] = label
    if (count := len(more.keys() | further.keys())) > MAX_LABELS:
        raise RejectedInput("bad_field", f"{count} further fields, at most {MAX_LABELS}")
    more.update(labels(further))
    values: list[Any] = [identity.encode(), identity.native_id, job, "finished", outcome, result, source, LISTING]
    values += [*texts, redact_url(address), start_us, end_us, more]
    return RunFacts(*values), address


def log_address(logs: str, path: str) -> str:
    """Return the address of the log at ``path`` below ``logs`` (a folder or an address).

    A full address is returned unchanged.

    Raises:
      RejectedInput: ``bad_field``, for a path that is absolute or leads upwards.
    """
    if "://" in path:
        return path
    if path.startswith("/") or ".." in path.split("/"):
        raise RejectedInput("bad_field", "log_path: want a path below the folder of logs")
    root = logs.rstrip("/")
    if root.startswith("s3://"):
        return f"{root}/{path}"  # keys of S3 are not percent-encoded
    if "://" in root:
        return f"{root}/{quote(path)}"
    return f"{_folder_address(logs)}/{quote(path)}"


@lru_cache(maxsize=16)
def _folder_address(folder: str) -> str:
    from pathlib import Path

    return Path(folder).absolute().as_uri().rstrip("/")


def _times(run: Mapping[str, Any], where: str) -> tuple[int | None, int | None]:
    start_us = time_us(run, "start_time", where)
    end_us = time_us(run, "end_time", where)
    if start_us is not None and end_us is not None and end_us < start_us:
        raise RejectedInput("bad_time", f"{where}end_time: before start_time")
    return start_us, end_us


def _check_job(job: str, where: str) -> None:
    # Percent-encoding makes at most three characters of an ASCII one, so only long or non-ASCII names are encoded and
    # counted.
    if (len(job) * 3 > MAX_JOB_PATH_CHARACTERS or not job.isascii()) and len(path_safe(job)) > MAX_JOB_PATH_CHARACTERS:
        raise RejectedInput("bad_field", f"{where}: too long for a path")


def _outcome(run: Mapping[str, Any], result: str, where: str) -> OutcomeWord:
    """Return ``outcome``, else the outcome of the producer's own word. An unknown word is rejected, never guessed."""
    word = text(run, "outcome", where)
    if word in OUTCOMES:
        return word  # type: ignore[return-value]
    if word:
        choices = ", ".join(sorted(OUTCOMES))
        raise RejectedInput("bad_field", f"{where}outcome: unknown {word!r:.80}; choose from {choices}")
    if not result:
        raise RejectedInput("missing_field", f"{where}result")
    outcome = outcome_of(result)
    if outcome is None:
        raise RejectedInput(
            "bad_field", f"{where}result: {normal_word(result)!r:.80} is an unknown word; set outcome too"
        )
    return outcome
