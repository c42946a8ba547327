"""Rewrites deltas of a manifest log in place, for an erasure: nothing else ever changes a delta.

A rewritten delta keeps its version and its place in the chain, because it names the digest of the delta that it
replaces (`ciml.storage.json_files`). So the deltas around it stay as they are, and a writer that appends meanwhile is
not disturbed. Segments are written again from the first changed one on, since each holds the digest of the one before.
Checkpoints are made again from them. Meanwhile a mark prevents that other processes make any: each looks for it right
before it creates a segment, and rewriting waits for `WAIT_S` after the mark. A process that is suspended for longer
between the two may still leave a segment of former deltas, which contradicts the others (docs/erase.md).

The last delta is rewritten first. So at any time, a delta that is not rewritten follows only such deltas, and a state
that reads them must accept one thing alone: a rewritten delta that refers to a record of a delta that is not.

Each object is replaced atomically, and rewriting a second time changes nothing. So a call that is killed is repeated.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from ciml.digest import canonical_json, sha256_json
from ciml.manifest.checkpoints import Checkpointed, Checkpoints, Restorable
from ciml.manifest.log import FIRST_DIGEST, REWRITING, Delta, ManifestLog
from ciml.manifest.segments import UNSEALED, Archive, Segment, line_of
from ciml.storage.json_files import seal, seal_of

#: Time for which a process may be suspended between looking for the mark and creating a segment, seconds.
WAIT_S = 15.0
#: Returns the delta to store instead of one; None to leave it as it is. It must return None for its own result.
Rewrite = Callable[[Delta], Delta | None]
S = TypeVar("S", bound=Restorable)


def rewrite_log(log: ManifestLog, rewrite: Rewrite, kind: Checkpointed[S] | None = None) -> int:
    """Rewrite the deltas of a log, in segments and single, and make the checkpoints again that this makes stale.

    Args:
      log: the log. Other processes may read it and append to it meanwhile.
      rewrite: given each delta.
      kind: of its checkpoints; None for a log without any.

    Returns:
      The number of objects that were replaced: deltas and segments.

    Raises:
      EngineError: the store does not answer.
      IntegrityError: a delta or a segment is damaged, so that it was not rewritten.
    """
    if kind is None or not log.end():
        return _rewrite_singles(log, rewrite)
    is_resumed = log.mark() == REWRITING
    if not is_resumed and all(_rewritten(log, version, data, rewrite) is None for version, data in log.raw_since(0)):
        return 0
    log.store.replace(log.mark_path, REWRITING.encode())
    time.sleep(WAIT_S)
    number = _rewrite_singles(log, rewrite)
    segments: list[int] = []
    while segments != (present := Archive(log.store, log.folder).lasts()):  # one may have been made since the mark
        segments = present
        number += _rewrite_segments(log, rewrite, segments)
    checkpoints = Checkpoints(ManifestLog(log.store, log.folder, clock=log.clock, grace_s=log.grace_s), kind)
    is_stale = checkpoints.is_stale()
    if is_stale:
        checkpoints.remove_all()
    log.store.replace(log.mark_path, uuid.uuid4().hex.encode())
    if is_stale:
        checkpoints.rebuild()
    return number


def _rewrite_singles(log: ManifestLog, rewrite: Rewrite) -> int:
    number = 0
    for version in sorted(log.single_deltas(), reverse=True):
        path = log.path(version)
        try:
            data = log.store.read(path)
        except FileNotFoundError:
            continue  # removed meanwhile: it is in a segment
        rewritten = _rewritten(log, version, data, rewrite)
        if rewritten is not None:
            log.store.replace(path, rewritten)
            number += 1
    return number


def _rewrite_segments(log: ManifestLog, rewrite: Rewrite, lasts: Sequence[int]) -> int:
    digests = {0: ""}  # by last version: of the segment as it will be
    stale: list[int] = []

    def present(last: int, previous: str) -> tuple[Segment, Segment]:
        """Return a segment as it is stored, and as it will be."""
        stored = Archive(log.store, log.folder).read(last)
        lines = tuple(
            line if (rewritten := _rewritten(log, version, line, rewrite)) is None else line_of(rewritten)
            for version, line in enumerate(stored.lines, stored.first)
        )
        return stored, replace(stored, previous=previous, lines=lines)

    for previous_last, last in pairwise((0, *lasts)):
        stored, rewritten = present(last, digests[previous_last])
        digests[last] = rewritten.digest
        if rewritten != stored:
            stale.append(last)
    previous_of = {last: digests[previous_last] for previous_last, last in pairwise((0, *lasts))}
    for last in reversed(stale):
        log.store.replace(log.archive.path(last), present(last, previous_of[last])[1].encode())
    return len(stale)


def _rewritten(log: ManifestLog, version: int, data: bytes, rewrite: Rewrite) -> bytes | None:
    """Return the bytes of a rewritten delta; None if it stays as it is."""
    sealed = seal_of(data, log.store.url(log.path(version)))
    delta = log.parse(version, data)
    rewritten = rewrite(delta)
    if rewritten is None:
        return None
    if version == 1:  # names the log in topics, so it must not change
        rewritten = {FIRST_DIGEST: sha256_json(delta), **rewritten}
    if sealed is None:
        return seal(canonical_json(rewritten), UNSEALED, hashlib.sha256(line_of(data)).hexdigest())
    return seal(canonical_json(rewritten), sealed.text, sealed.digest)
