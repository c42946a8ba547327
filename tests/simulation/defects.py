"""Planted defects. The simulation must find each of them; else its success means nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from ciml.digest import canonical_json
from ciml.events import updates
from ciml.events.records import FactUpdate, Outcome, RunFacts, Trust
from ciml.manifest import log as manifests
from ciml.manifest import replica
from ciml.manifest.coverage import RangeSet
from ciml.pipelines.datasets import commit
from ciml.pipelines.datasets import update as datasets
from ciml.pipelines.ingest import committer
from ciml.runs import accounting, known_ids, known_subjects
from ciml.runs.state import RawState
from ciml.storage import Store
from tests.simulation.fakes import Disk
from tests.simulation.run import Result, simulate
from tests.simulation.world import World

Defect = Callable[[], AbstractContextManager[Any]]


@contextmanager
def no_deduplication() -> Iterator[None]:
    """A known event counts as new."""
    with patch.object(known_ids.Index, "has_event", lambda *_: False):
        yield


@contextmanager
def overwritten_commit() -> Iterator[None]:
    """A delta overwrites another writer's delta of the same number."""

    def append(self: manifests.ManifestLog, version: int, delta: manifests.Delta) -> bool:
        self.store.replace(self.path(version), canonical_json({**delta, "version": version}))
        return True

    with patch.object(manifests.ManifestLog, "try_append", append):
        yield


@contextmanager
def covered_again() -> Iterator[None]:
    """A batch is settled as a whole, although parts of its range were settled before."""

    class Blind:
        def __init__(self, state: RawState) -> None:
            self._state = state

        def __getattr__(self, name: str) -> Any:
            return getattr(self._state, name)

        def covered_of(self, generation: str, partition: int) -> RangeSet:
            return RangeSet()

    real = accounting.reconcile
    with patch.object(committer, "reconcile", lambda state, *rest: real(Blind(state), *rest)):
        yield


@contextmanager
def no_rebase() -> Iterator[None]:
    """The losing committer commits the same delta under the next number."""

    def commit(log: Any, state: Any, build: Callable[[], Any]) -> int | None:
        manifests.catch_up(log, state)
        if (delta := build()) is None:
            return None
        while not log.try_append(state.version + 1, delta):
            manifests.catch_up(log, state)
        version: int = state.version + 1
        state.apply(version, {**delta, "version": version})
        return version

    with patch.object(replica, "commit", commit):
        yield


@contextmanager
def unguarded_append() -> Iterator[None]:
    """A stale writer commits at the version of another writer's removed delta."""

    def append(self: manifests.ManifestLog, version: int, delta: manifests.Delta) -> bool:
        return self.store.create(self.path(version), canonical_json({**delta, "version": version}))

    with patch.object(manifests.ManifestLog, "try_append", append):
        yield


@contextmanager
def torn_create() -> Iterator[None]:
    """A half-written object is visible, and may stay."""
    real = Disk.__init__

    def torn(self: Disk) -> None:
        real(self)
        self.torn = True

    with patch.object(Disk, "__init__", torn):
        yield


@contextmanager
def retry_settled_twice() -> Iterator[None]:
    """A retry is settled although it is no longer open."""

    def settle(self: Any, outcome: Outcome) -> None:
        key = (outcome.origin, outcome.run_id)
        if self._settle(outcome, again=True) != "deferred" and key in self._state.deferred:
            self._closes[key] = None

    with patch.object(accounting._Draft, "_settle_retry", settle):
        yield


@contextmanager
def closed_unopened() -> Iterator[None]:
    """A retry closes its record although it is no longer open."""

    def settle(self: Any, outcome: Outcome) -> None:
        if self._settle(outcome, again=True) != "deferred":
            self._closes[outcome.origin, outcome.run_id] = None

    with patch.object(accounting._Draft, "_settle_retry", settle):
        yield


@contextmanager
def files_after_the_commit() -> Iterator[None]:
    """A data set's delta is committed before the files that it names are written."""
    late: dict[str, list[tuple[Store, str, bytes]]] = {}

    class Later:
        def __init__(self, store: Store) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        def create(self, path: str, data: bytes) -> bool:
            late.setdefault(self._store.root, []).append((self._store, path, data))
            return True

    write, sweep = datasets.write_span, commit._collect_garbage

    def swept(root: Store, *rest: Any) -> None:
        for store, path, data in late.pop(root.root, ()):
            store.create(path, data)
        sweep(root, *rest)

    with ExitStack() as stack:
        stack.enter_context(patch.object(datasets, "write_span", lambda root, *rest: write(Later(root), *rest)))
        stack.enter_context(patch.object(commit, "_collect_garbage", swept))
        yield


@contextmanager
def any_event_corrects() -> Iterator[None]:
    """An untrusted event about a run counts as a trusted one."""
    real, trusted = accounting._classify, Trust(True, "planted", "")

    def classify(outcome: Outcome, run: Any, *, repeated: bool) -> Outcome:
        return real(outcome.replace(trust=trusted), run, repeated=repeated).replace(trust=outcome.trust)

    with patch.object(accounting, "_classify", classify):
        yield


@contextmanager
def last_update_wins() -> Iterator[None]:
    """The update that is committed last replaces what was said before."""

    def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
        return {**one, **other}

    with patch.object(accounting, "merge_statements", merged), patch.object(known_subjects, "merge_statements", merged):
        yield


@contextmanager
def earlier_runs_forgotten() -> Iterator[None]:
    """An update changes no run that a checkpoint holds."""
    real = known_subjects.Subjects.runs

    def runs(self: known_subjects.Subjects, subject: known_subjects.Subject, most: int) -> list[RunFacts]:
        tables, self._tables = self._tables, {}
        try:
            return real(self, subject, most)
        finally:
            self._tables = tables

    with patch.object(known_subjects.Subjects, "runs", runs):
        yield


@contextmanager
def unproved_updates_count() -> Iterator[None]:
    """An update without proof counts as a proved one."""
    real = updates.statements_of

    def said_by(update: FactUpdate, event_key: str) -> dict[str, Any]:
        return real(update.replace(auth="mqtt-user"), event_key)

    with patch.object(accounting, "statements_of", said_by), patch.object(known_subjects, "statements_of", said_by):
        yield


DEFECTS: tuple[Defect, ...] = (
    no_deduplication, overwritten_commit, covered_again, no_rebase, unguarded_append, torn_create, retry_settled_twice,
    closed_unopened, files_after_the_commit, any_event_corrects, last_update_wins, earlier_runs_forgotten,
    unproved_updates_count,
)  # fmt: skip
#: Defects that show only after many commits, checkpoints and removals.
RARE = (unguarded_append,)
#: Worlds that showed a defect. They are tried first: a hint that has become wrong costs time alone.
SHOWN_BY = {
    overwritten_commit: 5, no_rebase: 8, unguarded_append: 78, retry_settled_twice: 9, closed_unopened: 9,
    any_event_corrects: 1, earlier_runs_forgotten: 55, unproved_updates_count: 1,
}  # fmt: skip


def first_found(defect: Defect, most: int) -> Result | None:
    """Return the result of the first world that shows the defect, among ``most`` worlds."""
    rare, hint = defect in RARE, SHOWN_BY.get(defect, 0)
    worlds = itertools.islice((seed for seed in itertools.count() if not rare or World.of(seed).small), most)
    with defect():
        for seed in sorted(worlds, key=lambda seed: seed != hint):
            result = simulate(seed)
            if result.wrong:
                return result
    return None
