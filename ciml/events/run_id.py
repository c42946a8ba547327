"""The identity of a run: source / native id / attempt, encoded once and safe in a path.

A source is a CI system. `source_name` and the functions after it check the names of sources.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from ciml.errors import CimlError, RejectedInput
from ciml.events.redaction import shown

_SOURCE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
#: In a mapping of source names: any CloudEvent source without an entry of its own.
ANY_SOURCE = "*"
#: The source of erased runs (`ciml.runs.erased`), which no CI system may have: its runs would be ignored as erased.
#: Also the reason for which later events of erased runs are ignored, and the rule by which these runs are not trusted.
ERASED = "erased"
_OTHER_CHARACTERS = re.compile(r"[^a-z0-9]+")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which UTF-8 cannot hold
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_MAX_ENCODED = 180  # leaves room for a digest and a suffix within the 255 bytes of a file name


@dataclass(frozen=True, order=True)
class RunId:
    """One execution of a CI job. A rerun of the same change is another run.

    Attributes:
      source: the system that executed it, such as ``zuul`` or ``backfill``: lower case letters, digits and dashes.
      native_id: the id that the source gave it, any non-empty text without lone surrogates.
      attempt: counts from 1.

    Raises:
      RejectedInput: ``bad_run_id`` a part is empty, malformed or too long for a path.
    """

    source: str
    native_id: str
    attempt: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not _SOURCE.fullmatch(self.source):
            raise RejectedInput(
                "bad_run_id", f"source {shown(str(self.source))}: want lower case letters, digits and dashes"
            )
        if not isinstance(self.native_id, str) or not self.native_id:
            raise RejectedInput("bad_run_id", "the native id is empty")
        if _SURROGATE.search(self.native_id):
            raise RejectedInput("bad_run_id", f"native id {shown(self.native_id, 40)}: has a lone surrogate")
        if not isinstance(self.attempt, int) or isinstance(self.attempt, bool) or self.attempt < 1:
            raise RejectedInput("bad_run_id", f"attempt {self.attempt!r:.80}: want a whole number from 1")
        if len(self.encode()) > _MAX_ENCODED:
            raise RejectedInput("bad_run_id", f"native id {shown(self.native_id, 40)}… is too long for a path")

    def encode(self) -> str:
        """Return the one text form, ``source~native~attempt``: without slash or leading dot, percent-encoded."""
        return f"{self.source}~{path_safe(self.native_id)}~{self.attempt}"

    @classmethod
    def decode(cls, text: str) -> RunId:
        """Return the inverse of `encode`.

        Raises `RejectedInput` (``bad_run_id``) for a text that `encode` does not produce.
        """
        parts = text.split("~")
        if len(parts) != 3 or not re.fullmatch(r"[1-9][0-9]{0,8}", parts[2]):
            raise RejectedInput("bad_run_id", f"{shown(text)}: want source~native~attempt")
        try:
            run = cls(parts[0], unquote(parts[1], errors="strict"), int(parts[2]))
        except UnicodeDecodeError:
            raise RejectedInput("bad_run_id", f"{shown(text)}: not UTF-8 under its percent signs") from None
        if run.encode() != text:
            raise RejectedInput("bad_run_id", f"{shown(text)}: not in canonical form")
        return run

    def __str__(self) -> str:
        return self.encode()


def source_of(run_id: str) -> str:
    """Return the source of an encoded run id; "" for an empty one."""
    return run_id.partition("~")[0]


def erased_id(run_id: str) -> str:
    """Return the id that a run has after its erasure; that of an erased run is its own."""
    if is_erased(run_id):
        return run_id
    return f"{ERASED}~{hashlib.sha256(run_id.encode()).hexdigest()[:32]}~1"


def is_erased(run_id: str) -> bool:
    """Return whether an id is that of an erased run."""
    return run_id.startswith(f"{ERASED}~")


def path_safe(text: str) -> str:
    """Return any text but "" as one path segment, never ``.`` or ``..``; "" is returned unchanged.

    It is reversible with `urllib.parse.unquote`, for lone surrogates with ``errors="surrogatepass"``.
    """
    if _PLAIN.fullmatch(text):
        return text  # the common case, and three times as fast
    quoted = quote(text, safe="", errors="surrogatepass").replace("~", "%7E")
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted


def bounded_id(native: str, most: int = 100) -> str:
    """Return a native id, or its digest if it takes more than ``most`` characters of a path."""
    if len(path_safe(native)) <= most:
        return native
    return hashlib.sha256(native.encode("utf-8", "surrogatepass")).hexdigest()


def source_name(source: str, names: Mapping[str, str] | None = None) -> str:
    """Return the run ids' source for a CloudEvent source: its configured name, or the source itself.

    A source without an entry must be a valid name itself, so that two sources never become one.

    Args:
      source: the CloudEvent's source.
      names: CloudEvent source -> name; under `ANY_SOURCE` the name of all others.

    Raises:
      RejectedInput: ``bad_field``: it has no name, another source has its name, or its name is reserved.
    """
    names = names or {}
    named = names.get(source) or names.get(ANY_SOURCE)
    if named:
        return named
    if not _SOURCE.fullmatch(source):
        words = _OTHER_CHARACTERS.sub("-", re.sub(r"^https?:", "", source.lower()))
        proposal = words.strip("-")[:63].rstrip("-") or "NAME"
        quoted = shown(source)
        raise RejectedInput("bad_field", f"source: {quoted} has no configured name; add --source {quoted}={proposal}")
    if source == ERASED:
        raise RejectedInput("bad_field", f"source: {source} is reserved for erased runs; add --source {source}=NAME")
    if source in names.values():
        raise RejectedInput("bad_field", f"source: {source} is the configured name of another source")
    return source


def check_source_name(name: str) -> str:
    """Return the name if it is a valid source name.

    Raises:
      CimlError: the name is invalid or reserved.
    """
    if not _SOURCE.fullmatch(name):
        raise CimlError(f"{name!r:.80} is not a source name; use lower-case letters, digits and dashes")
    if name == ERASED:
        raise CimlError(f"{name!r} is reserved for erased runs; choose another name")
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
