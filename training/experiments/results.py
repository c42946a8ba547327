"""Reads stored trials, and compares them: the figures of each, and run by run its difference to the first one.

See `ciml.training.experiments.trials` for the files.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ciml.errors import CimlError, IntegrityError, UnknownExperimentError
from ciml.storage import Store
from ciml.training.evaluation import gate
from ciml.training.evaluation.metrics import answers, paired_interval
from ciml.training.evaluation.text import beaten_by
from ciml.training.experiments.trials import RESULT, experiment_names, experiment_store, load_experiment, read_stored

_PREDICTIONS = re.compile(r"predictions-([0-9a-f]{16})\.parquet")
#: The class whose F1 stands for a result where it is known; else it is the mean over the classes.
FAILED = "failed"
OTHER_RUNS = "other test runs"
NO_PREDICTIONS = "predictions are missing"


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for the test runs of a trial.

    Attributes:
      run_id: str [n].
      labels: int64 [n], positions in ``classes``.
      probabilities: float64 [n, C]; a row that is not finite is not a prediction.
      classes: names of the C classes.
    """

    run_id: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]

    @property
    def right(self) -> np.ndarray:
        """Whether each run's class was the most probable one, bool [n]."""
        correct: np.ndarray = answers(self.probabilities)[1] == self.labels
        return correct


@dataclass(frozen=True)
class Stored:
    """A stored trial.

    Attributes:
      experiment, dataset: names.
      store: the trial's folder.
      result: of `ciml.training.experiments.trials.Trial.run`; None if it was only cross-validated, or was killed.
      elsewhere: of `ciml.training.experiments.trials.Trial.run_on`, by the name of the data set.
      folds: of `ciml.training.evaluation.cross_validation.cross_validate`, by the held-out facts.
      older: number of older results of this experiment on this data set.
    """

    experiment: str
    dataset: str
    store: Store
    result: Mapping[str, Any] | None
    elsewhere: tuple[Mapping[str, Any], ...]
    folds: tuple[Mapping[str, Any], ...]
    older: int = 0

    @property
    def snapshot(self) -> str:
        """The snapshot's digest; "" without a result."""
        return str(self.result["snapshot"]["digest"]) if self.result else ""

    def predictions(self) -> Predictions | None:
        """Return the predictions for the test runs; None if the file is missing.

        Raises:
          IntegrityError: if the file differs from the recorded one.
        """
        if self.result is None:
            return None
        name = str(self.result["predictions"])
        classes = tuple(self.result["test"]["confusion"]["classes"])
        digest = _PREDICTIONS.fullmatch(name)
        if digest is None:
            raise IntegrityError(f"{self.store.url(RESULT)}: predictions: invalid file name {name!r:.100}")
        try:
            data = self.store.read(name)
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).hexdigest()[:16] != digest[1]:
            raise IntegrityError(f"{self.store.url(name)} was altered: its digest differs")
        return _predictions(data, classes)


def stored_trials(store: Store, experiments: Iterable[str], datasets: Sequence[str] = ()) -> list[Stored]:
    """Return the latest trial of each experiment on each data set, by data set, then in the order of ``experiments``.

    The latest trial has the most spans and versions of them, and the newest normalisation. Of equal trials, one whose
    snapshot other trials share is chosen, since only figures of the same runs can be compared.

    Args:
      store: the folder of all experiments.
      experiments: names.
      datasets: names of the data sets; all by default.

    Raises:
      IntegrityError: if a file is not JSON.
    """
    by_dataset: dict[str, dict[str, list[Stored]]] = {}
    for experiment in experiments:
        for trial in _trials(store, experiment, datasets):
            by_dataset.setdefault(trial.dataset, {}).setdefault(experiment, []).append(trial)
    out = []
    for dataset in sorted(by_dataset):
        trials = [trial for group in by_dataset[dataset].values() for trial in group]
        shared = {trial.snapshot: sum(another.snapshot == trial.snapshot for another in trials) for trial in trials}
        for group in by_dataset[dataset].values():
            latest = max(group, key=lambda trial: (_age(trial), shared[trial.snapshot], trial.store.root))
            out.append(replace(latest, older=sum(trial.result is not None for trial in group if trial is not latest)))
    return out


def named_results(
    store: Store, names: Sequence[str] = (), dataset: str | None = None
) -> list[tuple[Stored, Predictions | None]]:
    """Return the latest results of some experiments with their predictions, in the order of the names.

    Args:
      store: the folder of all experiments.
      names: each ``EXPERIMENT`` or ``DATASET/EXPERIMENT``; by default all experiments with a result on ``dataset``.
      dataset: the data set of names without one; it may be omitted where these have results on one data set alone.

    Raises:
      CimlError: there is no such experiment or result, or several data sets are possible.
      IntegrityError: a stored file was altered.
    """
    if not names and dataset is None:
        raise UnknownExperimentError("no experiments: name some, or a data set for all that have a result on it")
    keys = [
        (dataset_name, name)
        for dataset_name, _, name in (text.rpartition("/") for text in names or experiment_names(store))
    ]
    keys = list(dict.fromkeys((dataset_name or dataset or "", name) for dataset_name, name in keys))
    for _, name in keys if names else ():
        load_experiment(store, name)
    by_key = {
        (trial.dataset, trial.experiment): trial
        for trial in stored_trials(store, list(dict.fromkeys(name for _, name in keys)))
        if trial.result is not None and trial.result["test"]["runs"]
    }
    if names:
        plain = {name for dataset_name, name in keys if not dataset_name}
        possible = sorted({dataset_name for dataset_name, name in by_key if name in plain})
        if len(possible) > 1:
            raise CimlError(f"results on several data sets, {', '.join(possible)}: choose one, such as {possible[0]}")
        keys = [(dataset_name or "".join(possible), name) for dataset_name, name in keys]
        for dataset_name, name in keys:
            if (dataset_name, name) not in by_key:
                place = f"{f' on {dataset_name}' if dataset_name else ''} in {store.url()}"
                raise UnknownExperimentError(
                    f"no result of {name}{place}: ciml experiment train --experiment {name} "
                    f"--dataset {dataset_name or 'NAME'}"
                )
    selected = [by_key[key] for key in keys if key in by_key]
    if not selected:
        raise UnknownExperimentError(
            f"no result on {dataset} in {store.url()}: ciml experiment train --dataset {dataset}"
        )
    return [(trial, trial.predictions()) for trial in selected]


def _age(trial: Stored) -> tuple[int, int, int]:
    """Return (spans, sum of their versions, version of the normalisation), which only grow; zeros without a result."""
    if trial.result is None:
        return 0, 0, 0
    spans = trial.result["snapshot"]["spans"]
    return len(spans), sum(version for _, version in spans), trial.result.get("normalisation", 1)


def _trials(experiments: Store, experiment: str, datasets: Sequence[str]) -> Iterable[Stored]:
    store = experiment_store(experiments, experiment)
    files: dict[tuple[str, str], list[str]] = {}
    for path in store.list("results"):
        parts = path.split("/")
        if len(parts) == 4 and (not datasets or parts[1] in datasets):
            files.setdefault((parts[1], parts[2]), []).append(parts[3])
    for (dataset, trial), names in files.items():
        folder = store.child(f"results/{dataset}/{trial}")
        values = {name: read_stored(folder, name) for name in sorted(names) if name.endswith(".json")}
        stored = {name: value for name, value in values.items() if value is not None}
        elsewhere = tuple(value for name, value in stored.items() if name.startswith("on-"))
        folds = tuple(value for name, value in stored.items() if name.startswith("folds-"))
        if RESULT in stored or folds:
            yield Stored(experiment, dataset, folder, stored.get(RESULT), elsewhere, folds)


def _predictions(data: bytes, classes: tuple[str, ...]) -> Predictions:
    from ciml.runs.arrow import read_parquet

    table = read_parquet(data)
    # By Python's lists: for numpy, Arrow imports pandas, which takes longer than all this.
    tested = np.array(table["split"].to_pylist(), object) == "test"
    label_of = {name: label for label, name in enumerate(classes)}
    probabilities = [table[f"probability:{name}"].to_pylist() for name in classes]
    return Predictions(
        np.array(table["run_id"].to_pylist(), object)[tested],
        np.array([label_of[name] for name in table["label_name"].to_pylist()], np.int64)[tested],
        np.array(probabilities, np.float64).reshape(len(classes), table.num_rows).T[tested],
        classes,
    )


Figures = Mapping[str, Any]
#: A result, and its predictions for the test runs, None where their file is missing.
Tested = tuple[Stored, Predictions | None]


@dataclass(frozen=True)
class Compared:
    """An experiment of a comparison, on the test runs of one data set.

    Attributes:
      trial: the stored trial.
      result: its result.
      predictions: its predictions for the test runs; None if the file is missing.
      same_runs: whether it was tested on the same runs as the first one, with the same classes.
      against: `ciml.training.evaluation.gate.compare` with it as the candidate and the first one as the champion, but
        ``low`` and ``high`` bound the difference by 95 %; None for the first one, and where ``note`` says why.
      note: why it is not compared run by run; "" else.
    """

    trial: Stored
    result: Figures
    predictions: Predictions | None
    same_runs: bool = True
    against: Figures | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.trial.experiment

    def record(self) -> dict[str, str | int | float | None]:
        """Return its figures as one flat row; an unknown figure is None."""
        test = self.result["test"]
        baseline = best_baseline(self.result)
        f1_of = FAILED if FAILED in test["classes"] else "macro"
        f1 = test["classes"][FAILED]["f1"] if f1_of == FAILED else test["macro"]["f1"]
        against = self.against or {}
        return {
            "experiment": self.name,
            "dataset": self.trial.dataset,
            "estimator": self.result["experiment"]["estimator"],
            "runs": test["runs"],
            **_figure("accuracy", test["accuracy"]),
            "f1_of": f1_of,
            **_figure("f1", f1),
            **_figure("roc_auc", test["macro"]["roc_auc"]),
            "base_rate": test["base_rate"]["value"],
            "baseline": baseline,
            "baseline_accuracy": self.result["baselines"][baseline]["accuracy"]["value"] if baseline else None,
            "difference": against.get("difference"),
            "difference_low": against.get("low"),
            "difference_high": against.get("high"),
            "mcnemar": against.get("mcnemar"),
            "note": self.note,
        }


@dataclass(frozen=True)
class Comparison:
    """Experiments beside each other; the first one is the one that others are compared with.

    Attributes:
      rows: in the order of `compare`.
    """

    rows: tuple[Compared, ...]

    @property
    def beaten(self) -> str:
        """A sentence if one number of a run is more accurate than every experiment; else "".

        Only experiments with the test runs of the first one count.
        """
        alike = [row for row in self.rows if row.same_runs]
        accuracies = {row.name: row.result["test"]["accuracy"]["value"] for row in alike}
        baselines = {
            name: baseline["accuracy"]["value"] for row in alike for name, baseline in row.result["baselines"].items()
        }
        return beaten_by(accuracies, baselines)

    def records(self) -> list[dict[str, str | int | float | None]]:
        """Return a flat row for each experiment, such as for a data frame: see `Compared.record`."""
        return [row.record() for row in self.rows]


def compare(results: Sequence[Tested]) -> Comparison:
    """Compare results with the first of them (pure).

    Results of several data sets can be compared too, if their test runs and classes are the same.

    Args:
      results: in the order of the comparison; those without tested runs are omitted.

    Returns:
      The comparison. A result with other test runs than the first one has its figures, but no difference.

    Example:
      compare(named_results(data.experiments, ["forest", "wide"], "cpu-load")).records()
    """
    tested = [
        (trial, trial.result, predictions)
        for trial, predictions in results
        if trial.result and trial.result["test"]["runs"]
    ]
    if not tested:
        return Comparison(())
    sets = _test_sets([(trial, predictions) for trial, _, predictions in tested])
    first = tested[0][2]
    rows = []
    for place, (trial, result, predictions) in enumerate(tested):
        same = sets[place] == sets[0]
        against = _against(predictions, first) if place and same else None
        note = "" if same else OTHER_RUNS
        if place and same and against is None:
            note = NO_PREDICTIONS
        rows.append(Compared(trial, result, predictions, same, against, note))
    return Comparison(tuple(rows))


def by_accuracy(results: Sequence[Tested]) -> list[Tested]:
    """Return the results that were tested, the most accurate first; of equal ones that with the higher macro F1.

    Those with other test runs than most come last.
    """
    tested = [(trial, predictions) for trial, predictions in results if trial.result and trial.result["test"]["runs"]]
    sets = _test_sets(tested)
    counts = Counter(sets)
    usual = max(counts, key=lambda runs_digest: (counts[runs_digest], runs_digest), default="")

    def rank(place: int) -> tuple[Any, ...]:
        trial = tested[place][0]
        test = (trial.result or {})["test"]
        differs = sets[place] != usual
        return differs, -test["accuracy"]["value"], -test["macro"]["f1"]["value"], trial.experiment, trial.dataset

    return [tested[place] for place in sorted(range(len(tested)), key=rank)]


def best_baseline(result: Figures) -> str | None:
    """Return the name of the one-number baseline with the highest accuracy; None without any."""
    return max(result["baselines"], key=lambda name: result["baselines"][name]["accuracy"]["value"], default=None)


def _test_sets(tested: Sequence[Tested]) -> list[str]:
    """Return a text for each result; equal ones mean equal test runs and classes.

    Equal snapshots have equal test runs. So a result whose predictions are missing is that of its snapshot.
    """
    digests = {trial.snapshot: _runs_digest(predictions) for trial, predictions in tested if predictions is not None}
    return [digests.get(trial.snapshot, trial.snapshot) for trial, _ in tested]


def _runs_digest(predictions: Predictions) -> str:
    lines = sorted(
        f"{run_id}\0{predictions.classes[label]}\n"
        for run_id, label in zip(predictions.run_id, predictions.labels, strict=True)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _against(own: Predictions | None, first: Predictions | None) -> Figures | None:
    if own is None or first is None:
        return None
    right, first_right = (
        predictions.right[np.argsort(predictions.run_id, kind="stable")] for predictions in (own, first)
    )
    low, high = paired_interval(right, first_right)
    return {**gate.compare(right, first_right), "low": low, "high": high}


def _figure(name: str, value: Figures) -> dict[str, float | None]:
    return {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
