"""Rows 22 and 30 to 32: trainers, pushers, lease holders and purges die at every step, or freeze."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from ciml.serving.registry import Registry
from ciml.storage import open_store
from ciml.training.data.snapshot import read_snapshot
from tests.faults.children import Child
from tests.faults.offline import Stop
from tests.faults.registries import MODEL, STABLE, Account, Watch
from tests.faults.results import Verdict
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.faults.trainers import Work, start
from tests.shared import build_once

#: More steps than any task has. A trial has every fourth one, on S3 every sixteenth, and later ones have the others.
_MOST_STEPS = 60
#: Deaths of a task at random times.
_RANDOM_DEATHS = 2
#: The lease of trainers that freeze, seconds: a refresh on S3 takes seconds, as does a renewal on a busy machine.
_SHORT_LEASE_S, _S3_LEASE_S = 1.0, 6.0


class _Place:
    """The data root of a trial, whose model has a version, and those who read it as a server does.

    Args:
      seed: odd ones have a folder, even ones a prefix on S3.
      scene: of the trial.
      has_runs: whether there is a data set of real runs.
    """

    def __init__(self, seed: int, scene: Scene, *, has_runs: bool = True) -> None:
        self.verdict = Verdict()
        self.random = random.Random(seed)
        self.scene = scene
        self.url = str(scene.folder / "data") if seed % 2 else f"{scene.bucket()}/data"
        self._has_runs = has_runs
        self.trains = has_runs and seed % 8 in (1, 2) and not scene.planted  # a fourth of the trials, in both places
        if has_runs:
            _copy_runs(real_runs(scene.stage.home), self.url, whole=self.trains)
        self.numbers = iter(range(1, 10_000))
        self.work = Work(self.url, "refresh", 0, str(scene.folder / "candidates"), defects=scene.planted)
        self.watch = Watch(self.url, self.verdict)
        stride = 4 if seed % 2 else 16
        self.steps = range(1 + seed // 2 % stride, _MOST_STEPS, stride)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Read as a server does meanwhile, and once more what was read before."""
        with self.watch.watching(0.03 if self.url.startswith("/") else 3.0):
            yield
        self.verdict.fail(*self.watch.reader.whole())

    def start(self, work: Work) -> Child:
        cache = {"XDG_CACHE_HOME": str(self.scene.folder / "cache")}  # of a trainer whose data root is on S3
        return start(work, self.scene.log(work.task), preloads=self._has_runs, **cache)

    def done(self, work: Work, most_s: float = 120.0) -> int | None:
        """Do a task to its end; return its exit code."""
        child = self.start(work)
        code = child.wait(most_s)
        if code != 0:
            self.verdict.fail(f"trial: {work.task} {work.number} ended with {code}: {child.said()[-300:]}")
            child.kill()
        return code

    def dies(self, work: Work, step: int, then: Callable[[str], None]) -> bool:
        """Kill a task before a step, check what is there, and call ``then``; return whether it died."""
        child = self.start(replace(work, stop=Stop(step)))
        code = child.wait(120)
        when = f"killed before step {step} of {work.task}"
        if code not in (0, -signal.SIGKILL):
            self.verdict.fail(f"trial: {work.task} ended with {code}, {when}: {child.said()[-300:]}")
        before = self.watch.look(when)
        then(when)
        self.expect_story(before, when)
        self.verdict.count("kills", int(code == -signal.SIGKILL))
        return code == -signal.SIGKILL

    def expect_story(self, before: Account, when: str) -> None:
        """Check that nobody works, that all is tidy, and that the ledger continues the one before."""
        after = self.watch.look(f"{when}, and completed")
        self.verdict.expect(len(after.deltas) >= len(before.deltas), f"story: shorter: {when}")
        self.verdict.fail(*(f"{line} ({when}, and completed)" for line in self.watch.tidy()))

    def expect_refreshed(self, work: Work, when: str) -> None:
        """Check that the refresh of a task is not lost: its candidate is served, and there is nothing left to do."""
        account = self.watch.look(when)
        parameters = account.last["facts"]["experiment"]["parameters"]
        self.verdict.expect(parameters == {"C": 1.0 + work.number}, f"lost: no candidate of {work.number}: {when}")
        champion = account.pushed.get(account.labels.get(STABLE, 0))
        self.verdict.expect(
            champion == account.last["id"], f"lost: the candidate of {work.number} is not served: {when}"
        )


def _kinds(account: Account) -> list[str]:
    return [delta["kind"] for delta in account.deltas if delta["kind"] != "lease"]


@row(30, "pusher killed at every step", trials=40)
def pusher(seed: int, scene: Scene) -> Verdict:
    place = _Place(seed, scene, has_runs=False)
    work = replace(place.work, task="push")
    for _ in range(1 + seed % 3):
        place.done(replace(work, number=next(place.numbers)))
    with place.watching():
        for step in place.steps:
            label = place.random.choice((STABLE, STABLE, "canary"))
            push = replace(work, number=next(place.numbers), label=label)
            if not place.dies(push, step, partial(_push_again, place, push)):
                break
        _at_random(place, work, _push_again)
    return place.verdict


def _push_again(place: _Place, push: Work, when: str) -> None:
    place.done(push)
    account = place.watch.look(when)
    pushed = account.pushed.get(account.labels.get(push.label, 0))
    place.verdict.expect(pushed == account.last["id"], f"lost: candidate {push.number} is not served: {when}")


@row(22, "trainer killed at every step: refresh, gate, push", trials=40)
def trainer(seed: int, scene: Scene) -> Verdict:
    place = _Place(seed, scene)
    with place.watching():
        _at_random(place, replace(place.work, is_real=place.trains), _refresh_again)
        for step in place.steps:
            refresh = replace(place.work, number=next(place.numbers))
            if not place.dies(refresh, step, partial(_refresh_again, place, refresh)):
                break
    return place.verdict


def _refresh_again(place: _Place, refresh: Work, when: str) -> None:
    place.done(refresh)
    place.expect_refreshed(refresh, when)
    before = _kinds(place.watch.look(when))
    place.done(refresh)
    place.verdict.expect(_kinds(place.watch.look(when)) == before, f"lost: there was something left to do: {when}")


def _at_random(place: _Place, work: Work, again: Callable[[_Place, Work, str], None]) -> None:
    """Kill a task at random times, then complete it."""
    began = time.monotonic()
    place.done(replace(work, task="push" if work.task == "push" else "refresh", number=next(place.numbers)))
    takes_s = time.monotonic() - began
    work = _poisoned(place, work) if work.task == "purge" else replace(work, number=next(place.numbers))
    when = f"{work.task} {work.number} was killed at random times"
    for _ in range(_RANDOM_DEATHS):
        child = place.start(work)
        child.wait(place.random.uniform(0.0, takes_s))
        place.verdict.count("kills", int(child.kill()))
        before = place.watch.look(when)
    began = time.monotonic()
    again(place, work, when)
    place.verdict.measure("recovery_s", time.monotonic() - began)
    place.expect_story(before, when)


@row(31, "lease holder killed, or frozen beyond its lease, at every step", trials=40)
def lease_holder(seed: int, scene: Scene) -> Verdict:
    place = _Place(seed, scene)
    base = replace(place.work, lease_s=_SHORT_LEASE_S if seed % 2 else _S3_LEASE_S, patience_s=60.0)
    place.done(replace(base, number=next(place.numbers)))
    with place.watching():
        for step in place.steps:
            frozen = replace(base, number=next(place.numbers))
            other = replace(base, number=next(place.numbers))
            if not _freeze(place, frozen, other, step):
                break
    return place.verdict


def _freeze(place: _Place, frozen: Work, other: Work, step: int) -> bool:
    """Freeze or kill a trainer at a step until another one has taken over; return whether it stopped there."""
    when = f"{other.number} took over at step {step} of {frozen.number}"
    how = place.random.choice((signal.SIGSTOP, signal.SIGSTOP, signal.SIGKILL))
    child = place.start(replace(frozen, stop=Stop(step, how=how)))
    is_frozen = child.freezes()
    stopped = is_frozen or child.poll() == -signal.SIGKILL
    before = place.watch.look(when)
    for _ in range(2):  # the first may complete the push of the other one
        place.done(other)
    place.expect_refreshed(other, when)
    if is_frozen:
        child.send(signal.SIGCONT)
        code = child.wait(60)
        # Before its first entry it has lost nothing: it takes the lease, and refreshes as the third one.
        expected = (0, 3) if _has_pushed(before, frozen) or not _is_leased(before) else (3,)
        place.verdict.expect(code in expected, f"lease: it ended with {code}, {when}: {child.said()[-200:]}")
        place.verdict.count("frozen")
    place.verdict.count("kills", int(child.poll() == -signal.SIGKILL))
    # Who wakes up may stage files once more: the next refresh removes them.
    _refresh_again(place, replace(frozen, number=next(place.numbers)), when)
    place.expect_story(before, when)
    return stopped


def _is_leased(account: Account) -> bool:
    return bool([delta for delta in account.deltas if delta["kind"] == "lease"][-1]["lease"])


def _has_pushed(account: Account, work: Work) -> bool:
    """Return whether a task has written its last entry but the end of its lease."""
    is_last = account.last["facts"]["experiment"]["parameters"] == {"C": 1.0 + work.number}
    return is_last and account.last["id"] in account.pushed.values()


@row(32, "purge killed at every step", trials=40)
def purges(seed: int, scene: Scene) -> Verdict:
    place = _Place(seed, scene)
    refresh = replace(place.work, number=next(place.numbers), is_real=place.trains)
    place.done(refresh)
    with place.watching():
        _at_random(place, replace(refresh, task="purge"), _purge_again)
        for step in place.steps:
            purge = _poisoned(place, place.work)
            if not place.dies(purge, step, partial(_purge_again, place, purge)):
                break
    return place.verdict


def _poisoned(place: _Place, work: Work) -> Work:
    """Return the purge of a run that the champion has learned from."""
    run = place.random.choice(sorted(_learned(place.watch, place.watch.look().labels[STABLE])))
    return replace(work, task="purge", number=next(place.numbers), run=run)


def _learned(watch: Watch, version: int) -> set[str]:
    state = Registry(watch.root, MODEL).state
    digest = state.candidates[state.versions[version].candidate].facts["snapshot"]
    return {run.run_id for run in read_snapshot(watch.root.trainer(MODEL), digest).runs("train", "dev")}


def _purge_again(place: _Place, purge: Work, when: str) -> None:
    """Check that retraining came after the withdrawal; complete the purge; nothing that learned the run is served."""
    _expect_withdrawn_first(place, purge, when)
    place.done(purge)
    account = place.watch.look(when)
    _expect_withdrawn_first(place, purge, when)
    champion = account.labels.get(STABLE)
    place.verdict.expect(champion is not None, f"lost: nothing serves: {when}")
    for version in sorted(set(account.pushed) - account.withdrawn):
        if purge.run in _learned(place.watch, version):
            place.verdict.fail(f"purge: version {version} learned {purge.run} and is not withdrawn: {when}")
    place.verdict.expect(champion == max(account.pushed), f"lost: version {champion} is not the retrained one: {when}")


def _expect_withdrawn_first(place: _Place, purge: Work, when: str) -> None:
    """Check that no version that learned the run serves once there is a candidate that was trained again."""
    account = place.watch.look(when)
    if account.last["facts"]["experiment"]["parameters"] != {"C": 1.0 + purge.number}:
        return
    for version in sorted(set(account.pushed) - account.withdrawn):
        if purge.run in _learned(place.watch, version):
            place.verdict.fail(f"purge: trained again before version {version} was withdrawn: {when}")


def real_runs(home: Path) -> Path:
    """Return the data root with real runs that all trials of a session copy."""
    from tests.training.conftest import make_providers

    return build_once(home, "runs-of-models", make_providers)


def _copy_runs(source: Path, url: str, *, whole: bool) -> None:
    """Copy a data root; ``whole``: with the telemetry, which only the evaluation of a real training reads."""
    store = open_store(url)
    for path in sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()):
        if whole or not path.startswith("raw/runs/"):
            store.create(path, (source / path).read_bytes())
