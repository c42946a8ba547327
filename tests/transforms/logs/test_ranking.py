"""Ranking: the cause comes before what follows from it, and known lines come last."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from ciml.transforms.logs import ranking as module
from ciml.transforms.logs.ranking import excerpt, rank, scan

PASSING = "\n".join(
    [
        "collecting ...",
        "collected 495 items",
        *[f"tests/test_{n}.py .{'.' * n}" for n in range(9)],
        "495 passed in 8.60s",
    ]
)
FAILING = "\n".join(
    [
        "collecting ...",
        "collected 495 items",
        *[f"tests/test_{n}.py {'.' * n}" for n in range(7)],
        "    def test_read():",
        ">       import attrs",
        "E       ModuleNotFoundError: No module named 'attrs'",
        "tests/test_7.py:12: ModuleNotFoundError",
        "FAILED tests/test_7.py::test_read - ModuleNotFoundError: No module named 'attrs'",
        "1 failed, 494 passed in 8.45s",
    ]
)


def texts(data: str, characters: int, known: set[str] | None = None) -> list[str]:
    return [line.text for line in excerpt(scan(data.encode()), characters, known)]


def templates(data: str) -> set[str]:
    return set(scan(data.encode()).templates.to_pylist())


def test_the_cause_comes_first() -> None:
    assert texts(FAILING, 60) == ["E       ModuleNotFoundError: No module named 'attrs'"]


def test_the_error_comes_before_the_code_that_raises_it() -> None:
    trace = [
        "Traceback (most recent call last):",
        '  File "/x/y/main.py", line 3, in <module>',
        "    raise SystemExit(main())",
        "                     ^^^^^^",
        "jinja2.exceptions.TemplateSyntaxError: expected a token",
    ]
    assert texts("\n".join(["reading"] * 9 + trace), 60) == [trace[-1]]


def test_an_excerpt_keeps_the_order_and_the_numbers_of_its_lines_within_its_limit() -> None:
    lines = FAILING.split("\n")
    output = scan(FAILING.encode())
    for characters in range(len(FAILING)):
        shown = excerpt(output, characters)
        numbers = [line.number for line in shown]
        assert numbers == sorted(numbers)
        assert [lines[number - 1] for number in numbers] == [line.text for line in shown]
        assert sum(len(line.text) + 1 for line in shown) <= characters


def test_a_short_output_is_shown_whole() -> None:
    assert texts(FAILING, 10_000) == [line.rstrip() for line in FAILING.split("\n")]


def test_a_line_that_passing_runs_print_is_no_cause() -> None:
    noise = "ERROR: could not load the optional plugin, using the default\n"
    assert texts(noise + "ok\nsetup is incomplete\n", 70)[0] == noise.strip()
    assert texts(noise + "ok\nsetup is incomplete\n", 70, templates(noise + "ok\n")) == ["setup is incomplete"]
    shown = excerpt(scan(FAILING.encode()), 60, templates(PASSING))
    assert [(line.text, line.is_new) for line in shown] == [
        ("E       ModuleNotFoundError: No module named 'attrs'", True)
    ]


def test_a_hundred_findings_do_not_hide_a_rare_one() -> None:
    many = [f"src/a/b/m.py:{n}:1: error: 'name{n}' is unused" for n in range(100)]
    data = "\n".join([*many, "fatal: cannot read the configuration", *many])
    assert "fatal: cannot read the configuration" in texts(data, 200)


def test_the_status_of_a_process_says_more_than_a_bare_mark() -> None:
    result = ["{", '  "delta": "0:00:05.1",', '  "end": "2026-11-30 04:44:10",', '  "msg": "",', '  "rc": -9,', "}"]
    assert texts("\n".join(["test_a_sum ...", "ERROR", *result]), 12) == ['  "rc": -9,']
    assert texts("\n".join(["AssertionError: 1 != 2", "ERROR", *result]), 23) == ["AssertionError: 1 != 2"]


def test_cleaning_up_and_printed_commands_are_no_causes() -> None:
    data = "\n".join(
        [
            "##[group]Run make || echo 'error: failed'",
            "make || echo 'error: failed to build'",
            "##[endgroup]",
            *["compiling"] * 50,
            "main.c:3:1: error: expected ';'",
            "##[error]Process completed with exit code 2.",
            "Post job cleanup.",
            "error: could not remove the folder",
        ]
    )
    shown = texts(data, 80)
    assert "main.c:3:1: error: expected ';'" in shown
    assert not [line for line in shown if "echo" in line or "folder" in line]


@pytest.mark.parametrize("data", [b"", b"\n", b"\n\n", b"\x00", b"plain", b"\xff\xfe\n" * 5])
def test_an_output_without_signals_is_no_error(data: bytes) -> None:
    output = scan(data)
    assert not rank(output).any()
    assert len(rank(output)) == len(output.codes)
    assert excerpt(output, 0) == []


def test_too_many_templates_are_counted_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTPUT_TEMPLATES", 3)
    output = scan(b"one\ntwo\nthree\nfour\nError: late\n")
    assert output.templates.to_pylist() == ["", "one", "two"]
    assert output.codes.tolist() == [1, 2, 0, 0, 0]
    assert texts("one\ntwo\n", 100) == ["one", "two"]


def test_a_large_output_takes_the_memory_of_its_bytes_and_blocks() -> None:
    """In a process of its own, since memory is measured at its highest."""
    code = """
import resource
from ciml.transforms.logs.ranking import excerpt, scan
line = b"2026-11-24T14:39:48.123Z test_%d.py::test_it PASSED in 0.2%ds\\n"
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = b"".join(line % (n, n % 9) for n in range(10_000)) * 60 + b"E   ValueError: no\\n"
assert excerpt(scan(data), 30)[0].text == "E   ValueError: no"
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / len(data))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 3.5


def test_the_order_of_equal_lines_does_not_depend_on_chance() -> None:
    lines = [f"Error: number {word}" for word in "abcdefgh"]
    random.Random(0).shuffle(lines)
    data = "\n".join([""] * 50 + lines)
    assert texts(data, 60) == texts(data, 60) == lines[:3]
