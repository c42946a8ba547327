"""Keys of failed runs: what tells failures apart, and which runs it compares."""

from __future__ import annotations

import pytest

from ciml.transforms.logs.failure_keys import Key, keys_of
from ciml.transforms.logs.profile import OutputProfile, Printed, printed_templates, profile_of
from ciml.transforms.logs.ranking import scan
from tests.growth import assert_linear


def printed(data: str) -> dict[str, Printed]:
    return printed_templates(scan(data.encode()))


def keys(data: str, passed: str = "", runs: int = 5) -> list[Key]:
    profile = profile_of([printed(passed)] * runs) if passed else OutputProfile()
    return list(keys_of(printed(data), "unit", profile))


def test_keys_are_the_strongest_new_templates_once_each() -> None:
    output = (
        "WARNING: retrying\nE           OSError: [Errno 28] No space left on device\n"
        "OSError: [Errno 28] No space left on device\nerror: could not write object file\n"
        "FAILED tests/a/b.py::test_read_all\n"
    )
    assert keys(output) == [
        Key("OSError: [Errno <*>] No space left on device", ""),
        Key("error: could not write object file", ""),
        Key("FAILED <*>::test_read_all", "unit"),
    ]


def test_what_passing_runs_print_is_no_key() -> None:
    line = "error: could not open the cache\n"
    assert keys(line) == [Key("error: could not open the cache", "")]
    assert keys(f"{line}done\n", passed=f"{line}done\n") == []


@pytest.mark.parametrize(
    "line",
    [
        "E   AssertionError",
        "KeyError: 3",
        "2 failed in 3.2s",
        "##[error]Process completed with exit code 1",
        "FAILED a/b/c.py::test_1",
        "Error: exit code 2",
    ],
)
def test_a_line_of_every_failure_is_no_key(line: str) -> None:
    assert keys(f"{line}\n") == []


@pytest.mark.parametrize(
    ("line", "job"),
    [
        ("E   TypeError: 'NoneType' object is not iterable", "unit"),
        ("FAILED a/b/c.py::TestFlow::test_capacity", "unit"),
        ("        True or False. A solution is not found here", "unit"),
        ("error: No solution found when resolving dependencies", ""),
        ("MemoryError", ""),
        ("E   ConnectionError: Connection refused", ""),
    ],
)
def test_what_the_tested_code_prints_is_compared_within_the_job(line: str, job: str) -> None:
    assert [key.job for key in keys(f"{line}\n")] == [job]


def test_an_output_without_an_error_ends_before_what_passing_runs_print_next() -> None:
    passed = "collecting\ntest one\nall tests done\n"
    assert keys("collecting\n", passed=passed) == [Key("test one", "unit", is_end=True)]
    assert keys("collecting\n", passed=passed, runs=4) == []


def test_an_empty_output_has_no_key() -> None:
    """Runs end before their first line for every reason, so it tells none of them apart."""
    assert keys("", passed="collecting\n") == []


def test_the_id_depends_on_each_part_and_on_nothing_else() -> None:
    ids = [Key("a", "b").id, Key("b", "a").id, Key("a", "").id, Key("a", "b", is_end=True).id]
    assert len(set(ids)) == 4
    assert ids[0] == "ab64fb3b9eff"


def test_a_hostile_output_takes_linear_time() -> None:
    line = f"error: {'ab' * 1000}_{{}}{'.x' * 500} {{}}\n"
    assert_linear(lambda n: "".join(line.format(chr(97 + at % 26), at) for at in range(n)), keys, 500)
