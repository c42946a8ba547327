"""Repeat the experiments of the talk on real runs, and plot them, for docs/experiments-results.md.

    python -m studies.talk providers|status|talk LISTING LOGS DATA
    python -m studies.talk plots PROVIDERS STATUS TALK FOLDER

The first form prints each ``ciml`` command before it runs it. Stored results are not computed again, so it can be
stopped and continued. The tables are made from the stored results only. The second form takes the DATA folders of the
three plans, and writes PNG files to FOLDER.
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
    """A cross-validation: an experiment on a data set, by run or with groups held out; without folds, a training and
    its test, and the same model on the test runs of others."""

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
    """Which cloud ran the job? Three sets of columns, three ways to divide the runs."""
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
    """Did the job pass? On whole runs and on beginnings of equal length; five seeds, each with folds of its own."""
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
    """The talk's own choices by its own network: features, resolution, topology, another job, merged classes."""
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


def lines(plan: Plan, listing: str, logs: str, data: str) -> Iterator[list[str]]:
    """The command lines of a plan, in order."""
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


def stored(data: Path, cell: Cell) -> dict[str, Any] | None:
    """The result of a cell, if there is one."""
    results = (data / "experiments" / cell.experiment / "results" / cell.dataset).glob(
        f"*/folds-{cell.by}-{cell.folds}.json"
    )
    for path in results:
        result: dict[str, Any] = json.loads(path.read_bytes())
        return result
    return None


def table(data: Path, plan: Plan) -> list[str]:
    """A line of a Markdown table for each cell that has a result; the seeds of one experiment share a line."""
    out = [
        "| columns or length | experiment | divided by | accuracy | precision | recall | F1 "
        "| one number: accuracy | F1 |",
        "|---" * 9 + "|",
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in plan.cells:
        if cell.folds and (result := stored(data, cell)) is not None:
            name = cell.experiment.rsplit("-", 1)[0] if cell.experiment[-2:-1] == "-" else cell.experiment
            groups.setdefault((cell.dataset, name, cell.by), []).append(result)
    for (dataset, name, by), results in groups.items():
        baselines = [accuracy for result in results for accuracy in result.get("baselines", {}).values()]
        pooled = [accuracy["pooled"] for accuracy in results]
        figures = (_accuracy(results), *(_pooled(pooled, name) for name in ("precision", "recall", "f1")))
        baseline = (
            (_accuracy(baselines), _pooled([accuracy["pooled"] for accuracy in baselines], "f1"))
            if baselines
            else ("", "")
        )
        out.append(f"| {dataset} | {name} | {by} | {' | '.join((*figures, *baseline))} |")
    return out


def _accuracy(results: Sequence[dict[str, Any]]) -> str:
    """The mean over folds with Student's interval; of several seeds the mean over seeds, and the lowest and highest."""
    means = [result["mean"]["accuracy"] for result in results]
    if len(means) == 1:
        return _figure(means[0])
    return _over([mean["value"] for mean in means])


def _pooled(pooled: Sequence[dict[str, Any]], name: str) -> str:
    """A figure of the failed where there are any, else the mean over the classes."""
    values = [(fold["classes"]["failed"] if "failed" in fold["classes"] else fold["macro"])[name] for fold in pooled]
    if len(values) == 1:
        return _figure(values[0])
    return _over([fold["value"] for fold in values])


def _over(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def trials(data: Path, plan: Plan) -> list[str]:
    """A line of a Markdown table for each training and each data set that it was tested on."""
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
    """A series of bars: figures float64 [bars, 3], value, low and high; NaN for a missing result."""

    name: str
    figures: np.ndarray


def _mean(result: dict[str, Any] | None) -> tuple[float, float, float]:
    mean = result["mean"]["accuracy"] if result else dict.fromkeys(("value", "low", "high"), np.nan)
    return mean["value"], mean["low"], mean["high"]


def _baseline(result: dict[str, Any] | None) -> tuple[float, float, float]:
    return _mean(next(iter(result["baselines"].values()), None) if result else None)


def by_providers(data: Path) -> tuple[list[str], list[Series]]:
    """The nine cells: ours, the talk's network, and memory alone."""
    fine = [cell for cell in providers().cells if cell.experiment in ("shapes", "level-ratios")]
    coarse = [Cell("dnn-5x100", f"{cell.dataset}-10s", cell.folds, cell.hold_out) for cell in fine]
    names = [f"{cell.dataset}\n{_BY[cell.by]}" for cell in fine]
    networks = [stored(data, cell) for cell in coarse]
    return names, [
        Series("boosted_summaries", np.array([_mean(stored(data, cell)) for cell in fine])),
        Series("the talk's network", np.array([_mean(result) for result in networks])),
        Series("memory alone", np.array([_baseline(result) for result in networks])),
    ]


def by_length(data: Path) -> tuple[list[str], list[Series]]:
    """Pass or fail, by how much of a run is seen; the first seed."""
    lengths = ["first-5", "first-10", "first-15", "first-20", "whole"]
    forests = [stored(data, Cell("forest-0", length, 5)) for length in lengths]
    networks = [stored(data, Cell("dnn-5x100", length, 5)) for length in lengths]
    assert all(cell in status().cells for cell in (Cell("forest-0", length, 5) for length in lengths))
    return [f"first {length[6:]} s" if length != "whole" else "whole run" for length in lengths], [
        Series("forest", np.array([_mean(result) for result in forests])),
        Series("the talk's network", np.array([_mean(result) for result in networks])),
        Series("duration alone (of the whole run)", np.array([_baseline(result) for result in forests])),
    ]


def by_resolution(data: Path) -> tuple[list[str], list[Series]]:
    """The talk's network on usr and 1m, by the length of a window."""
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


def bars(name: str, title: str, groups: Sequence[str], series: Sequence[Series], width_inches: float) -> Plot:
    """Plot accuracies side by side in groups, each with its 95 % interval."""

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
        bars("talk-providers", "Which provider? The nine cells", *by_providers(providers_data), 10.5),
        bars("talk-status", "Pass or fail, by how much of a run is seen", *by_length(status_data), 7.5),
        bars("talk-resolution", "Which provider, by the length of a window (usr, 1m)", *by_resolution(talk_data), 6.5),
    ):
        (folder / f"{plot.name}.png").write_bytes(plot.png)


def main(words: Sequence[str]) -> int:
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
    for line in lines(plan, *words[1:]):
        print("$", " ".join(line), flush=True)
        cli.main(line[1:], prog_name="ciml", standalone_mode=False)  # in this process: importing costs more than most
    print("\n".join((table if any(cell.folds for cell in plan.cells) else trials)(Path(data), plan)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
