"""Measure how good verdicts are on recorded runs. Writes the tables of figures in docs/verdicts.md.

    python -m studies.verdicts FOLDER… [--since 2026-11-27]

A FOLDER is a recording: ``builds.jsonl`` and the logs that it names. The recordings contain the true cause of each
failure, which no CI system knows. Whole changes are held out; profiles, model and calibration are made without them.

With ``--since``, nothing is learned from the runs of that day and later, and the tables are of these runs only. They
then evaluate a model and columns that were chosen without those runs.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition, resolve
from ciml.events.outcomes import CAUSES, FAILED
from ciml.events.records import RunFacts
from ciml.telemetry import telemetry_columns
from ciml.training.calibration.calibrate import lacks_output
from ciml.training.calibration.calibrators import fit_calibrator
from ciml.training.calibration.sets import learned_ranges, make_rules
from ciml.training.estimators import Rows, fit, inputs_for
from ciml.training.evaluation.baselines import predict_by
from ciml.training.experiment import Experiment
from ciml.training.normalise import Normalisation
from ciml.transforms.examples.context import profiles_of
from ciml.transforms.examples.prepare import prepare_many, run_means
from ciml.transforms.profiles import Profiles, make_profiles
from ciml.verdict_rules import UNKNOWN, Verdict, make_verdict
from studies.figures import share_with_interval, table
from studies.recordings import EXAMPLES, Recorded, day_us, read

#: The part of a fold's learning changes that calibrate. In examples/cause.toml, which has outputs, it is a half.
DEV_OF = 4
#: The small network that was the example until trees could be served.
NETWORK = Experiment(
    name="network",
    hidden_layers=(16,),
    l2=0.003,
    epochs=300,
    batch_size=32,
    learning_rate=0.03,
    calibration="temperature",
)
EXAMPLE = "the example"
#: Methods that do not see the telemetry.
BASELINES = frozenset({"base rate", "duration", "exit status and timeout"})


@dataclass(frozen=True)
class Fold:
    """The failed runs of a fold: indices into `Recorded.failed`, and the features by what the fold may see.

    Attributes:
      learned, dev, held: int64, disjoint in their changes.
      inputs: float32 [failed, L, F].
      n_windows: int32 [failed].
      profiles: of the passing runs that the fold may see; None in made-up folds.
    """

    learned: np.ndarray
    dev: np.ndarray
    held: np.ndarray
    inputs: np.ndarray
    n_windows: np.ndarray
    features: tuple[str, ...]
    profiles: Profiles | None = None


def folds_by(
    runs: Recorded, since_us: int | None, folds: int, repeats: int, dev_of: int = DEV_OF
) -> Iterator[tuple[int, Fold]]:
    """Yield the folds of `fold_of_later_runs` if there is a time, else those of `folds_of`."""
    if since_us is None:
        return folds_of(runs, folds, repeats, dev_of)
    return fold_of_later_runs(runs, since_us, repeats, dev_of)


def folds_of(runs: Recorded, folds: int, repeats: int, dev_of: int = DEV_OF) -> Iterator[tuple[int, Fold]]:
    """Yield (repeat, fold) with whole changes held out, and others for the calibration."""
    from sklearn.model_selection import StratifiedGroupKFold

    labels, groups = runs.labels, runs.failed_groups
    for repeat in range(repeats):
        splits = StratifiedGroupKFold(folds, shuffle=True, random_state=repeat).split(labels, labels, groups)
        for training, held in splits:
            hidden = set(groups[held])
            visible = [index for index in range(len(runs.facts)) if runs.groups[index] not in hidden]
            learned, dev = divide(training, labels, groups, repeat, dev_of)
            yield repeat, Fold(learned, dev, held, *features_of(runs, visible))


def fold_of_later_runs(runs: Recorded, since_us: int, repeats: int, dev_of: int = DEV_OF) -> Iterator[tuple[int, Fold]]:
    """Yield (repeat, fold) with the runs held out that ended at this time or later.

    The repeats differ in the changes that calibrate.

    Raises:
      ValueError: a change has runs on both sides.
    """
    later = np.array([(run.end_us or 0) >= since_us for run in runs.facts])
    divided = set(runs.groups[later]) & set(runs.groups[~later])
    if divided:
        raise ValueError(f"change {min(divided)} has runs before and after the time")
    failed = np.array(runs.failed)
    features = features_of(runs, np.flatnonzero(~later).tolist())
    earlier = np.flatnonzero(~later[failed])
    held = np.flatnonzero(later[failed])
    for repeat in range(repeats):
        learned, dev = divide(earlier, runs.labels, runs.failed_groups, repeat, dev_of)
        yield repeat, Fold(learned, dev, held, *features)


def divide(
    visible: np.ndarray, labels: np.ndarray, groups: np.ndarray, repeat: int, dev_of: int = DEV_OF
) -> tuple[np.ndarray, np.ndarray]:
    """Divide the runs that are not held out into those that are learned, and those of other changes that calibrate."""
    from sklearn.model_selection import StratifiedGroupKFold

    inner = StratifiedGroupKFold(dev_of, shuffle=True, random_state=repeat)
    learned, dev = next(inner.split(labels[visible], labels[visible], groups[visible]))
    return visible[learned], visible[dev]


def features_of(runs: Recorded, seen: Sequence[int]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], Profiles]:
    """Return inputs, numbers of windows and names of the features of the failed runs, and profiles of the seen ones."""
    failed = runs.failed
    resolved = resolved_of(runs, seen)
    inputs, n_windows, rejected = prepare_many([runs.tables[index] for index in failed], resolved, runs.failed_facts)
    assert not rejected, rejected
    return inputs, n_windows, resolved.features, profiles_of(resolved)


def resolved_of(runs: Recorded, seen: Sequence[int]) -> ResolvedDefinition:
    """Return the definition of the example without the context ``log``; columns and profiles are of the seen runs."""
    definition = DatasetDefinition.load(EXAMPLES / "cause.toml", name="cause")
    definition = definition.replace(context=tuple(kind for kind in definition.context or () if kind != "log"))
    columns = [telemetry_columns(runs.tables[index].column_names) for index in seen]
    passed = [(runs.facts[index], runs.tables[index]) for index in seen]
    return resolve(definition, columns, [], profiles=lambda names: make_profiles(passed, names).to_json())


Answer = Callable[[Fold, np.ndarray], tuple[np.ndarray, np.ndarray]]


def by_experiment(experiment: Experiment, only: tuple[str, ...] = ("",)) -> Answer:
    """Return a function of (fold, labels) to the probabilities of the dev and the held-out runs, not calibrated.

    ``only`` are prefixes of the names of the features that count.
    """

    def answer(fold: Fold, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen = [column for column, name in enumerate(fold.features) if name.startswith(only)]
        rows = Rows(fold.inputs[:, :, chosen], fold.n_windows, labels)
        normal = inputs_for(experiment, Normalisation.of(rows.inputs[fold.learned]), rows)
        fitted = fit(experiment, normal.take(fold.learned), None, len(CAUSES))
        dev = normal.take(fold.dev)
        held = normal.take(fold.held)
        return fitted.predict(dev.inputs, dev.n_windows), fitted.predict(held.inputs, held.n_windows)

    return answer


def by_base_rate(fold: Fold, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of each class among the learned runs, for every run."""
    share = np.bincount(labels[fold.learned], minlength=len(CAUSES)) / len(fold.learned)
    return np.tile(share, (len(fold.dev), 1)), np.tile(share, (len(fold.held), 1))


def by_duration(runs: Recorded) -> Answer:
    """A small tree of the seconds from start to end."""
    seconds = np.array([((run.end_us or 0) - (run.start_us or 0)) / 1e6 for run in runs.failed_facts])

    def answer(fold: Fold, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        learned = seconds[fold.learned], labels[fold.learned]
        dev, held = (predict_by("duration", *learned, seconds[rows], len(CAUSES)) for rows in (fold.dev, fold.held))
        return dev, held

    return answer


def by_outcome(fold: Fold, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A tree of timeout, exit status and signal."""
    from sklearn.tree import DecisionTreeClassifier

    columns = [column for column, name in enumerate(fold.features) if name.startswith("outcome:")]
    values = fold.inputs[:, 0, columns]
    model = DecisionTreeClassifier(min_samples_leaf=3, random_state=0).fit(values[fold.learned], labels[fold.learned])
    return model.predict_proba(values[fold.dev]), model.predict_proba(values[fold.held])


class Verdicts(NamedTuple):
    """The verdicts of one method on the held-out runs: arrays [repeats, n].

    Attributes:
      probability: float64 [repeats, n, C], calibrated.
      said: the index of the cause, or C for unknown.
      inside: bool, whether the run's own cause is in its set.
      outside: bool, whether the run is unlike those that the method learned.
    """

    probability: np.ndarray
    said: np.ndarray
    inside: np.ndarray
    outside: np.ndarray

    def of(self, runs: np.ndarray) -> Verdicts:
        """Return the verdicts on some of the runs, by their indices."""
        return Verdicts(*(part[:, runs] for part in self))


def verdicts_by(
    answer: Answer,
    folds: Sequence[tuple[int, Fold]],
    labels: np.ndarray,
    failed: Sequence[RunFacts],
    coverage: float,
    *,
    outside: bool = True,
    hide: Callable[[Fold], Fold] | None = None,
) -> Verdicts:
    """Make the verdicts of a method on the held-out runs of each fold.

    With ``outside``, a run unlike the learned ones is unknown; ``hide`` withholds telemetry of dev and held-out runs.
    """
    shape = (folds[-1][0] + 1, len(labels))
    verdicts = Verdicts(
        np.zeros((*shape, len(CAUSES))), np.zeros(shape, np.int64), np.zeros(shape, bool), np.zeros(shape, bool)
    )
    for repeat, fold in folds:
        judged = verdicts_of_fold(answer, fold, labels, failed, coverage, outside=outside, hide=hide)
        for row, shares, verdict in judged:
            verdicts.outside[repeat, row] = verdict.outside is not None
            verdicts.probability[repeat, row] = shares
            verdicts.said[repeat, row] = len(CAUSES) if verdict.cause == UNKNOWN else CAUSES.index(verdict.cause)
            verdicts.inside[repeat, row] = CAUSES[labels[row]] in verdict.set
    return verdicts


def verdicts_of_fold(
    answer: Answer, fold: Fold, labels: np.ndarray, failed: Sequence[RunFacts], coverage: float, *,
    outside: bool = True, hide: Callable[[Fold], Fold] | None = None,
) -> Iterator[tuple[int, np.ndarray, Verdict]]:  # fmt: skip
    """Calibrate a method on the dev runs of a fold; yield (row, probabilities, verdict) of each held-out run."""
    dev, held = (values.astype(np.float32) for values in answer(fold, labels))
    withheld = None
    if hide is not None:
        withheld, held = (values.astype(np.float32) for values in answer(hide(fold), labels))
    calibrator = fit_calibrator(dev, labels[fold.dev])
    jobs = [failed[row].build_name for row in fold.dev]
    lacks = lacks_output(fold.inputs[fold.dev], fold.features) if outside else None
    rules = make_rules(
        calibrator.apply(dev), labels[fold.dev], jobs, CAUSES, coverage=coverage, calibration={}, without_output=lacks,
        without_telemetry=None if withheld is None else calibrator.apply(withheld),
    )  # fmt: skip
    means = run_means(fold.inputs, fold.n_windows)
    if outside:
        rows = np.concatenate([fold.learned, fold.dev])
        rules = rules.replace(ranges=learned_ranges(means[rows], [failed[row] for row in rows], fold.features))
    for row, shares in zip(fold.held.tolist(), calibrator.apply(held), strict=True):
        by_cause = {name: float(str(share)) for name, share in zip(CAUSES, shares, strict=True)}
        job = failed[row].build_name
        yield row, shares, make_verdict(job, by_cause, rules, means[row], without_telemetry=hide is not None)


def figures(found: Verdicts, labels: np.ndarray, groups: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """Return each figure with its 95 % interval: a bootstrap of whole changes, over all repeats at once."""
    counts = _counts(found, labels)
    return {name: share_with_interval(top, bottom, groups) for name, (top, bottom) in counts.items()}


def differences(
    first: Verdicts, second: Verdicts, labels: np.ndarray, groups: np.ndarray
) -> dict[str, tuple[float, float, float]]:
    """Return the figures of all runs of a method less those of another one, with intervals as in `figures`."""
    minuend = _counts(first, labels)
    subtrahend = _counts(second, labels)
    return {
        name: share_with_interval(minuend[name][0] - subtrahend[name][0], minuend[name][1], groups)
        for name in ("accuracy", "brier", "decided rightly", "unknown", "coverage")
    }


def _counts(found: Verdicts, labels: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return by figure its numerator and denominator of each run, each [n]."""
    likely = found.probability.argmax(axis=2)
    counts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    ones = np.ones_like(found.said, bool)
    counts["accuracy"] = (likely == labels).sum(axis=0), ones.sum(axis=0)
    for label, name in enumerate(CAUSES):
        of_label = labels == label
        for prefix, predicted in (("", likely), ("sure ", found.said)):
            right = ((predicted == label) & of_label).sum(axis=0)
            counts[f"{prefix}{name} precision"] = right, (predicted == label).sum(axis=0)
            counts[f"{prefix}{name} recall"] = right, (of_label & ones).sum(axis=0)
    counts["decided rightly"] = (found.said == labels).sum(axis=0), ones.sum(axis=0)
    counts["unknown"] = (found.said == len(CAUSES)).sum(axis=0), ones.sum(axis=0)
    counts["outside"] = found.outside.sum(axis=0), ones.sum(axis=0)
    counts["coverage"] = found.inside.sum(axis=0), ones.sum(axis=0)
    brier = ((found.probability - np.eye(len(CAUSES))[labels]) ** 2).sum(axis=2)
    counts["brier"] = brier.sum(axis=0), ones.sum(axis=0)
    return counts


def reliability(found: Verdicts, labels: np.ndarray, bins: int = 5) -> list[tuple[int, float, float]]:
    """Return (verdicts, mean probability, share that was right) by the probability of the most probable class."""
    probability = found.probability.max(axis=2).ravel()
    right = (found.probability.argmax(axis=2) == labels).ravel()
    order = np.array_split(np.argsort(probability, kind="stable"), bins)
    return [(group.size, float(probability[group].mean()), float(right[group].mean())) for group in order]


def label_noise(runs: Recorded) -> dict[str, int]:
    """Count how often reruns contradict the recorded cause, and how unchanged reruns end."""
    both = [run_id for run_id in runs.known if run_id in runs.rerun]
    counts = Counter((runs.known[run_id], runs.rerun[run_id]) for run_id in both)
    return {
        "failed": sum(run.outcome in FAILED for run in runs.facts),
        "known": len(runs.known),
        "by reruns": len(runs.rerun),
        "by reruns alone": len(runs.rerun.keys() - runs.known.keys()),
        "both": len(both),
        **{f"known {truth}, rerun says {rerun}": counts[truth, rerun] for truth in CAUSES for rerun in CAUSES},
    }


def methods(runs: Recorded, experiment: Experiment) -> dict[str, Answer]:
    """Return the compared methods by name: three baselines, the example, parts of it, and others."""
    forest = Experiment(estimator="random_forest", name="forest")
    svm = Experiment(estimator="svm", name="svm", parameters={"C": 0.1})
    no_exit = ("usr", "stl", "profile:", "outcome:timeout")
    return {
        "base rate": by_base_rate,
        "duration": by_duration(runs),
        "exit status and timeout": by_outcome,
        EXAMPLE: by_experiment(experiment),
        "the example, outcome alone": by_experiment(experiment, ("outcome:",)),
        "random forest": by_experiment(forest),
        "network of 16": by_experiment(NETWORK),
        "logistic regression": by_experiment(NETWORK.replace(hidden_layers=())),
        "linear SVM": by_experiment(svm),
        "timeout alone": by_experiment(experiment, ("outcome:timeout",)),
        "the example, no exit status": by_experiment(experiment, no_exit),
        "random forest, no exit status": by_experiment(forest, no_exit),
        "network of 16, no exit status": by_experiment(NETWORK, no_exit),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="a part of the names of the methods")
    parser.add_argument("--since", type=day_us, help="hold out all runs of this day (UTC) and later")
    options = parser.parse_args()
    experiment = Experiment.load(EXAMPLES / "cause-experiment.toml")
    runs = read(options.folders)
    labels, groups, facts = runs.labels, runs.failed_groups, runs.failed_facts
    causes = Counter(runs.truth(run.run_id) for run in facts)
    print(f"{len(runs.facts)} runs; {len(facts)} failed with a cause, {dict(causes)}")
    for term, count in label_noise(runs).items():
        print(f"  {term}: {count}")
    folds = list(folds_by(runs, options.since, options.folds, options.repeats))
    held = np.unique(np.concatenate([fold.held for _, fold in folds]))
    print(f"features: {len(folds[0][1].features)}; {len(held)} runs held out, {dict(Counter(labels[held].tolist()))}")
    rows = {}
    by_method = {}
    for name, answer in methods(runs, experiment).items():
        if options.only in name:
            verdicts = verdicts_by(answer, folds, labels, facts, experiment.coverage, outside=name not in BASELINES)
            by_method[name] = verdicts.of(held)
            rows[name] = figures(by_method[name], labels[held], groups[held])
            print(name, {key: round(value[0], 3) for key, value in rows[name].items()}, flush=True)
    of_causes = [f"{name} {term}" for name in CAUSES for term in ("precision", "recall")]
    print(table(rows, ["accuracy", *of_causes, "brier"]))
    print(table(rows, [*(f"sure {name}" for name in of_causes), "unknown", "outside", "coverage"]))
    for name in by_method if EXAMPLE in by_method else ():
        less = differences(by_method[EXAMPLE], by_method[name], labels[held], groups[held])
        cells = (f"{term} {value:+.3f} ({low:+.3f} to {high:+.3f})" for term, (value, low, high) in less.items())
        print(f"{EXAMPLE} less {name}: {'; '.join(cells)}")
    for name, verdicts in by_method.items():
        curve = reliability(verdicts, labels[held])
        print(name, "; ".join(f"{mean:.2f} said, {right:.2f} right ({count})" for count, mean, right in curve))


if __name__ == "__main__":
    main()
