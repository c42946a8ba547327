from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.datasets.schema import schema_of
from ciml.digest import arrays_digest
from ciml.errors import RejectedInput
from ciml.transforms.examples.prepare import Excluded, prepare, prepare_many, run_facts, run_means, split_of
from ciml.transforms.examples.spans import inputs_of
from tests.transforms.samples import LOAD, PROJECTS, USR, corpus, make_examples, make_facts, resolved, table

NOON = 1_795_521_600_000_000
RUN = table([NOON, NOON + 10_000_000], usr=[1.0, 3.0], load=[0.5, 0.25])


def test_a_row_says_all_that_is_known() -> None:
    known = {
        "project": "nova", "change": "17", "patchset": "2", "pipeline": "gate", "provider": "north", "region": "one",
        "outcome": "timeout", "result": "TIMED_OUT",
    }  # fmt: skip
    labels = {"size": "tiny", "framework": "hadoop"}
    run = make_facts(7, start_us=NOON - 1, end_us=NOON + 2, labels=labels, **known)
    made = resolved(max_windows=3)
    table_, excluded = make_examples([run], [RUN], made)
    assert excluded == ()
    assert table_.schema == schema_of(made)
    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), 3)
    assert [table_.schema.field(name).type for name in ("usr", "1m")] == [vector, vector]
    (row,) = table_.drop_columns(["start_time", "end_time"]).to_pylist()
    usr, load = np.array([1, 3, 0], np.float32), np.array([0.5, 0.25, 0], np.float32)
    assert row == known | dict.fromkeys(("event", "branch", "review", "flavour"), "") | {
        "run_id": "zuul~7~1", "build_uuid": "7", "build_name": "unit-tests", "source": "zuul",
        "label": 1, "label_name": "failed", "split": split_of("nova", "17", "zuul~7~1", "ciml"), "n_windows": 2,
        "digest": arrays_digest("zuul~7~1", [("usr", usr), ("1m", load)], 2),
        "labels": [("framework", "hadoop"), ("size", "tiny")], "usr": usr.tolist(), "1m": load.tolist(),
    }  # fmt: skip
    assert run_facts(table_) == [run]


def test_a_feature_with_the_name_of_a_metadata_column_goes_by_its_full_name() -> None:
    made = resolved(("queue:label", USR))
    assert made.features == ("queue:label", "usr")


def test_runs_that_are_no_examples_are_excluded_with_their_reason_in_order() -> None:
    runs = [
        make_facts(1, provider="a"),
        make_facts(2, provider="other"),
        make_facts(3),
        make_facts(4, provider="a"),
        make_facts(5, provider="b"),
        make_facts(6, provider="b"),
    ]
    tables = [RUN, RUN, RUN, RUN.drop_columns([LOAD]), table([NOON], usr=[None], load=[1.0]), RUN]
    made = resolved(class_label="provider", classes=["a", "b"])
    examples = make_examples(runs, tables, made)
    assert examples.table.column("run_id").to_pylist() == ["zuul~1~1", "zuul~6~1"]
    assert examples.table.column("label").to_pylist() == [0, 1]
    assert examples.excluded == (
        Excluded("zuul~2~1", "unknown_class"),
        Excluded("zuul~3~1", "no_label"),
        Excluded("zuul~4~1", "missing_column", LOAD),
        Excluded("zuul~5~1", "empty", "no window has a value in every selected column"),
    )
    assert examples.excluded[0].to_json() == {"run_id": "zuul~2~1", "reason": "unknown_class"}


@pytest.mark.parametrize(
    ("outcome", "label"),
    [("success", 0), ("failure", 1), ("timeout", 1), ("error", None), ("cancellation", None), ("skip", None)],
)
def test_status(outcome: str, label: int | None) -> None:
    examples = make_examples([make_facts(outcome=outcome)], [RUN], resolved())
    assert examples.table.column("label").to_pylist() == ([] if label is None else [label])
    assert [each.reason for each in examples.excluded] == (["no_label"] if label is None else [])


def test_no_runs_and_no_examples_are_empty_tables() -> None:
    made = resolved()
    for runs, tables in (([], []), ([make_facts(outcome="error")], [RUN])):
        examples = make_examples(runs, tables, made)
        assert examples.table.num_rows == 0
        assert examples.table.schema == schema_of(made)


@pytest.mark.parametrize("keys", [{}, {"aggregation_functions": ["mean", "std"]}, {"sample_statistic": "max"}])
def test_what_is_predicted_is_prepared_as_what_is_learnt(keys: dict[str, object]) -> None:
    runs, tables, _ = corpus(50)
    made = resolved(tables[0].column_names, class_label="project", classes=PROJECTS, **keys)
    examples = make_examples(runs, tables, made)
    splits = examples.table.column("split").to_pylist()
    assert splits == sorted(splits, key=("train", "dev", "test").index)
    assert len(set(splits)) == 2
    place = {run_id: row for row, run_id in enumerate(examples.table.column("run_id").to_pylist())}
    order = [place[run.run_id] for run in runs]
    learnt = inputs_of(examples.table, made)[order]
    many, n_windows, rejected = prepare_many(tables, made)
    assert rejected == []
    assert learnt.tobytes() == many.tobytes()
    counts = examples.table.column("n_windows").to_pylist()
    assert [counts[row] for row in order] == n_windows.tolist()
    for row in (0, 17, 49):
        one, count = prepare(tables[row], made)
        assert (one.shape, one.dtype, count) == ((made.windows, len(made.features)), np.float32, n_windows[row])
        assert one.tobytes() == learnt[row].tobytes()


def test_predicting_takes_columns_by_name_and_refuses_a_run_that_lacks_one() -> None:
    made = resolved(max_windows=2)
    mixed = RUN.select(["boot", LOAD, USR, "time"]).append_column("x:y", pa.array([9.0, 9.0]))
    assert prepare(mixed, made)[0].tolist() == prepare(RUN, made)[0].tolist() == [[1.0, 0.5], [3.0, 0.25]]
    with pytest.raises(RejectedInput, match="missing_column: load avg:1m"):
        prepare(RUN.drop_columns([LOAD]), made)
    inputs, n_windows, rejected = prepare_many([RUN.drop_columns([LOAD]), RUN], made)
    assert inputs.tolist() == [[[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.5], [3.0, 0.25]]]
    assert n_windows.tolist() == [0, 2]
    assert [(index, str(error)) for index, error in rejected] == [(0, "missing_column: load avg:1m")]


def test_beginnings_of_equal_length_leave_out_what_is_shorter() -> None:
    short, long = (
        table([NOON + 10_000_000 * at for at in range(n)], usr=range(1, n + 1), load=[0.0] * n) for n in (2, 4)
    )
    made = resolved(max_windows=3, min_windows=3)
    table_, excluded = make_examples([make_facts(1), make_facts(2), make_facts(3)], [short, long, short], made)

    assert excluded == (
        Excluded("zuul~1~1", "too_short", "2 of 3 windows"),
        Excluded("zuul~3~1", "too_short", "2 of 3 windows"),
    )
    assert table_.column("run_id").to_pylist() == ["zuul~2~1"]
    np.testing.assert_array_equal(inputs_of(table_, made)[0, :, 0], [1, 2, 3])


def test_means_of_runs_are_sums_in_float64() -> None:
    inputs = np.array([[[2.0**24], [1.0], [1.0]]], np.float32)  # in float32, the sum would stay at 2^24
    assert run_means(inputs, np.array([3])).tolist() == [[(2**24 + 2) / 3]]


def test_shares_are_the_weights() -> None:
    counts = Counter(split_of("", "", f"zuul~{number}~1", "ciml", (7, 1, 2)) for number in range(20_000))
    assert sum(counts.values()) == 20_000
    # four standard deviations
    assert abs(counts["train"] - 14_000) < 4 * (20_000 * 0.7 * 0.3) ** 0.5
    assert abs(counts["dev"] - 2_000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5
    assert abs(counts["test"] - 4_000) < 4 * (20_000 * 0.2 * 0.8) ** 0.5


def test_the_split_is_the_same_for_ever() -> None:
    # stored data sets depend on it: a change here moves runs between train and test
    found = [split_of("", "", f"zuul~{number}~1", "ciml", (7, 0, 3)) for number in range(8)]
    assert found == EXPECTED_RUNS
    found = [split_of("nova", str(number), "zuul~x~1", "ciml", (7, 0, 3)) for number in range(8)]
    assert found == EXPECTED_CHANGES


def test_runs_of_a_change_stay_together_and_projects_number_their_own() -> None:
    of_change = {split_of("nova", "17", f"zuul~{number}~1", "ciml") for number in range(50)}
    assert len(of_change) == 1
    assert len({split_of(f"project-{number}", "17", "zuul~1~1", "ciml") for number in range(50)}) == 2


def test_another_salt_is_another_split() -> None:
    runs = [f"zuul~{number}~1" for number in range(200)]
    assert [split_of("", "", run, "one") for run in runs] != [split_of("", "", run, "two") for run in runs]


@given(
    run=st.text(),
    change=st.text(),
    weights=st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)),
    more=st.integers(1, 9),
)
def test_more_weight_for_train_takes_nothing_out_of_it(
    run: str, change: str, weights: tuple[int, int, int], more: int
) -> None:
    before = split_of("p", change, run, "salt", weights)
    assert before in [name for name, weight in zip(("train", "dev", "test"), weights, strict=True) if weight]
    if before == "train":
        assert split_of("p", change, run, "salt", (weights[0] + more, *weights[1:])) == "train"


def test_no_weights_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one must be above 0"):
        split_of("", "", "zuul~1~1", "ciml", (0, 0, 0))


EXPECTED_RUNS = ["train", "train", "train", "test", "train", "train", "train", "train"]
EXPECTED_CHANGES = ["train", "train", "test", "test", "train", "test", "train", "test"]
