"""Repeat the experiments of the talk on real runs, and plot them, for docs/experiments-results.md.

    python -m studies.talk providers|status|talk LISTING LOGS DATA
    python -m studies.talk plots PROVIDERS STATUS TALK FOLDER

The first form runs the ``ciml`` commands of a plan and prints its tables. It can be stopped and continued, because
stored results are not computed again. The second form takes the DATA folders of the three plans, and writes PNG files
to FOLDER.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.cli.main import cli
from ciml.reports.drawing import COLORS, Plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_MEMORY = "^(?!(used|free|buff|cach|avai)$)"
TALK = ("--estimator", "tf.estimator.DNNClassifier", "--batch-size", "128", "--epochs", "500", "--steps", "7500")


@dataclass(frozen=True)
class Cell:
    """A training of an experiment on a data set: a cross-validation, or without folds one model.

    Attributes:
      folds: number of folds of the cross-validation; 0 for one model, which is tested on the test runs.
      hold_out: the groups of the folds, such as job; "" for single runs.
      others: further data sets whose test runs the one model is tested on.
    """

    experiment: str
    dataset: str
    folds: int = 0
    hold_out: str = ""
    others: tuple[str, ...] = ()

    @property
    def by(self) -> str:
        return self.hold_out or "run"


@dataclass(frozen=True)
class Plan:
    """Data sets and experiments by name with their options, and the cells in the order of their tables."""

    datasets: Mapping[str, tuple[str, ...]]
    experiments: Mapping[str, tuple[str, ...]]
    cells: tuple[Cell, ...]


def _divided(experiment: str, dataset: str) -> tuple[Cell, ...]:
    return Cell(experiment, dataset, 3), Cell(experiment, dataset, 5, "flavour"), Cell(experiment, dataset, 3, "job")


def providers() -> Plan:
    """Return the plan for "Which cloud ran the job?": three sets of columns, three ways to divide the runs."""
    common = ("--class-label", "provider", "--tdt-split", "1", "0", "0")
    second = (*common, "--sample-interval", "1s", "--max-windows", "300")
    coarse = (*common, "--sample-interval", "10s", "--max-windows", "30")
    boosted = ("--estimator", "boosted_summaries")
    return Plan(
        {
            "usr-1m": (*second, "--features-regex", "^(usr|1m)$"),
            "no-memory": (*second, "--features-regex", "^(?!(used|free|buff|cach)$)"),
            "all-columns": (*second, "--features-regex", "."),
            "usr-1m-10s": (*coarse, "--features-regex", "^(usr|1m)$"),
            "no-memory-10s": (*coarse, "--features-regex", "^(?!(used|free|buff|cach)$)"),
            "all-columns-10s": (*coarse, "--features-regex", "."),
        },
        {
            "shapes": (*boosted, "-p", "levels=0", "-p", "shapes=4"),
            "level-ratios": (
                *(*boosted, "-p", "levels=2", "-p", "shapes=0"),
                *("-p", "max_iter=70", "-p", "learning_rate=0.15"),
            ),
            "levels": (*boosted, "-p", "levels=6", "-p", "shapes=0", "-p", "columns=0.75"),
            "dnn-5x100": (*TALK, "--hidden-layers", "100/100/100/100/100"),
        },
        (
            *_divided("shapes", "usr-1m"),
            *_divided("level-ratios", "no-memory"),
            *_divided("level-ratios", "all-columns"),
            *(Cell("levels", dataset, 3, "job") for dataset in ("no-memory", "all-columns")),
            *_divided("dnn-5x100", "usr-1m-10s"),
            *_divided("dnn-5x100", "no-memory-10s"),
            *_divided("dnn-5x100", "all-columns-10s"),
        ),
    )


def status() -> Plan:
    """Return the plan for "Did the job pass?": on whole runs and on their first seconds, with five seeds and folds."""
    common = ("--class-label", "status", "--tdt-split", "1", "0", "0", "--sample-interval", "1s")
    lengths = {"whole": ("--max-windows", "120")} | {
        f"first-{n}": ("--max-windows", str(n), "--min-windows", str(n)) for n in (5, 10, 15, 20)
    }
    datasets: dict[str, tuple[str, ...]] = {name: (*common, *length) for name, length in lengths.items()}
    datasets |= {
        f"{name}-no-memory": (*options, "--features-regex", NO_MEMORY) for name, options in list(datasets.items())
    }
    experiments: dict[str, tuple[str, ...]] = {
        f"forest-{seed}": ("--estimator", "random_forest", "--seed", str(seed)) for seed in range(5)
    }
    experiments["dnn-5x100"] = (*TALK, "--hidden-layers", "100/100/100/100/100")
    by_run = tuple(Cell(f"forest-{seed}", dataset, 5) for dataset in datasets for seed in range(5))
    by_job = tuple(Cell("forest-0", dataset, 4, "job") for dataset in datasets)
    return Plan(datasets, experiments, (*by_run, *by_job, *(Cell("dnn-5x100", dataset, 5) for dataset in lengths)))


def talk() -> Plan:
    """Return the plan for the choices of the talk: features, resolution, topology, another job, merged classes."""
    common = ("--class-label", "provider", "--sample-interval", "10s", "--max-windows", "30")
    features = ("usr", "used", "1m", "usr|1m", "usr|used", "usr|used|1m")
    datasets: dict[str, tuple[str, ...]] = {
        f"features-{pattern.replace('|', '-')}": (*common, "--features-regex", f"^({pattern})$") for pattern in features
    }
    pair = ("--class-label", "provider", "--features-regex", "^(usr|1m)$")
    datasets |= {
        f"every-{interval}": (*pair, "--sample-interval", interval, "--max-windows", str(length))
        for interval, length in (("1s", 300), ("5s", 60), ("30s", 10), ("1min", 5))
    }
    datasets |= {
        f"job-{job}": (*common, "--features-regex", "^(usr|1m)$", "--build-name", job)
        for job in ("spark-sort", "spark-terasort", "hadoop-sort")
    }
    flavours = (*common[2:], "--class-label", "flavour", "--features-regex", "^(usr|1m)$")
    datasets["flavours"] = flavours
    merges = (part for name in ("alibaba", "huawei", "tencent") for part in ("--class-map", f"{name}=other"))
    datasets["aws-or-not"] = (*common, "--features-regex", "^(usr|1m)$", "--class-map", "aws=aws", *merges)
    layers = {"3x10": "10/10/10", "3x100": "100/100/100", "5x100": "/".join(["100"] * 5), "3x500": "500/500/500"}
    experiments = {f"dnn-{name}": (*TALK, "--hidden-layers", units) for name, units in layers.items()}
    topology = "dnn-5x100"
    jobs = ("job-spark-terasort", "job-hadoop-sort")
    cells = [Cell(topology, name) for name in datasets if name.startswith(("features", "every"))]
    cells += [Cell(name, "features-usr-1m") for name in experiments if name != topology]
    cells += [Cell(topology, "job-spark-sort", others=jobs), Cell(topology, "flavours"), Cell(topology, "aws-or-not")]
    return Plan(datasets, experiments, tuple(cells))


def commands(plan: Plan, listing: str, logs: str, data: str) -> Iterator[list[str]]:
    """Yield the words of each command of a plan, in order."""
    yield ["ciml", "backfill", listing, "--logs", logs, "--data-path", data]
    for name, options in plan.datasets.items():
        yield ["ciml", "dataset", "build", "--dataset", name, *options, "--data-path", data]
    for name, options in plan.experiments.items():
        yield ["ciml", "experiment", "define", name, *options, "--data-path", data]
    for cell in plan.cells:
        yield [
            *("ciml", "experiment", "train", "--experiment", cell.experiment, "--dataset", cell.dataset),
            *(("--cross-validate", str(cell.folds)) if cell.folds else ()),
            *(("--hold-out", cell.hold_out) if cell.hold_out else ()),
            *(word for dataset in cell.others for word in ("--eval-dataset", dataset)),
            *("--data-path", data),
        ]


def read_result(data: Path, cell: Cell) -> dict[str, Any] | None:
    """Return the result of a cross-validation; None without one."""
    results = (data / "experiments" / cell.experiment / "results" / cell.dataset).glob(
        f"*/folds-{cell.by}-{cell.folds}.json"
    )
    for path in results:
        result: dict[str, Any] = json.loads(path.read_bytes())
        return result
    return None


def cross_validation_table(data: Path, plan: Plan) -> list[str]:
    """Return the lines of a Markdown table: one for the seeds of an experiment on a data set, as far as they ran."""
    out = [
        "| columns or length | experiment | divided by | accuracy | precision | recall | F1 "
        "| one number: accuracy | F1 |",
        "|---" * 9 + "|",
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in plan.cells:
        if cell.folds and (result := read_result(data, cell)) is not None:
            name = cell.experiment.rsplit("-", 1)[0] if cell.experiment[-2:-1] == "-" else cell.experiment
            groups.setdefault((cell.dataset, name, cell.by), []).append(result)
    for (dataset, name, by), results in groups.items():
        baselines = [baseline for result in results for baseline in result.get("baselines", {}).values()]
        figures = [_accuracy(results), *(_pooled(results, figure) for figure in ("precision", "recall", "f1"))]
        figures += [_accuracy(baselines), _pooled(baselines, "f1")] if baselines else ["", ""]
        out.append(f"| {dataset} | {name} | {by} | {' | '.join(figures)} |")
    return out


def _accuracy(results: Sequence[dict[str, Any]]) -> str:
    """Return the mean accuracy over the folds, as `_over_seeds`."""
    return _over_seeds([result["mean"]["accuracy"] for result in results])


def _pooled(results: Sequence[dict[str, Any]], name: str) -> str:
    """Return a figure over all folds, as `_over_seeds`: of the class "failed", or the mean over classes without it."""
    pooled = [result["pooled"] for result in results]
    return _over_seeds([seed["classes"].get("failed", seed["macro"])[name] for seed in pooled])


def _over_seeds(figures: Sequence[dict[str, float]]) -> str:
    """Return the figure of one seed with its interval; the mean of several, with the lowest and the highest."""
    if len(figures) == 1:
        return _figure(figures[0])
    values = [figure["value"] for figure in figures]
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def trial_table(data: Path, plan: Plan) -> list[str]:
    """Return the lines of a Markdown table: one for each model and each data set that it was tested on."""
    out = [
        "| learned on | experiment | tested on | runs | accuracy | base rate | macro F1 | one number: accuracy |",
        "|---" * 8 + "|",
    ]
    for cell in plan.cells:
        for path in sorted((data / "experiments" / cell.experiment / "results" / cell.dataset).glob("*/*.json")):
            if cell.folds or path.name.startswith("folds"):
                continue
            result: dict[str, Any] = json.loads(path.read_bytes())
            test = result["test"]
            accuracies = [baseline["accuracy"] for baseline in result["baselines"].values()]
            figures = (_figure(test["accuracy"]), f"{test['base_rate']['value']:.3f}", _figure(test["macro"]["f1"]))
            number = ", ".join(_figure(baseline) for baseline in accuracies)
            where = (cell.dataset, cell.experiment, result["dataset"], str(test["runs"]))
            out.append(f"| {' | '.join((*where, *figures, number))} |")
    return out


def _figure(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


_BY = {"run": "runs held out", "flavour": "flavours held out", "job": "jobs held out"}


@dataclass(frozen=True)
class Series:
    """Bars of one colour: float64 [bars, 3], with value, low and high of each; NaN for a missing result."""

    name: str
    figures: np.ndarray


def _mean(result: dict[str, Any] | None) -> tuple[float, float, float]:
    """Return the value, low and high of the mean accuracy of a cross-validation; NaN without one."""
    mean = result["mean"]["accuracy"] if result else dict.fromkeys(("value", "low", "high"), np.nan)
    return mean["value"], mean["low"], mean["high"]


def _baseline(result: dict[str, Any] | None) -> tuple[float, float, float]:
    """Return the same for the result's first baseline."""
    return _mean(next(iter(result["baselines"].values()), None) if result else None)


def by_providers(data: Path) -> tuple[list[str], list[Series]]:
    """Return the nine data sets and divisions, and their bars: ciml's estimator, the talk's network, only memory."""
    fine = [cell for cell in providers().cells if cell.experiment in ("shapes", "level-ratios")]
    coarse = [Cell("dnn-5x100", f"{cell.dataset}-10s", cell.folds, cell.hold_out) for cell in fine]
    names = [f"{cell.dataset}\n{_BY[cell.by]}" for cell in fine]
    networks = [read_result(data, cell) for cell in coarse]
    return names, [
        Series("boosted_summaries", np.array([_mean(read_result(data, cell)) for cell in fine])),
        Series("the talk's network", np.array([_mean(result) for result in networks])),
        Series("memory alone", np.array([_baseline(result) for result in networks])),
    ]


def by_length(data: Path) -> tuple[list[str], list[Series]]:
    """Return the lengths of runs, and their bars for pass or fail, with the first seed."""
    lengths = ["first-5", "first-10", "first-15", "first-20", "whole"]
    forests = [read_result(data, Cell("forest-0", length, 5)) for length in lengths]
    networks = [read_result(data, Cell("dnn-5x100", length, 5)) for length in lengths]
    assert all(Cell("forest-0", length, 5) in status().cells for length in lengths)
    return [f"first {length[6:]} s" if length != "whole" else "whole run" for length in lengths], [
        Series("forest", np.array([_mean(result) for result in forests])),
        Series("the talk's network", np.array([_mean(result) for result in networks])),
        Series("duration alone (of the whole run)", np.array([_baseline(result) for result in forests])),
    ]


def by_resolution(data: Path) -> tuple[list[str], list[Series]]:
    """Return the lengths of a window, and the bars of the talk's network on usr and 1m."""
    datasets = {length: f"every-{length.replace(' ', '')}" for length in ("1 s", "5 s", "10 s", "30 s", "1 min")}
    datasets["10 s"] = "features-usr-1m"  # the talk's own length
    assert set(datasets.values()) <= set(talk().datasets)
    figures = []
    base = []
    for name in datasets.values():
        (path,) = (data / "experiments/dnn-5x100/results" / name).glob("*/result.json")
        test = json.loads(path.read_bytes())["test"]
        figures.append([test["accuracy"][key] for key in ("value", "low", "high")])
        base.append([test["base_rate"]["value"]] * 3)
    return list(datasets), [Series("the talk's network", np.array(figures)), Series("base rate", np.array(base))]


def bar_plot(name: str, title: str, groups: Sequence[str], series: Sequence[Series], width_inches: float) -> Plot:
    """Return a plot with a group of bars for each name in ``groups``, each bar with its 95 % interval."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        width = 0.8 / len(series)
        for number, one_series in enumerate(series):
            value, low, high = one_series.figures.T
            position = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
            spread = np.maximum([value - low, high - value], 0)
            axes.bar(position, value, width * 0.92, color=COLORS[number], label=one_series.name)
            axes.errorbar(position, value, spread, fmt="none", ecolor="#333333", elinewidth=0.8, capsize=2)
        axes.set_xticks(range(len(groups)), groups, fontsize=7.5)
        axes.set_ylim(0, 1.08)
        axes.set_ylabel("accuracy, with 95 % intervals")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(series), frameon=False)

    return Plot(name, title, "", (width_inches, 3.6), paint)


def write_plots(providers_data: Path, status_data: Path, talk_data: Path, folder: Path) -> None:
    """Write the plots of the three plans' stored results as PNG files."""
    for plot in (
        bar_plot("talk-providers", "Which provider? The nine cells", *by_providers(providers_data), 10.5),
        bar_plot("talk-status", "Pass or fail, by how much of a run is seen", *by_length(status_data), 7.5),
        bar_plot(
            "talk-resolution", "Which provider, by the length of a window (usr, 1m)", *by_resolution(talk_data), 6.5
        ),
    ):
        (folder / f"{plot.name}.png").write_bytes(plot.png)


def main(words: Sequence[str]) -> int:
    """Run one form of the command line. Returns the exit code."""
    plans = {"providers": providers, "status": status, "talk": talk}
    if len(words) == 5 and words[0] == "plots":
        write_plots(*map(Path, words[1:]))
        return 0
    if len(words) != 4 or words[0] not in plans:
        print("usage: python -m studies.talk providers|status|talk LISTING LOGS DATA", file=sys.stderr)
        print("   or: python -m studies.talk plots PROVIDERS STATUS TALK FOLDER", file=sys.stderr)
        return 2
    plan = plans[words[0]]()
    data = words[3]
    for command in commands(plan, *words[1:]):
        print("$", " ".join(command), flush=True)
        # In this process, because starting one takes longer than most commands.
        cli.main(command[1:], prog_name="ciml", standalone_mode=False)
    table_of = cross_validation_table if any(cell.folds for cell in plan.cells) else trial_table
    print("\n".join(table_of(Path(data), plan)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
