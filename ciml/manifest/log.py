"""A manifest log: numbered deltas, each created exclusively. The one place where a commit happens.

A reader opens ``_manifest/<version>.json`` in order from version 1. A writer computes delta N+1 from the state after
delta N and creates it; when another writer was first, it reads that delta and computes again (`commit`). So whatever is
killed, repeated or frozen, a delta is there whole or not at all, and each was computed from the one before it.

Making a checkpoint (`ciml.manifest.checkpoints`) packs old deltas into segments (`ciml.manifest.segments`). A delta may
be removed once it has been in a segment for `GRACE_S`. From that follows what has to be known here:

- A delta that is missing may be the end of the log, or removed. It is the end when segments were looked for less than
  half the grace ago, and none held it then. That is asked *after* the read: a reader may be frozen before it.
- A writer that was frozen may create a delta in a place that was emptied. So it looks for a segment that reaches its
  version after each create. Where there is one, and it holds another delta, the writer takes its own back
  (`StaleWriterError`): nobody has read it, for whoever looks has seen that segment. No clock is trusted for this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import orjson

from ciml.digest import canonical_json
from ciml.errors import EngineError, IntegrityError
from ciml.manifest.segments import Archive
from ciml.storage.open import Store

Delta = dict[str, Any]
D = TypeVar("D")

#: How long a delta stays after it came into a segment, and a checkpoint after the next, seconds.
GRACE_S = 24 * 3600.0
#: Deltas that are read at once, and what they may take in memory as far as the last ones tell.
_READ_AHEAD, _READ_AHEAD_BYTES = 32, 16 << 20


class State(Protocol):
    """What deltas add up to. ``version`` is that of the last one applied, 0 at first."""

    version: int

    def apply(self, version: int, delta: Delta) -> None:
        """Take in the delta that follows."""


class StaleWriterError(EngineError):
    """A writer was away for so long that the place of its delta has been emptied: its state is to be made anew."""


class _Known(NamedTuple):
    """The last version in a segment, and of the newest checkpoint (0 without one), as of a time before the look."""

    asked_s: float
    archived: int
    checkpoint: int


class ManifestLog:
    """The deltas below ``folder`` of a store, whether single or in segments. Cheap to make, safe to pickle.

    Args:
      store: where the manifest is.
      folder: its folder there.
      clock: the time, epoch seconds. It decides nothing but how often segments are looked for.
      grace_s: how long a delta stays once it is in a segment; the same for all that use the log.
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
        self._known: _Known | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "archive": Archive(self.store, self.folder), "_known": None}

    def url(self) -> str:
        """Where its store is, for messages."""
        return self.store.url()

    def path(self, version: int) -> str:
        """Where a delta is for as long as it is single."""
        return f"{self.folder}/{version:012d}.json"

    def checkpoint_path(self, version: int) -> str:
        """Where the checkpoint of a version is."""
        return f"{self.folder}/checkpoints/{version:012d}.json"

    def checkpoints(self, after: int = 0) -> list[int]:
        """Return the versions of the checkpoints beyond ``after`` that there are now, in order."""
        folder = f"{self.folder}/checkpoints"
        found = self.store.list(folder, after=self.checkpoint_path(after) if after else "")
        return [int(path.rsplit("/", 1)[1].removesuffix(".json")) for path in found]

    def checkpoint(self) -> int:
        """Return the newest checkpoint's version, 0 without one.

        Looked for again when it was not for half the grace."""
        return self._fresh().checkpoint

    def newest_checkpoint(self) -> int:
        """Return the newest checkpoint's version as of now."""
        return self._reload().checkpoint

    def _reload(self) -> _Known:
        asked_s = self.clock()
        checkpoint = max(self.checkpoints(), default=0)
        # From the checkpoint on it is a short listing. There are more segments than it knows of while checkpoints that
        # were lost are made anew, or when whoever made one died on the way.
        archived = max(self.archive.lasts(checkpoint), default=checkpoint)
        self._known = known = _Known(asked_s, archived, checkpoint)
        return known

    def _is_fresh(self, known: _Known) -> bool:
        return 0 <= self.clock() - known.asked_s < self.grace_s / 2

    def _fresh(self) -> _Known:
        known = self._known
        return known if known is not None and self._is_fresh(known) else self._reload()

    def read(self, version: int) -> Delta:
        """Delta ``version``; `FileNotFoundError` where it was not committed, `IntegrityError` where it is broken."""
        return self.parse(version, self.read_raw(version))

    def read_raw(self, version: int) -> bytes:
        """As `read`, the delta as it was committed."""
        while True:
            known = self._fresh()
            if version <= known.archived:
                return self.archive.find(version, known.archived).line(version)
            missing: FileNotFoundError | None = None
            data = b""
            try:
                data = self.store.read(self.path(version))
            except FileNotFoundError as error:
                missing = error
            if self._is_fresh(known):
                if missing is not None:
                    raise missing
                return data
            self._reload()

    def since(self, version: int) -> Iterator[tuple[int, Delta]]:
        """Yield (version, delta) of all deltas after ``version``, in order, up to the present end."""
        for number, data in self.raw_since(version):
            yield number, self.parse(number, data)

    def raw_since(self, version: int) -> Iterator[tuple[int, bytes]]:
        """As `since`, with each delta as it was committed."""
        ahead = 1
        while True:
            known = self._fresh()
            if version < known.archived:
                yield from self.archive.since(version, known.archived)
                version = known.archived
                continue
            found = self.store.read_while([self.path(version + 1 + number) for number in range(ahead)])
            if not self._is_fresh(known):
                self._reload()
                continue
            for data in found:
                version += 1
                yield version, data
            if len(found) < ahead and (version or self._is_empty()):
                return
            largest = max([1, *map(len, found)])
            ahead = max(1, min(2 * ahead, _READ_AHEAD, _READ_AHEAD_BYTES // largest))

    def _is_empty(self) -> bool:
        """Return whether a log whose first delta is not there has none.

        Else whoever writes to it began a second history."""
        found = self.store.list(self.folder)
        if not found or self.path(1) in found:
            return True  # the first delta came just now, and is found by the next look
        if self._reload().archived:
            return False
        raise IntegrityError(f"{self.store.url(self.path(1))} is gone, and others are not: restore it from a copy")

    def end(self, version: int = 0) -> int:
        """Return the version of the last delta there is, known to be ``version`` or beyond.

        Reads a delta for each step."""
        last = max(version, self._fresh().archived)
        for found, _ in self.raw_since(last):
            last = found
        return last

    def parse(self, version: int, data: bytes) -> Delta:
        """Return a delta from its bytes. Raises `IntegrityError` where they are not those of ``version``."""
        return self.decode(version, data, orjson.loads, lambda delta: isinstance(delta, dict) and delta.get("version"))

    def decode(self, version: int, data: bytes, decoder: Callable[[bytes], D], version_of: Callable[[D], object]) -> D:
        """`parse` with a decoder that raises `ValueError` for anything else than a delta that holds ``version_of``."""
        where = self.store.url(self.path(version))
        try:
            delta = decoder(data)
        except ValueError as error:
            raise IntegrityError(f"{where} is no delta of this manifest: restore it from a copy ({error})") from None
        if version_of(delta) != version:
            raise IntegrityError(f"{where} does not hold version {version}")
        return delta

    def try_append(self, version: int, delta: Delta) -> bool:
        """Create delta ``version``; False where another's is there.

        True also where the very same delta was there: an answer that was lost, and asked for again.

        Raises:
          StaleWriterError: the place was emptied long ago. Nothing is left there.
        """
        data = canonical_json({**delta, "version": version})
        path = self.path(version)
        if not self.store.create(path, data):
            try:
                if self.store.read(path) != data:
                    return False
            except FileNotFoundError:  # removed meanwhile, so it is in a segment
                self._reload()
                return False
        if not (lasts := self.archive.lasts(version - 1)):
            return True
        if self.archive.find(version, lasts[-1]).line(version) == data:
            return True  # others were quick
        self.store.delete(path)
        self._reload()
        raise StaleWriterError(
            f"{self.store.url(path)} was committed long ago, and so were others: what was computed is void"
        )


def catch_up(log: ManifestLog, state: State) -> None:
    """Apply to ``state`` all deltas that it has not seen."""
    for version, delta in log.since(state.version):
        state.apply(version, delta)


def commit(log: ManifestLog, state: State, build: Callable[[], Delta | None]) -> int | None:
    """Append what ``build`` computes from ``state``, starting over for as long as other writers come first.

    Args:
      log: the log to append to.
      state: brought up to date before each call of ``build``, and after the commit.
      build: the delta from the present state, or None where there is nothing (left) to commit.

    Returns:
      The committed version, or None where ``build`` returned None.

    Raises:
      StaleWriterError: this writer was silent for longer than the grace. It has to reload its state.
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
