"""Planted defects. The simulation must find each of them; else its success means nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from ciml.digest import canonical_json
from ciml.events.records import Outcome, RunFacts, Trust
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

Patch = AbstractContextManager[Any]


def no_deduplication() -> Patch:
    """A known event counts as new."""
    return patch.object(known_ids.Index, "has_event", lambda *_: False)


def overwritten_commit() -> Patch:
    """A delta overwrites another writer's delta of the same number."""

    def append(self: manifests.ManifestLog, version: int, delta: manifests.Delta) -> bool:
        self.store.replace(self.path(version), canonical_json({**delta, "version": version}))
        return True

    return patch.object(manifests.ManifestLog, "try_append", append)


def covered_again() -> Patch:
    """A batch is settled as a whole, although parts of its range were settled before."""

    class Blind:
        def __init__(self, state: RawState) -> None:
            self._state = state

        def __getattr__(self, name: str) -> Any:
            return getattr(self._state, name)

        def covered_of(self, generation: str, partition: int) -> RangeSet:
            return RangeSet()

    real = accounting.reconcile
    return patch.object(committer, "reconcile", lambda state, *rest: real(Blind(state), *rest))


def no_rebase() -> Patch:
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

    return patch.object(replica, "commit", commit)


def unguarded_append() -> Patch:
    """A stale writer commits at the version of another writer's removed delta."""

    def append(self: manifests.ManifestLog, version: int, delta: manifests.Delta) -> bool:
        return self.store.create(self.path(version), canonical_json({**delta, "version": version}))

    return patch.object(manifests.ManifestLog, "try_append", append)


def torn_create() -> Patch:
    """A half-written object is visible, and may stay."""
    return patch.object(Disk, "torn", True)


def retry_settled_twice() -> Patch:
    """A retry is settled although it is no longer open."""

    def settle(self: Any, outcome: Outcome) -> None:
        key = (outcome.origin, outcome.run_id)
        if self._settle(outcome, again=True) != "deferred" and key in self._state.deferred:
            self._closes[key] = None

    return patch.object(accounting._Draft, "_settle_retry", settle)


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

    with (
        patch.object(datasets, "write_span", lambda root, *rest: write(Later(root), *rest)),
        patch.object(commit, "_collect_garbage", swept),
    ):
        yield


def any_event_corrects() -> Patch:
    """An untrusted event about a run counts as a trusted one."""
    real, trusted = accounting._classify, Trust(True, "planted", "")

    def classify(outcome: Outcome, run: Any, *, repeated: bool) -> Outcome:
        return real(outcome.replace(trust=trusted), run, repeated=repeated).replace(trust=outcome.trust)

    return patch.object(accounting, "_classify", classify)


def earlier_runs_forgotten() -> Patch:
    """An update changes no run that a checkpoint holds."""
    real = known_subjects.Subjects.runs

    def runs(self: known_subjects.Subjects, subject: known_subjects.Subject, most: int) -> list[RunFacts]:
        tables, self._tables = self._tables, {}
        try:
            return real(self, subject, most)
        finally:
            self._tables = tables

    return patch.object(known_subjects.Subjects, "runs", runs)


#: Each with a world that showed it, which is tried first: a wrong hint costs only time.
DEFECTS: dict[Callable[[], Patch], int] = {
    no_deduplication: 0, overwritten_commit: 6, covered_again: 0, no_rebase: 8, unguarded_append: 156, torn_create: 4,
    retry_settled_twice: 9, files_after_the_commit: 0, any_event_corrects: 1, earlier_runs_forgotten: 55,
}  # fmt: skip
#: Defects that show only after many commits, checkpoints and removals.
_RARE = (unguarded_append,)


def first_found(defect: Callable[[], Patch], most: int) -> Result | None:
    """Return the result of the first world that shows the defect, among ``most`` worlds."""
    others = (seed for seed in itertools.count() if defect not in _RARE or World(seed).small)
    worlds = itertools.chain([DEFECTS[defect]], itertools.islice(others, most))
    with defect():
        return next((result for result in map(simulate, worlds) if result.wrong), None)
