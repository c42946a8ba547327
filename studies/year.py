"""Simulate a year of continuous training on recorded runs. Writes the plot and the tables of docs/year.md.

    python -m studies.year train/builds.jsonl --label framework --results year.json
    python -m studies.year train/builds.jsonl --label framework --half-life 60d --results decay.json
    python -m studies.year --plot docs/images year.json

The runs, their telemetry and their classes are real. The runs of each provider keep their recorded order; the year
interleaves the providers, and uses each run once. Their times, sources and authors are made up, and so are the events
of the year (`Plan`): machines that get faster, labels that arrive late, a week of wrong labels, a purge, an erasure and
a rollback. Snapshots, refreshes, gate, pushes, purges and the ledger are those of ciml, on a fake clock.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.events.records import OffsetRange
from ciml.manifest import rewrite
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.reports.drawing import COLORS, DASHES, Plot
from ciml.runs.erased import RunCriteria
from ciml.services.stored.erase import erase
from ciml.services.trainer import TrainerService
from ciml.serving.ledger import Entry, history, rollback
from ciml.serving.predict.log import Predicted, prediction_id
from ciml.serving.registry import Registry, Signature
from ciml.training.estimators import Rows, fit
from ciml.training.evaluation.baselines import predict_by
from ciml.training.evaluation.gate import GatePolicy
from ciml.training.exclusions import Exclusion, Exclusions
from ciml.training.experiment import Experiment
from ciml.training.export import Exported, load_exported
from ciml.training.learned import versions_that_learned
from ciml.training.purge import purge
from ciml.training.refresh import TrainConfig
from ciml.training.trainer import TrainResult, run_once
from ciml.transforms.examples.prepare import prepare_many
from ciml.trust import TrustPolicy
from studies.figures import share_with_interval
from studies.year_runs import BAD_SOURCE, DAY_US, SOURCE, START_US, Plan, Run, read, year_of
from tests.pipelines.predict.predicting import Predictions
from tests.runs.scenes import RawStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODEL = DATASET = "year"
OPERATOR = "an operator"
ERASURE = "erasure requested"
TRUST = TrustPolicy.parse(f'[[rule]]\nname = "farms"\ntrusted = true\nsource = ["{SOURCE}", "{BAD_SOURCE}"]\n')
#: The forest of docs/tutorial.md, smaller. Recorded values need no pipeline that normalises them.
FOREST = Experiment(name="year", estimator="random_forest", parameters={"n_estimators": 100}, view="flat")
#: Models and baselines, by the key of their answers.
METHODS = {
    "champion": "champion",
    "fixed": "first version, never trained again",
    "oracle": "retrained daily on all true labels",
    "duration": "duration alone, retrained daily",
    "base": "most frequent class",
}


class Clock:
    """The time of the year: it moves only by `set`."""

    def __init__(self) -> None:
        self.us = START_US

    def set(self, day: float) -> None:
        self.us = START_US + round(day * DAY_US)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let `time.time` and `time.time_ns` of this process return the time of the year.

        An erasure waits for no other process, since there is none.
        """
        with (
            patch("time.time", lambda: self.us / 1e6),
            patch("time.time_ns", lambda: self.us * 1000),
            patch.object(rewrite, "WAIT_S", 0.0),
        ):
            yield


@dataclass
class Year:
    """The simulation, a day at a time.

    Attributes:
      data: an empty data root.
      runs: of the year.
      label: the label of the data set.
      plan: the events.
      experiment: of the model.
      gate: its requirements.
      report: called with each event of the year, as a line.
      answers: by method, the class that it predicts for each run; -1 for none.
      events: what operators and the trainer did: day, and a line.
    """

    data: DataRoot
    runs: Sequence[Run]
    label: str
    plan: Plan
    experiment: Experiment = FOREST
    gate: GatePolicy = field(default_factory=GatePolicy)
    report: Callable[[str], object] = field(default=lambda line: None)
    answers: dict[str, np.ndarray] = field(default_factory=dict)
    events: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = Clock()
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))
        self._daily: Future[dict[str, np.ndarray]] | None = None
        self.names = sorted({run.name for run in self.runs})
        self.truth = np.array([self.names.index(run.name) for run in self.runs])
        self.days = np.array([run.day for run in self.runs])
        self.answers = {method: np.full(len(self.runs), -1) for method in METHODS}
        self.config = TrainConfig(self.data, DATASET, MODEL, self.experiment, TRUST, self.gate)
        self.registry = Registry(self.data, MODEL)
        self._raw = RawStore(self.data)
        self._predictions = Predictions(self.data.predictions, MODEL)
        self._announced = 0
        self._models: dict[int, Exported] = {}
        self._rows: Rows | None = None
        self._seconds = np.array([(run.facts.end_us - run.facts.start_us) / 1e6 for run in self.runs])  # type: ignore[operator]

    def simulate(self) -> None:
        """Run the year. Raises `AssertionError` if a push has no reason, or the served version should not serve."""
        with self.clock.running():
            definition = DatasetDefinition(
                name=DATASET,
                sample_interval="1s",
                features_regex="^(usr|1m)$",
                class_label=self.label,
                classes=tuple(self.names),
                max_windows=60,
                tdt_split=(3, 0, 1),
                span_runs=max(20, len(self.runs) // self.plan.weeks),
            )
            create_dataset(self.data, definition)
            service = TrainerService(self.config, self._report, triggers=self.plan.triggers)
            service.labels_s = 0.0
            for day in range(self.plan.weeks * 7):
                self.clock.set(day)
                self._operate(day)
                self._predict(day)
                self.clock.set(day + 0.9)
                self._store(day)
                if (work := service.plan()) is not None:
                    service.run(work)
        if self._daily is not None:
            self.answers |= self._daily.result()
        self._pool.shutdown()
        unexplained = unexplained_pushes(history(self.registry))
        assert not unexplained, unexplained

    def _store(self, day: int) -> None:
        runs = [(run.facts, run.table) for run in self.runs if run.stored == day]
        if runs:
            self._raw.add(runs)
            update_dataset(self.data.dataset(DATASET))

    def _report(self, result: TrainResult) -> None:
        what = f"pushed version {result.version}" if result.outcome == "pushed" else result.outcome
        self._note(f"{what}: {'; '.join(result.reasons)[:300]}")

    def _note(self, line: str) -> None:
        day = (self.clock.us - START_US) // DAY_US
        self.events.append((day, line))
        self.report(f"week {day // 7}: {line}")

    def _operate(self, day: int) -> None:
        """Do what the plan says of the operators."""
        week, of_week = divmod(day, 7)
        if of_week:
            return
        plan = self.plan
        if week == plan.purge and plan.bad is not None:
            since_us = START_US + plan.bad * 7 * DAY_US
            bad = Exclusion("wrong labels", source=BAD_SOURCE, since_us=since_us, until_us=since_us + 7 * DAY_US)
            self._take_back(bad)
        if week in plan.erase:
            self._forget("author-7")
        if week == plan.rollback:
            state = self.registry.state
            if state.champion is not None and state.predecessor(state.champion) is not None:
                signed = Signature(OPERATOR, "users report wrong answers since the last push")
                pushed = rollback(self.data, MODEL, signed=signed)
                self._note(f"rolled back to version {pushed.version}: {signed.reason}")

    def _take_back(self, exclusion: Exclusion) -> None:
        """Purge some runs, and check that the version that serves then has never learned from them."""

        def retrain(model: str, dataset: str) -> TrainResult:
            result = run_once(self.config, reason=f"purge: {exclusion.reason}")
            self._report(result)
            return result

        purged = purge(self.data, exclusion, Signature(OPERATOR, exclusion.reason), retrain)
        for model in purged:
            self._note(f"purged ({exclusion.reason}): withdrawn {model.withdrawn}, serves {model.champion}")
        learned = versions_that_learned(self.data, Exclusions((exclusion,)), [MODEL])
        serving = self.registry.state.champion
        assert not [version for version in learned if version.version == serving], "a purged version serves"

    def _forget(self, owner: str) -> None:
        """Withdraw what learned from an author's runs, and erase the runs."""
        self._take_back(Exclusion(ERASURE, owner=owner))
        for receipt, remaining in erase(self.data, RunCriteria(owner=owner), Signature(OPERATOR, ERASURE)):
            assert not remaining, remaining
            self._note(f"erased {len(receipt.runs)} runs: {sum(receipt.changed.values())} objects changed or removed")
        self._raw = RawStore(self.data)  # an erasure appends to the manifest

    def _predict(self, day: int) -> None:
        """Answer the runs that end on a day by the champion and the first version; record the champion's predictions.

        The first time, begin with the methods that are trained daily, in another process.
        """
        today = np.flatnonzero(self.days == day)
        version = self.registry.state.champion
        if not today.size or not self.registry.state.pushed():
            return
        rows = self._inputs()
        if version is not None:
            shares = self._model(version).predict(rows.inputs[today], rows.n_windows[today])
            self.answers["champion"][today] = shares.argmax(axis=1)
            self._record(today, version, shares)
        shares = self._model(self.registry.state.pushed()[0]).predict(rows.inputs[today], rows.n_windows[today])
        self.answers["fixed"][today] = shares.argmax(axis=1)
        if self._daily is None:
            every = self.experiment.replace(window=None, half_life=None)
            self._daily = self._pool.submit(daily, every, rows, self.days, self._seconds, day)

    def _inputs(self) -> Rows:
        if self._rows is None:
            resolved = self.data.dataset(DATASET).state().resolved
            assert resolved is not None
            inputs, n_windows, rejected = prepare_many([run.table for run in self.runs], resolved)
            assert not rejected
            self._rows = Rows(inputs, n_windows, self.truth)
        return self._rows

    def _model(self, version: int) -> Exported:
        if version not in self._models:
            self._models[version] = load_exported(self.registry.folder(version).root)
        return self._models[version]

    def _record(self, rows: np.ndarray, version: int, shares: np.ndarray) -> None:
        """Record predictions as the stream does."""
        first = self._announced
        self._announced += rows.size
        predictions = [
            {
                "offset": offset,
                "id": prediction_id(self.runs[row].facts.run_id, MODEL, version),
                "run_id": self.runs[row].facts.run_id,
                "model": MODEL,
                "version": version,
                "label": self.label,
                "class": self.names[int(of_run.argmax())],
                "probabilities": dict(zip(self.names, of_run.tolist(), strict=True)),
                "time_us": self.clock.us,
            }
            for offset, (row, of_run) in enumerate(zip(rows.tolist(), shares, strict=True), first)
        ]
        covers = OffsetRange("runs", "", 0, first, self._announced)
        assert self._predictions.commit([Predicted(covers, predictions)])

    def result(self) -> dict[str, Any]:
        """Return the answers, the events and the ledger as JSON."""
        entries = [{"day": (entry.time_us - START_US) // DAY_US, **asdict(entry)} for entry in history(self.registry)]
        return {
            "plan": asdict(self.plan),
            "experiment": self.experiment.to_json(),
            "weeks": (self.days // 7).tolist(),
            "truth": self.truth.tolist(),
            "names": self.names,
            "answers": {method: answers.tolist() for method, answers in self.answers.items()},
            "events": [list(event) for event in self.events],
            "ledger": entries,
        }


def daily(
    experiment: Experiment, rows: Rows, days: np.ndarray, seconds: np.ndarray, first: int
) -> dict[str, np.ndarray]:
    """Answer runs by methods that are trained each day on all runs that ended before, with their true labels.

    Args:
      experiment: of the model.
      rows: the runs with their true labels.
      days: int [n], on which each run ended.
      seconds: float [n], how long it took.
      first: the first day.

    Returns:
      By method int [n], the class of each run; -1 for runs before the first day.
    """
    answers = {method: np.full(len(days), -1) for method in ("oracle", "duration", "base")}
    truth = rows.labels
    classes = int(truth.max()) + 1
    for day in range(first, int(days.max()) + 1):
        today, before = np.flatnonzero(days == day), np.flatnonzero(days < day)
        if not today.size:
            continue
        shares = fit(experiment, rows.take(before), None, classes).predict(rows.inputs[today], rows.n_windows[today])
        answers["oracle"][today] = shares.argmax(axis=1)
        tree = predict_by("duration", seconds[before], truth[before], seconds[today], classes)
        answers["duration"][today] = tree.argmax(axis=1)
        answers["base"][today] = np.bincount(truth[before]).argmax()
    return answers


def unexplained_pushes(entries: Iterator[Entry]) -> list[str]:
    """Return the entries of a ledger that changed what serves, and do not say why, or by whom.

    A push needs the reason of its training and the gate's reasons; a decision of a person needs author and reason.
    """
    reasons: dict[tuple[str, str], tuple[str, ...]] = {}
    unexplained = []
    for entry in entries:
        if entry.action in ("train", "bless", "reject"):
            reasons[entry.action, entry.candidate] = entry.reasons
        elif entry.action == "push":
            missing = [action for action in ("train", "bless") if not reasons.get((action, entry.candidate))]
            if missing:
                unexplained.append(f"push of version {entry.version}: no reason of {' and '.join(missing)}")
        elif not entry.author or not entry.reasons:
            unexplained.append(f"{entry.action} at {entry.time_us}: no author or reason")
    return unexplained


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the accuracy of each method over the runs that all of a year's methods answered, in Markdown."""
    lines = ["| year | method | runs | accuracy | before the drift | after it |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        weeks, truth = np.array(result["weeks"]), np.array(result["truth"])
        answers = {method: np.array(values) for method, values in result["answers"].items()}
        answered = np.all([values >= 0 for values in answers.values()], axis=0)
        drift = result["plan"]["drift"]
        parts = [answered, answered & (weeks < drift), answered & (weeks >= drift)] if drift else [answered]
        for method, text in METHODS.items():
            right = (answers[method] == truth).astype(float)
            figures = []
            for part in parts:
                value, low, high = share_with_interval(right[part], np.ones(part.sum()), weeks[part])
                figures.append(f"{value:.3f} ({low:.3f}–{high:.3f})")
            lines.append(f"| {name} | {text} | {answered.sum():,} | {' | '.join(figures)} |")
    return "\n".join(lines)


def plot(result: Mapping[str, Any]) -> Plot:
    """Return the accuracy of each method by week, with the pushes and the events."""
    weeks, truth = np.array(result["weeks"]), np.array(result["truth"])
    plan = result["plan"]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (method, text) in enumerate(METHODS.items()):
            answers = np.array(result["answers"][method])
            known = [week for week in range(plan["weeks"]) if (answers[weeks == week] >= 0).any()]
            right = [np.mean((answers == truth)[(weeks == week) & (answers >= 0)]) for week in known]
            widths = {"champion": 2.4, "fixed": 1.6}
            axes.plot(known, right, color=COLORS[number], ls=DASHES[number], lw=widths.get(method, 1.2), label=text)
        for key, name in {"drift": "faster machines", "bad": "wrong labels", "purge": "purge", "rollback": "rollback",
                          "erase": "erasure"}.items():  # fmt: skip
            if plan[key]:
                week = np.min(plan[key])  # the first
                axes.axvline(week, color="#888888", lw=0.8, ls=":")
                axes.annotate(name, (week, 1.0), xycoords=("data", "axes fraction"), fontsize=7.5, rotation=25,
                              va="bottom", ha="left", xytext=(-2, 1), textcoords="offset points")  # fmt: skip
        pushes = [entry["day"] / 7 for entry in result["ledger"] if entry["action"] == "push"]
        axes.plot(pushes, [0.02] * len(pushes), "^", color="#333333", ms=5, transform=axes.get_xaxis_transform(),
                  label=f"push ({len(pushes)})")  # fmt: skip
        axes.set_xlabel("week")
        axes.set_ylabel("share of the week's runs that is right")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)

    return Plot("year", "A year of continuous training: accuracy by week", "", (9.5, 4.6), paint)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("listing", type=Path, nargs="?", help="JSON lines, with the logs beside them")
    parser.add_argument("--label", default="framework", help="metadata of a run that the model predicts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--window", help="train on recent runs, such as 140d")
    parser.add_argument("--half-life", help="weigh runs by their age, such as 60d")
    parser.add_argument("--results", type=Path, help="JSON file of the year")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="write the plot of --results there; no LISTING")
    parser.add_argument("more", type=Path, nargs="*", help="results of further years, for the table")
    options = parser.parse_args()
    if options.plot is not None:
        files = [options.listing, *options.more]
        results = {path.stem: json.loads(path.read_text()) for path in files}
        (options.plot / "year.png").write_bytes(plot(results[files[0].stem]).png)
        print(table(results))
        return 0
    began = time.perf_counter()
    plan = Plan(seed=options.seed)
    runs = year_of(read(options.listing, options.label), options.label, plan)
    experiment = FOREST.replace(window=options.window, half_life=options.half_life)
    with tempfile.TemporaryDirectory() as folder:
        report = partial(print, file=sys.stderr, flush=True)
        year = Year(DataRoot.open(folder), runs, options.label, plan, experiment, report=report)
        year.simulate()
        result = {**year.result(), "seconds": time.perf_counter() - began}
    options.results.write_text(json.dumps(result))
    print(Counter(entry["action"] for entry in result["ledger"]), f"{result['seconds']:.0f} s")
    print(table({options.results.stem: result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
