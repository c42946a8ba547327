"""Live samples: one message format, hostile messages are rejected, and the table equals that of the log."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.errors import RejectedInput
from ciml.events.samples import End, Samples, decode, encode, telemetry_table, to_table
from ciml.limits import MAX_RECORDER_SAMPLES
from tests.transforms.samples import corpus

RUN = "zuul~5e70d239~1"
START_US = 1_732_456_789_000_000
USR, LOAD = "total cpu usage:usr", "load avg:1m"


def samples(*rows: tuple[int, int, bool, list[float]], columns: tuple[str, ...] = (USR, LOAD), **more: Any) -> Samples:
    sequence, times, boot, values = zip(*rows, strict=True)
    message = Samples(
        RUN, START_US, START_US, columns, np.array(sequence), np.array(times), np.array(boot), np.array(values, float)
    )
    return replace(message, **more)


ONE = samples((0, START_US, True, [12.5, float("nan")]), (1, START_US + 1_000_000, False, [3, 0.25]))


def same(one: Samples, other: Samples) -> bool:
    return (
        (one.run_id, one.recorder_us, one.first_us, one.columns)
        == (other.run_id, other.recorder_us, other.first_us, other.columns)
        and all(
            getattr(one, name).dtype == getattr(other, name).dtype
            and np.array_equal(getattr(one, name), getattr(other, name))
            for name in ("sequence", "time_us", "boot")
        )
        and one.values.dtype == other.values.dtype
        and np.array_equal(one.values, other.values, equal_nan=True)
    )


def test_the_form_of_the_messages() -> None:
    value = {
        "run_id": RUN, "recorder_us": START_US, "first_us": START_US, "columns": [USR, LOAD],
        "samples": [[0, START_US, True, [12.5, None]], [1, START_US + 1_000_000, False, [3.0, 0.25]]],
    }  # fmt: skip
    assert json.loads(encode(ONE)) == value
    decoded = decode(json.dumps({**value, "host": "node-7"}).encode())  # an unknown field
    assert isinstance(decoded, Samples)
    assert same(decoded, ONE)
    end = End(RUN, START_US, 2)
    assert json.loads(encode(end)) == {"run_id": RUN, "recorder_us": START_US, "end": True, "samples": 2}
    assert decode(encode(end)) == end


@given(
    st.lists(st.lists(st.floats(allow_infinity=False, width=64), min_size=2, max_size=2), min_size=1, max_size=9),
    st.integers(0, MAX_RECORDER_SAMPLES - 10),
    st.integers(946_684_800_000_000, 4_102_444_799_000_000),
)
def test_every_value_survives(values: list[list[float]], first: int, time_us: int) -> None:
    message = samples(*((first + n, time_us + n, n == 0, row) for n, row in enumerate(values)), recorder_us=time_us)
    decoded = decode(encode(message))
    assert isinstance(decoded, Samples)
    assert same(decoded, message)


#: Changes of a message, where None removes a field, and the reason why it is rejected.
HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"run_id": None}, "missing_field"),
    *(({"run_id": run}, "bad_run_id") for run in (7, "zuul~../x~1")),
    ({"recorder_us": None}, "missing_field"),
    *(({"recorder_us": time}, "bad_time") for time in (START_US // 1_000_000, float(START_US))),
    *(({"first_us": time}, "bad_time") for time in (0, True)),
    *(({"columns": names}, "bad_field") for names in ([], "usr", [USR, USR], ["time", USR], [USR, [LOAD]], ["a\nb"])),
    *(({"samples": rows}, "bad_field") for rows in ([], {"0": []}, ["abcd"], [[0, START_US, False]])),
    *(({"samples": [[at, START_US, False, [1, 2]]]}, "bad_field") for at in (True, -1, 1 << 63, 1 << 70)),
    ({"samples": [[0, 946_684_799_999_999, False, [1, 2]]]}, "bad_time"),
    ({"samples": [[0, str(START_US), False, [1, 2]]]}, "bad_field"),
    ({"samples": [[0, START_US, 1, [1, 2]]]}, "bad_field"),
    *(({"samples": [[0, START_US, False, row]]}, "bad_field") for row in ([1], "12", ["1", 2], [True, 2], [[1], 2])),
    ({"end": True, "samples": None}, "missing_field"),
    ({"end": 1}, "bad_field"),
    *(({"end": True, "samples": number}, "bad_field") for number in ([], -1, True)),
]


@pytest.mark.parametrize(("changes", "reason"), HOSTILE)
def test_hostile_messages_are_rejected(changes: dict[str, Any], reason: str) -> None:
    fields = {**json.loads(encode(ONE)), **changes}
    with pytest.raises(RejectedInput) as caught:
        decode(json.dumps({name: value for name, value in fields.items() if value is not None}).encode())
    assert caught.value.reason == reason
    assert len(caught.value.detail) < 300


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "tombstone"), (b"", "tombstone"), (b"[{}]", "not_samples"), (b"{", "broken_json"),
        (b"\xff", "broken_json"), (b"NaN", "broken_json"), (b"[" * 100_000, "broken_json"),
        (encode(ONE).replace(b"12.5", b"1e400"), "broken_json"),
        (encode(ONE).replace(b"12.5", b"NaN"), "broken_json"),
        (encode(ONE).replace(b"zuul", b"\\ud800"), "broken_json"),
    ],
)  # fmt: skip
def test_broken_messages_are_rejected(value: bytes | None, reason: str) -> None:
    with pytest.raises(RejectedInput, match=rf"^{reason}\b"):
        decode(value)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (replace(ONE, run_id="zuul"), "bad_run_id"),
        (replace(ONE, columns=(USR,)), "bad_field"),
        (replace(ONE, values=np.array([[1, 2], [3, np.inf]])), "bad_field"),
        (replace(ONE, time_us=ONE.time_us // 1000), "bad_time"),
    ],
)
def test_undecodable_messages_are_not_encoded(message: Samples | End, reason: str) -> None:
    with pytest.raises(RejectedInput, match=rf"^{reason}\b"):
        encode(message)


def test_a_table_has_each_sample_once_in_the_order_of_its_recording() -> None:
    later = START_US + 60_000_000
    parts = [
        samples((0, later, True, [7]), columns=("net/lo:recv",), recorder_us=later),
        samples((2, START_US, False, [3, 30])),  # its clock was set back
        samples((1, START_US + 1, False, [2, 20]), (2, START_US, False, [99, 99]), (0, START_US + 2, True, [1, 10])),
    ]
    assert to_table(parts).to_pydict() == {
        "time": pa.array([START_US + 2, START_US + 1, START_US, later], pa.timestamp("us", tz="UTC")).to_pylist(),
        "boot": [True, False, False, True],
        USR: [1, 2, 3, None],
        LOAD: [10, 20, 30, None],
        "net/lo:recv": [None, None, None, 7],
    }


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 3), min_size=1)), min_size=1, max_size=4))
def test_a_table_has_the_first_copy_of_each_sample_of_each_start(found: list[tuple[int, list[int]]]) -> None:
    values = itertools.count()
    parts: list[Samples] = []
    first: dict[tuple[int, int], float] = {}
    for start, numbers in found:
        rows = [(number, START_US, False, [float(next(values))]) for number in numbers]
        parts.append(samples(*rows, columns=(USR,), recorder_us=START_US + start))
        for number, _, _, (value,) in rows:
            first.setdefault((start, number), value)
    assert to_table(parts).column(USR).to_pylist() == [first[sample] for sample in sorted(first)]


def test_real_runs_come_back_as_their_tables() -> None:
    """A log's table that is sent sample by sample in any order is unchanged."""
    rng = np.random.default_rng(7)
    for run, table in zip(*corpus(20)[:2], strict=True):
        names = tuple(name for name in table.column_names if name not in ("time", "boot"))
        times = table.column("time").cast(pa.int64()).to_numpy()
        boot = table.column("boot").to_numpy().astype(bool)
        values = np.column_stack([table.column(name).to_numpy() for name in names])
        order = np.concatenate([rng.permutation(times.size), rng.integers(times.size, size=3)])
        parts = []
        for at in np.array_split(order, 5):
            part = Samples(run.run_id, START_US, int(times[0]), names, at, times[at], boot[at], values[at])
            decoded = decode(encode(part))
            assert isinstance(decoded, Samples)
            parts.append(decoded)
        assert to_table(parts).equals(table)
        assert telemetry_table(names, times, boot, values).equals(table)
