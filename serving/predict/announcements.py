"""Announcements: messages of the topic `runs`, each naming a run of the raw store."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ciml.errors import RejectedInput
from ciml.events.fields import text
from ciml.events.json_input import parse_json
from ciml.events.records import Message
from ciml.events.run_id import RunId

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: The folders of `transforms.raw.write.run_path`; the job's name is percent-encoded.
_FOLDER = re.compile(r"runs/job=[A-Za-z0-9_.~%-]{1,200}/date=[0-9]{4}-[0-9]{2}-[0-9]{2}")


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
    """

    offset: int
    timestamp_ms: int
    run_id: str
    build_name: str
    path: str
    reclaim: str = ""


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
    return Announcement(message.offset, message.timestamp_ms, run_id, build_name, path, reclaim)


def _text(value: dict[str, object], name: str) -> str:
    if not isinstance(value.get(name), str) or not value[name]:
        raise RejectedInput("bad_announcement", f"{name}: expected a text")
    return text(value, name)
