"""Reads fields of nested hostile JSON by their path; a field of an unexpected type rejects the delivery.

A path is the object and the names that lead to the field: ``text_at(body, "workflow_job", "head_sha")``. Functions
named ``…_at`` return an empty value for a field that is absent or null; functions named ``required_…`` raise
`RejectedInput` ``missing_field``. A field of another type raises ``bad_field``, which names the path.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ciml.errors import RejectedInput
from ciml.events.fields import id_field, kind_of, text_field, time_field
from ciml.events.records import Phase
from ciml.events.redaction import shown
from ciml.events.run_id import path_safe
from ciml.events.updates import COMMIT
from ciml.integrations.adapter import Delivery
from ciml.limits import MAX_TEXT_CHARACTERS, MAX_URL_CHARACTERS

_EMPTY: Mapping[str, Any] = {}
_EPOCH = re.compile(r"\d{9,10}(?:\.\d{1,9})?")
_NUMBER = re.compile(r"[1-9][0-9]{0,9}")
_NO_TIME = "0001-01-01T00:00:00Z"  # as programs in Go write a time that is not set
_KIND = re.compile(r"[a-z0-9_]{1,80}")
_SPACED_TIME = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d{1,9})?) (?:UTC|([+-]\d\d)(\d\d))")


def value_at(body: Mapping[str, Any], *path: str) -> Any:
    """Return a value of any type; None if it, or an object that leads to it, is absent or null.

    Raises:
      RejectedInput: ``bad_field``, if the path leads through a value that is not an object.
    """
    current: Any = body
    for depth, name in enumerate(path):
        if current is None:
            return None
        if type(current) is not dict:
            raise RejectedInput("bad_field", f"{'.'.join(path[:depth])}: want an object, not {kind_of(current)}")
        current = current.get(name)
    return current


def required_object(body: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """Return an object.

    Raises:
      RejectedInput: ``missing_field``, or ``bad_field`` for another type.
    """
    content = value_at(body, *path)
    if content is None:
        raise RejectedInput("missing_field", ".".join(path))
    return _mapping(content, path)


def object_at(body: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """Return an object; an empty one if it is absent or null. Raises `RejectedInput` ``bad_field``."""
    content = value_at(body, *path)
    return _EMPTY if content is None else _mapping(content, path)


def objects_at(body: Mapping[str, Any], *path: str, most: int) -> Sequence[Mapping[str, Any]]:
    """Return a list of objects; an empty one if it is absent or null.

    Raises:
      RejectedInput: ``bad_field`` for another type, or ``too_many_runs`` for more than ``most``.
    """
    entries = value_at(body, *path)
    if entries is None:
        return ()
    where = ".".join(path)
    if type(entries) is not list:
        raise RejectedInput("bad_field", f"{where}: want a list, not {kind_of(entries)}")
    if len(entries) > most:
        raise RejectedInput("too_many_runs", f"{where}: {len(entries)} entries, at most {most}")
    return [_mapping(entry, (*path[:-1], f"{path[-1]}[{index}]")) for index, entry in enumerate(entries)]


def texts_at(body: Mapping[str, Any], *path: str, most: int = 100) -> tuple[str, ...]:
    """Return a list of texts without secrets; an empty one if it is absent or null.

    Raises:
      RejectedInput: ``bad_field``, for another type or for more than ``most``.
    """
    entries = value_at(body, *path)
    if entries is None:
        return ()
    where = ".".join(path)
    if type(entries) is not list or len(entries) > most:
        raise RejectedInput("bad_field", f"{where}: want a list of at most {most} texts")
    return tuple(text_field({"": entry}, "", f"{where}[{index}]") for index, entry in enumerate(entries))


def required_number(body: Mapping[str, Any], *path: str) -> int:
    """Return a whole number from 1.

    Raises:
      RejectedInput: ``missing_field``, or ``bad_field`` for anything else.
    """
    number = value_at(body, *path)
    if number is None:
        raise RejectedInput("missing_field", ".".join(path))
    if type(number) is not int or not 1 <= number < 1 << 63:
        raise RejectedInput("bad_field", f"{'.'.join(path)}: want a whole number from 1, not {kind_of(number)}")
    return number


def number_at(body: Mapping[str, Any], *path: str) -> int:
    """Return a number from 1 of at most ten digits, which may be a text.

    Raises:
      RejectedInput: ``missing_field``, or ``bad_field`` for anything else.
    """
    text = required_text(body, *path)
    if not _NUMBER.fullmatch(text):
        raise RejectedInput("bad_field", f"{'.'.join(path)}: want a number from 1, not {shown(text)}")
    return int(text)


def text_at(body: Mapping[str, Any], *path: str) -> str:
    """Return a text or a whole number as text, without secrets; "" if it is absent or null.

    Raises:
      RejectedInput: ``bad_field``, for another type, an unprintable character or an excessive length.
    """
    return _text(body, path, MAX_TEXT_CHARACTERS)


def text_fields(body: Mapping[str, Any], *path: str, **names: str) -> dict[str, str]:
    """Return texts of an object by new names: ``text_fields(body, "job", result="conclusion", owner="actor.login")``.

    Each is read as by `text_at`; a name with dots is a path.
    """
    return {field: text_at(body, *path, *name.split(".")) for field, name in names.items()}


def required_text(body: Mapping[str, Any], *path: str) -> str:
    """Return a text as `text_at` does. Raises `RejectedInput` ``missing_field`` if it is absent, empty or of spaces."""
    content = text_at(body, *path)
    if not content or content.isspace():
        raise RejectedInput("missing_field", ".".join(path))
    return content


def branch_name(body: Mapping[str, Any], *path: str) -> str:
    """Return the name of a branch, as `text_at` does; a digest of a name that a fact cannot hold.

    Anyone who may push chooses names. An unusual name must not make the event of a pull request a dead letter, because
    this event distinguishes the pull request from others with the same commit.
    """
    try:
        return text_at(body, *path)
    except RejectedInput:
        name = value_at(body, *path)
        if type(name) is not str:
            raise
        return f"unusual-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:32]}"


def address_at(body: Mapping[str, Any], *path: str) -> str:
    """Return the address of a page, as `text_at` does, of at most `MAX_URL_CHARACTERS`.

    It is not for the addresses of logs, which may hold secrets: `value_at` returns them unchanged.
    """
    return _text(body, path, MAX_URL_CHARACTERS)


def time_at(body: Mapping[str, Any], *path: str) -> str | float | None:
    """Return a time as a run may have it: ISO 8601 or epoch seconds; None if it is absent, null, "" or `_NO_TIME`.

    ``2026-11-24 12:00:00 UTC`` and ``2026-11-24 12:00:00 +0100`` become ISO 8601.

    Raises:
      RejectedInput: ``bad_time``.
    """
    return _checked_time(value_at(body, *path), path)


def epoch_at(body: Mapping[str, Any], *path: str) -> str | float | None:
    """Return a time as `time_at` does, also of a sender that writes epoch seconds as a text; see `parse_epoch`."""
    return _checked_time(parse_epoch(value_at(body, *path)), path)


def _checked_time(time: Any, path: Sequence[str]) -> str | float | None:
    if time in ("", _NO_TIME):
        return None
    if type(time) is str and (spaced := _SPACED_TIME.fullmatch(time)):
        day, clock, hours, minutes = spaced.groups()
        time = f"{day}T{clock}{f'{hours}:{minutes}' if hours else 'Z'}"
    time_field({path[-1]: time}, path[-1], "".join(f"{name}." for name in path[:-1]))
    checked: str | float | None = time
    return checked


def parse_epoch(time: Any) -> Any:
    """Return epoch seconds that are a text, such as ``"1795521600.5"``, as a number; any other value unchanged."""
    return float(time) if type(time) is str and _EPOCH.fullmatch(time) else time


def differ(ours: str, theirs: str) -> str:
    """Return whether two names differ, as the fact ``fork`` has it: "yes" or "no"; "" if one is unknown."""
    if not ours or not theirs:
        return ""
    return "yes" if ours != theirs else "no"


def join_id(*parts: str) -> str:
    """Return an identifier of several parts; "" if a part is unknown, or the identifier looks like a secret."""
    try:
        return id_field({"": "/".join(parts)}, "") if all(parts) else ""
    except RejectedInput:
        return ""


def non_empty(**fields: Any) -> dict[str, Any]:
    """Return the fields without those that are None, "" or ()."""
    return {
        name: content for name, content in fields.items() if content is not None and content != "" and content != ()
    }


def change_subjects(project: str, number: str, patchset: str) -> tuple[str, ...]:
    """Return the subjects of the runs of a patch set, and of all runs of its change; none if a part is unknown.

    The project is quoted, so that a project with a slash is never another project's change.
    """
    change = join_id(f"change:{path_safe(project)}" if project else "", number)
    patched = join_id(change, patchset)
    return (patched, change) if patched else ()


def commit_subject(repository: str, sha: str) -> str:
    """Return the subject of a commit of one repository; "" if a part is unknown.

    A commit that is merged in one repository may be unmerged in another one.
    """
    return f"{COMMIT}{commit}" if (commit := join_id(repository, sha)) else ""


def known_subjects(*subjects: str) -> tuple[str, ...]:
    """Return the subjects without the unknown ones, which are ""."""
    return tuple(subject for subject in subjects if subject)


def phases_by_status(queued: str = "", started: str = "", finished: str = "") -> Mapping[str, Phase]:
    """Return the phase of a run by its status in its CI system; each argument has statuses, separated by spaces."""
    words_by_phase: dict[Phase, str] = {"queued": queued, "started": started, "finished": finished}
    return {status: phase for phase, statuses in words_by_phase.items() for status in statuses.split()}


def phase_of(known_phases: Mapping[str, Phase], status: str, where: str) -> Phase:
    """Return the phase of a status. Raises `RejectedInput` ``bad_field`` for an unknown one."""
    if status not in known_phases:
        raise RejectedInput("bad_field", f"{where}: unknown {shown(status)}; known are {', '.join(known_phases)}")
    return known_phases[status]


def event_kind(kind: str, where: str) -> str:
    """Return the kind of an event, a word of small letters.

    Raises:
      RejectedInput: ``missing_field`` or ``unknown_type``.
    """
    if not kind:
        raise RejectedInput("missing_field", where)
    if not _KIND.fullmatch(kind):
        raise RejectedInput("unknown_type", f"{where}: {shown(kind)}")
    return kind


def event_id(delivery: Delivery) -> str:
    """Return the id of a delivery's event: the delivery's own, or a digest of the body if it has none."""
    return delivery.id or body_id(delivery)


def body_id(delivery: Delivery) -> str:
    """Return a digest of a delivery's body as the event's id, for a system whose own ids may repeat."""
    return hashlib.sha256(delivery.body).hexdigest()[:32]


def _mapping(content: Any, path: Sequence[str]) -> Mapping[str, Any]:
    if type(content) is not dict:
        raise RejectedInput("bad_field", f"{'.'.join(path)}: want an object, not {kind_of(content)}")
    return content


def _text(body: Mapping[str, Any], path: Sequence[str], limit: int) -> str:
    content = value_at(body, *path)
    return text_field({path[-1]: content}, path[-1], "".join(f"{name}." for name in path[:-1]), limit)
