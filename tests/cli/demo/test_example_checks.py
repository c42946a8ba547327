"""The check of examples: green for the direct computation, and red for a difference."""

from __future__ import annotations

import gzip
import math
from typing import Any

import pytest

from ciml.cli.demo.corpus import definitions, read_corpus
from ciml.cli.demo.example_checks import check_examples, difference, direct_example
from ciml.datasets.definition import resolve
from ciml.telemetry import telemetry_columns
from ciml.transforms.parse.logs import Log, parse_logs
from tests.corpus import CORPUS
from tests.transforms.samples import make_examples

HEADER = (
    '"Dstat 0.7.4 CSV output"\n"Host:","h",,,,"User:","root"\n'
    '"Cmdline:","dstat",,,,"Date:","31 Dec 2020 23:59:50 UTC"\n"system","total cpu usage",,\n"time","usr","sys"\n'
)


def test_examples_equal_the_direct_computation_and_a_difference_is_seen() -> None:
    samples = [sample for sample in read_corpus(CORPUS) if sample.facts.provider][:12]
    logs = [(CORPUS / sample.log_path).read_bytes() for sample in samples]
    tables: Any = parse_logs([Log(log) for log in logs])
    facts = [sample.facts for sample in samples]
    definition = definitions(20, samples, causes=False)[1]
    resolved = resolve(definition, [telemetry_columns(one.column_names) for one in tables], facts)
    assert not resolved.definition.count_first_sample
    rows = {row["run_id"]: row for row in make_examples(facts, tables, resolved).table.to_pylist()}
    texts = {one.run_id: gzip.decompress(log).decode() for one, log in zip(facts, logs, strict=True)}
    assert len(rows) == 12
    assert check_examples(rows, texts, resolved).passed
    assert not check_examples({}, texts, resolved).passed
    first = rows[facts[0].run_id]
    values = first["usr"]
    for name, changed in (
        ("usr", [*values[:2], values[2] + 0.01, *values[3:]]),
        ("usr", [*values[:2], math.nan, *values[3:]]),
        ("n_windows", first["n_windows"] - 1),
    ):
        assert not check_examples({**rows, facts[0].run_id: {**first, name: changed}}, texts, resolved).passed


@pytest.mark.parametrize(
    ("stored", "direct", "apart"),
    [
        ([1.0, 200.0, 0.0], [1.0, 200.0], 0.0),
        ([1.0, 202.0, 0.0], [1.0, 200.0], 0.01),
        ([1.0, 200.0, 0.5], [1.0, 200.0], 0.5),  # the padding
        ([1.0, math.nan, 0.0], [1.0, 200.0], math.nan),
        ([1.0], [1.0, 200.0], math.inf),
        ([1.0, 200.0], [1.0], math.inf),
    ],
)
def test_a_difference_is_the_largest_of_values_and_padding(
    stored: list[float], direct: list[float], apart: float
) -> None:
    assert difference(direct, stored, 2) == pytest.approx(apart, nan_ok=True)


def test_the_direct_computation_itself() -> None:
    text = HEADER + "31-12 23:59:58,1.0,5\n31-12 23:59:59,3.0,5\n"
    values, n_windows = direct_example(text, ["total cpu usage:usr"], 10, (), 5)
    assert (values, n_windows) == ({"total cpu usage:usr": [2.0]}, 1)
    values, _ = direct_example(text, ["total cpu usage:usr"], 1, ("mean", "std", "min"), 3)
    assert values["total cpu usage:usr"] == [2.0, pytest.approx(2**0.5), 1.0]
    dool = text.replace("Dstat 0.7.4", "dool 1.3.8").replace("31-12", "Dec-31")
    assert direct_example(dool, ["total cpu usage:sys", "total cpu usage:usr"], 1, (), 5, first=False) == (
        {"total cpu usage:sys": [5.0], "total cpu usage:usr": [3.0]},
        1,
    )


@pytest.mark.parametrize("old_year", [2, 1, 0])
def test_a_log_may_cross_the_end_of_a_year(old_year: int) -> None:
    lines = ["31-12 23:59:58,1.0,5\n", "31-12 23:59:59,3.0,5\n"][:old_year]
    text = HEADER + "".join([*lines, "01-01 00:00:00,8.0,5\n", "01-01 00:00:01,9.0,5\n"])
    assert direct_example(text, ["total cpu usage:usr"], 1, (), 5).values == {
        "total cpu usage:usr": [*[1.0, 3.0][:old_year], 8.0, 9.0]
    }


@pytest.mark.parametrize("functions", [(), ("mean", "std")])
def test_a_log_without_a_complete_window_has_an_empty_example(functions: tuple[str, ...]) -> None:
    text = HEADER + "31-12 23:59:58,,5\n"
    assert direct_example(text, ["total cpu usage:usr"], 1, functions, 5) == ({"total cpu usage:usr": []}, 0)
