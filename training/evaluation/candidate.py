"""Evaluates a candidate on the held-out runs of its snapshot: the figures on which the gate decides.

The champion, the model served now, is evaluated on the same runs. A model of verdicts also has figures of its verdicts:
coverage, abstentions, precision and recall.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ciml.data_root import StoredDataset
from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import CimlError, IntegrityError
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.runs.run_log import stored_rows
from ciml.serving.decimals import shortest_decimals
from ciml.storage import Store
from ciml.tensorflow import load_tensorflow
from ciml.training.calibration.calibrate import Calibrated
from ciml.training.changes import first_runs, number_changes, numbers_of
from ciml.training.data.examples import Examples, read_facts, read_snapshot_examples
from ciml.training.data.snapshot import Snapshot, SnapshotRun
from ciml.training.estimators import Fitted, Rows
from ciml.training.evaluation.baselines import PREDICTORS, gate_numbers, numbers_for, predict_test_runs
from ciml.training.evaluation.bootstrap import squared_errors
from ciml.training.evaluation.gate import GatePolicy
from ciml.training.evaluation.metrics import accuracy, calibration_quality, evaluate, predicted_classes
from ciml.training.evaluation.paired import compare, compare_errors, compare_slices
from ciml.training.experiment import Experiment
from ciml.training.export import Exported, Timed, load_exported
from ciml.training.train import TrainingRows, predict_in_memory, trained_roles
from ciml.transforms.examples.prepare import run_means
from ciml.verdict_rules import UNKNOWN, VerdictRules, make_verdict

#: Runs in memory at a time.
_BATCH_RUNS = 500
#: Slices that the figures list, the worst first.
_SHOWN_SLICES = 50
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Champion:
    """A served model.

    Attributes:
      folder: its SavedModel, on local disk.
      version: its number, for reports.
    """

    folder: Path
    version: int


def assess(
    dataset: StoredDataset,
    snapshot: Snapshot,
    uncalibrated: np.ndarray,
    exported: Timed,
    experiment: Experiment,
    champion: Champion | None,
    gate: GatePolicy,
    calibrated: Calibrated | None = None,
) -> dict[str, Any]:
    """Compute a candidate's figures for `ciml.training.evaluation.gate.decide`.

    The exported model predicts runs that are not normalised, as in serving. ``disagreement`` is the largest difference
    of a probability from those that the model in memory gave to the same runs.

    Args:
      dataset: the snapshot's data set.
      snapshot: the training and test runs.
      uncalibrated: float [n, C] that the model in memory gave to the test runs, in the snapshot's order.
      exported: the exported model in a process of its own, or the kept one.
      experiment: the trained experiment.
      champion: the served model, evaluated on the same runs.
      gate: gives the confidence of the comparison.
      calibrated: the calibration in the exported model, of the model in memory; None without.
    """
    resolved = snapshot.resolved
    runs, test = read_snapshot_examples(dataset.store, snapshot, "test")
    answers = exported.predict(test.inputs, test.n_windows)
    in_memory = uncalibrated if calibrated is None else calibrated.calibrator.apply(uncalibrated)
    train_roles = trained_roles(experiment, dev_from_train=snapshot.dev_from_train)
    train_labels = np.array([run.label for run in snapshot.runs(*train_roles)], np.int64)
    class_counts = np.bincount(train_labels, minlength=len(resolved.classes)).tolist()
    facts = read_facts(dataset.store, snapshot)
    test_facts = [facts[run.run_id] for run in runs]
    jobs = [run.build_name for run in test_facts]
    changes = number_changes(test_facts)
    figures: dict[str, Any] = {
        "evaluation": evaluate(answers, test.labels, resolved.classes, train_labels, {"job": jobs}, changes),
        "class_counts": dict(zip(resolved.classes, class_counts, strict=True)),
        "disagreement": _disagreement(answers, in_memory),
        "latency_ms": exported.latency_ms(test.inputs, test.n_windows) if len(test) else None,
        "baselines": _baselines(dataset, snapshot, facts, _is_right(answers, test.labels), changes, gate),
    }
    if calibrated is not None:
        before = evaluate(uncalibrated, test.labels, resolved.classes, train_labels, changes=changes)
        figures |= calibration_figures(calibrated, before, answers, test, jobs, changes)
    if champion is not None:
        figures |= _champion_figures(dataset, champion, snapshot, runs, test_facts, test, answers, gate)
    return figures


def changes_of_test_runs(dataset: StoredDataset, snapshot: Snapshot) -> np.ndarray:
    """Return the change of each test run of a snapshot, int64 [n], in its order."""
    facts = read_facts(dataset.store, snapshot)
    return number_changes([facts[run.run_id] for run in snapshot.runs("test")])


#: Slices of the test runs by their age.
_AGES = ("oldest third", "middle third", "latest third")


def _slices(facts: Sequence[RunFacts]) -> dict[str, list[str]]:
    """Return the job, the provider and the age of test runs; "" if it is not known."""
    ends = [run.end_us or run.start_us for run in facts]
    ordered = np.sort(np.array([end for end in ends if end is not None], np.int64))
    age = {end: _AGES[int(np.searchsorted(ordered, end)) * len(_AGES) // len(ordered)] for end in ordered.tolist()}
    return {
        "job": [run.build_name for run in facts],
        "provider": [run.provider for run in facts],
        "age": ["" if end is None else age[end] for end in ends],
    }


def stability(
    fitted: Fitted, other: Fitted, source: TrainingRows, *, seed: int, changes: np.ndarray | None = None
) -> dict[str, Any]:
    """Return on how many test runs a model trained with another seed agrees: ``seed``, and a share with its interval.

    Args:
      fitted: the candidate, in memory.
      other: the same experiment, trained with another seed.
      source: the examples of both.
      seed: of ``other``.
      changes: int64 [n], the changes of the test runs, or None.
    """
    answers = (predicted_classes(predict_in_memory(model, source, "test")) for model in (fitted, other))
    return {"seed": seed, **accuracy(np.equal(*answers), changes)}


def _disagreement(answers: np.ndarray, in_memory: np.ndarray) -> float | None:
    """Return the largest difference of two models' probabilities; None without runs, or if one is not finite."""
    if answers.shape != in_memory.shape or not answers.size or not np.isfinite([answers, in_memory]).all():
        return None
    return float(np.abs(answers.astype(np.float64) - in_memory).max())


def cross_validated(
    experiment: Experiment, dataset: StoredDataset, snapshot: Snapshot, allow_modules: Collection[str] = ()
) -> dict[str, Any] | None:
    """Return ``accuracy`` and ``base_rate`` of a cross-validation of the training runs, where runs of a change are held
    out together; None if there are too few of them.
    """
    from ciml.training.data.examples import read_snapshot_dataset
    from ciml.training.evaluation.cross_validation import cross_validate

    runs = read_snapshot_dataset(dataset, snapshot)
    try:
        figures = cross_validate(experiment, runs, hold_out=("change",), allow_modules=allow_modules)
    except CimlError as error:
        _LOG.info("no cross-validation: %s", error)
        return None
    return {name: figures["pooled"][name] for name in ("accuracy", "base_rate")}


def _baselines(
    dataset: StoredDataset,
    snapshot: Snapshot,
    facts: Mapping[str, RunFacts],
    right: np.ndarray,
    changes: np.ndarray,
    gate: GatePolicy,
) -> dict[str, dict[str, Any]]:
    """Return the accuracy of each number alone that the runs have, and its ``comparison`` with the candidate.

    Args:
      dataset: the snapshot's data set.
      snapshot: its training runs are learned from, its test runs are predicted.
      facts: of its runs, by run id.
      right: bool [n], whether the candidate was right on each test run.
      changes: int64 [n], their changes.
      gate: gives the confidence of the comparison.
    """
    numbers = numbers_for(snapshot.resolved.definition)
    baselines: dict[str, dict[str, Any]] = {}
    for number in gate_numbers(snapshot.resolved.definition):
        try:
            answers = predict_test_runs(number, dataset.raw(), snapshot, facts)
        except IntegrityError as error:
            if number in numbers:
                raise
            _LOG.warning("no comparison with the %s alone: %s", number, error)
            continue
        if answers is not None:
            with_number = changes[answers.positions]
            comparison = compare(right[answers.positions], answers.right, with_number, confidence=gate.confidence)
            alone = accuracy(answers.right, with_number)
            baselines[number] = {"name": PREDICTORS[number], **alone, "comparison": comparison}
    return baselines


def _champion_figures(
    dataset: StoredDataset,
    champion: Champion,
    snapshot: Snapshot,
    runs: Sequence[SnapshotRun],
    facts: Sequence[RunFacts],
    test: Examples,
    answers: np.ndarray,
    gate: GatePolicy,
) -> dict[str, Any]:
    """Return ``champion`` with its figures on the same runs, and ``comparison``; None if it cannot be evaluated."""
    try:
        champion_answers = champion_probabilities(dataset.raw(), champion, snapshot.resolved, runs, test)
    except IntegrityError as error:
        _LOG.warning("the champion cannot be evaluated: %s", error)
        return {"champion": None, "comparison": None}
    right, champion_right = (_is_right(shares, test.labels) for shares in (answers, champion_answers))
    errors, champion_errors = (squared_errors(shares, test.labels) for shares in (answers, champion_answers))
    changes = number_changes(facts)
    metrics = {
        "version": champion.version,
        "accuracy": accuracy(champion_right, changes),
        "brier": float(champion_errors.mean()) if len(test) else None,
    }
    sources = [run.source for run in facts]
    by_source = {"source": sources} if len(set(sources)) > 1 else {}
    comparison = {
        **compare(right, champion_right, changes, confidence=gate.confidence),
        "brier": compare_errors(errors, champion_errors, changes, confidence=gate.confidence),
        "slices": compare_slices(right, champion_right, _slices(facts), changes)[:_SHOWN_SLICES],
        "sources": compare_slices(right, champion_right, by_source, changes, min_runs=gate.min_test_runs),
    }
    return {"champion": metrics, "comparison": comparison}


def _is_right(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return whether the most probable class of each run is its class, bool [n]; False for an unanswered run."""
    right: np.ndarray = predicted_classes(probabilities) == labels
    return right


def champion_probabilities(
    raw: Store, champion: Champion, resolved: ResolvedDefinition, runs: Sequence[SnapshotRun], examples: Examples
) -> np.ndarray:
    """Return the champion's probabilities of a candidate's classes, float32 [n, C].

    If its definition differs (other columns, interval or classes), the runs are prepared from the raw store by that
    definition, and classes are matched by name; a class that it does not know has no probability, and the most probable
    class may be one that the candidate does not know. A run that cannot be prepared has NaN.

    Args:
      raw: the raw store of the runs.
      champion: the model to evaluate.
      resolved: the definition of ``examples``, with the C classes.
      runs: n runs.
      examples: the same runs, not normalised.

    Raises:
      IntegrityError: if the champion cannot be loaded or fails.
    """
    model = load_exported(champion.folder)
    try:
        if model.definition == resolved:
            return model.predict(examples.inputs, examples.n_windows)
        answers = _predict_from_raw(raw, model, runs)
    except load_tensorflow().errors.OpError as error:
        raise IntegrityError(f"{champion.folder} fails to predict: {str(error).splitlines()[0]}") from None
    names = model.definition.classes
    matched = np.zeros((len(answers), len(resolved.classes)), np.float32)
    for index, name in enumerate(resolved.classes):
        if name in names:
            matched[:, index] = answers[:, names.index(name)]
    knows_best = np.isin(np.array(names)[np.nan_to_num(answers).argmax(axis=1)], resolved.classes)
    matched[~knows_best | ~np.isfinite(answers).all(axis=1)] = np.nan
    return matched


def _predict_from_raw(raw: Store, model: Exported, runs: Sequence[SnapshotRun]) -> np.ndarray:
    """Predict runs of the raw store, float32 [n, C]; NaN for a run that the model's definition rejects."""
    from ciml.runs.reader import read_runs
    from ciml.telemetry import OWN_COLUMNS
    from ciml.transforms.examples.prepare import prepare_many
    from ciml.transforms.logs.run_outputs import outputs_of_stored

    run_ids = [run.run_id for run in runs]
    rows = stored_rows(ManifestLog(raw), run_ids)
    context = model.definition.definition.context or ()
    output_of = outputs_of_stored(raw, run_ids) if "log" in context else None
    parts = [np.zeros((0, len(model.definition.classes)), np.float32)]
    for start in range(0, len(runs), _BATCH_RUNS):
        batch = run_ids[start : start + _BATCH_RUNS]
        columns = [*OWN_COLUMNS, *model.definition.columns]
        tables = read_runs(raw, [rows[run_id].file for run_id in batch], columns=columns)
        facts = [rows[run_id].mention for run_id in batch] if context else None
        inputs, n_windows, rejected = prepare_many(tables, model.definition, facts, output_of=output_of)
        answers = model.predict(inputs, n_windows)
        answers[[row for row, _ in rejected]] = np.nan
        answers[n_windows == 0] = np.nan
        parts.append(answers)
    return np.concatenate(parts)


def calibration_figures(
    calibrated: Calibrated,
    before: Mapping[str, Any],
    answers: np.ndarray,
    rows: Rows,
    jobs: Sequence[str],
    changes: np.ndarray,
) -> dict[str, Any]:
    """Return ``calibration`` and, for a model of verdicts, ``verdicts``; see docs/training.md.

    Args:
      calibrated: the calibration.
      before: `evaluate` of the model's own probabilities.
      answers: float [n, C], the calibrated probabilities.
      rows: the n runs, not normalised.
      jobs: of each run.
      changes: int64 [n], of each run.
    """
    figures: dict[str, Any] = {"calibration": {**calibrated.description, "before": calibration_quality(before)}}
    if calibrated.rules is not None:
        means = run_means(rows.inputs, rows.n_windows)
        probabilities = shortest_decimals(answers)
        figures["verdicts"] = verdict_figures(calibrated.rules, probabilities, rows.labels, jobs, means, changes)
    return figures


def verdict_figures(
    rules: VerdictRules,
    probabilities: np.ndarray,
    labels: np.ndarray,
    jobs: Sequence[str],
    means: np.ndarray | None = None,
    changes: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compute the figures of the verdicts on runs that neither the model nor its calibration has seen.

    Args:
      rules: those of the model.
      probabilities: float64 [n, C], calibrated, as predictions record them
        (`ciml.training.calibration.sets.decimals`).
      labels: int [n].
      jobs: of each run.
      means: float64 [n, F], by `ciml.transforms.examples.prepare.run_means`; None if no run is to be checked against
        the ranges of the learned runs.
      changes: int64 [n], the change of each run, or None.

    Returns:
      JSON; shares are those of `ciml.training.evaluation.metrics.accuracy`:

      - ``runs``;
      - ``coverage``: the share of runs whose class is in their set, next to the ``stated`` coverage; also ``by_class``,
        and ``p``: of the first runs of each change, how probable at most so many are, by chance in these runs and in
        those of the calibration;
      - ``abstained``: the share of runs with the verdict unknown;
      - ``outside``: the share of runs whose verdict is unknown because they are unlike the learned runs;
      - ``set_sizes``: number of runs by the size of their set;
      - ``causes``: by class the number of ``verdicts``, their ``precision`` and ``recall``; unknown is not a verdict.
    """
    means_of_runs = [None] * len(labels) if means is None else list(means)
    verdicts = [
        make_verdict(job, dict(zip(rules.classes, shares, strict=True)), rules, run_means)
        for job, shares, run_means in zip(jobs, probabilities.tolist(), means_of_runs, strict=True)
    ]
    names = np.array([rules.classes[label] for label in labels], object)
    causes = np.array([verdict.cause for verdict in verdicts], object)
    is_covered = np.array([name in verdict.set for name, verdict in zip(names, verdicts, strict=True)], bool)
    groups = (
        rules.compared_with(job, without_output=rules.lacks_output(run_means))
        for job, run_means in zip(jobs, means_of_runs, strict=True)
    )
    compared = [group.scores_of(name) for group, name in zip(groups, names, strict=True)]
    sizes = [len(verdict.set) for verdict in verdicts]
    numbers = numbers_of(changes, len(labels))
    first = first_runs(numbers)

    def share(is_counted: np.ndarray, among: np.ndarray | slice = slice(None)) -> dict[str, Any]:
        return accuracy(is_counted[among], numbers[among])

    return {
        "runs": len(labels),
        "coverage": {
            "stated": rules.coverage,
            **share(is_covered),
            "by_class": {name: share(is_covered, names == name) for name in rules.classes},
            "p": _covered_p(int(is_covered[first].sum()), rules.coverage, [compared[row] for row in first.tolist()]),
        },
        "abstained": share(causes == UNKNOWN),
        "outside": share(np.array([verdict.outside is not None for verdict in verdicts], bool)),
        "set_sizes": {str(size): sizes.count(size) for size in range(len(rules.classes) + 1)},
        "causes": {
            name: {
                "verdicts": int((causes == name).sum()),
                "runs": int((names == name).sum()),
                "precision": share(names == name, causes == name),
                "recall": share(causes == name, names == name),
            }
            for name in rules.classes
        },
    }


def _covered_p(covered: int, coverage: float, compared: Sequence[Sequence[float]]) -> float:
    """Return the probability that at most ``covered`` runs have their class in their set.

    Given its calibration runs, a list of scores covers a share of all runs that has a beta distribution. So the number
    of runs that it covers is beta-binomial (Vovk 2012), and that of all lists is a sum of such numbers.

    Args:
      covered: number of runs.
      coverage: the stated one.
      compared: for each run the scores that it was compared with, as its class; those of a list are one object.
    """
    from scipy.signal import fftconvolve
    from scipy.stats import betabinom

    probabilities = np.ones(1)  # of each number of runs that are not covered
    scores_of_list = {id(scores): scores for scores in compared}
    for key, runs in Counter(map(id, compared)).items():
        ranks = len(scores_of_list[key]) + 1
        outside = int((np.arange(1, ranks) / ranks < 1 - coverage).sum())  # ranks that leave a class out of a set
        if outside:
            of_list = betabinom.pmf(np.arange(runs + 1), runs, outside, ranks - outside)
            probabilities = fftconvolve(probabilities, of_list)
    return float(np.clip(probabilities[len(compared) - covered :].sum(), 0.0, 1.0))
