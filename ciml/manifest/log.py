"""A manifest log: numbered deltas, each created exclusively. Commits happen only here.

A reader opens ``_manifest/<version>.json`` in order from version 1. A writer computes delta N+1 from the state after
delta N and creates it. The losing writer of a race reloads and retries (`commit`). So after any crash, retry or pause,
a delta exists whole or not at all, and each was computed from the one before it.

Making a checkpoint (`ciml.manifest.checkpoints`) packs old deltas into segments (`ciml.manifest.segments`). A delta may
be removed once it has been in a segment for `GRACE_S`. This has two consequences:

- A missing delta is either past the end of the log, or removed. It is past the end if segments were listed less than
  half the grace ago, and none held it. The listing happens *after* the read: a reader may be suspended before it.
- A suspended writer may create a delta at a version that was removed. So after each create it looks for a segment that
  reaches its version. If that segment holds another delta, the writer deletes its own (`StaleWriterError`). No reader
  has read it, because every reader that lists has seen that segment. This does not rely on a clock.

Each delta carries a digest of itself and, as its ``seal`` (`ciml.storage.json_files`), the digest of the delta before
it. Readers compare both, so they detect a flipped bit, a replaced delta and a delta of another history. Segments have
digests of their own. Deltas of older versions have none. The first delta with a digest has ``<first>:<digest>`` as its
seal: the digest of all deltas from version ``first`` on that have none. It protects them until they are in a segment.
After a delta with a digest, one without is an error.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import orjson

from ciml.digest import canonical_json
from ciml.errors import EngineError, IntegrityError
from ciml.manifest.segments import Archive
from ciml.storage import Store
from ciml.storage.json_files import RESTORE, Seal, digest_of, seal, seal_of, without_seal

Delta = dict[str, Any]
D = TypeVar("D")
#: Retention of a delta after its segment, and of a checkpoint after the next one, seconds.
GRACE_S = 24 * 3600.0
#: Number of deltas read at once, and their limit of memory, estimated from the last ones.
_READ_AHEAD = 32
_READ_AHEAD_BYTES = 16 << 20


class UnsealedDeltaError(IntegrityError):
    """A delta has no digest, but the one before it has."""


@dataclass(frozen=True)
class Link:
    """A position in a chain: what is known of the deltas up to a version.

    Attributes:
      version: the last delta; 0 before the first one.
      digest: the digest that it carries; "" if it has none.
      unsealed: digests of the deltas up to ``version`` that carry none, as far as they were read one after the other.
      is_known: whether the last delta was read. If not, nothing is known of it.
    """

    version: int = 0
    digest: str = ""
    unsealed: tuple[bytes, ...] = ()
    is_known: bool = True

    def text(self) -> str:
        """Return the link of the next delta to the deltas before it."""
        return self._text_from(self._first) if self.unsealed else self.digest

    @property
    def _first(self) -> int:
        """The version of the first digest in ``unsealed``."""
        return self.version - len(self.unsealed) + 1

    def _text_from(self, first: int) -> str:
        return f"{first:x}:{hashlib.sha256(b''.join(self.unsealed[first - self._first :])).hexdigest()}"

    def after(self, data: bytes, where: str) -> Link:
        """Check the next delta; return the position after it.

        Args:
          data: its bytes.
          where: its address, for errors.

        Raises:
          IntegrityError: it differs from its digest, has none after a delta that has, or follows another delta.
        """
        seal = seal_of(data, where)
        if seal is not None:
            if self.is_known and not self._precedes(seal):
                raise IntegrityError(f"{where} does not follow from the delta before it; {RESTORE}")
            return Link(self.version + 1, seal.digest)
        if self.digest:
            raise UnsealedDeltaError(
                f"{where} has no digest, but the delta before it has: it is damaged, or an older ciml wrote it; "
                "stop older versions and run ciml migrate DATA --apply, or restore a backup"
            )
        digest = hashlib.sha256(data.replace(b"\n", b" ")).digest()  # of the line in a segment
        return Link(self.version + 1, "", (*self.unsealed, digest))

    def _precedes(self, seal: Seal) -> bool:
        if not self.unsealed:
            return seal.text == self.digest
        first, colon, _ = seal.text.partition(":")
        if not colon or not first:
            return False
        number = int(first, 16)
        if number < self._first:
            return True  # deltas that were read earlier, or are in a segment
        return number <= self.version and self._text_from(number) == seal.text


class State(Protocol):
    """The state after a number of deltas. ``version`` is the last delta applied, 0 at first."""

    version: int

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta."""


class StaleWriterError(EngineError):
    """A writer was suspended until its version was removed from the log: its state must be reloaded."""


class _Listing(NamedTuple):
    """The last version in a segment, and of the newest checkpoint (0 without one), before the listing."""

    listed_s: float
    archived: int
    checkpoint: int


class ManifestLog:
    """The deltas below ``folder`` of a store, single or in segments. Cheap to create, safe to pickle.

    Args:
      store: where the manifest is.
      folder: its folder there.
      clock: epoch seconds. It decides only how often segments are listed.
      grace_s: retention of a delta once it is in a segment; all users of the log must have the same.
    """

    def __init__(
        self,
        store: Store,
        folder: str = "_manifest",
        *,
        clock: Callable[[], float] = time.time,
        grace_s: float = GRACE_S,
    ) -> None:
        self.store = store
        self.folder = folder
        self.clock = clock
        self.grace_s = grace_s
        self.archive = Archive(store, folder)
        self._listing: _Listing | None = None
        self._link = Link()  # of the last delta that was read or created here

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "archive": Archive(self.store, self.folder), "_listing": None}

    def url(self) -> str:
        """Return the address of its store, for messages."""
        return self.store.url()

    def path(self, version: int) -> str:
        """Return the path of a single delta."""
        return f"{self.folder}/{version:012d}.json"

    def path_pattern(self) -> re.Pattern[str]:
        """Return the pattern of the paths of single deltas; its group is the version."""
        return re.compile(re.escape(self.folder) + r"/([0-9]{12})\.json")

    def checkpoint_path(self, version: int) -> str:
        """Return the path of the checkpoint of a version."""
        return f"{self.folder}/checkpoints/{version:012d}.json"

    def checkpoints(self, after: int = 0) -> list[int]:
        """Return the versions of the present checkpoints after ``after``, in order."""
        folder = f"{self.folder}/checkpoints"
        paths = self.store.list(folder, after=self.checkpoint_path(after) if after else "")
        return [int(path.rsplit("/", 1)[1].removesuffix(".json")) for path in paths]

    def checkpoint(self) -> int:
        """Return the newest checkpoint's version, 0 without one. It is listed at most once in half the grace."""
        return self._fresh().checkpoint

    def newest_checkpoint(self) -> int:
        """Return the newest checkpoint's version, listed now."""
        return self._reload().checkpoint

    def _reload(self) -> _Listing:
        listed_s = self.clock()
        checkpoint = max(self.checkpoints(), default=0)
        # Listing from the checkpoint on is short. There are segments after it while lost checkpoints are made again, or
        # when a writer was killed between segment and checkpoint.
        archived = max(self.archive.lasts(checkpoint), default=checkpoint)
        self._listing = listing = _Listing(listed_s, archived, checkpoint)
        return listing

    def _is_fresh(self, listing: _Listing) -> bool:
        return 0 <= self.clock() - listing.listed_s < self.grace_s / 2

    def _fresh(self) -> _Listing:
        listing = self._listing
        return listing if listing is not None and self._is_fresh(listing) else self._reload()

    def read(self, version: int) -> Delta:
        """Return delta ``version``.

        Raises:
          FileNotFoundError: it was not committed.
          IntegrityError: it is damaged.
        """
        return self.parse(version, self.read_raw(version))

    def read_raw(self, version: int) -> bytes:
        """Return the bytes of a delta as committed. Raises as `read`."""
        data, is_single = self._load(version)
        if is_single:
            self._follow(Link(version - 1, is_known=version == 1), data)
        return data

    def _load(self, version: int) -> tuple[bytes, bool]:
        """Return the bytes of a delta, and whether it is single: not in a segment, whose digest was compared."""
        while True:
            listing = self._fresh()
            if version <= listing.archived:
                return self.archive.find(version, listing.archived).line(version), False
            missing: FileNotFoundError | None = None
            data = b""
            try:
                data = self.store.read(self.path(version))
            except FileNotFoundError as error:
                missing = error
            if self._is_fresh(listing):
                if missing is not None:
                    raise missing
                return data, True
            self._reload()

    def _follow(self, link: Link, data: bytes) -> Link:
        """Check the single delta after ``link``; return the link after it. Raises `IntegrityError` for damage."""
        where = self.store.url(self.path(link.version + 1))
        after = link.after(data, where)
        if after.unsealed and not link.is_known:  # of an older version, as the delta before it must be
            self._link_at(link.version).after(data, where)
        return after

    def _link_at(self, version: int) -> Link:
        """Return the link after a delta: what is known here, or what the delta itself says."""
        if version == self._link.version:
            return self._link
        if not version:
            return Link()
        return Link(version - 1, is_known=False).after(self._load(version)[0], self.store.url(self.path(version)))

    def follow_listed(self, paths: Iterable[str]) -> Iterator[tuple[int, bytes]]:
        """Yield (version, bytes) of the first single deltas, as far as a listing has them without a gap.

        It takes fewer requests than `raw_since`, for logs that have no segments.
        """
        link = Link()
        for path in paths:
            if path != self.path(link.version + 1):
                return  # deltas missing from a concurrent listing are later than the listed ones
            data = self.store.read(path)
            link = self._follow(link, data)
            yield link.version, data

    def since(self, version: int) -> Iterator[tuple[int, Delta]]:
        """Yield (version, delta) of all deltas after ``version``, in order, up to the present end."""
        for number, data in self.raw_since(version):
            yield number, self.parse(number, data)

    def raw_since(self, version: int) -> Iterator[tuple[int, bytes]]:
        """Yield (version, bytes) as `since`, each delta as it was committed."""
        ahead = 1
        link = self._link if self._link.version == version else Link(version, is_known=not version)
        while True:
            listing = self._fresh()
            if version < listing.archived:
                yield from self.archive.since(version, listing.archived)
                version = listing.archived
                link = self._link_at(version)
                continue
            deltas = self.store.read_while([self.path(version + 1 + number) for number in range(ahead)])
            if not self._is_fresh(listing):
                self._reload()
                continue
            for data in deltas:
                link = self._follow(link, data)
                version = link.version
                if version > self._link.version:
                    self._link = link
                yield version, data
            if len(deltas) < ahead and (version or self._is_empty()):
                return
            largest = max([1, *map(len, deltas)])
            ahead = max(1, min(2 * ahead, _READ_AHEAD, _READ_AHEAD_BYTES // largest))

    def _is_empty(self) -> bool:
        """Return whether a log without its first delta is empty.

        Raises:
          IntegrityError: later deltas exist. A new first delta would start a second history.
        """
        paths = self.store.list(self.folder)
        if not paths or self.path(1) in paths:
            return True  # the first delta was just created; the next listing finds it
        if self._reload().archived:
            return False
        raise IntegrityError(f"{self.store.url(self.path(1))} is missing but later deltas exist; restore a backup")

    def end(self, version: int = 0) -> int:
        """Return the version of the last delta, at least ``version``. Reads one delta for each step."""
        last = max(version, self._fresh().archived)
        for number, _ in self.raw_since(last):
            last = number
        return last

    def parse(self, version: int, data: bytes) -> Delta:
        """Parse a delta. Raises `IntegrityError` where the bytes are not delta ``version``."""
        return self.decode(version, data, orjson.loads, lambda delta: isinstance(delta, dict) and delta.get("version"))

    def decode(self, version: int, data: bytes, decoder: Callable[[bytes], D], version_of: Callable[[D], object]) -> D:
        """Parse a delta with a decoder that raises `ValueError` for invalid data; ``version_of`` reads its version."""
        where = self.store.url(self.path(version))
        try:
            delta = decoder(without_seal(data))
        except ValueError as error:
            raise IntegrityError(f"{where} is not a delta of this manifest ({error}); restore a backup") from None
        if version_of(delta) != version:
            raise IntegrityError(f"{where} is not version {version}; restore a backup")
        return delta

    def seal_older(self) -> int:
        """Add digests to the deltas that an older version appended after deltas with digests; return their number.

        No process may write to the log meanwhile. It may be killed and repeated.

        Raises:
          IntegrityError: a delta is damaged.
        """
        version = self._reload().archived
        link = self._link_at(version)
        sealed = 0
        while True:
            path = self.path(version + 1)
            try:
                data = self.store.read(path)
            except FileNotFoundError:
                return sealed
            version += 1
            try:
                link = link.after(data, self.store.url(path))
            except UnsealedDeltaError:
                self.parse(version, data)
                data = seal(data, link.text())
                self.store.replace(path, data)
                link = link.after(data, self.store.url(path))
                sealed = sealed + 1

    def try_append(self, version: int, delta: Delta) -> bool:
        """Create delta ``version``; return False where another writer's delta exists.

        Return True also where the same delta exists: the answer to an earlier request was lost.

        Raises:
          StaleWriterError: the version was committed and removed long ago. Nothing remains there.
        """
        data = seal(canonical_json({**delta, "version": version}), self._link_at(version - 1).text())
        path = self.path(version)
        if not self.store.create(path, data):
            try:
                if self.store.read(path) != data:
                    return False
            except FileNotFoundError:  # removed meanwhile, so it is in a segment
                self._reload()
                return False
        if not (lasts := self.archive.lasts(version - 1)):
            self._link = Link(version, digest_of(data))
            return True
        if self.archive.find(version, lasts[-1]).line(version) == data:
            return True  # our delta is already in a segment
        self.store.delete(path)
        self._reload()
        raise StaleWriterError(
            f"{self.store.url(path)} was committed long ago by another writer; reload the state and retry"
        )


def catch_up(log: ManifestLog, state: State) -> None:
    """Apply to ``state`` all deltas after its version."""
    for version, delta in log.since(state.version):
        state.apply(version, delta)


def commit(log: ManifestLog, state: State, build: Callable[[], Delta | None]) -> int | None:
    """Append the delta that ``build`` computes from ``state``; reload and retry while other writers come first.

    Args:
      log: the log to append to.
      state: brought up to date before each call of ``build``, and after the commit.
      build: returns the delta from the present state, or None where there is nothing to commit.

    Returns:
      The committed version, or None where ``build`` returned None.

    Raises:
      StaleWriterError: this writer was suspended for longer than the grace and must reload its state.
    """
    while True:
        catch_up(log, state)
        delta = build()
        if delta is None:
            return None
        version = state.version + 1
        if log.try_append(version, delta):
            state.apply(version, {**delta, "version": version})
            return version
