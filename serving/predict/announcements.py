"""Announcements: messages of the topic `runs`, each naming a run of the raw store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from ciml.errors import RejectedInput
from ciml.events.fields import kind_of, labels, text
from ciml.events.json_input import parse_json
from ciml.events.records import Message, OutcomeWord, Phase, RunFacts
from ciml.events.run_id import RunId
from ciml.limits import EARLIEST_US, LATEST_US, MAX_SUBJECTS, MAX_TEXT_CHARACTERS, MAX_URL_CHARACTERS

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: The folders of `ciml.transforms.raw.write.run_path`; the job's name is percent-encoded.
_FOLDER = re.compile(r"runs/job=[A-Za-z0-9_.~%-]{1,200}/date=[0-9]{4}-[0-9]{2}-[0-9]{2}")
#: The fields of `RunFacts` that hold any text.
_TEXTS = tuple(name for name, kind in get_type_hints(RunFacts).items() if kind is str)
_ADDRESSES = frozenset({"log_url", "url"})


@dataclass(frozen=True)
class Announcement:
    """A run whose raw object is ``path`` below the raw store.

    Attributes:
      offset: of the message.
      timestamp_ms: when it was announced, epoch milliseconds.
      run_id: the encoded run id.
      build_name: the job.
      path: the raw object's path; its file name consists of run id and digest.
      reclaim: the row's digest if the row is a reclaim; "" for the first row of a run.
      facts: the run's facts when its row was stored; None in announcements of earlier versions.
    """

    offset: int
    timestamp_ms: int
    run_id: str
    build_name: str
    path: str
    reclaim: str = ""
    facts: RunFacts | None = None


def read_announcement(message: Message) -> Announcement:
    """Read a message of the topic `runs`.

    Raises:
      RejectedInput: ``bad_announcement``, if it is malformed or its path is not that of its run.
    """
    try:
        return _read(message)
    except RejectedInput as error:
        raise RejectedInput("bad_announcement", error.detail) from None


def _read(message: Message) -> Announcement:
    value = parse_json(message.value or b"")
    if not isinstance(value, dict):
        raise RejectedInput("bad_announcement", "not a JSON object")
    run_id, build_name, path, digest = (_text(value, name) for name in ("run_id", "build_name", "path", "digest"))
    RunId.decode(run_id)
    if not _DIGEST.fullmatch(digest):
        raise RejectedInput("bad_announcement", f"invalid digest {digest!r:.80}: expected 64 hexadecimal digits")
    folder, _, name = path.rpartition("/")
    if not _FOLDER.fullmatch(folder) or name != f"{run_id}.{digest[:16]}.parquet":
        raise RejectedInput("bad_announcement", f"path {path!r:.200} does not match run {run_id} and its digest")
    reclaim = digest if value.get("reclaim") is True else ""
    facts = _facts(value["facts"], run_id, build_name) if "facts" in value else None
    return Announcement(message.offset, message.timestamp_ms, run_id, build_name, path, reclaim, facts)


def _facts(value: object, run_id: str, build_name: str) -> RunFacts:
    """Return announced facts, each field checked as in an event. Unknown fields are ignored."""
    if not isinstance(value, dict):
        raise RejectedInput("bad_announcement", f"facts: want an object, not {kind_of(value)}")
    fields: dict[str, Any] = {"labels": labels(value.get("labels"), "facts.")}
    for name in _TEXTS:
        fields[name] = text(value, name, "facts.", MAX_URL_CHARACTERS if name in _ADDRESSES else MAX_TEXT_CHARACTERS)
    for name, words in (("phase", get_args(Phase)), ("outcome", (None, *get_args(OutcomeWord)))):
        if (word := value.get(name)) not in words:
            raise RejectedInput("bad_announcement", f"facts.{name}: unknown {word!r:.80}")
        fields[name] = word
    for name in ("start_us", "end_us"):
        time = value.get(name)
        if time is not None and (type(time) is not int or not EARLIEST_US <= time < LATEST_US):
            raise RejectedInput("bad_announcement", f"facts.{name}: want microseconds of 2000 to 2099")
        fields[name] = time
    subjects = value.get("subjects", [])
    if not isinstance(subjects, list) or len(subjects) > MAX_SUBJECTS:
        raise RejectedInput("bad_announcement", f"facts.subjects: want a list of at most {MAX_SUBJECTS} texts")
    fields["subjects"] = tuple(text({"subjects": each}, "subjects", "facts.") for each in subjects)
    if (fields["run_id"], fields["build_name"]) != (run_id, build_name):
        raise RejectedInput("bad_announcement", f"facts: of run {fields['run_id']!r:.80}, not of {run_id}")
    return RunFacts(**fields)


def _text(value: dict[str, object], name: str) -> str:
    if not isinstance(value.get(name), str) or not value[name]:
        raise RejectedInput("bad_announcement", f"{name}: expected a text")
    return text(value, name)
