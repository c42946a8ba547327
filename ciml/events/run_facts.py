"""Conversion of one run of an event or a listing to `RunFacts` and back: every field is checked by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote

from ciml.errors import RejectedInput
from ciml.events.fields import (
    CACHED_CHARACTERS,
    id_field,
    is_clean,
    iso_time,
    kind_of,
    raw_text_field,
    required_text_field,
    text_field,
    time_field,
)
from ciml.events.outcomes import OUTCOMES, normal_word, outcome_of
from ciml.events.records import OutcomeWord, Phase, RunFacts
from ciml.events.redaction import REDACTED, hides, is_secret_name, redact_text, redact_url, shown
from ciml.events.run_id import RunId, path_safe
from ciml.limits import (
    MAX_JOB_PATH_CHARACTERS,
    MAX_LABEL_NAME_CHARACTERS,
    MAX_LABELS,
    MAX_SUBJECTS,
    MAX_TEXT_CHARACTERS,
    MAX_URL_CHARACTERS,
)

#: The `RunFacts.event` of a run from a listing. Messages that claim it are rejected, so a policy can rely on it.
LISTING = "listing"

#: Text fields, in the order of the fields of `RunFacts`.
_TEXTS = ("pipeline", "project", "branch", "change", "patchset", "review", "provider", "region", "flavour")
#: Fields that adapters fill. A producer of ciml's own events may too. ``auth`` is not one: only a receiver sets it.
_ADAPTER_FIELDS = frozenset({"fork", "owner", "head", "url", "attempt_of", "subjects", "output_url"})
#: Names of text fields in listings, where they differ.
_LISTING_NAMES = {"provider": "node_provider", "region": "node_region", "flavour": "node_flavor"}
#: Fields of a listing's line that do not become labels.
_LISTING_FIELDS = {
    *"build_uuid build_name attempt outcome result start_time end_time log_path log_url output_path labels".split(),
    *_TEXTS,
    *_LISTING_NAMES.values(),
}


def run_identity(run: Mapping[str, Any], source: str, where: str = "", name: str = "id") -> RunId:
    """Return the identity of a run: its ``id`` and ``attempt`` (1 if it has none) at the source.

    Raises:
      RejectedInput: ``missing_field`` or ``bad_run_id``.
    """
    native = id_field(run, name, where, "bad_run_id")
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


def facts_from_run(run: Mapping[str, Any], identity: RunId, phase: Phase, where: str = "") -> tuple[RunFacts, str, str]:
    """Parse the run object of an event.

    Args:
      run: the object; unknown fields are ignored, so producers may add some.
      identity: from `run_identity`.
      phase: from the event's type. Only a finished run needs an outcome and a time.
      where: prefix of field names in the detail of a rejection.

    Returns:
      (the facts, the full addresses of the log and of the output). The facts' own `log_url` and `output_url` hold no
      secret; only they may be stored. A malformed `output_url` is left out: no fault of an output affects its run.

    Raises:
      RejectedInput: ``missing_field``, ``bad_field`` or ``bad_time``.
    """
    course = _course(run, "job", phase, where)
    event = text_field(run, "event", where)
    if event == LISTING:
        raise RejectedInput("bad_field", f"{where}event: {LISTING!r} is reserved for listings")
    address = raw_text_field(run, "log_url", where, MAX_URL_CHARACTERS)
    texts = [text_field(run, name, where) for name in _TEXTS]
    labels = check_labels(run.get("labels"), where)
    output = ""
    facts = _facts(identity, phase, course, identity.source, event, texts, address, labels)
    if run.keys() & _ADAPTER_FIELDS:
        output = _output_address(run)
        facts = facts.replace(
            fork=_fork(run, where),
            owner=text_field(run, "owner", where),
            head=text_field(run, "head", where),
            url=text_field(run, "url", where, MAX_URL_CHARACTERS),
            attempt_of=id_field(run, "attempt_of", where),
            subjects=_subjects(run.get("subjects"), where),
            output_url=redact_url(output),
        )
    return facts, address, output


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
    for name in ("result", *_TEXTS, "log_url", "fork", "owner", "head", "url", "attempt_of", "output_url"):
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
      runs_of: the source in the run ids, where it is not ``source``: the source of the runs' own events.

    Returns:
      Facts of a finished run whose `event` is ``listing``.

    Raises:
      RejectedInput: as for events, with the listing's field names.
    """
    facts, _ = listed_run(line, run_identity(line, runs_of or source, name="build_uuid"), source, logs)
    return facts


def listed_run(line: Mapping[str, Any], identity: RunId, source: str, logs: str) -> tuple[RunFacts, str]:
    """Return the facts of a listed run whose identity is known, and the log's full address.

    Raises:
      RejectedInput: ``missing_field``, ``bad_field`` or ``bad_time``.
    """
    course = _course(line, "build_name", "finished", "")
    texts = [text_field(line, _LISTING_NAMES.get(name, name)) or text_field(line, name) for name in _TEXTS]
    address = raw_text_field(line, "log_path", limit=MAX_URL_CHARACTERS)
    address = address or raw_text_field(line, "log_url", limit=MAX_URL_CHARACTERS)
    if logs and address:
        address = log_address(logs, address)
    labels = _listed_labels(line)
    return _facts(identity, "finished", course, source, LISTING, texts, address, labels), address


def listed_output(line: Mapping[str, Any], logs: str) -> str:
    """Return the full address of a listed job's output; "" without one. A path that leads upwards stays as it is.

    Raises:
      RejectedInput: ``bad_field``.
    """
    path = raw_text_field(line, "output_path", limit=MAX_URL_CHARACTERS)
    try:
        return log_address(logs, path) if logs and path else path
    except RejectedInput:
        return path


def log_address(logs: str, path: str) -> str:
    """Return the address of the log at ``path`` in ``logs`` (a folder or an address).

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


class _Course(NamedTuple):
    """The job of a run, how it ended, and when. A run that has not finished has no outcome."""

    job: str
    outcome: OutcomeWord | None
    result: str
    start_us: int | None
    end_us: int | None


def _course(run: Mapping[str, Any], job_field: str, phase: Phase, where: str) -> _Course:
    job = required_text_field(run, job_field, where)
    _check_job(job, f"{where}{job_field}")
    start_us = time_field(run, "start_time", where)
    end_us = time_field(run, "end_time", where)
    if start_us is not None and end_us is not None and end_us < start_us:
        raise RejectedInput("bad_time", f"{where}end_time: before start_time")
    result = text_field(run, "result", where)
    if phase != "finished":
        return _Course(job, None, result, start_us, end_us)
    outcome = _outcome(run, result, where)
    if start_us is None and end_us is None:
        raise RejectedInput("missing_field", f"{where}start_time")
    return _Course(job, outcome, result, start_us, end_us)


def _check_job(job: str, where: str) -> None:
    # Percent-encoding makes at most three characters of an ASCII one, so only long or non-ASCII names are encoded and
    # counted.
    if (len(job) * 3 > MAX_JOB_PATH_CHARACTERS or not job.isascii()) and len(path_safe(job)) > MAX_JOB_PATH_CHARACTERS:
        raise RejectedInput("bad_field", f"{where}: too long for a path")


def _outcome(run: Mapping[str, Any], result: str, where: str) -> OutcomeWord:
    """Return ``outcome``, else the outcome of the producer's own word. An unknown word is rejected, never guessed."""
    word = text_field(run, "outcome", where)
    if word in OUTCOMES:
        return word  # type: ignore[return-value]  # OUTCOMES holds exactly the words of OutcomeWord
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


def _facts(
    identity: RunId,
    phase: Phase,
    course: _Course,
    source: str,
    event: str,
    texts: list[str],
    address: str,
    labels: dict[str, str],
) -> RunFacts:
    """Return facts. They are given by position, which is faster: decoding is a hot path."""
    values: list[Any] = [identity.encode(), identity.native_id, course.job, phase, course.outcome, course.result]
    values += [source, event, *texts, redact_url(address), course.start_us, course.end_us, labels]
    return RunFacts(*values)


def _output_address(run: Mapping[str, Any]) -> str:
    with suppress(RejectedInput):
        return raw_text_field(run, "output_url", limit=MAX_URL_CHARACTERS)
    return ""


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
    return tuple(id_field({"subjects": subject}, "subjects", where) for subject in value)


def _listed_labels(line: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of a listed run: the fields of ``labels``, and its further fields that hold a scalar."""
    labels = check_labels(line.get("labels"))
    further: dict[str, str] = {}
    for name, value in line.items():
        if name in _LISTING_FIELDS or value is None or type(value) in (list, dict):
            continue
        label = _label_text(value)
        if label is None:
            raise RejectedInput("bad_field", f"{shown(name)}: too long, unprintable or not a finite number")
        further[name] = label
    count = len(labels.keys() | further.keys())
    if count > MAX_LABELS:
        raise RejectedInput("bad_field", f"{count} further fields, at most {MAX_LABELS}")
    return {**labels, **check_labels(further)}


def check_labels(value: Any, where: str = "") -> dict[str, str]:
    """Return the labels of a run: at most `MAX_LABELS` scalars under clean names; nulls are left out.

    Raises:
      RejectedInput: ``bad_field``.
    """
    if value is None:
        return {}
    if type(value) is not dict:
        raise RejectedInput("bad_field", f"{where}labels: want an object, not {kind_of(value)}")
    if len(value) > MAX_LABELS:
        raise RejectedInput("bad_field", f"{where}labels: {len(value)} labels, at most {MAX_LABELS}")
    labels: dict[str, str] = {}
    for key, item in value.items():
        label_name = _label_name(key)
        if label_name is None:
            raise RejectedInput("bad_field", f"{where}labels: the name {shown(key)} is empty, too long or not clean")
        name, is_secret = label_name
        if item is None:
            continue
        if is_secret and type(item) in (str, int, float) and item and hides(name, item):
            labels[name] = REDACTED
            continue
        is_short = type(item) is str and len(item) <= CACHED_CHARACTERS
        label = _short_label(item) if is_short else _label_text(item)
        if label is None:
            raise RejectedInput(
                "bad_field", f"{where}labels.{name}: want a short printable text or a number, got {kind_of(item)}"
            )
        labels[name] = label
    return labels


@lru_cache(maxsize=1024)
def _label_name(name: str) -> tuple[str, bool] | None:
    """Return the name of a label, without the secrets in it, and whether its values may be secret.

    None for an invalid name.
    """
    if not name or len(name) > MAX_LABEL_NAME_CHARACTERS or not is_clean(name):
        return None
    return redact_text(name), is_secret_name(name)


def _label_text(value: Any) -> str | None:
    """Return a scalar as a label's text (true, false and numbers as in JSON), or None for anything else."""
    if type(value) is str:
        if len(value) > MAX_TEXT_CHARACTERS or not is_clean(value):
            return None
        return redact_url(value) if "//" in value else redact_text(value)
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int and abs(value) < 1 << 63:
        return str(value)
    return repr(value) if type(value) is float and math.isfinite(value) else None


_short_label = lru_cache(maxsize=8192)(_label_text)
