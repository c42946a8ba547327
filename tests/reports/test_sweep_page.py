"""What is to be seen of a sweep: the best at each value, tables, command lines, and names that mean harm."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.pipelines.sweep import Swept
from ciml.reports.page import save
from ciml.reports.sweeps import best_at, complete, csv_of, define_lines, question_name, questions, ranked, rows_of
from ciml.reports.sweeps.page import axis_plot, heat_plots, sweep_page, time_plot, trials_table
from ciml.storage import open_store
from ciml.training.experiment import Experiment
from ciml.training.sweeps.definition import Sweep
from ciml.training.sweeps.study import Outcome
from tests.reports.test_plot import check_files, self_contained

#: A script, a formula that is none, an attribute; what cannot be printed is refused before it is a name.
HOSTILE = (
    "<script>alert(1)</script>",
    "$\\frac{1}{",
    "\"><img src=x onerror='alert(2)'>",
    "[bold]x[/]",
    "=1+1",
    "_hidden",
)
CLASSES = {"four <b>": {}, "two": {"a": "x", "b": "y"}}


def swept(**keys: Any) -> Swept:
    """A sweep of 6 features × 2 resolutions × 2 questions; the value falls with the index of each; every 5th is pruned
    at 0.2 and every 11th has failed."""
    vary = {
        "dataset": {
            "features_regex": {name: f"usr{index}" for index, name in enumerate(HOSTILE)},
            "sample_interval": ["10min", "10s"],
            "class_map": CLASSES,
        }
    }
    sweep = Sweep.from_json({"name": "tests", "dataset": {"class_label": "provider"}, "vary": vary, "seed": 4, **keys})
    outcomes = []
    for number, cell in enumerate(sweep.grid):
        best = 0.9 - 0.05 * HOSTILE.index(str(cell["features_regex"])) - 0.2 * (cell["sample_interval"] == "10s")
        value: dict[str, Any] = {"number": number, "question": sweep.question_of(cell), "parameters": cell}
        if number % 11 == 1:
            value |= {"state": "failed", "reason": f"features_regex {HOSTILE[0]!r} selects none"}
        elif number % 5 == 2:
            value |= {"state": "pruned", "value": 0.2, "steps": [[1, 0.2]], "seconds": 0.5}
        else:
            scores = {"accuracy": best, "f1": best - 0.1, "base_rate": 0.3}
            value |= {"state": "complete", "value": best, "low": best - 0.1, "high": best + 0.05, "steps": [[3, best]]}
            value |= {"scores": scores, "seconds": 2.5 + number, "dataset": f"sweep-{number}"}
        outcomes.append(Outcome.from_json({**value, "experiment": Experiment(name="tests", epochs=9).to_json()}))
    number = {"memory": {"what": "used", "value": 0.97, "low": 0.9, "high": 1.0}}
    return Swept(sweep, tuple(outcomes), (number, number), 0)


def test_trials_are_ranked_within_their_question() -> None:
    one = swept()
    order = questions(one.sweep)
    assert [question_name(one.sweep, question) for question in order] == list(CLASSES)
    for question in order:
        found = ranked(one, question)
        assert len(found) == 12
        assert {each.question for each in found} == {question}
        values = [each.value for each in complete(one, question)]
        assert values == sorted(values, reverse=True)
        states = [each.state for each in found]
        assert states == sorted(states, key=("complete", "pruned", "failed").index)
        best = best_at(complete(one, question), one.sweep.axis("sample_interval"))
        for (interval,), each in best.items():
            same = [other.value for other in complete(one, question) if other.parameters["sample_interval"] == interval]
            assert each.value == max(same)
        table = trials_table(one, question)
        assert [row[0] for row in table.rows] == [str(each.number) for each in found]
        assert table.headings[1:4] == ("features", "resolution", "state")
        assert {row[-3:-1] for row in table.rows} == {("0.300", "0.970")}
    losses = swept(metric="brier")
    values = [each.value for each in complete(losses, 0)]
    assert values == sorted(values)


def test_a_row_for_each_trial_comes_back_from_csv() -> None:
    one = swept()
    back = list(csv.DictReader(io.StringIO(csv_of(one).decode())))
    assert len(back) == 24
    for read, row in zip(back, rows_of(one), strict=True):
        numbers = {key: float(read[key]) for key, value in row.items() if isinstance(value, int | float)}
        assert numbers == {key: row[key] for key in numbers}
        words = {key: value for key, value in row.items() if key not in numbers}
        assert {key: read[key] or None for key in words} == words
    assert {row["features_regex"] for row in back} == set(HOSTILE)


def test_the_page_needs_nothing_and_no_name_is_markup(tmp_path: Path) -> None:
    page = self_contained(Path(save(open_store(tmp_path), sweep_page(swept()))).read_text())
    assert all(name in page.text for name in (*HOSTILE, *CLASSES, "the test runs were not read"))
    check_files(
        tmp_path,
        *("by-01-features-regex", "by-02-sample-interval", "map-01-sample-interval-features-regex"),
        *("questions", "seconds"),
    )


def test_lines_hold_the_best_and_the_axis_of_time_is_in_its_unit() -> None:
    one = swept()
    axes = drawn(axis_plot(one, one.sweep.axis("sample_interval"), 1))
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["10s", "10min"]
    assert axes[0].get_xticks().tolist() == [10.0, 600.0]
    assert axes[0].get_xscale() == "log"
    question = questions(one.sweep)[0]
    for name in HOSTILE:
        of = [each for each in complete(one, question) if each.parameters["features_regex"] == name]
        wanted = [
            max((each.value or 0.0 for each in of if each.parameters["sample_interval"] == at), default=None)
            for at in ("10s", "10min")
        ]
        lines = [[None if value != value else value for value in line.get_ydata()] for line in axes[0].get_lines()]
        assert wanted in lines or wanted == [None, None]
    (heat,) = heat_plots(one)
    cells = drawn(heat)[0].get_images()[0].get_array()
    assert cells.shape == (6, 2)
    for each in complete(one, question):
        where = (
            HOSTILE.index(str(each.parameters["features_regex"])),
            ["10min", "10s"].index(str(each.parameters["sample_interval"])),
        )
        assert cells[where] == each.value
    assert cells.count() == len(complete(one, question))
    took = sum(each.seconds for each in one.outcomes)
    assert time_plot(one).title == f"21 trials took {took / 60:.3g} min of training in all; 4 were pruned"


def drawn(plot: Any) -> list[Any]:
    from matplotlib.figure import Figure

    figure = Figure()
    plot.paint(figure)
    return figure.axes


def test_a_range_is_drawn_as_points_on_its_own_axis(tmp_path: Path) -> None:
    vary = {"experiment": {"learning_rate": {"low": 1e-4, "high": 0.1, "log": True}, "hidden_layers": ["1", "2/3"]}}
    sweep = Sweep.from_json({"name": "rates", "vary": vary, "trials": 3, "metric": "log_loss"})
    outcomes = []
    for number, (rate, layers, loss) in enumerate([(0.001, "1×1", 0.7), (0.01, "1×1", 0.6), (0.02, "2/3", 0.5)]):
        trial = {"number": number, "question": 0, "state": "complete", "value": loss, "steps": [[3, loss]]}
        trial |= {"parameters": {"learning_rate": rate, "hidden_layers": layers}, "scores": {"base_rate": 0.5}}
        outcomes.append(Outcome.from_json(trial | {"seconds": 1.5}))
    one = Swept(sweep, tuple(outcomes), ({},), 3)
    (axes,) = drawn(axis_plot(one, sweep.axis("learning_rate"), 1))
    points = sorted(tuple(point) for each in axes.collections for point in each.get_offsets().tolist())
    assert (axes.get_xscale(), points) == ("log", [(0.001, 0.7), (0.01, 0.6), (0.02, 0.5)])
    assert trials_table(one, 0).rows[0][:5] == ("2", "0.02", "2/3", "complete", "0.500")
    assert "log scale" in Path(save(open_store(tmp_path), sweep_page(one))).read_text()


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"estimator": "dnn", "hidden_layers": "9/9", "batch_norm": True, "learning_rate": 0.01},
            "--estimator dnn --batch-norm --hidden-layers 9/9 --learning-rate 0.01",
        ),
        (
            {"estimator": "random_forest", "parameters": {"max_depth": None, "bootstrap": False, "n_estimators": 5}},
            "--estimator random_forest -p bootstrap=false -p max_depth=none -p n_estimators=5",
        ),
    ],
)
def test_the_winner_is_defined_by_a_line_that_gives_the_same_experiment(
    keys: dict[str, Any], line: str, tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from ciml.cli.main import cli
    from ciml.training.experiments.results import load_experiment

    experiment = Experiment.from_json({**keys, "name": "tests"})
    one = swept().outcomes[0].replace(number=7, dataset="sweep-1s-00", experiment=experiment.to_json())
    define, train = define_lines(swept(), one, str(tmp_path))
    assert sorted(define.split()) == sorted(f"ciml experiment define tests-7 {line} --data-path {tmp_path}".split())
    assert train == f"ciml experiment train --experiment tests-7 --dataset sweep-1s-00 --data-path {tmp_path}"
    DataRoot.open(tmp_path).datasets.create("x", b"")
    done = CliRunner().invoke(cli, define.split()[1:])
    assert done.exit_code == 0, done.output
    assert load_experiment(DataRoot.open(tmp_path).experiments, "tests-7").replace(name="tests") == experiment
