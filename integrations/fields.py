"""Fields of nested hostile JSON: each is reached by its path, of the expected type, or the delivery is rejected.

Every function takes the object and the names that lead to the field: ``word(body, "workflow_job", "head_sha")``. What
is absent or null is empty; what has another type raises `RejectedInput` ``bad_field``, which names the path.
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
_NO_TIME = "0001-01-01T00:00:00Z"  # as programs in Go write a time that is not set
_KIND = re.compile(r"[a-z0-9_]{1,80}")
_SPACED_TIME = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d{1,9})?) (?:UTC|([+-]\d\d)(\d\d))")


def value(body: Mapping[str, Any], *path: str) -> Any:
    """Return a value of any type; None where it, or an object on its way, is absent or null.

    Raises:
      RejectedInput: ``bad_field``, where something on its way is no object.
    """
    current: Any = body
    for depth, name in enumerate(path):
        if current is None:
            return None
        if type(current) is not dict:
            raise RejectedInput("bad_field", f"{'.'.join(path[:depth])}: want an object, not {kind_of(current)}")
        current = current.get(name)
    return current


def inner(body: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """Return a needed object.

    Raises:
      RejectedInput: ``missing_field``, or ``bad_field`` for another type.
    """
    content = value(body, *path)
    if content is None:
        raise RejectedInput("missing_field", ".".join(path))
    return _mapping(content, path)


def maybe(body: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """Return an object; an empty one where it is absent or null. Raises `RejectedInput` ``bad_field``."""
    content = value(body, *path)
    return _EMPTY if content is None else _mapping(content, path)


def objects(body: Mapping[str, Any], *path: str, most: int) -> Sequence[Mapping[str, Any]]:
    """Return a list of objects; an empty one where it is absent or null.

    Raises:
      RejectedInput: ``bad_field``, or ``too_many_runs`` for more than ``most``.
    """
    entries = value(body, *path)
    if entries is None:
        return ()
    where = ".".join(path)
    if type(entries) is not list:
        raise RejectedInput("bad_field", f"{where}: want a list, not {kind_of(entries)}")
    if len(entries) > most:
        raise RejectedInput("too_many_runs", f"{where}: {len(entries)} entries, at most {most}")
    return [_mapping(entry, (*path[:-1], f"{path[-1]}[{index}]")) for index, entry in enumerate(entries)]


def words(body: Mapping[str, Any], *path: str, most: int = 100) -> tuple[str, ...]:
    """Return a list of texts without secrets; an empty one where it is absent or null.

    Raises:
      RejectedInput: ``bad_field``, for another type or for more than ``most``.
    """
    entries = value(body, *path)
    if entries is None:
        return ()
    where = ".".join(path)
    if type(entries) is not list or len(entries) > most:
        raise RejectedInput("bad_field", f"{where}: want a list of at most {most} texts")
    return tuple(text_field({"": entry}, "", f"{where}[{index}]") for index, entry in enumerate(entries))


def natural(body: Mapping[str, Any], *path: str) -> int:
    """Return a needed whole number from 1.

    Raises:
      RejectedInput: ``missing_field``, or ``bad_field`` for anything else.
    """
    number = value(body, *path)
    if number is None:
        raise RejectedInput("missing_field", ".".join(path))
    if type(number) is not int or not 1 <= number < 1 << 63:
        raise RejectedInput("bad_field", f"{'.'.join(path)}: want a whole number from 1, not {kind_of(number)}")
    return number


def word(body: Mapping[str, Any], *path: str) -> str:
    """Return a text or a whole number as text, without secrets; "" where it is absent or null.

    Raises:
      RejectedInput: ``bad_field``, for another type, an unprintable character or an excessive length.
    """
    return _text(body, path, MAX_TEXT_CHARACTERS)


def texts(body: Mapping[str, Any], *path: str, **names: str) -> dict[str, str]:
    """Return texts of an object under other names, each as `word` does: ``texts(body, "job", result="conclusion")``."""
    return {field: word(body, *path, *name.split(".")) for field, name in names.items()}


def needed(body: Mapping[str, Any], *path: str) -> str:
    """Return a text as `word` does. Raises `RejectedInput` ``missing_field`` where it is absent or empty."""
    content = word(body, *path)
    if not content or content.isspace():
        raise RejectedInput("missing_field", ".".join(path))
    return content


def branch_name(body: Mapping[str, Any], *path: str) -> str:
    """Return the name of a branch, as `word` does; a digest of one that a fact cannot hold.

    Anyone who may push chooses names. An unusual one must not make the event of a pull request a dead letter: the event
    tells that pull request from others of the same commit.
    """
    try:
        return word(body, *path)
    except RejectedInput:
        name = value(body, *path)
        if type(name) is not str:
            raise
        return f"unusual-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:32]}"


def address(body: Mapping[str, Any], *path: str) -> str:
    """Return the address of a page, as `word` does, of up to `MAX_URL_CHARACTERS`. Addresses of logs hold secrets."""
    return _text(body, path, MAX_URL_CHARACTERS)


def moment(body: Mapping[str, Any], *path: str) -> str | float | None:
    """Return a time that a run may hold: ISO 8601 or epoch seconds; None where it is absent, null, "" or `_NO_TIME`.

    ``2026-11-24 12:00:00 UTC`` and ``2026-11-24 12:00:00 +0100`` become ISO 8601.

    Raises:
      RejectedInput: ``bad_time``.
    """
    time = value(body, *path)
    if time in ("", _NO_TIME):
        return None
    if type(time) is str and (spaced := _SPACED_TIME.fullmatch(time)):
        day, clock, hours, minutes = spaced.groups()
        time = f"{day}T{clock}{f'{hours}:{minutes}' if hours else 'Z'}"
    time_field({path[-1]: time}, path[-1], "".join(f"{name}." for name in path[:-1]))
    checked: str | float | None = time
    return checked


def epoch(found: Any) -> Any:
    """Return epoch seconds that a sender wrote as a text, ``"1795521600.5"``, as a number; else the value itself."""
    return float(found) if type(found) is str and _EPOCH.fullmatch(found) else found


def differ(ours: str, theirs: str) -> str:
    """Return the fact ``fork``: "yes" where two repositories differ, "no" where not, "" where one is unknown."""
    if not ours or not theirs:
        return ""
    return "yes" if ours != theirs else "no"


def joined(*parts: str) -> str:
    """Return an identifier of several parts; "" where a part is unknown, or where it would hold a secret."""
    try:
        return id_field({"": "/".join(parts)}, "") if all(parts) else ""
    except RejectedInput:
        return ""


def filled(**fields: Any) -> dict[str, Any]:
    """Return the fields that hold something."""
    return {
        name: content for name, content in fields.items() if content is not None and content != "" and content != ()
    }


def change_subjects(project: str, number: str, patchset: str) -> tuple[str, ...]:
    """Return the subjects of a change's runs: of its patch set, and of the change. None where a part is unknown.

    The project is quoted, so that a project with a slash is never another project's change.
    """
    change = joined(f"change:{path_safe(project)}" if project else "", number)
    patched = joined(change, patchset)
    return (patched, change) if patched else ()


def commit_subject(repository: str, sha: str) -> str:
    """Return the subject of a commit of one repository, "" where a part is unknown.

    What is merged in one repository is not merged in another that has the same commit.
    """
    return f"{COMMIT}{commit}" if (commit := joined(repository, sha)) else ""


def known(*subjects: str) -> tuple[str, ...]:
    """Return the subjects that are known."""
    return tuple(subject for subject in subjects if subject)


def phases(queued: str = "", started: str = "", finished: str = "") -> Mapping[str, Phase]:
    """Return the phase of a run by the word of its system; the arguments are words with blanks between them."""
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
    """Return the id of a delivery's event: its own, else a digest of the body."""
    return delivery.id or body_id(delivery)


def body_id(delivery: Delivery) -> str:
    """Return a digest of a delivery's body, where the system's own ids may repeat."""
    return hashlib.sha256(delivery.body).hexdigest()[:32]


def _mapping(found: Any, path: Sequence[str]) -> Mapping[str, Any]:
    if type(found) is not dict:
        raise RejectedInput("bad_field", f"{'.'.join(path)}: want an object, not {kind_of(found)}")
    return found


def _text(body: Mapping[str, Any], path: Sequence[str], limit: int) -> str:
    content = value(body, *path)
    return text_field({path[-1]: content}, path[-1], "".join(f"{name}." for name in path[:-1]), limit)
