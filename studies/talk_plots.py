"""Plot the stored results of `studies.talk`. Writes the plots of docs/experiments-results.md.

    python -m studies.talk_plots PROVIDERS STATUS TALK FOLDER

The first three arguments are the DATA folders of the plans with those names. PNG files are written to FOLDER.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.reports.drawing import COLORS, Plot
from studies.talk import Cell, providers, status, stored, talk

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        test = _json(path)["test"]
        figures.append([test["accuracy"][key] for key in ("value", "low", "high")])
        base.append([test["base_rate"]["value"]] * 3)
    return list(datasets), [Series("the talk's network", np.array(figures)), Series("base rate", np.array(base))]


def _json(path: Path) -> dict[str, Any]:
    import json

    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


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


def main(words: Sequence[str]) -> int:
    if len(words) != 4:
        print("usage: python -m studies.talk_plots PROVIDERS STATUS TALK FOLDER", file=sys.stderr)
        return 2
    providers_data, status_data, talk_data, folder = map(Path, words)
    for plot in (
        bars("talk-providers", "Which provider? The nine cells", *by_providers(providers_data), 10.5),
        bars("talk-status", "Pass or fail, by how much of a run is seen", *by_length(status_data), 7.5),
        bars("talk-resolution", "Which provider, by the length of a window (usr, 1m)", *by_resolution(talk_data), 6.5),
    ):
        Path(folder, f"{plot.name}.png").write_bytes(plot.png)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
