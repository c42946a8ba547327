"""The frame of fuzz tests: the short profile repeats itself and replays the seeds that a long run kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import results
from tests.fuzz.frame import EXAMPLES, database, frame, keep_failures

DEFECT = 123_456_789


def test_the_short_profile_tries_the_same_inputs_each_time(tmp_path: Path) -> None:
    seen: list[list[bytes]] = [[], []]
    for each in seen:
        frame("test", database("test", tmp_path))(given(data=st.binary(), into=st.just(each.append))(call))()
    assert seen[0] == seen[1]
    assert 10 < len(seen[0]) <= EXAMPLES["test"]


def call(data: bytes, into: Callable[[bytes], None]) -> None:
    into(data)


def test_what_a_long_run_found_is_replayed_by_the_short_one_and_never_lost(tmp_path: Path) -> None:
    seeds, work = tmp_path / "seeds", tmp_path / "work"
    tries: list[int] = []
    defects = {DEFECT}

    def holds(number: int) -> None:
        tries.append(number)
        assert number not in defects

    numbers = given(st.just(DEFECT) | st.integers())
    found = frame("fuzz", database("fuzz", seeds, work), 200)(numbers(holds))
    with pytest.raises(AssertionError):
        found()
    assert keep_failures(found, seeds, work) == 1
    files = {path: path.read_bytes() for path in seeds.rglob("*") if path.is_file()}
    short = frame("test", database("test", seeds))
    tries.clear()
    with pytest.raises(AssertionError):
        short(numbers(holds))()
    assert tries[0] == DEFECT
    defects.clear()  # once it is fixed, the input goes on being tried, and the seeds stay as they are
    for again in (short, frame("fuzz", database("fuzz", seeds, work), 200)):
        tries.clear()
        again(numbers(holds))()
        assert tries[0] == DEFECT
        assert {path: path.read_bytes() for path in seeds.rglob("*") if path.is_file()} == files != {}


def test_results_are_added_up_in_the_document(tmp_path: Path) -> None:
    log, document = tmp_path / "results.jsonl", tmp_path / "faults.md"
    document.write_text(f"# Faults\n\n{results.BEGIN}\nold\n{results.END}\n\nThe rest.\n")
    one = results.Result("tests/fuzz/test_a.py::test_b", "2026-11-26 06:00", "abc", 20_000, 1, 3.0)
    results.add([one], log)
    results.add([results.Result(one.test, "2026-11-27 06:00", "def", 20_001, 0, 3.0)], log)
    results.write(results.load(log), document)
    text = document.read_text()
    assert "| `test_a.py::test_b` | 40,001 | 2 | 1 | passed, 2026-11-27, at def |" in text
    assert "40,001 inputs in all." in text
    assert (text[:9], text.partition(results.END)[2], "old" in text) == ("# Faults\n", "\n\nThe rest.\n", False)
    text = results.DOCUMENT.read_text()
    assert (text.count(results.BEGIN), text.count(results.END)) == (1, 1)
