"""How the deltas of a manifest are protected: single ones by a chain of digests, older ones in segments.

Each single delta carries a digest of itself and, as its ``seal`` (`ciml.storage.json_files`), the digest of the delta
before it. A reader goes from `Link` to `Link` and compares both, so it detects a flipped bit, a replaced delta and a
delta of another history.

Deltas of older versions are *unsealed*: they have neither. The first delta with a digest after them has
``<first>:<digest>`` as its seal: the digest of all deltas from version ``first`` on that have none. It protects them
until they are in a segment. After a delta with a digest, one without is an error.

A delta that an erasure has rewritten names the digest of the one that it replaces, which still counts as its own in
the chain (`ciml.storage.json_files`). If that one was unsealed, its seal is `UNSEALED`.

A segment is a compressed and permanent file of deltas: a header line, a line for each delta (`line_of`), and a footer
line with the digest of all before it. The header holds the digest of the previous segment, so the newest digest covers
the whole history. The path of a segment follows from its last version. One folder holds the segments of a million
versions, so that a short listing finds any of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.storage import Store
from ciml.storage.json_files import RESTORE, seal_of

#: The seal of a delta that an erasure has rewritten, if the delta before had none.
UNSEALED = "0:"
#: Number of versions whose segments share a folder.
_FOLDER_VERSIONS = 1_000_000
#: The path of a segment, with its last version. Other programs may leave files next to it.
_PATH = re.compile(r".*/([0-9]{12})\.jsonl\.zst")


def line_of(data: bytes) -> bytes:
    """Return a delta as the line of a segment: JSON has line breaks only between values, where a space is the same."""
    return data.replace(b"\n", b" ")


class UnsealedDeltaError(IntegrityError):
    """A delta has no digest, but the one before it has."""


@dataclass(frozen=True)
class Link:
    """A position in the chain: after the delta of a version.

    Attributes:
      version: the last delta; 0 before the first one.
      digest: the digest that it carries; "" if it has none.
      unsealed: digests of the unsealed deltas up to ``version``, as far as they were read one after the other.
      is_known: whether the last delta was read. If not, the next one is not compared with it.
    """

    version: int = 0
    digest: str = ""
    unsealed: tuple[bytes, ...] = ()
    is_known: bool = True

    @classmethod
    def unread(cls, version: int) -> Link:
        """Return the position after a delta that was not read. The position before the first delta is always known."""
        return cls(version, is_known=version == 0)

    def next_seal(self) -> str:
        """Return the ``seal`` that the next delta must carry."""
        return self._unsealed_seal(self._first_unsealed) if self.unsealed else self.digest

    def after(self, data: bytes, where: str) -> Link:
        """Check the next delta; return the position after it.

        Args:
          data: its bytes.
          where: its address, for errors.

        Raises:
          IntegrityError: it differs from its digest, has none after a delta that has, or follows another delta.
        """
        next_seal = seal_of(data, where)
        if next_seal is None:
            return self._after_unsealed(hashlib.sha256(line_of(data)).digest(), where)
        if next_seal.text == UNSEALED:
            return self._after_unsealed(bytes.fromhex(next_seal.digest), where)
        if self.is_known and not self._precedes(next_seal.text):
            raise IntegrityError(f"{where} does not follow from the delta before it; {RESTORE}")
        return Link(self.version + 1, next_seal.digest)

    def _after_unsealed(self, digest: bytes, where: str) -> Link:
        if self.digest:
            raise UnsealedDeltaError(
                f"{where} has no digest, but the delta before it has: it is damaged, or an older ciml wrote it; "
                "stop older versions and run ciml migrate DATA --apply, or restore a backup"
            )
        return Link(self.version + 1, "", (*self.unsealed, digest))

    def _precedes(self, seal_text: str) -> bool:
        if not self.unsealed:
            return seal_text == self.digest
        first_text, colon, _ = seal_text.partition(":")
        if not colon or not first_text:
            return False
        first = int(first_text, 16)
        if first < self._first_unsealed:
            return True  # it also covers deltas that were not read here, so it cannot be compared
        return first <= self.version and seal_text == self._unsealed_seal(first)

    @property
    def _first_unsealed(self) -> int:
        """The version of the first digest in ``unsealed``."""
        return self.version - len(self.unsealed) + 1

    def _unsealed_seal(self, first: int) -> str:
        digests = self.unsealed[first - self._first_unsealed :]
        return f"{first:x}:{hashlib.sha256(b''.join(digests)).hexdigest()}"


@dataclass(frozen=True)
class Segment:
    """Deltas ``first`` to ``last`` as they were committed.

    Attributes:
      previous: the digest of the previous segment; "" for the first.
      lines: the deltas, JSON without line breaks.
    """

    first: int
    last: int
    previous: str
    lines: tuple[bytes, ...]

    def _content(self) -> bytes:
        header = canonical_json({"first": self.first, "last": self.last, "previous": self.previous})
        return b"\n".join((header, *self.lines, b""))

    @property
    def digest(self) -> str:
        """Hex sha256 of header and deltas."""
        return hashlib.sha256(self._content()).hexdigest()

    def line(self, version: int) -> bytes:
        """Return the delta of a version from ``first`` to ``last``."""
        return self.lines[version - self.first]

    def encode(self) -> bytes:
        """Return the file: zstd of header, deltas and footer."""
        import pyarrow as pa

        content = self._content()
        footer = canonical_json({"sha256": hashlib.sha256(content).hexdigest()})
        out = pa.BufferOutputStream()
        with pa.CompressedOutputStream(out, "zstd") as packed:
            packed.write(content + footer + b"\n")
        return bytes(out.getvalue().to_pybytes())

    @classmethod
    def decode(cls, data: bytes, where: str) -> Segment:
        """Return the inverse of `encode`.

        Raises:
          IntegrityError: the file is damaged; the message names ``where``.
        """
        import pyarrow as pa

        try:
            with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as packed:
                content = packed.read()
            body, _, footer = content.rstrip(b"\n").rpartition(b"\n")
            body += b"\n"
            header, *lines = body.split(b"\n")[:-1]
            facts: dict[str, Any] = {**json.loads(header), **json.loads(footer)}
            segment = cls(facts["first"], facts["last"], facts["previous"], tuple(lines))
            intact = facts["sha256"] == hashlib.sha256(body).hexdigest()
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise IntegrityError(f"{where} is not a segment of a manifest ({error}); restore a backup") from None
        if not intact or len(lines) != segment.last - segment.first + 1:
            raise IntegrityError(f"{where} differs from its digest; restore a backup")
        return segment


def _lasts(paths: Iterable[str]) -> list[int]:
    """Return the last versions of the segments at paths."""
    return [int(match[1]) for match in map(_PATH.fullmatch, paths) if match]


class _Listing(NamedTuple):
    """The last versions of the segments in a folder. None up to version ``complete_to`` is missing."""

    complete_to: int
    lasts: Sequence[int]


class Archive:
    """The segments in ``folder`` of a store. Its caches of listings and of one segment may be lost at any time."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = f"{folder}/segments"
        self._listings: dict[int, _Listing] = {}  # by the number of the folder
        self._cached: Segment | None = None

    def path(self, last: int) -> str:
        """Return the path of the segment that ends with version ``last``."""
        return f"{self._folder}/{last // _FOLDER_VERSIONS:06d}/{last:012d}.jsonl.zst"

    def lasts(self, after: int = 0) -> list[int]:
        """Return the last versions of all segments beyond version ``after``, in order."""
        paths = self._store.list(self._folder, after=self.path(after) if after else "")
        return _lasts(paths)

    def sizes(self) -> list[tuple[int, int]]:
        """Return the last version and the size in bytes of all segments, in order."""
        sizes = sorted((entry.path, entry.size) for entry in self._store.entries(self._folder))
        return [(int(match[1]), size) for path, size in sizes if (match := _PATH.fullmatch(path))]

    def read(self, last: int) -> Segment:
        """Return the segment that ends with ``last``.

        Raises:
          FileNotFoundError: if there is none.
          IntegrityError: if it is damaged.
        """
        cached = self._cached
        if cached is not None and cached.last == last:
            return cached
        path = self.path(last)
        segment = Segment.decode(self._store.read(path), self._store.url(path))
        if segment.last != last:
            raise IntegrityError(f"{self._store.url(path)} holds the segment up to version {segment.last}")
        self._cached = segment
        return segment

    def find(self, version: int, until: int) -> Segment:
        """Return the segment that holds ``version``, which must be in one. ``until`` is the last version of a segment.

        Raises:
          IntegrityError: if it is missing or damaged.
        """
        cached = self._cached
        if cached is not None and cached.first <= version <= cached.last:
            return cached
        for number in range(version // _FOLDER_VERSIONS, until // _FOLDER_VERSIONS + 1):
            lasts = self._lasts(number, until)
            for last in lasts[bisect_left(lasts, version) :]:
                segment = self.read(last)
                if segment.first <= version:
                    return segment
        raise IntegrityError(
            f"{self._store.url(self._folder)}: the segment with version {version} is missing; restore a backup"
        )

    def _lasts(self, number: int, until: int) -> Sequence[int]:
        """Return the last versions of the segments in a folder, by its number; at least those up to ``until``."""
        listing = self._listings.get(number)
        if listing is None or listing.complete_to < until:
            lasts = _lasts(self._store.list(f"{self._folder}/{number:06d}"))
            listing = _Listing(until, lasts)
            self._listings[number] = listing
        return listing.lasts

    def since(self, version: int, until: int) -> Iterator[tuple[int, bytes]]:
        """Yield (version, delta) after ``version`` and up to ``until``, which must be the last version of a segment."""
        for number in range(version + 1, until + 1):
            yield number, self.find(number, until).line(number)
