"""Tables on standard output, and the status on standard error."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from ciml.cli import output
from ciml.cli.output import by_frequency, counted_bar, print_columns, print_table, status_line


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_nothing_in_a_table_is_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["[b]name[/b]", "runs"], [("[red]unit[/]", "1")], title="[i]jobs[/i]")
    title, _, headings, _, row, _ = printed(capsys)
    assert title.strip() == "[i]jobs[/i]"
    assert headings.split("┃")[1].strip() == "[b]name[/b]"
    assert row.split("│")[1].strip() == "[red]unit[/]"


def test_numbers_are_at_the_right_and_a_sum_is_apart(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("unit", "9"), ("lint", "1,000"), ("all", "1,009")]
    print_table(["job", "runs"], rows, right=["runs"], last_apart=True)
    lines = printed(capsys)
    assert [line.split("│")[1:3] for line in lines if line.startswith("│")] == [
        [" unit ", "     9 "], [" lint ", " 1,000 "], [" all  ", " 1,009 "],
    ]  # fmt: skip
    assert [line[:1] for line in lines[3:]] == ["│", "│", "├", "│", "└"]


def test_a_wide_table_is_not_folded_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 100
    print_table(["value"], [(long,)])
    assert any(long in line for line in printed(capsys))


def test_a_number_may_be_of_numpy(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["text", "number"], [("x", np.int64(5000)), ("y", np.float32(0.5))])
    cells = [line.split("│")[1:3] for line in printed(capsys) if line.startswith("│")]
    assert cells == [[" x    ", "  5,000 "], [" y    ", "  0.500 "]]


def test_a_counted_bar_is_quiet_for_its_first_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere than on a terminal. The caller prints the last counts with the result."""
    now_s = 100.0
    monkeypatch.setattr(output.time, "monotonic", lambda: now_s)
    with counted_bar("list.jsonl") as show:
        for number, now_s in enumerate((101.0, 106.0, 107.0, 112.0, 113.0)):  # noqa: B007 - read by the clock
            show(number, 10, {"run": number})
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" lines")[0] for line in lines] == ["list.jsonl: 1 of 10", "list.jsonl: 3 of 10"]


def test_the_most_frequent_comes_first_and_equal_ones_in_order() -> None:
    assert by_frequency({"b": 1, "c": 2, "a": 1}) == [("c", 2), ("a", 1), ("b", 1)]


@pytest.mark.parametrize("fails", [False, True])
def test_the_last_line_of_a_status_is_printed(fails: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="a bug") if fails else nullcontext(), status_line("events") as show:
        for text in ("first", "second", "third", "third"):
            show(text)
        if fails:
            raise ValueError("a bug")
    assert capsys.readouterr().err.splitlines() == ["events: first", "events: third"]


def test_no_cell_controls_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "note"], [("unit\x1b[31m", "first\n\u202esecond")])
    print_columns([("unit\x1b[31m", "\u202esecond")])
    printed = capsys.readouterr().out
    assert not any(character in printed for character in "\x1b\u202e")
    assert printed.count("unit\ufffd[31m") == printed.count("\ufffdsecond") == 2
    assert "first" in printed
