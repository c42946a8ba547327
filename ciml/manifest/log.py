"""A manifest log: numbered deltas, each created exclusively. Commits happen only here.

A reader opens ``_manifest/<version>.json`` in order from version 1. A writer computes delta N+1 from the state after
delta N and creates it. The losing writer of a race reloads and retries (`commit`). So after any crash, retry or pause,
a delta exists whole or not at all, and each was computed from the one before it. Digests chain the deltas
(`ciml.manifest.segments`).

Making a checkpoint (`ciml.manifest.checkpoints`) *archives* the deltas before it: it packs them into segments. The
single object of a delta may be removed once it has been archived for `GRACE_S`. This has two consequences:

- A missing delta is either past the end of the log, or removed. It is past the end if segments were listed less than
  half the grace ago, and none held it. Whether the listing is recent enough is decided *after* the read, because a
  reader may be suspended before it.
- A suspended writer may create a delta at a version that was removed. So after each create it looks for a segment that
  reaches its version. If that segment holds another delta, the writer deletes its own (`StaleWriterError`). No reader
  has read it, because every reader that lists has seen that segment. This does not rely on a clock.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
import orjson

from ciml.digest import canonical_json, sha256_json
from ciml.errors import EngineError, IntegrityError
from ciml.manifest.segments import Archive, Link
from ciml.storage import Entry, Store
from ciml.storage.json_files import digest_of, seal, without_seal

Delta = dict[str, Any]
D = TypeVar("D")
#: Retention of a delta after its segment, and of a checkpoint after the next one, seconds.
GRACE_S = 24 * 3600.0
#: Entry of a first delta that an erasure has rewritten: the digest of its content before.
FIRST_DIGEST = "first_digest"
#: The mark of a log while an erasure rewrites it.
REWRITING = "rewriting"
#: Largest number of deltas in one read.
_READ_AHEAD = 32
#: Limit of the memory for one read, estimated from the size of the deltas before.
_READ_AHEAD_BYTES = 16 << 20
# Other programs may leave files next to checkpoints.
_CHECKPOINT = re.compile(r".*/([0-9]{12})\.json")


class State(Protocol):
    """The state after a number of deltas. ``version`` is the last delta applied, 0 at first."""

    version: int

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta. One that is malformed raises `msgspec.ValidationError`, or an error of its type."""


S = TypeVar("S", bound=State)


class StaleWriterError(EngineError):
    """A writer was suspended until its version was removed from the log: its state must be reloaded."""


def commit(log: ManifestLog, state: State, build: Callable[[], Delta | None]) -> int | None:
    """Append the delta that ``build`` computes from ``state``; reload and retry while other writers come first.

    Args:
      log: the log to append to.
      state: brought up to date before each call of ``build``, and after the commit.
      build: returns the delta from the present state, or None if there is nothing to commit.

    Returns:
      The committed version, or None if ``build`` returned None.

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
            apply_delta(log, state, version, {**delta, "version": version})
            return version


def catch_up(log: ManifestLog, state: S) -> S:
    """Apply to ``state`` all deltas after its version, and count it up; return it.

    Raises `IntegrityError` for a malformed delta.
    """
    for version, delta in log.since(state.version):
        apply_delta(log, state, version, delta)
    return state


def apply_delta(log: ManifestLog, state: State, version: int, delta: Delta) -> None:
    """Apply the next delta to a state. Raises `IntegrityError` if it is another one, or of another form."""
    if version != state.version + 1:
        raise IntegrityError(f"{log.url()}: version {version} follows {state.version}")
    try:
        state.apply(version, delta)
    except (msgspec.ValidationError, LookupError, TypeError, AttributeError) as error:
        text = f"{type(error).__name__} {error}" if isinstance(error, LookupError) else str(error)
        raise IntegrityError(f"{log.url()}: version {version}: malformed record: {text}") from None
    state.version = version


class _Listing(NamedTuple):
    """A listing of the log's segments and checkpoints.

    Attributes:
      began_s: time of its start, epoch seconds.
      archived: the last version in a segment; 0 without one.
      checkpoint: the version of the newest checkpoint; 0 without one.
    """

    began_s: float
    archived: int
    checkpoint: int


class ManifestLog:
    """The deltas in ``folder`` of a store, single or in segments. Cheap to create, safe to pickle.

    Args:
      store: where the manifest is.
      folder: its folder there.
      clock: epoch seconds. It decides only how often segments are listed.
      grace_s: retention of a delta once it is in a segment; all users of the log must have the same.

    Attributes:
      known_mark: the result of the last call of `mark`.
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
        self.known_mark = ""
        # A cache: the position after the latest delta that this object read in order or created. The next read or
        # commit continues there; at any other position it reads the delta before it again.
        self._link = Link()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "archive": Archive(self.store, self.folder), "_listing": None}

    def url(self) -> str:
        """Return the address of its store, for messages."""
        return self.store.url()

    def path(self, version: int) -> str:
        """Return the path of a single delta."""
        return f"{self.folder}/{version:012d}.json"

    @property
    def mark_path(self) -> str:
        """The path of the mark of erasures (`ciml.manifest.rewrite`)."""
        return f"{self.folder}/rewritten"

    def mark(self) -> str:
        """Return the mark of erasures: `REWRITING`, or a text that changes with each; "" before the first one.

        What this object has cached is forgotten if the mark has changed.
        """
        try:
            mark = self.store.read(self.mark_path).decode("ascii", "replace")
        except FileNotFoundError:
            mark = ""
        if mark != self.known_mark:
            self.known_mark = mark
            self.archive = Archive(self.store, self.folder)
        return mark

    def single_deltas(self) -> dict[int, Entry]:
        """Return the single deltas, by version. In a concurrent listing some may be missing."""
        deltas: dict[int, Entry] = {}
        pattern = re.compile(re.escape(self.folder) + r"/([0-9]{12})\.json")
        for entry in self.store.entries(self.folder):
            if match := pattern.fullmatch(entry.path):
                deltas[int(match[1])] = entry
            elif entry.path > f"{self.folder}/a":
                break  # deltas begin with a digit: listings have them before the folders, which begin with a letter
        return deltas

    def checkpoint_path(self, version: int) -> str:
        """Return the path of the checkpoint of a version."""
        return f"{self.folder}/checkpoints/{version:012d}.json"

    def checkpoints(self, after: int = 0) -> list[int]:
        """Return the versions of the present checkpoints after ``after``, in order."""
        folder = f"{self.folder}/checkpoints"
        paths = self.store.list(folder, after=self.checkpoint_path(after) if after else "")
        return [int(match[1]) for match in map(_CHECKPOINT.fullmatch, paths) if match]

    def newest_checkpoint(self) -> int:
        """Return the newest checkpoint's version, 0 without one, listed now."""
        return self._list().checkpoint

    def recent_checkpoint(self) -> int:
        """Return the newest checkpoint's version, 0 without one, as listed at most half the grace ago."""
        return self._recent_listing().checkpoint

    def read(self, version: int) -> Delta:
        """Return delta ``version``.

        Raises:
          FileNotFoundError: if it was not committed.
          IntegrityError: if it is damaged.
        """
        return self.parse(version, self.read_raw(version))

    def identity(self) -> str:
        """Return the digest of the content of the first delta, which names the log in topics. Raises as `read`."""
        first = self.read(1)
        return str(first.get(FIRST_DIGEST) or sha256_json(first))

    def read_raw(self, version: int) -> bytes:
        """Return the bytes of a delta as committed. Raises as `read`."""
        data, is_single = self._load(version)
        if is_single:
            self._link_after(Link.unread(version - 1), data)  # compares the delta with its digest
        return data

    def since(self, version: int) -> Iterator[tuple[int, Delta]]:
        """Yield (version, delta) of all deltas after ``version``, in order, up to the present end."""
        for number, data in self.raw_since(version):
            yield number, self.parse(number, data)

    def raw_since(self, version: int) -> Iterator[tuple[int, bytes]]:
        """Yield (version, bytes) as `since` does, each delta as it was committed.

        Raises:
          IntegrityError: if a delta is damaged or missing.
        """
        link = self._link if self._link.version == version else Link.unread(version)
        ahead = 1  # number of deltas to read next
        while True:
            listing = self._recent_listing()
            if link.version < listing.archived:
                yield from self.archive.since(link.version, listing.archived)
                link = self._link_at(listing.archived)
            deltas = self.store.read_while([self.path(link.version + number) for number in range(1, ahead + 1)])
            if not self._is_recent(listing):
                continue  # a missing delta may have been removed meanwhile: list again
            for data in deltas:
                link = self._link_after(link, data)
                if link.version > self._link.version:
                    self._link = link
                yield link.version, data
            if len(deltas) == ahead:
                ahead = _next_ahead(ahead, deltas)
            elif link.version or not self._find_archived():
                return

    def raw_of_listing(self, paths: Iterable[str]) -> Iterator[tuple[int, bytes]]:
        """Yield (version, bytes) of single deltas from the first on, as far as a listing has them without a gap.

        It takes fewer requests than `raw_since`, for logs that have no segments.
        """
        link = Link()
        for path in paths:
            if path != self.path(link.version + 1):
                continue  # not a delta, or later than one that is missing from a concurrent listing
            data = self.store.read(path)
            link = self._link_after(link, data)
            yield link.version, data

    def end(self, version: int = 0) -> int:
        """Return the version of the last delta, at least ``version``. It reads all single deltas after ``version``."""
        last = max(version, self._recent_listing().archived)
        for number, _ in self.raw_since(last):
            last = number
        return last

    def parse(self, version: int, data: bytes) -> Delta:
        """Parse a delta. Raises `IntegrityError` where the bytes are not delta ``version``."""
        return self.decode(version, data, orjson.loads, lambda delta: isinstance(delta, dict) and delta.get("version"))

    def decode(self, version: int, data: bytes, decoder: Callable[[bytes], D], version_of: Callable[[D], object]) -> D:
        """Parse a delta, as `parse` does, into another type.

        Args:
          version: of the delta.
          data: its bytes as committed.
          decoder: parses the JSON; raises `ValueError` for invalid data.
          version_of: returns the version in the parsed delta.

        Raises:
          IntegrityError: if the data is not delta ``version``.
        """
        where = self.store.url(self.path(version))
        try:
            delta = decoder(without_seal(data))
        except ValueError as error:
            raise IntegrityError(f"{where} is not a delta of this manifest ({error}); restore a backup") from None
        if version_of(delta) != version:
            raise IntegrityError(f"{where} is not version {version}; restore a backup")
        return delta

    def try_append(self, version: int, delta: Delta) -> bool:
        """Create delta ``version``; return False if another writer's delta exists.

        Return True also where the same delta exists: the answer to an earlier request was lost.

        Raises:
          StaleWriterError: if the version was archived long ago. The delta that this call created is deleted again.
        """
        data = seal(canonical_json({**delta, "version": version}), self._link_at(version - 1).next_seal())
        path = self.path(version)
        if not self.store.create(path, data) and not self._is_stored(path, data):
            return False
        reaching = self.archive.lasts(version - 1)
        if not reaching:
            self._link = Link(version, digest_of(data))
            return True
        if self.archive.find(version, reaching[-1]).line(version) == data:
            return True  # our delta is already in a segment
        self.store.delete(path)
        self._list()
        raise StaleWriterError(
            f"{self.store.url(path)} was committed long ago by another writer; reload the state and retry"
        )

    def _is_stored(self, path: str, data: bytes) -> bool:
        try:
            return self.store.read(path) == data
        except FileNotFoundError:  # removed meanwhile, so it is in a segment
            self._list()
            return False

    def _recent_listing(self) -> _Listing:
        listing = self._listing
        return listing if listing is not None and self._is_recent(listing) else self._list()

    def _is_recent(self, listing: _Listing) -> bool:
        return 0 <= self.clock() - listing.began_s < self.grace_s / 2

    def _list(self) -> _Listing:
        began_s = self.clock()
        checkpoint = max(self.checkpoints(), default=0)
        # Listing from the checkpoint on is short. There are segments after it while lost checkpoints are made again, or
        # when a writer was killed between segment and checkpoint.
        archived = max(self.archive.lasts(checkpoint), default=checkpoint)
        listing = _Listing(began_s, archived, checkpoint)
        self._listing = listing
        return listing

    def _load(self, version: int) -> tuple[bytes, bool]:
        """Return the bytes of a delta, and whether it is single. One in a segment was verified there."""
        while True:
            listing = self._recent_listing()
            if version <= listing.archived:
                return self.archive.find(version, listing.archived).line(version), False
            try:
                data = self.store.read(self.path(version))
            except FileNotFoundError:
                if self._is_recent(listing):
                    raise
            else:
                if self._is_recent(listing):
                    return data, True

    def _link_after(self, link: Link, data: bytes) -> Link:
        """Check the single delta at a position; return the position after it. Raises `IntegrityError` for damage."""
        where = self.store.url(self.path(link.version + 1))
        after = link.after(data, where)
        if after.unsealed and not link.is_known:
            # The delta has no digest, so the one before it must have none either: read it and compare.
            self._link_at(link.version).after(data, where)
        return after

    def _link_at(self, version: int) -> Link:
        """Return the position after a delta, from the cache or by reading the delta."""
        if version == self._link.version:
            return self._link
        if not version:
            return Link()
        data, _ = self._load(version)
        return Link.unread(version - 1).after(data, self.store.url(self.path(version)))

    def _find_archived(self) -> bool:
        """Look for segments where no first delta was found; return whether there are any.

        Raises:
          IntegrityError: if there are only later single deltas. A new first delta would start a second history.
        """
        paths = self.store.list(self.folder)
        if not paths or self.path(1) in paths:
            return False  # the log is empty, or was until now: the next read finds the first delta
        if self._list().archived:
            return True
        raise IntegrityError(f"{self.store.url(self.path(1))} is missing but later deltas exist; restore a backup")


def _next_ahead(ahead: int, deltas: Sequence[bytes]) -> int:
    """Return the number of deltas to read after these ones: twice as many, as far as memory allows."""
    largest = max([1, *map(len, deltas)])
    return max(1, min(2 * ahead, _READ_AHEAD, _READ_AHEAD_BYTES // largest))
