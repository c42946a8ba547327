"""How a sweep is run: trials in processes of their own, each by what those well before it came to.

A trial is proposed and pruned by the outcomes of the trials at least ``lag`` before it, whatever else is known by then.
So a sweep's outcomes follow from its file and the data alone: not from how many processes there are, nor from when it
was killed. Whoever says the same line again reads what is stored, and goes on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.digest import sha256_json
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.manifest.log import ManifestLog
from ciml.storage.open import Store
from pipelines.datasets.build import build_dataset
from pipelines.processes import process_pool, result_of
from training.data.in_memory import read_dataset
from training.estimators import ESTIMATORS
from training.runtime import keras, use_threads
from training.sweeps.axes import Value
from training.sweeps.definition import Combination, Sweep
from training.sweeps.outcome import Outcome
from training.sweeps.store import (
    begin_sweep,
    keep_baseline,
    keep_outcome,
    read_baseline,
    read_outcome,
    sweep_store,
)
from training.sweeps.study import Judge, Past, propose
from training.sweeps.trial import one_number, score_trial
from transforms.ingest.trust import TrustPolicy

#: Told what a trial came to, how many are done, and how many there are.
Progress = Callable[[Outcome, int, int], None]

_LETTERS = 300
_result = partial(result_of, task="trains", remedy="; run the same command again with fewer --jobs")


@dataclass(frozen=True)
class Place:
    """What all trials of a sweep need, in whichever process.

    Attributes:
      source: the data root that has the raw store.
      target: the data root below which data sets and the sweep are.
      sweep: what is asked.
      policy: decides who may be learned from.
      exclusions: reason by run id of runs that must not be learned from.
    """

    source: DataRoot
    target: DataRoot
    sweep: Sweep
    policy: TrustPolicy
    exclusions: Mapping[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        """The sweep's folder."""
        return sweep_store(self.target.sweeps, self.sweep.name)


@dataclass(frozen=True)
class Swept:
    """What a sweep came to.

    Attributes:
      sweep: what was asked.
      outcomes: of all trials, by their numbers.
      baselines: of each question, by a number's name, what that number can do.
      trained: how many of the trials were trained now.
    """

    sweep: Sweep
    outcomes: tuple[Outcome, ...]
    baselines: tuple[Mapping[str, Any], ...]
    trained: int


def run_sweep(place: Place, *, jobs: int, progress: Progress | None = None) -> Swept:
    """Run a sweep, or goes on with it.

    Args:
      place: the sweep and where it is.
      jobs: how many trials are trained at once, each in a process of one thread.
      progress: told of each trial, in the order of their numbers.

    Raises:
      CimlError: another sweep has the name, or no trial came to an end.
      EngineError: the store does not answer, or a process was killed; the same call goes on.
    """
    sweep, store, raw = place.sweep, place.store, ManifestLog(place.source.raw)
    rests_on = {"trust_policy": place.policy.digest, "exclusions": sha256_json(dict(place.exclusions))}
    version = begin_sweep(store, sweep, rests_on, lambda: _end(raw))
    total = len(sweep.grid) if sweep.trials is None else sweep.trials
    with process_pool(jobs, "spawn", use_threads, 1) as pool:
        trials = _Trials(place, version, pool)
        for number in range(total):
            trials.begin(number)
            for outcome in trials.take(sweep.lag):
                if progress is not None:
                    progress(outcome, outcome.number + 1, total)
        for outcome in trials.take(0):
            if progress is not None:
                progress(outcome, outcome.number + 1, total)
        baselines = trials.baselines()
    if not any(outcome.state == "complete" for outcome in trials.outcomes):
        raise CimlError(f"sweep {sweep.name!r}: no trial came to its end; the first: {trials.outcomes[0].reason}")
    return Swept(sweep, tuple(trials.outcomes), baselines, trials.trained)


def _end(raw: ManifestLog) -> int:
    version = raw.end()
    if not version:
        raise CimlError(
            f"no raw store at {raw.store.url()}: fill it by ciml backfill LISTING --logs ROOT --data-path DATA"
        )
    return version


class _Trials:
    """The trials of a sweep that are on their way, and what the others came to."""

    def __init__(self, place: Place, raw_version: int, pool: ProcessPoolExecutor) -> None:
        self._place, self._sweep, self._store, self._pool = place, place.sweep, place.store, pool
        self._raw_version = raw_version
        self._built: dict[str, str] = {}
        self._parameters: list[dict[str, Value]] = []
        self._waiting: deque[Future[Outcome] | Outcome] = deque()
        self.outcomes: list[Outcome] = []
        self.trained = 0

    def begin(self, number: int) -> None:
        """Begin the next trial, or reads what it came to."""
        sweep = self._sweep
        self._known = self.outcomes[: max(0, number - sweep.lag + 1)]
        if sweep.trials is None:
            parameters = sweep.grid[number]
            question = sweep.question_of(parameters)
        else:
            question = number % len(sweep.questions)
        past = self._past(question)
        stored = read_outcome(self._store, number)
        if stored is not None:
            self._check(stored, question, parameters if sweep.trials is None else None)
            parameters = stored.parameters
        elif sweep.trials is not None:
            parameters = propose(sweep, question, past)
        self._parameters.append(parameters)
        self._waiting.append(stored or self._train(number, question, parameters, past))

    def take(self, most: int) -> Iterator[Outcome]:
        """What the earliest trials came to, until no more than ``most`` less one are on their way."""
        while len(self._waiting) >= max(most, 1):
            found = self._waiting.popleft()
            outcome = found if isinstance(found, Outcome) else _result(found)
            self.outcomes.append(outcome)
            yield outcome

    def baselines(self) -> tuple[Mapping[str, Any], ...]:
        """What one number of a run can do, for each question; nothing where no trial came to its end."""
        wanted = []
        for question in range(len(self._sweep.questions)):
            built = [each.dataset for each in self.outcomes if each.question == question and each.state == "complete"]
            if built and read_baseline(self._store, question) is None:
                wanted.append(self._pool.submit(_look_at_number, self._place, question, built[0]))
        for future in wanted:
            _result(future)
        return tuple(read_baseline(self._store, question) or {} for question in range(len(self._sweep.questions)))

    def _past(self, question: int) -> list[Past]:
        """The earlier trials of a question: those that are not ``lag`` before this one are still running to it."""
        found = []
        for number, parameters in enumerate(self._parameters):
            if self._sweep.question_of(parameters) == question:
                known = number < len(self._known)
                found.append(Past.of(self._known[number]) if known else Past(parameters))
        return found

    def _check(self, stored: Outcome, question: int, parameters: Mapping[str, Value] | None) -> None:
        """What was proposed by another version of optuna stands; what is no trial of this sweep does not."""
        try:
            right = self._sweep.effective(stored.parameters) == stored.parameters
            right = right and stored.question == question == self._sweep.question_of(stored.parameters)
        except (CimlError, KeyError, ValueError):
            right = False
        if not right or parameters not in (None, stored.parameters):
            where = self._store.url(f"trials/{stored.number:06}.json")
            raise IntegrityError(f"{where} has other parameters than trial {stored.number} of the sweep")

    def _train(
        self, number: int, question: int, parameters: dict[str, Value], past: list[Past]
    ) -> Future[Outcome] | Outcome:
        known = Outcome(number=number, question=question, parameters=parameters, state="failed")
        for earlier in self._known:
            if earlier.parameters == parameters:
                same = {"number": number, "same_as": earlier.number, "seconds": 0.0}
                return keep_outcome(self._store, earlier.replace(**same))
        try:
            combination = self._sweep.combine(parameters, self._raw_version)
        except CimlError as error:
            return keep_outcome(self._store, known.replace(reason=_line(error)))
        if reason := self._build(combination.definition):
            return keep_outcome(self._store, known.replace(reason=reason))
        self.trained += 1
        return self._pool.submit(_trial, self._place, known, combination, tuple(past))

    def _build(self, definition: DatasetDefinition) -> str:
        """Build a data set, unless it is there. The reason where it cannot be; else nothing."""
        if definition.name not in self._built:
            self._built[definition.name] = _result(self._pool.submit(_build, self._place, definition))
        return self._built[definition.name]


def _build(place: Place, definition: DatasetDefinition) -> str:
    try:
        build_dataset(place.source, place.target, definition)
    except (EngineError, IntegrityError):
        raise
    except CimlError as error:
        return _line(error)
    return ""


def _trial(place: Place, known: Outcome, combination: Combination, past: tuple[Past, ...]) -> Outcome:
    """Train one trial, and store what it came to."""
    name, experiment = combination.definition.name, combination.experiment
    network = ESTIMATORS[experiment.estimator].network
    told: dict[str, Any] = {"dataset": name, "experiment": experiment.to_json()}
    try:
        material = read_dataset(place.target.dataset(name), place.policy, place.exclusions)
        judge = Judge(place.sweep, past)
        if network:
            keras()  # it takes seconds to import, which are not the trial's
        began = time.perf_counter()
        found = score_trial(place.sweep, experiment, material, judge.hopeless)
        told |= {
            "state": "pruned" if found.pruned else "complete",
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "steps": tuple(found.steps),
            "scores": found.scores,
            "snapshot": material.snapshot.digest,
            "trained_on": found.trained_on,
            "held_out": found.held_out,
            "attrs": judge.attrs,
            "seconds": round(time.perf_counter() - began, 3),
        }
    except (EngineError, IntegrityError):
        raise
    except CimlError as error:
        told |= {"reason": _line(error)}
    except Exception as error:  # noqa: BLE001  (whatever a library cannot train is a row, and does not end the sweep)
        told |= {"reason": _line(f"{type(error).__name__}: {error}")}
    finally:
        if network:
            keras().utils.clear_session()  # else it keeps every network that there was
    return keep_outcome(place.store, known.replace(**told))


def _look_at_number(place: Place, question: int, name: str) -> None:
    found = one_number(place.sweep, read_dataset(place.target.dataset(name), place.policy, place.exclusions))
    keep_baseline(place.store, question, found)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:_LETTERS]
