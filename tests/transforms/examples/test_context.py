"""Context features against values that are computed by hand, and the same values on every way to a model."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition, resolve
from ciml.errors import CimlError, IntegrityError
from ciml.events.records import RunFacts
from ciml.runs.neighbours import Neighbours
from ciml.transforms.examples.context import context_of
from ciml.transforms.examples.downsample import downsample
from ciml.transforms.examples.prepare import prepare, prepare_many
from ciml.transforms.examples.spans import inputs_of
from ciml.transforms.profiles import make_profiles
from tests.transforms.profiles.tables import STEAL, USED, USR, facts_of, table_of
from tests.transforms.samples import make_examples

#: Ten passing runs of a minute: usr 50 and 52 by turns, no steal, 1 GB used.
PASSED = [
    (facts_of(number=number), table_of({USR: [50.0, 52.0] * 30, STEAL: [0.0] * 60, USED: [1e9] * 60}))
    for number in range(10)
]
LENGTH, PARTS = "profile:length", ("mean", "max", "last")


def defined(*context: str, columns: tuple[str, ...] = (USR, STEAL), **keys: Any) -> ResolvedDefinition:
    keys = {"class_label": "cause", "sample_interval": "10s", "max_windows": 12, "context": list(context), **keys}
    definition = DatasetDefinition.from_json({"name": "tests", **keys})

    def profiles(names: Any) -> dict[str, Any]:
        assert tuple(names) == columns
        found: dict[str, Any] = json.loads(json.dumps(make_profiles(PASSED, names).to_json()))
        return found

    return resolve(definition, [columns], [], profiles=profiles)


def failed(number: int = 50, **keys: Any) -> RunFacts:
    return facts_of(outcome="failure", number=number).replace(**{"labels": {"cause": "code"}, **keys})


def named(
    resolved: ResolvedDefinition, facts: RunFacts, table: pa.Table, near: Neighbours | None = None
) -> dict[str, float]:
    values = context_of(facts, table, resolved, near)
    return dict(zip(resolved.context_features, values.tolist(), strict=True))


def test_a_definition_names_its_features_telemetry_first() -> None:
    made = defined("profile", "outcome", "neighbours")
    assert made.columns == (USR, STEAL)
    assert made.telemetry_features == ("usr", "stl")
    assert made.features == (
        "usr", "stl", LENGTH,
        "profile:mean:usr", "profile:max:usr", "profile:last:usr",
        "profile:mean:stl", "profile:max:stl", "profile:last:stl",
        "outcome:timeout", "outcome:exit", "outcome:signal",
        "neighbours:failed", "neighbours:share",
    )  # fmt: skip
    assert ResolvedDefinition.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_without_context_nothing_is_stored_of_it() -> None:
    definition = DatasetDefinition.from_json({"name": "tests", "max_windows": 12})
    made = resolve(definition, [(USR,)], [])
    assert "context" not in definition.to_json()
    assert "profiles" not in made.to_json()
    assert made.features == made.telemetry_features == ("usr",)
    assert defined("outcome").profiles is None


@pytest.mark.parametrize(
    ("outcome", "labels", "expected"),
    [
        ("failure", {"exit_code": "1"}, (0, 1, 0)),
        ("failure", {}, (0, 0, 0)),
        ("failure", {"exit_code": "-9"}, (0, 0, 1)),
        ("failure", {"exit_code": "137"}, (0, 0, 1)),  # a shell's word for signal 9
        ("failure", {"exit_code": "-1"}, (0, 0, 0)),  # the agent was lost
        ("failure", {"exit_code": "255"}, (0, 255, 0)),
        ("failure", {"exit_code": "128"}, (0, 128, 0)),
        ("timeout", {"exit_code": "-1"}, (1, 0, 0)),  # it was stopped because it took too long
        ("timeout", {"exit_code": "124"}, (1, 0, 0)),
        ("failure", {"exit_code": "9" * 400}, (0, 0, 0)),
        ("failure", {"exit_code": "1; rm -rf"}, (0, 0, 0)),
        ("failure", {"exit_code": "\u0661"}, (0, 0, 0)),  # a digit, but no ASCII
        ("failure", {"signal": "SIGKILL"}, (0, 0, 1)),  # the recorder names it
    ],
)
def test_the_outcome_has_timeout_exit_status_and_signal(
    outcome: Any, labels: dict[str, str], expected: tuple[int, ...]
) -> None:
    facts = failed(outcome=outcome, labels=labels)
    assert tuple(context_of(facts, PASSED[0][1], defined("outcome")).tolist()) == expected


def test_a_passing_run_has_no_departure() -> None:
    made = defined("profile")
    assert set(named(made, *PASSED[0]).values()) == {0.0}


def test_departures_are_counted_in_margins_beyond_the_passing_range() -> None:
    made = defined("profile")
    # 20 s: steal 7 % in the last 5 s, above the range 0 to 0 by 7 - 0; noise is 2 %. usr is 20 below 51, noise is 10 %.
    run = table_of({USR: [31.0] * 20, STEAL: [0.0] * 15 + [7.0] * 5})
    found = named(made, failed(), run)
    low_usr = make_profiles(PASSED).of("unit").short[USR][0]
    assert found["profile:mean:usr"] == pytest.approx((31.0 - low_usr) / 10.0)
    assert found["profile:max:usr"] == found["profile:last:usr"] == found["profile:mean:usr"] < 0
    assert found["profile:mean:stl"] == pytest.approx(7.0 / 4 / 2.0)
    assert found["profile:max:stl"] == found["profile:last:stl"] == pytest.approx(7.0 / 2.0)
    assert found[LENGTH] == pytest.approx(math.log2(20 / 60))
    huge = table_of({USR: [51.0] * 60, STEAL: [1e17] * 60})
    assert named(made, failed(), huge)["profile:mean:stl"] == 10.0


def test_other_windows_are_used_for_long_runs() -> None:
    made = defined("profile")
    # Four minutes: 60 s of steal 8 % fill the last minute, of four.
    run = table_of({USR: [51.0] * 240, STEAL: [0.0] * 180 + [8.0] * 60})
    found = named(made, failed(), run)
    assert found["profile:mean:stl"] == pytest.approx(2.0 / 2.0)
    assert found["profile:max:stl"] == found["profile:last:stl"] == pytest.approx(8.0 / 2.0)
    assert found[LENGTH] == pytest.approx(2.0)
    assert named(made, failed(), table_of({USR: [51.0] * 2, STEAL: [0.0] * 2}, every_s=1e7))[LENGTH] == 5.0


def test_the_length_is_compared_with_the_median_of_passing_runs() -> None:
    made = defined("profile")
    runs = [
        (facts_of(number=number), table_of({USR: [51.0] * rows, STEAL: [0.0] * rows}))
        for number, rows in enumerate((30, 60, 60, 60, 600))
    ]
    varied = made.replace(profiles=json.loads(json.dumps(make_profiles(runs, made.columns).to_json())))
    assert named(varied, failed(), table_of({USR: [51.0] * 120, STEAL: [0.0] * 120}))[LENGTH] == pytest.approx(1.0)


def test_a_run_without_values_of_a_column_has_no_departure_there() -> None:
    made = defined("profile")
    run = table_of({USR: [None, math.nan], STEAL: [5.0, 5.0]})
    found = named(made, failed(), run)
    assert [found[f"profile:{part}:usr"] for part in PARTS] == [0.0] * 3
    assert found["profile:mean:stl"] == pytest.approx(2.5)


def test_neighbours_are_a_number_and_a_share() -> None:
    made = defined("neighbours")
    run = PASSED[0][1]
    assert named(made, failed(), run, Neighbours(3, 4)) == {"neighbours:failed": 3.0, "neighbours:share": 0.75}
    assert (
        set(named(made, failed(), run, Neighbours(0, 0)).values()) == set(named(made, failed(), run).values()) == {0.0}
    )


@pytest.mark.parametrize("functions", [[], ["mean", "last"]])
def test_examples_and_predictions_have_the_same_context(functions: list[str]) -> None:
    keys: dict[str, Any] = {"aggregation_functions": functions, "max_windows": None} if functions else {}
    made = defined("outcome", "profile", "neighbours", **keys)
    runs = [
        failed(1, labels={"cause": "code", "exit_code": "2"}),
        facts_of(number=2),  # it passed: no label, no example
        failed(3, outcome="timeout", labels={"cause": "machine"}),
        failed(4),
    ]
    tables = [
        table_of({USR: [90.0] * 45, STEAL: [1.0] * 45}),
        PASSED[0][1],
        table_of({USR: [3.0] * 300, STEAL: [9.0] * 300}),
        table_of({STEAL: [1.0]}),  # rejected: a column is missing
    ]
    near = [Neighbours(1, 2), None, Neighbours(0, 7), None]
    examples = make_examples(runs, tables, made, near)
    assert [each.reason for each in examples.excluded] == ["no_label", "missing_column"]
    inputs, n_windows, rejected = prepare_many(tables, made, runs, near)
    assert [row for row, _ in rejected] == [3]
    order = {"zuul~unit-1~1": 0, "zuul~unit-3~1": 2}
    stored = inputs_of(examples.table, made)
    for row, run_id in enumerate(examples.table["run_id"].to_pylist()):
        at = order[run_id]
        assert np.array_equal(stored[row], inputs[at])
        count = int(n_windows[at])
        expected = context_of(runs[at], tables[at], made, near[at])
        telemetry = downsample([tables[at]], made).values
        assert np.array_equal(inputs[at, :count], np.concatenate([telemetry, np.tile(expected, (count, 1))], axis=1))
        assert not inputs[at, count:].any()
        assert expected.any()
    assert len(order) == examples.table.num_rows
    one, count = prepare(tables[0], defined("outcome", "profile", **keys), runs[0])
    assert np.array_equal(one[:count], inputs[0, :count, : one.shape[1]])


def test_context_needs_the_facts_of_runs() -> None:
    with pytest.raises(CimlError, match="data set 'tests' has context: its predictions need the facts of each run"):
        prepare(PASSED[0][1], defined("outcome"))
    with pytest.raises(IntegrityError, match="data set 'tests': its resolved definition has no profiles"):
        prepare(PASSED[0][1], defined("profile").replace(profiles=None), failed())


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (["outcome", "outcome"], "context: a kind appears twice"),
        ([], "context: "),
        (["weather"], "context.0: 'weather' is unknown; choose from outcome, profile, neighbours"),
    ],
)
def test_an_invalid_context_is_one_line(context: list[str], message: str) -> None:
    with pytest.raises(CimlError, match="definition: ") as raised:
        DatasetDefinition.from_json({"name": "tests", "context": context})
    assert message in str(raised.value)
    assert DatasetDefinition.from_json({"name": "tests", "context": "outcome"}).context == ("outcome",)
