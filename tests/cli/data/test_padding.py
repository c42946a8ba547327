"""The length of examples on the command line: its default, and the share of padding that results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from ciml.cli.commands.data.dataset.build import make_talk_command
from ciml.cli.commands.data.dataset.text import longest_half_padded
from ciml.data_root import DataRoot
from tests.cli.calling import ciml
from tests.pipelines.datasets.test_auto_windows import run_of
from tests.runs.scenes import RawStore


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Runs of 2 s to 9 s, and one of 100 s."""
    lengths = [2 + number % 8 for number in range(120)] + [100]
    RawStore(DataRoot.open(tmp_path / "data")).add([run_of(number, each) for number, each in enumerate(lengths, 1)])
    return str(tmp_path / "data")


def dataset(*words: str, data: str, code: int = 0) -> Result:
    return ciml("dataset", *words, "--data-path", data, code=code)


def shape(data: str, name: str) -> tuple[object, int]:
    state = DataRoot.open(data).dataset(name).state()
    assert state.definition is not None
    assert state.resolved is not None
    return state.definition.max_windows, state.resolved.windows


def test_build_says_how_much_is_padding_and_what_to_set(data: str) -> None:
    words = ["--dataset", "cpu", "--sample-interval", "1s"]
    built = dataset("build", *words, data=data)
    assert shape(data, "cpu") == ("auto", 9)
    assert "cpu: 121 examples of 9 x 2" in built.stdout
    assert "  padding   38.6% of 9 windows\n" in built.stdout
    assert built.stderr == ""
    long = dataset("build", "--dataset", "long", "--sample-interval", "1s", "--max-windows", "5500", data=data)
    assert long.stderr == (
        "warning: 99.9% of the examples is padding: 99 % of the runs have at most 9 of 5500 windows; define it under "
        'another name with max_windows = "auto", or 9\n'
    )
    shown = dataset("show", "long", data=data)
    assert "examples   5500 windows of mean at 1s\n" in shown.stdout
    assert "padding    99.9% of 5500 windows\n" in shown.stdout
    assert shown.stderr == long.stderr
    described = json.loads(dataset("show", "cpu", "--json", data=data).stdout)
    assert described["padding"] == pytest.approx(1 - 669 / (9 * 121))
    wrong = dataset("build", "--dataset", "x", "--max-windows", "0", data=data, code=2)
    assert "invalid number of windows '0'; give a whole number, or auto" in wrong.output


def test_where_runs_differ_much_the_warning_says_so(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    RawStore(DataRoot.open(data)).add([run_of(number, each) for number, each in enumerate([2] * 80 + [100] * 5, 1)])
    built = dataset("build", "--dataset", "cpu", "--sample-interval", "1s", data=data)
    assert shape(data, "cpu") == ("auto", 100)
    assert built.stderr == (
        "warning: 92.2% of the examples is padding: the runs differ in length; max_windows = 4 leaves 47.1% and cuts "
        "5.9% of the runs, aggregation_functions need no padding\n"
    )
    functions = ["--aggregation-functions", "mean,std"]
    aggregated = dataset("build", "--dataset", "few", "--sample-interval", "1s", *functions, data=data)
    assert "padding" not in aggregated.output
    assert shape(data, "few") == (None, 2)


def test_create_and_update_resolve_it_at_the_first_span(data: str, tmp_path: Path) -> None:
    file = tmp_path / "cpu.toml"
    file.write_text('sample_interval = "1s"\nspan_runs = 100\n')
    made = dataset("create", "cpu", "--definition", str(file), data=data)
    assert made.output == (
        f"cpu: status of all, L = auto, at most 5500, at 1s; next: ciml dataset update cpu --data-path {data}\n"
    )
    shown = dataset("show", "cpu", data=data).output
    assert "examples   at most 5500 windows, not resolved yet, of mean at 1s\n" in shown
    updated = dataset("update", "cpu", data=data)
    assert updated.stdout.endswith("  padding   39.8% of 9 windows\n")
    assert shape(data, "cpu") == ("auto", 9)
    assert "padding" not in dataset("update", "cpu", data=data).output
    again = dataset("create", "cpu", "--definition", str(file), data=data)
    assert "L = 9, auto, at 1s" in again.output
    assert "  padding   39.8% of 9 windows\n" in again.output
    assert "examples   9 windows (auto) of mean at 1s\n" in dataset("show", "cpu", data=data).output


def test_the_scripts_of_the_talk_and_stored_definitions_keep_5500_s(data: str, tmp_path: Path) -> None:
    words = ["--dataset", "talk", "--sample-interval", "10min", "--data-path", data]
    for _ in range(2):
        done = CliRunner().invoke(make_talk_command(), words)
        assert done.exit_code == 0, done.output
        assert shape(data, "talk") == (None, 10)
    assert "all were there" in done.output
    other = str(tmp_path / "other")
    stored = f"{data}/datasets/talk/_definition.toml"
    dataset("build", "--definition", stored, "--target-data-path", other, data=data)
    assert shape(other, "talk") == (None, 10)
    # continued by ciml dataset build, replaced by --force with another definition
    assert "all were there" in dataset("build", *words[:4], data=data).output
    assert "all were there" in dataset("build", *words[:4], "--force", data=data).output
    dataset("build", *words[:4], "--features-regex", "usr", "--force", data=data)
    assert shape(data, "talk") == ("auto", 1)
    chosen = CliRunner().invoke(make_talk_command(), ["--dataset", "b", "--max-windows", "auto", "--data-path", data])
    assert chosen.exit_code == 0, chosen.output
    assert shape(data, "b")[0] == "auto"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=50), st.integers(0, 20))
def test_half_padding_is_the_longest_length_with_at_most_that(lengths: list[int], more: int) -> None:
    windows = max(lengths) + more
    kept = {L: sum(min(n, L) for n in lengths) for L in range(1, windows + 1)}
    length, left, cut = longest_half_padded(lengths, windows)
    assert length == max(L for L, count in kept.items() if 2 * count >= len(lengths) * L)
    assert left == pytest.approx(1 - kept[length] / (len(lengths) * length))
    assert cut == pytest.approx(sum(n > length for n in lengths) / len(lengths))
