"""The selected runs of a data set, and how later deltas of the raw manifest change them.

A `Change` is a new outcome, a new row or a new trust decision of a run. A `History` finds the causes and neighbours of
runs, which depend on all earlier deltas. It reads these from the first one, or from the bookmark of an earlier update.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec

from ciml.datasets.definition import DatasetDefinition
from ciml.datasets.state import Position
from ciml.digest import sha256_hex, sha256_json
from ciml.events.outcomes import CAUSE
from ciml.events.records import UNJUDGED, OutcomeWord, OutputFile, RawFile, Record, RunFacts, Trust
from ciml.runs.causes import CAUSES_KIND, Causes
from ciml.runs.neighbours import NEIGHBOURS_KIND, NearbyRuns, Neighbours
from ciml.runs.run_log import RunDelta, RunLog, RunRecord
from ciml.storage import Store

if TYPE_CHECKING:
    from ciml.manifest.bookmarks import Bookmarks

_log = logging.getLogger(__name__)
#: The bookmark of a data set, in its folder.
BOOKMARK = "_replay"
#: An update leaves a bookmark if the next one would read more runs again, which takes a few tenths of a second.
_BOOKMARK_RUNS = 5000


class Fix(NamedTuple):
    """The outcome of a run by a correction or a reclaim ("" without one), and the producer's own word for it."""

    outcome: str
    result: str


class SelectedRun(Record, frozen=True, gc=False):
    """A raw row in a data set, and its position in the raw manifest.

    ``near`` are its neighbours, if the definition has this context and they are known.
    """

    position: Position
    mention: RunFacts
    file: RawFile
    trust: Trust = UNJUDGED
    near: Neighbours | None = None
    output: OutputFile | None = None

    @property
    def run_id(self) -> str:
        return self.mention.run_id

    @classmethod
    def of(cls, position: Position, record: RunRecord) -> SelectedRun:
        """Return the selected run of a record at a position."""
        return cls(position, record.facts, record.file, record.trust, output=record.output)

    def corrected(self, fix: Fix | None) -> SelectedRun:
        """Return the run with another outcome, and the same facts that decide its trust."""
        if fix is None:
            return self
        outcome = cast("OutcomeWord | None", fix.outcome or None)
        return self.replace(mention=self.mention.replace(outcome=outcome, result=fix.result))

    def caused(self, cause: str) -> SelectedRun:
        """Return the run with a cause among its labels; unchanged if the cause is ""."""
        if not cause:
            return self
        return self.replace(mention=self.mention.replace(labels={**self.mention.labels, CAUSE: cause}))


class NewOutcome(NamedTuple):
    """A change by a correction. It counts if it is binding, or if the run is not trusted."""

    fix: Fix
    binding: bool

    def apply(self, run: SelectedRun) -> tuple[SelectedRun, Fix | None]:
        """Return the run after the change, and its outcome by the change; None if the change does not count."""
        if run.trust.trusted and not self.binding:
            return run, None
        return run.corrected(self.fix), self.fix


class NewRow(NamedTuple):
    """A change by a reclaim, which replaces the row of a run. It counts if it is recorded after the run's row."""

    row: SelectedRun

    def apply(self, run: SelectedRun) -> tuple[SelectedRun, Fix | None]:
        """As `NewOutcome.apply`."""
        if self.row.position <= run.position:
            return run, None
        return self.row, Fix(self.row.mention.outcome or "", self.row.mention.result)


class NewTrust(NamedTuple):
    """A change of the trust decision. It does not change the outcome."""

    trust: Trust

    def apply(self, run: SelectedRun) -> tuple[SelectedRun, Fix | None]:
        """As `NewOutcome.apply`."""
        return run.replace(trust=self.trust), None


#: A change of a run after its first row.
Change = NewOutcome | NewRow | NewTrust


def changes_of(raw_version: int, delta: RunDelta) -> Iterator[tuple[str, Change]]:
    """Yield the run id and the change of each changed run in a delta, in the order in which they apply."""
    for index, record in enumerate(delta.reclaims, len(delta.runs)):
        yield record.mention.run_id, NewRow(SelectedRun.of(Position(raw_version, index), record))
    for correction in delta.corrections:
        yield correction.mention.run_id, NewOutcome(Fix(*correction.fix), correction.binding)
    for changed in delta.trust_changes:
        yield changed.run_id, NewTrust(changed.trust)


def apply_changes(run: SelectedRun, changes: Iterable[Change]) -> tuple[SelectedRun, Fix | None]:
    """Apply changes to a run in order; return the run, and its outcome by them (None if no change of it counts)."""
    last_fix = None
    for change in changes:
        run, fix = change.apply(run)
        last_fix = fix or last_fix
    return run, last_fix


class History:
    """The causes and neighbours of a data set's runs, by the raw deltas that were added.

    Args:
      definition: the data set's definition. It decides whether causes, neighbours or both are found.
      given: causes that reviewers gave, by run id.
      bookmarks: stores the history between updates; None to begin with the first delta.

    Attributes:
      is_needed: whether the definition uses causes or neighbours.
      given: the causes that reviewers gave, if the definition uses causes.
    """

    def __init__(
        self,
        definition: DatasetDefinition,
        given: Mapping[str, str] | None = None,
        bookmarks: Bookmarks | None = None,
    ) -> None:
        self._definition = definition
        self._given = given
        self._causes = self._no_causes()
        self._near = self._no_neighbours()
        self.is_needed = self._causes is not None or self._near is not None
        self.given: Mapping[str, str] = (given or {}) if self._causes is not None else {}
        self._bookmarks = bookmarks
        self._unsaved_runs = 0

    def add(self, delta: RunDelta) -> set[str]:
        """Add the next delta; return the ids of the runs whose cause may have changed."""
        self._unsaved_runs += len(delta.rows)
        if self._near is not None:
            self._near.add(delta)
        return self._causes.add(delta) if self._causes is not None else set()

    def cause_of(self, run_id: str) -> str:
        """Return the cause of a run by its reruns or a reviewer; "" if neither names one."""
        return self._causes.of(run_id) if self._causes is not None else ""

    def near(self, run_id: str) -> Neighbours | None:
        """Return the neighbours of a failed run; None if they are unknown or not needed."""
        return self._near.of(run_id) if self._near is not None else None

    def resume(self, newest: int) -> int:
        """Load the bookmark, if it is not after the raw version ``newest``.

        Returns:
          The raw version after which to add deltas: that of the bookmark; 0 without a usable one; ``newest`` if the
          history is not needed.

        Raises:
          EngineError: if the store does not answer.
        """
        if not self.is_needed:
            return newest
        bookmark = self._bookmarks.load() if self._bookmarks is not None and newest else None
        if bookmark is None or bookmark.version > newest:
            return 0
        causes = self._no_causes()
        neighbours = self._no_neighbours()
        try:
            causes_state, near_state = msgspec.msgpack.decode(bookmark.state, type=tuple[bytes, bytes])
            if causes is not None:
                causes.restore(causes_state)
            if neighbours is not None:
                neighbours.restore(near_state)
        except msgspec.DecodeError as error:
            _log.warning("the bookmark of the raw manifest cannot be read (%s); reading its first delta", error)
            return 0
        self._causes = causes
        self._near = neighbours
        return bookmark.version

    def _no_causes(self) -> Causes | None:
        if self._definition.class_label != CAUSE:
            return None
        return Causes(self._definition.selects, self._given)

    def _no_neighbours(self) -> NearbyRuns | None:
        return NearbyRuns(self._definition.selects) if "neighbours" in (self._definition.context or ()) else None

    def save(self, version: int) -> None:
        """Save a bookmark after the delta that was just added, if many runs were read since the last one."""
        if self._bookmarks is not None and self._unsaved_runs >= _BOOKMARK_RUNS:
            causes = self._causes.encode() if self._causes is not None else b""
            neighbours = self._near.encode() if self._near is not None else b""
            self._bookmarks.save(version, msgspec.msgpack.encode((causes, neighbours)))
            self._unsaved_runs = 0


def bookmarks_of(definition: DatasetDefinition, root: Store, raw: RunLog) -> Bookmarks:
    """Return the bookmark of a data set, which is valid for its definition and its raw manifest.

    Args:
      definition: the data set's definition.
      root: the data set's folder.
      raw: the raw manifest.
    """
    from ciml.manifest.bookmarks import Bookmarks  # only definitions with causes or neighbours need it

    kind = sha256_json([CAUSES_KIND, NEIGHBOURS_KIND, definition.to_json()])
    return Bookmarks(root, BOOKMARK, kind, lambda version: digest_of(raw, version))


def digest_of(raw: RunLog, version: int) -> str:
    """Return the digest of the runs in a delta of a raw manifest."""
    return sha256_hex(msgspec.json.encode(raw.read(version)))
