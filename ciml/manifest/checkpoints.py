"""Checkpoints: the state of a manifest at a version, so that readers need not start from the first delta.

Any number of processes may make checkpoints at any time: `Checkpoints.maintain`. The version and content of a
checkpoint follow from the deltas since the last one. It is written in this order, each object exclusively:

1. the segment: one file with the deltas since the last checkpoint, verbatim;
2. the parts of the id index, named by their content;
3. the checkpoint itself, which makes all of it valid.

A writer that is killed leaves objects that the next writer finds and completes. While an erasure rewrites deltas
(`ciml.manifest.rewrite`), no checkpoint is made, and what was made from the former deltas is deleted again.

Objects that were replaced longer ago than `ciml.manifest.log.GRACE_S` are removed: single deltas in ascending order,
older checkpoints, and index parts that no checkpoint names.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from ciml.digest import canonical_json, sha256_json
from ciml.errors import IntegrityError
from ciml.events.records import Record
from ciml.manifest.id_index import (
    IdTable,
    IndexFileMissingError,
    Part,
    PartFiles,
    Rows,
    SortedRun,
    Steps,
    TableKind,
    run_steps,
)
from ciml.manifest.log import REWRITING, ManifestLog, State, apply_delta
from ciml.manifest.segments import Archive, Segment, line_of

_FORMAT = 1
_GC_INTERVAL_S = 3600.0
#: Number of checkpoints that may disappear while the newest one is read.
_ATTEMPTS = 5
#: Number of records that one step applies.
_STEP_RECORDS = 2000
#: Number of records whose application takes as long as reading one delta.
_DELTA_RECORDS = 20
_NUMBERED = re.compile(r"/([0-9]+)\.json$")


class Restorable(State, Protocol):
    """A state that can be stored in checkpoints.

    Attributes:
      restored: the version of the checkpoint that it was restored from, 0 without one.
      records: number of records since then.
      torn: whether `apply` was interrupted, so that the state is invalid.
    """

    restored: int
    records: int
    torn: bool

    def snapshot(self) -> dict[str, Any]:
        """Return the state without its ids, as JSON. It depends on the deltas alone."""

    def recent(self) -> dict[str, Rows]:
        """Return the ids since ``restored``, one table each."""


S = TypeVar("S", bound=Restorable)


@dataclass(frozen=True)
class Checkpointed(Generic[S]):
    """Defines the checkpoints of a kind of state.

    Attributes:
      tables: its tables of ids.
      restore: builds the state from a version, the value of `Restorable.snapshot`, and the tables. Version 0 with an
        empty mapping is the state before all deltas.
      marker: an entry of `Restorable.snapshot` that is missing from checkpoints of older versions and from those that
        continue them. Only `ciml.manifest.verify` reads this and the next one.
      older: columns, by table, that may differ from the deltas in a checkpoint without the marker; ``high`` and ``low``
        are the ids. Such an index is readable; `Checkpoints.rebuild` makes a complete one.
    """

    tables: Mapping[str, TableKind]
    restore: Callable[[int, Mapping[str, Any], Mapping[str, IdTable]], S]
    marker: str = ""
    older: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """Limits on the deltas since the last checkpoint: number, records and bytes.

    The first delta that reaches one makes a checkpoint due. All users of a log must have the same limits.
    """

    deltas: int = 1000
    records: int = 50_000
    size: int = 32 << 20


class Checkpoint(Record, frozen=True, forbid_unknown_fields=True):
    """A checkpoint as it is stored.

    Attributes:
      version: the last delta in it.
      first: the first delta in its segment.
      segment: the digest of its segment, and so of all deltas up to ``version``.
      state: see `Restorable.snapshot`.
      tables: the sorted runs of each table.
    """

    version: int
    first: int
    segment: str
    state: dict[str, Any]
    tables: dict[str, tuple[SortedRun, ...]]

    def encode(self) -> bytes:
        content = {**self.to_json(), "format": _FORMAT}
        return canonical_json({**content, "sha256": sha256_json(content)})

    @classmethod
    def decode(cls, data: bytes, where: str) -> Checkpoint:
        """Return the inverse of `encode`.

        Raises:
          IntegrityError: any other data; the message names ``where``.
        """
        try:
            content = json.loads(data)
            intact = content.pop("sha256") == sha256_json(content)
            is_readable = content.pop("format") == _FORMAT
            checkpoint = cls.from_json(content)
        except (ValueError, KeyError, TypeError, AttributeError, msgspec.ValidationError) as error:
            raise IntegrityError(f"{where} is not a checkpoint ({error}); see docs/manifests.md") from None
        if not intact or not is_readable:
            raise IntegrityError(f"{where} is damaged or of a newer ciml; see docs/manifests.md")
        return checkpoint

    def parts(self) -> Iterator[Part]:
        """Yield all index parts in it."""
        for runs in self.tables.values():
            for run in runs:
                yield from run.parts

    def paths(self) -> set[str]:
        """Return the paths of all index parts in it."""
        return {part.path for part in self.parts()}


class Checkpoints(Generic[S]):
    """The checkpoints of a log. It uses only the log's store and the log's clock.

    Args:
      log: the log.
      kind: the kind of state.
      limits: when a checkpoint is due.
    """

    def __init__(self, log: ManifestLog, kind: Checkpointed[S], limits: Limits | None = None) -> None:
        self.log = log
        self.kind = kind
        self.limits = limits or Limits()
        self.files = PartFiles(log.store, f"{log.folder}/index")
        self._work: Steps[None] | None = None  # the steps of `maintain` that are left
        self._collected_s: float | None = None  # the time of the last garbage collection, by this object

    def read(self, version: int) -> Checkpoint:
        """Return the checkpoint of a version.

        Raises:
          FileNotFoundError: if there is no such checkpoint (any more).
          IntegrityError: if it is damaged.
        """
        path = self.log.checkpoint_path(version)
        checkpoint = Checkpoint.decode(self.log.store.read(path), self.log.store.url(path))
        if checkpoint.version != version:
            raise IntegrityError(f"{self.log.store.url(path)} holds the checkpoint of version {checkpoint.version}")
        return checkpoint

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint, listed and read now; None without one.

        Raises:
          IntegrityError: if it is damaged, or disappears again and again.
        """
        self.log.mark()
        for _ in range(_ATTEMPTS):
            version = self.log.newest_checkpoint()
            if not version:
                return None
            try:
                return self.read(version)
            except FileNotFoundError:  # removed meanwhile, so newer ones exist
                continue
        raise IntegrityError(f"{self.log.store.url(self.log.checkpoint_path(version))} keeps disappearing")

    def restore(self, checkpoint: Checkpoint | None) -> S:
        """Return the state at a checkpoint, or before all deltas."""
        if checkpoint is None:
            return self.kind.restore(0, {}, self.tables(None))
        return self.kind.restore(checkpoint.version, checkpoint.state, self.tables(checkpoint))

    def tables(self, checkpoint: Checkpoint | None) -> dict[str, IdTable]:
        """Return the tables of a checkpoint; empty tables without one."""
        runs = checkpoint.tables if checkpoint else {}
        return {name: IdTable(kind, runs.get(name, ()), self.files) for name, kind in self.kind.tables.items()}

    def open(self) -> S:
        """Return the state at the newest checkpoint. `ciml.manifest.log.catch_up` applies the deltas since then."""
        checkpoint = self.newest()
        if checkpoint is not None:
            self.files.release(checkpoint.paths())
        return self.restore(checkpoint)

    def is_due(self, state: S) -> bool:
        """Return whether the number of deltas or records since the restored checkpoint makes another one due.

        A checkpoint that is due by the bytes of its deltas alone is found by `maintain` once an hour.
        """
        return state.version - state.restored >= self.limits.deltas or state.records >= self.limits.records

    def maintain(self, *, due: bool = True, budget_s: float = 1.0) -> bool:
        """Make the checkpoints that are due, and once an hour remove objects that are no longer needed.

        Args:
          due: whether a checkpoint may be due. With False, nothing is done within an hour of the last garbage
            collection.
          budget_s: approximate duration of the call, seconds; the next call continues. It exceeds the budget by at most
            one step: one part of the index (a second), or one request to the storage.

        Returns:
          Whether there is more to do now.

        Raises:
          EngineError: if the store does not answer. The next call starts over.
          IntegrityError: if stored objects contradict each other.
        """
        started = self.log.clock()
        if self._work is None:
            collects = self._collected_s is None or not 0 <= started - self._collected_s < _GC_INTERVAL_S
            if not due and not collects:
                return False
            self._work = self._steps(collects)
        work = self._work
        self._work = None  # a step that fails is not continued
        for _ in work:
            if not 0 <= self.log.clock() - started < budget_s:
                self._work = work
                return True
        return False

    def rebuild(self, progress: Callable[[int], None] | None = None) -> int:
        """Remove all checkpoints and the index, and make all due checkpoints again, from segments and deltas.

        Commits continue meanwhile, slowly: until the first checkpoint, writers start at the first delta. The next
        `maintain` or rebuild completes one that is killed.

        Args:
          progress: called with the version of each new checkpoint.

        Returns:
          The number of new checkpoints.

        Raises:
          EngineError, IntegrityError: if `maintain` would raise it.
        """
        self.remove_all()
        number = 0
        while run_steps(self._make_next(self.newest())):
            number += 1
            if progress is not None:
                progress(self.log.newest_checkpoint())
        return number

    def remove_all(self) -> None:
        """Remove all checkpoints and the index.

        The newest checkpoint is deleted first and the index last: a checkpoint that is left by a kill has its parts.
        """
        for version in reversed(self.log.checkpoints()):
            self.log.store.delete(self.log.checkpoint_path(version))
        for path in self.log.store.list(f"{self.log.folder}/index"):
            self.log.store.delete(path)
        self.files.release(())

    def is_stale(self) -> bool:
        """Return whether an erasure has rewritten a segment since the checkpoint after it was made.

        Raises:
          IntegrityError: a segment or a checkpoint is damaged.
        """
        archive = Archive(self.log.store, self.log.folder)  # without the cache of the log's own
        for version in self.log.checkpoints():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                if archive.read(version).digest != self.read(version).segment:
                    return True
        return False

    def _steps(self, collects: bool) -> Steps[None]:
        """Make all due checkpoints; then remove replaced objects, if ``collects``."""
        is_made = True
        while is_made:
            base = self.newest()
            try:
                is_made = yield from self._make_next(base)
            except IndexFileMissingError:
                if self.log.newest_checkpoint() <= (base.version if base else 0):
                    raise  # lost, not replaced
        if collects:
            now_s = self.log.clock()
            yield from self._collect_garbage()
            self._collected_s = now_s

    def _make_next(self, base: Checkpoint | None) -> Steps[bool]:
        """Make the checkpoint after ``base``, or find that another writer made it; return False if none is due."""
        log = self.log
        mark = log.known_mark  # as it was when `newest` read the checkpoint before
        if mark == REWRITING:
            return False
        state = self.restore(base)
        lines = yield from self._apply_due(state)
        if not lines:
            return False
        yield
        segment = Segment(state.restored + 1, state.version, base.segment if base else "", lines)
        # An erasure that begins now waits for `ciml.manifest.rewrite.WAIT_S` before it lists the segments.
        if log.checkpoints(state.restored) or log.mark() != mark or not self._create_segment(segment, mark):
            return True  # another writer was first
        yield
        if log.mark() != mark:
            return True
        tables: dict[str, tuple[SortedRun, ...]] = {}
        recent = state.recent()
        for name, table in self.tables(base).items():
            grown = table.with_rows(recent[name])
            yield
            merged = yield from grown.merged()
            tables[name] = merged.runs
        checkpoint = Checkpoint(segment.last, segment.first, segment.digest, state.snapshot(), tables)
        path = log.checkpoint_path(checkpoint.version)
        if log.store.create(path, checkpoint.encode()) and log.mark() != mark:
            log.store.delete(path)
        return True

    def _apply_due(self, state: S) -> Steps[tuple[bytes, ...]]:
        """Apply the deltas of the next checkpoint to a state; return their lines, or () where no checkpoint is due."""
        # A segment that is stored already decides: an erasure has changed the size of its deltas.
        last = next(iter(self.log.archive.lasts(state.version)), None)
        lines: list[bytes] = []
        size = 0
        work_at_step = 0
        for version, data in self.log.raw_since(state.version):
            apply_delta(self.log, state, version, self.log.parse(version, data))
            lines.append(line_of(data))
            size += len(data)
            if version == last if last else self._is_full(len(lines), state.records, size):
                return tuple(lines)
            work = state.records + _DELTA_RECORDS * len(lines)
            if work > work_at_step + _STEP_RECORDS:
                work_at_step = work
                yield
        return ()

    def _is_full(self, deltas: int, records: int, size: int) -> bool:
        """Return whether deltas since the last checkpoint make the next one due."""
        return deltas >= self.limits.deltas or records >= self.limits.records or size >= self.limits.size

    def _create_segment(self, segment: Segment, mark: str) -> bool:
        """Write a segment; return False if another writer has written it and its checkpoint, or an erasure has."""
        log = self.log
        path = log.archive.path(segment.last)
        if log.store.create(path, segment.encode()):
            return True
        if Segment.decode(log.store.read(path), log.store.url(path)) == segment:
            return True
        if log.checkpoints(segment.last - 1) or log.mark() != mark:
            return False
        raise IntegrityError(f"{log.store.url(path)} differs from the deltas; see docs/manifests.md")

    def _collect_garbage(self) -> Steps[None]:
        """Remove objects that were replaced longer ago than the grace."""
        log = self.log
        store = log.store
        deltas = log.single_deltas()
        entries = store.entries(f"{log.folder}/checkpoints")
        checkpoints = {int(match[1]): entry for entry in entries if (match := _NUMBERED.search(entry.path))}
        if not checkpoints:
            return
        yield
        # A local clock that is ahead must not remove anything too early: the store's newest time counts too.
        now_s = min(log.clock(), max(entry.modified_s for entry in (*deltas.values(), *checkpoints.values())))
        before_s = now_s - log.grace_s
        old = sorted(version for version, entry in checkpoints.items() if entry.modified_s <= before_s)
        last_old = max(old, default=0)
        replaced_deltas = [entry.path for version, entry in sorted(deltas.items()) if version <= last_old]
        # Parts are listed before the newest checkpoints, so that each new part in use is seen in its checkpoint.
        old_parts = [entry.path for entry in store.entries(f"{log.folder}/index") if entry.modified_s <= before_s]
        used_parts: set[str] = set()
        for version in sorted({*checkpoints, *log.checkpoints(max(checkpoints))} - {*old[:-1]}):
            try:
                used_parts |= self.read(version).paths()
            except FileNotFoundError:
                return  # another process removes them; retry next time
            yield
        unused_parts = [path for path in old_parts if path not in used_parts]
        for path in (*replaced_deltas, *(checkpoints[version].path for version in old[:-1]), *unused_parts):
            store.delete(path)
            yield
        store.delete_leftovers(log.folder, before_s)
