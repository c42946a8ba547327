from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition, auto_windows, interval_us, label_of, resolve
from ciml.errors import CimlError
from ciml.events.outcomes import OUTCOMES
from ciml.events.records import RunFacts

COLUMNS = ("total cpu usage:usr", "memory usage:used", "load avg:1m", "load avg:5m", "swap:used")


def run(**facts: Any) -> RunFacts:
    return RunFacts("zuul~1~1", "1", "unit", **facts)


def test_intervals_and_lengths() -> None:
    """An example has the windows of 5,500 seconds, unless the definition says otherwise."""
    assert [interval_us(text) for text in ("500ms", "s", "10s", "2h")] == [500_000, 10**6, 10**7, 7200 * 10**6]
    lengths = {"1s": 5500, "10s": 550, "7s": 786, "1min": 92, "10min": 10, "2h": 1}
    definitions = [DatasetDefinition(name="x", sample_interval=interval) for interval in lengths]
    assert [definition.most_windows for definition in definitions] == list(lengths.values())
    assert DatasetDefinition(name="x", max_windows=30).most_windows == 30
    assert DatasetDefinition(name="x", aggregation_functions=("mean", "std")).most_windows == 2
    for text in ("", "0s", "00min", "-1s", "1.5s", "10", "10S", "10 s", "1m", "1d", "٣s", "1s\n"):
        with pytest.raises(CimlError, match="interval"):
            interval_us(text)


@given(st.lists(st.integers(0, 600), max_size=300), st.none() | st.integers(1, 550))
def test_the_automatic_length_is_the_least_that_cuts_one_in_a_hundred(lengths: list[int], least: int | None) -> None:
    definition = DatasetDefinition(name="x", max_windows="auto", min_windows=least)
    found = auto_windows(definition, lengths)
    counted = [min(length, 550) for length in lengths if length >= (least or 1)]
    assert (least or 1) <= found <= 550
    assert counted or found == 550
    if counted:
        assert 100 * sum(length > found for length in counted) <= len(counted)
        assert 100 * sum(length > found - 1 for length in counted) > len(counted)


def test_a_definition_without_the_key_is_stored_as_before() -> None:
    plain = DatasetDefinition(name="x")
    assert plain.to_json()["max_windows"] is None
    assert plain.digest == "f56ad0222a51644030e172dbff4fad89b5a0517106987e09b7732fed8829ebdd"
    auto = DatasetDefinition.from_json({"name": "x", "max_windows": "auto"})
    assert (auto.max_windows, auto.to_json()["max_windows"], auto.most_windows) == ("auto", "auto", 550)
    assert 'max_windows = "auto"\n' in auto.to_toml()
    assert DatasetDefinition(name="x", max_windows="auto", sample_interval="1ms").most_windows == 100_000


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"nmae": 1}, "nmae: unknown key"),
        ({"name": "../x"}, "name: '../x' is not valid; use letters, digits, dashes, dots, underscores"),
        ({"sample_interval": "0s"}, "sample_interval: interval '0s': must be longer than zero"),
        ({"sample_interval": "ten"}, "interval 'ten': want a whole number with ms, s, min or h, such as 10s or 1min"),
        ({"sample_interval": "1ms"}, "sample_interval: 1ms gives 5500000 windows; set max_windows"),
        ({"features_regex": "(usr"}, "features_regex: '(usr' is not a regular expression: "),
        ({"classes": ["a"]}, "classes: want at least two classes"),
        ({"classes": ["a", "a"]}, "classes: class names must be different"),
        ({"class_map": {"x": "a", "y": "a"}}, "class_map: want at least two classes"),
        ({"classes": ["a", "b"], "class_map": {"x": "c"}}, "class_map: 'c' is not in classes"),
        ({"tdt_split": [0, 1, 2]}, "tdt_split: want three weights of 0 or more for train, dev and test, with train"),
        ({"tdt_split": [7, 3]}, "tdt_split"),
        ({"build_name": []}, "build_name: is empty; give jobs, globs or all"),
        ({"sample_statistic": "mode"}, "sample_statistic: 'mode' is unknown; choose from mean, min, max, std, last"),
        ({"aggregation_functions": ["mode"]}, "aggregation_functions.0: 'mode' is unknown; choose from mean, std"),
        ({"aggregation_functions": ["min", "min"]}, "aggregation_functions: a function appears twice"),
        ({"aggregation_functions": ["min"], "max_windows": 3}, "max_windows: cannot be combined with"),
        ({"max_windows": 0}, "max_windows: expected int >= 1"),
        ({"max_windows": "most"}, "max_windows: 'most' is unknown; choose from auto"),
        ({"max_windows": "auto", "aggregation_functions": ["min"]}, "max_windows: cannot be combined with"),
        ({"max_windows": "auto", "min_windows": 551}, "min_windows: is above the 550 windows of an example"),
        ({"span_runs": 0}, "span_runs: expected int >= 1"),
    ],
)
def test_a_bad_definition_gets_one_clear_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(CimlError) as caught:
        DatasetDefinition.from_json({"name": "x", **keys}, "cpu.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("cpu.toml: ")
    assert "\n" not in str(caught.value)


def test_definitions_are_toml(tmp_path: Path) -> None:
    path = tmp_path / "cpu.toml"
    path.write_text('build_name = ["unit-*", "func"]\ntdt_split = [8, 1, 1]\nclass_map = {a = "x", b = "y"}\n')
    definition = DatasetDefinition.load(path, name="cpu")
    assert definition == DatasetDefinition(
        name="cpu", build_name=("unit-*", "func"), tdt_split=(8, 1, 1), class_map={"a": "x", "b": "y"}
    )
    assert [definition.selects(job) for job in ("unit-1", "func", "func-2")] == [True, True, False]
    assert DatasetDefinition.from_json({"name": "x", "build_name": "all"}).selects("anything")
    path.write_text("name = ")
    with pytest.raises(CimlError, match=r"cpu\.toml is not TOML: "):
        DatasetDefinition.load(path)
    with pytest.raises(CimlError, match=r"gone\.toml: No such file"):
        DatasetDefinition.load(tmp_path / "gone.toml")


def test_resolved_definitions_are_json_and_back() -> None:
    definition = DatasetDefinition(name="x", features_regex="(usr|1min|used)", class_map={"a": "x", "b": "y"})
    made = resolve(definition, [COLUMNS], [])
    assert made.columns == ("total cpu usage:usr", "memory usage:used", "load avg:1m", "swap:used")
    assert made.features == ("usr", "used", "1m", "swap:used")
    assert (made.classes, made.windows) == (("x", "y"), 550)
    again = ResolvedDefinition.from_json(made.to_json())
    assert again == made
    assert again.digest == made.digest
    with pytest.raises(CimlError, match="columns: is missing"):
        ResolvedDefinition.from_json({"definition": {"name": "x"}})


def test_most_runs_decide_on_the_columns_and_the_earliest_of_equals() -> None:
    definition = DatasetDefinition(name="x", features_regex="(usr|1m)")
    odd, usual = ("total cpu usage:usr",), ("load avg:1m", "total cpu usage:usr")
    more = ("memory usage:used", *usual)  # layouts that differ elsewhere have one selection: their runs count together
    assert resolve(definition, [odd, usual], []).columns == odd
    for layouts in ([odd, usual, usual, ()], [odd, odd, usual, usual, more], [usual, odd, odd, more, more]):
        assert resolve(definition, layouts, []).columns == usual


def test_classes_are_those_of_the_runs_sorted() -> None:
    definition = DatasetDefinition(name="x", class_label="provider")
    runs = [run(provider="b"), run(), run(provider="a"), run(provider="b")]
    assert resolve(definition, [COLUMNS], runs).classes == ("a", "b")
    with pytest.raises(CimlError, match="class_label 'provider': all runs have the class 'b'; set classes"):
        resolve(definition, [COLUMNS], runs[:2])
    with pytest.raises(CimlError, match="'provider': no run has a value of it; choose from status, build_name"):
        resolve(definition, [COLUMNS], [run()])
    assert resolve(DatasetDefinition(name="x"), [COLUMNS], []).classes == ("passed", "failed")
    with pytest.raises(CimlError) as caught:
        resolve(DatasetDefinition(name="x", features_regex="usr9"), [COLUMNS], [])
    assert str(caught.value) == "features_regex 'usr9' matches none of the columns usr, used, 1m, 5m, swap:used"


#: The class of a run by the key `class_label`.
LABELS = {
    "provider": "north", "provider-region": "north-one", "node_provider": "north", "node_provider_all": "north-one",
    "node_flavor": "m1", "status": "failed", "outcome": "timeout", "build_name": "unit", "size": "tiny",
    "nothing": None,
}  # fmt: skip


def test_labels() -> None:
    one = run(provider="north", region="one", flavour="m1", outcome="timeout", labels={"size": "tiny"})
    assert {name: label_of(one, name, {}) for name in LABELS} == LABELS
    status = {"success": "passed", "failure": "failed", "timeout": "failed"}
    for outcome in (*OUTCOMES, None):  # a run that did not pass or fail has no status
        assert label_of(run(outcome=outcome), "status", {}) == status.get(outcome or "")


def test_a_map_gives_values_other_names() -> None:
    values = {"north": "n", "south": "s", "void": ""}
    made = [label_of(run(provider=name), "provider", values) for name in ("north", "south", "east", "void", "")]
    assert made == ["n", "s", "east", None, None]
    definition = DatasetDefinition(name="x", class_label="provider", class_map={"north": "n", "void": "", "south": "s"})
    resolved = resolve(definition, [COLUMNS], [])
    labels = [resolved.label_of(run(provider=name)) for name in ("south", "east", "", "void")]
    assert labels == [(1, "s"), "unknown_class", "no_label", "no_label"]
