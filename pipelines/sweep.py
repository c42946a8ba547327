"""Runs a hyper-parameter sweep: each trial in a process, proposed from the outcomes of earlier trials.

A trial is proposed and pruned only by the outcomes of trials at least ``lag`` before it, even if later ones are known.
So a sweep's outcomes depend on its file and the data alone, not on the number of processes or on kills. The same
command reads the stored outcomes and continues.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.digest import sha256_json
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.build import build_dataset
from ciml.pipelines.processes import process_pool, result_of
from ciml.progress import Progress
from ciml.storage import Store
from ciml.tensorflow import declare_own_process, keras
from ciml.training.data.examples import read_dataset
from ciml.training.estimators import estimator_of
from ciml.training.exclusions import Exclusions
from ciml.training.sweeps.definition import Combination, Sweep, Value
from ciml.training.sweeps.study import (
    Judge,
    Outcome,
    begin_sweep,
    check_normalisation,
    propose,
    read_baselines,
    read_outcome,
    score_baselines,
    score_trial,
    store_baselines,
    store_outcome,
    sweep_store,
)
from ciml.trust import TrustPolicy

_REASON_CHARACTERS = 300
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
        version = raw.end()
        if not version:
            raise CimlError(
                f"no raw store at {raw.store.url()}; fill it with ciml backfill LISTING --logs ROOT --data-path DATA"
            )
        return version

    version = begin_sweep(store, sweep, inputs, raw_version)
    total = len(sweep.grid) if sweep.trials is None else sweep.trials
    with process_pool(jobs, "spawn", _own_trainer, 1) as pool:
        trials = _Trials(context, version, pool)
        for outcome in trials.run(total):
            if progress is not None:
                progress("trials", outcome.number + 1, total)
        baselines = trials.baselines()
    if not any(outcome.state == "complete" for outcome in trials.outcomes):
        raise CimlError(f"sweep {sweep.name!r}: no trial completed; the first: {trials.outcomes[0].reason}")
    return Swept(sweep, tuple(trials.outcomes), baselines, trials.trained)


class _Trial(NamedTuple):
    """A trial in progress: its state at the start, and its outcome, which may be known at the start."""

    initial: Outcome
    outcome: Future[Outcome] | Outcome


class _Trials:
    """The trials of a sweep.

    Attributes:
      outcomes: of the finished trials, by number.
      trained: number of trials that were trained here.
    """

    def __init__(self, context: SweepContext, raw_version: int, pool: ProcessPoolExecutor) -> None:
        self._context = context
        self._sweep = context.sweep
        self._store = context.store
        self._pool = pool
        self._raw_version = raw_version
        self._build_failures: dict[str, str] = {}  # by data set; "" for one that was built
        self._in_progress: deque[_Trial] = deque()
        self.outcomes: list[Outcome] = []
        self.trained = 0

    def run(self, total: int) -> Iterator[Outcome]:
        """Run trials, or read their stored outcomes; yield the outcomes in the order of the trials.

        A trial starts when exactly ``lag`` - 1 earlier ones are in progress, even if these have ended meanwhile.
        """
        for number in range(total):
            self._in_progress.append(self._begin(number))
            if len(self._in_progress) >= self._sweep.lag:
                yield self._finish_earliest()
        while self._in_progress:
            yield self._finish_earliest()

    def _begin(self, number: int) -> _Trial:
        sweep = self._sweep
        planned = sweep.grid[number] if sweep.trials is None else None
        question = number % len(sweep.questions) if planned is None else sweep.question_of(planned)
        earlier = (*self.outcomes, *(trial.initial for trial in self._in_progress))
        past = [outcome for outcome in earlier if sweep.question_of(outcome.parameters) == question]
        stored = read_outcome(self._store, number)
        if stored is not None:
            self._check(stored, question, planned)
            parameters = stored.parameters
        else:
            parameters = propose(sweep, question, past) if planned is None else planned
        initial = Outcome(number=number, question=question, parameters=parameters, state="running")
        return _Trial(initial, self._start(initial, past) if stored is None else stored)

    def _start(self, initial: Outcome, past: list[Outcome]) -> Future[Outcome] | Outcome:
        """Train a trial, unless an equal one has finished, or its data set cannot be built."""
        for equal in self.outcomes:
            if equal.parameters == initial.parameters:
                same = equal.replace(number=initial.number, same_as=equal.number, seconds=0.0)
                return store_outcome(self._store, same)
        try:
            combination = self._sweep.combine(initial.parameters, self._raw_version)
        except CimlError as error:
            return store_outcome(self._store, initial.replace(state="failed", reason=_line(error)))
        check_normalisation(self._store, self._sweep.name)
        reason = self._build(combination.definition)
        if reason:
            return store_outcome(self._store, initial.replace(state="failed", reason=reason))
        self.trained += 1
        return self._pool.submit(_train, self._context, initial, combination, tuple(past))

    def _build(self, definition: DatasetDefinition) -> str:
        """Build a data set if it is missing. Return the reason if that is impossible, else ""."""
        if definition.name not in self._build_failures:
            self._build_failures[definition.name] = _result(self._pool.submit(_build, self._context, definition))
        return self._build_failures[definition.name]

    def _finish_earliest(self) -> Outcome:
        outcome = self._in_progress.popleft().outcome
        if not isinstance(outcome, Outcome):
            outcome = _result(outcome)
        self.outcomes.append(outcome)
        return outcome

    def baselines(self) -> tuple[Mapping[str, Any], ...]:
        """Return the baselines of each question; empty if none of its trials completed."""
        numbers = range(len(self._sweep.questions))
        datasets = {
            outcome.question: outcome.dataset for outcome in reversed(self.outcomes) if outcome.state == "complete"
        }
        missing = [number for number in numbers if number in datasets and read_baselines(self._store, number) is None]
        futures = [self._pool.submit(_store_baseline, self._context, number, datasets[number]) for number in missing]
        for future in futures:
            _result(future)
        return tuple(read_baselines(self._store, number) or {} for number in numbers)

    def _check(self, stored: Outcome, question: int, parameters: Mapping[str, Value] | None) -> None:
        """Raise `IntegrityError` if a stored outcome is not of this sweep. Another version's proposals are accepted."""
        try:
            is_of_sweep = self._sweep.effective(
                stored.parameters
            ) == stored.parameters and stored.question == question == self._sweep.question_of(stored.parameters)
        except (CimlError, KeyError, ValueError):
            is_of_sweep = False
        if not is_of_sweep or parameters not in (None, stored.parameters):
            where = self._store.url(f"trials/{stored.number:06}.json")
            raise IntegrityError(f"{where} has other parameters than trial {stored.number} of the sweep")


def _build(context: SweepContext, definition: DatasetDefinition) -> str:
    try:
        build_dataset(context.source, context.target, definition)
    except (EngineError, IntegrityError):
        raise
    except CimlError as error:
        return _line(error)
    return ""


def _train(context: SweepContext, initial: Outcome, combination: Combination, past: tuple[Outcome, ...]) -> Outcome:
    """Train a trial, and store its outcome."""
    name = combination.definition.name
    experiment = combination.experiment
    initial = initial.replace(dataset=name, experiment=experiment.to_json())
    try:
        dataset = read_dataset(context.target.dataset(name), context.policy, context.exclusions)
        judge = Judge(context.sweep, past)
        estimator_of(experiment, context.sweep.modules).load()  # takes seconds, which do not count as the trial's
        began_s = time.perf_counter()
        scored = score_trial(context.sweep, experiment, dataset, initial, judge.report_step)
        seconds = round(time.perf_counter() - began_s, 3)
        outcome = scored.replace(snapshot=dataset.snapshot.digest, attrs=judge.attrs, seconds=seconds)
    except (EngineError, IntegrityError):
        raise
    except CimlError as error:
        outcome = initial.replace(state="failed", reason=_line(error))
    except Exception as error:  # noqa: BLE001  # of a library: it fails the trial, not the sweep
        outcome = initial.replace(state="failed", reason=_line(f"{type(error).__name__}: {error}"))
    finally:
        if "keras" in sys.modules:
            keras().utils.clear_session()  # Keras keeps every network in memory
    return store_outcome(context.store, outcome)


def _store_baseline(context: SweepContext, question: int, name: str) -> None:
    baseline = score_baselines(
        context.sweep, read_dataset(context.target.dataset(name), context.policy, context.exclusions)
    )
    store_baselines(context.store, question, baseline)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:_REASON_CHARACTERS]


def _own_trainer(threads: int) -> None:
    """Limit the threads of this process of ciml, which is one of several trainers in parallel."""
    declare_own_process(threads=threads)
    import sklearn.ensemble  # noqa: F401  (threadpoolctl limits only loaded pools)
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)
