"""Notes: the name, the cause and the advice that operators give a failure signature. Later runs of it inherit them.

A data root stores notes in a manifest log, never edited in place: the last note of a signature is in force, and earlier
ones remain as its history. A note may say that a signature is the same as another one, which supersedes it.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from ciml.errors import CimlError, IntegrityError
from ciml.events.fields import is_clean
from ciml.events.outcomes import CAUSES
from ciml.events.records import Record
from ciml.limits import MAX_TEXT_CHARACTERS
from ciml.manifest.log import Delta, ManifestLog, catch_up, commit
from ciml.storage import Store


class Note(Record, frozen=True, omit_defaults=True, gc=False):
    """What an operator says about a signature.

    Attributes:
      signature: its id.
      author: who says it.
      name: a short name.
      cause: ``code``, ``machine``, or "" for neither.
      text: advice for the authors of changes, such as "mirror down, recheck after 14:00".
      same_as: the id of the signature that supersedes it; "" for none.
      time_us: of the note, epoch microseconds.
    """

    signature: str
    author: str
    name: str = ""
    cause: str = ""
    text: str = ""
    same_as: str = ""
    time_us: int = 0

    def check(self) -> Note:
        """Return the note unchanged. Raises `CimlError` if a field is invalid, or all are empty."""
        for field in ("signature", "author", "name", "text", "same_as"):
            value = getattr(self, field)
            if len(value) > MAX_TEXT_CHARACTERS or not is_clean(value):
                raise CimlError(
                    f"note: {field}: {value!r:.80} is not one printable line of at most {MAX_TEXT_CHARACTERS} "
                    "characters"
                )
        if self.cause and self.cause not in CAUSES:
            raise CimlError(f"note: cause: unknown cause {self.cause!r:.40}; choose from {', '.join(CAUSES)}")
        if not (self.name or self.cause or self.text or self.same_as):
            raise CimlError("note: is empty; give a name, a cause, a text, or the signature that it is the same as")
        return self


class NoteState:
    """The notes after the last delta applied.

    Attributes:
      version: of the manifest; 0 without any note.
      by_signature: all notes of each signature, the one in force last.
    """

    def __init__(self) -> None:
        self.version = 0
        self.by_signature: dict[str, list[Note]] = {}

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta; see `ciml.manifest.log.State`."""
        if delta["kind"] != "note":
            raise IntegrityError(f"notes on signatures: version {version} has kind {delta['kind']!r}; upgrade ciml")
        note = msgspec.convert(delta["note"], Note)
        self.by_signature.setdefault(note.signature, []).append(note)

    def of(self, signature: str) -> Note | None:
        """Return the note in force on a signature, or on the one that supersedes it; None without one."""
        notes = self.by_signature.get(self.current(signature))
        return notes[-1] if notes else None

    def current(self, signature: str) -> str:
        """Return the id of the signature that stands for a signature: itself, unless another one supersedes it."""
        visited = {signature}
        while (notes := self.by_signature.get(signature)) and notes[-1].same_as and notes[-1].same_as not in visited:
            signature = notes[-1].same_as
            visited.add(signature)
        return signature


def read_notes(store: Store) -> NoteState:
    """Read the notes of a store, such as ``DATA/failures``."""
    return catch_up(ManifestLog(store), NoteState())


def add_note(store: Store, note: Note, *, now_us: int | None = None) -> Note:
    """Store a note.

    Args:
      store: ``DATA/failures``.
      note: its time is replaced.
      now_us: time of the note, epoch microseconds; the present by default.

    Returns:
      The stored note.

    Raises:
      CimlError: a field is invalid, or signatures would supersede each other.

    Example:
      add_note(data.failures, Note("5d5efe4cbf26", "ada", cause="machine", text="mirror down, recheck after 14:00"))
    """
    stored = note.check().replace(time_us=time.time_ns() // 1000 if now_us is None else now_us)
    state = NoteState()

    def build() -> Delta:
        if stored.same_as and state.current(stored.same_as) == stored.signature:
            raise CimlError(f"note: same as: {stored.same_as} is the same as {stored.signature} already")
        return _delta(stored)

    commit(ManifestLog(store), state, build)
    return stored


def _delta(note: Note) -> dict[str, Any]:
    return {"kind": "note", "time_us": note.time_us, "note": note.to_json()}
