"""Runs a hyper-parameter sweep: each trial in a process, proposed from the outcomes of earlier trials.

A trial is proposed and pruned only by the outcomes of trials at least ``lag`` before it, even if more are known. So a
sweep's outcomes depend on its file and the data alone, not on the number of processes or on kills. The same command
reads the stored outcomes and continues.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.digest import sha256_json
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.build import build_dataset
from ciml.pipelines.processes import process_pool, result_of
from ciml.progress import Progress
from ciml.storage import Store
from ciml.training.data.examples import read_dataset
from ciml.training.estimators import ESTIMATORS
from ciml.training.exclusions import Exclusions
from ciml.training.runtime import keras, own_trainer
from ciml.training.sweeps.definition import Combination, Sweep, Value
from ciml.training.sweeps.study import (
    Judge,
    Outcome,
    begin_sweep,
    check_normalisation,
    keep_baseline,
    keep_outcome,
    one_number,
    propose,
    read_baseline,
    read_outcome,
    score_trial,
    sweep_store,
)
from ciml.trust import TrustPolicy

_MOST_CHARACTERS = 300
_result = partial(result_of, task="trains", remedy="; run the same command again with fewer --jobs")


@dataclass(frozen=True)
class SweepContext:
    """The inputs of all trials of a sweep.

    Attributes:
      source: the data root of the raw store.
      target: the data root of data sets and the sweep.
      sweep: its definition.
      policy: decides which runs are trusted for training.
      exclusions: runs excluded from training, the same for all trials.
    """

    source: DataRoot
    target: DataRoot
    sweep: Sweep
    policy: TrustPolicy
    exclusions: Exclusions = field(default_factory=Exclusions)

    @property
    def store(self) -> Store:
        """The sweep's folder."""
        return sweep_store(self.target.sweeps, self.sweep.name)


@dataclass(frozen=True)
class Swept:
    """The result of a sweep.

    Attributes:
      sweep: its definition.
      outcomes: of all trials, by number.
      baselines: of each question, the scores of single run statistics by name.
      trained: number of trials trained by this call.
    """

    sweep: Sweep
    outcomes: tuple[Outcome, ...]
    baselines: tuple[Mapping[str, Any], ...]
    trained: int


def run_sweep(context: SweepContext, *, jobs: int, progress: Progress | None = None) -> Swept:
    """Run or resume a sweep.

    Args:
      context: the sweep and its data roots.
      jobs: number of trials trained concurrently, each in a process with one thread.
      progress: called after each trial, in the order of their numbers.

    Raises:
      CimlError: if another sweep has the name, or no trial completed.
      EngineError: if the store does not answer, or a process was killed; the same call continues.
    """
    sweep = context.sweep
    store = context.store
    raw = ManifestLog(context.source.raw)
    inputs = {"trust_policy": context.policy.digest, "exclusions": sha256_json(context.exclusions.to_json())}

    def raw_version() -> int:
        if version := raw.end():
            return version
        raise CimlError(
            f"no raw store at {raw.store.url()}; fill it with ciml backfill LISTING --logs ROOT --data-path DATA"
        )

    version = begin_sweep(store, sweep, inputs, raw_version)
    total = len(sweep.grid) if sweep.trials is None else sweep.trials
    with process_pool(jobs, "spawn", own_trainer, 1) as pool:
        trials = _Trials(context, version, pool)
        for outcome in trials.run(total):
            if progress is not None:
                progress("trials", outcome.number + 1, total)
        baselines = trials.baselines()
    if not any(outcome.state == "complete" for outcome in trials.outcomes):
        raise CimlError(f"sweep {sweep.name!r}: no trial completed; the first: {trials.outcomes[0].reason}")
    return Swept(sweep, tuple(trials.outcomes), baselines, trials.trained)


class _Trials:
    """The running trials of a sweep, and the outcomes of the others."""

    def __init__(self, context: SweepContext, raw_version: int, pool: ProcessPoolExecutor) -> None:
        self._context = context
        self._sweep = context.sweep
        self._store = context.store
        self._pool = pool
        self._raw_version = raw_version
        self._built: dict[str, str] = {}
        self._begun: list[Outcome] = []
        self._waiting: deque[Future[Outcome] | Outcome] = deque()
        self.outcomes: list[Outcome] = []
        self.trained = 0

    def run(self, total: int) -> Iterator[Outcome]:
        """Run trials, or read their stored outcomes; yield the outcomes in the order of the trials."""
        for number in range(total):
            self._waiting.append(self._begin(number))
            yield from self._take(self._sweep.lag)
        yield from self._take(1)

    def _begin(self, number: int) -> Future[Outcome] | Outcome:
        sweep = self._sweep
        known = self.outcomes[: max(0, number - sweep.lag + 1)]
        planned = sweep.grid[number] if sweep.trials is None else None
        question = number % len(sweep.questions) if planned is None else sweep.question_of(planned)
        past = self._past(question, known)
        stored = read_outcome(self._store, number)
        if stored is not None:
            self._check(stored, question, planned)
            parameters = stored.parameters
        else:
            parameters = propose(sweep, question, past) if planned is None else planned
        begun = Outcome(number=number, question=question, parameters=parameters, state="running")
        self._begun.append(begun)
        if stored is not None:
            return stored
        same = next((earlier for earlier in known if earlier.parameters == parameters), None)
        if same is not None:
            return keep_outcome(self._store, same.replace(number=number, same_as=same.number, seconds=0.0))
        return self._train(begun, past)

    def _take(self, most: int) -> Iterator[Outcome]:
        """Yield the outcomes of the earliest trials, until fewer than ``most`` are running."""
        while len(self._waiting) >= most:
            trial = self._waiting.popleft()
            outcome = trial if isinstance(trial, Outcome) else _result(trial)
            self.outcomes.append(outcome)
            yield outcome

    def baselines(self) -> tuple[Mapping[str, Any], ...]:
        """Return the baselines of each question; empty if none of its trials completed."""
        questions = []
        for question in range(len(self._sweep.questions)):
            built = [
                outcome.dataset
                for outcome in self.outcomes
                if outcome.question == question and outcome.state == "complete"
            ]
            if built and read_baseline(self._store, question) is None:
                questions.append(self._pool.submit(_store_baseline, self._context, question, built[0]))
        for future in questions:
            _result(future)
        return tuple(read_baseline(self._store, question) or {} for question in range(len(self._sweep.questions)))

    def _past(self, question: int, known: Sequence[Outcome]) -> list[Outcome]:
        """Return the earlier trials of a question; those less than ``lag`` before the next one count as running."""
        past = (*known, *self._begun[len(known) :])
        return [outcome for outcome in past if self._sweep.question_of(outcome.parameters) == question]

    def _check(self, stored: Outcome, question: int, parameters: Mapping[str, Value] | None) -> None:
        """Raise `IntegrityError` if a stored outcome is not of this sweep. Another version's proposals are accepted."""
        try:
            right = self._sweep.effective(stored.parameters) == stored.parameters
            right = right and stored.question == question == self._sweep.question_of(stored.parameters)
        except (CimlError, KeyError, ValueError):
            right = False
        if not right or parameters not in (None, stored.parameters):
            where = self._store.url(f"trials/{stored.number:06}.json")
            raise IntegrityError(f"{where} has other parameters than trial {stored.number} of the sweep")

    def _train(self, begun: Outcome, past: list[Outcome]) -> Future[Outcome] | Outcome:
        try:
            combination = self._sweep.combine(begun.parameters, self._raw_version)
        except CimlError as error:
            return keep_outcome(self._store, begun.replace(state="failed", reason=_line(error)))
        check_normalisation(self._store, self._sweep.name)
        if reason := self._build(combination.definition):
            return keep_outcome(self._store, begun.replace(state="failed", reason=reason))
        self.trained += 1
        return self._pool.submit(_trial, self._context, begun, combination, tuple(past))

    def _build(self, definition: DatasetDefinition) -> str:
        """Build a data set if it is missing. Return the reason if that is impossible, else ""."""
        if definition.name not in self._built:
            self._built[definition.name] = _result(self._pool.submit(_build, self._context, definition))
        return self._built[definition.name]


def _build(context: SweepContext, definition: DatasetDefinition) -> str:
    try:
        build_dataset(context.source, context.target, definition)
    except (EngineError, IntegrityError):
        raise
    except CimlError as error:
        return _line(error)
    return ""


def _trial(context: SweepContext, begun: Outcome, combination: Combination, past: tuple[Outcome, ...]) -> Outcome:
    """Train a trial, and store its outcome."""
    name = combination.definition.name
    experiment = combination.experiment
    network = ESTIMATORS[experiment.estimator].network
    begun = begun.replace(dataset=name, experiment=experiment.to_json())
    try:
        dataset = read_dataset(context.target.dataset(name), context.policy, context.exclusions)
        judge = Judge(context.sweep, past)
        if network:
            keras()  # the import takes seconds, which do not count as the trial's
        began_s = time.perf_counter()
        scored = score_trial(context.sweep, experiment, dataset, begun, judge.hopeless)
        seconds = round(time.perf_counter() - began_s, 3)
        outcome = scored.replace(snapshot=dataset.snapshot.digest, attrs=judge.attrs, seconds=seconds)
    except (EngineError, IntegrityError):
        raise
    except CimlError as error:
        outcome = begun.replace(state="failed", reason=_line(error))
    except Exception as error:  # noqa: BLE001  # an error of a library fails the trial, not the sweep
        outcome = begun.replace(state="failed", reason=_line(f"{type(error).__name__}: {error}"))
    finally:
        if network:
            keras().utils.clear_session()  # else it keeps every network in memory
    return keep_outcome(context.store, outcome)


def _store_baseline(context: SweepContext, question: int, name: str) -> None:
    baseline = one_number(context.sweep, read_dataset(context.target.dataset(name), context.policy, context.exclusions))
    keep_baseline(context.store, question, baseline)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:_MOST_CHARACTERS]
