"""Clean lines: what a person sees of a line, whatever the CI system and the terminal added."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ciml.limits import MAX_OUTPUT_LINE_CHARACTERS
from ciml.transforms.logs import lines as module
from ciml.transforms.logs.lines import clean_lines


def cleaned(data: bytes) -> list[str]:
    return [line for block in clean_lines(data) for line in block.to_pylist()]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("\x1b[31;1mFAILED\x1b[0m tests", "FAILED tests"),
        ("^[[31mFAIL^[[0m: test", "FAIL: test"),
        ("\x1b]8;;https://example.org\x07link\x1b]8;;\x07", "link"),
        ("  10%\r  50%\r 100%", " 100%"),
        ("done\r", "done"),
        ("2026-11-24T14:39:48.1234567Z collecting ...", "collecting ..."),
        ("\ufeff2026-11-24T14:39:48.1234567Z first", "first"),
        ("2026-11-24 14:39:48.123456 | ubuntu-jammy | ok: 3", "ok: 3"),
        ("2026-11-24 14:39:48.123456 | TASK [tox : Run]", "TASK [tox : Run]"),
        ("2026-11-24T14:39:48.123456Z 01E warning", "warning"),
        ("[2026-11-24T14:39:48.123Z] + make", "+ make"),
        ("14:39:48  + make", "+ make"),
        ("[gw3] PASSED tests/a.py::b", "PASSED tests/a.py::b"),
        ("web-1  | listening", "listening"),
        ("section_start:1560896352:prepare\r\x1b[0KPreparing", "section_start:prepare Preparing"),
        (
            "section_end:1560896353:prepare\r\x1b[0Ksection_start:1560896353:get[collapsed=true]\r\x1b[0KFetching",
            "section_end:prepare section_start:get Fetching",
        ),
        ("   | a table", "   | a table"),
        ("at 2026-11-24T14:39:48Z it ended", "at 2026-11-24T14:39:48Z it ended"),
        ("trailing \t ", "trailing"),
    ],
)
def test_what_the_terminal_and_the_ci_system_added_is_removed(raw: str, text: str) -> None:
    assert cleaned(raw.encode()) == [text]


def test_bytes_that_are_no_text_stay_in_their_line() -> None:
    assert cleaned(b"a\xff\n\x00b\n\xe2\x82") == ["a�", "\x00b", "�"]


def test_a_long_line_is_cut_and_the_next_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 10_000)
    assert cleaned(b"x" * 50_000 + b"\nnext\n" + b"y" * 5000) == [
        "x" * MAX_OUTPUT_LINE_CHARACTERS,
        "next",
        "y" * MAX_OUTPUT_LINE_CHARACTERS,
    ]


@given(
    st.lists(st.text(st.characters(blacklist_characters="\n", codec="utf-8"), max_size=30), max_size=20),
    st.integers(1, 60),
)
@example([""], 1)
def test_blocks_change_nothing(texts: list[str], size: int) -> None:
    """A line that is shorter than a block is the same in blocks of any size."""
    data = "\n".join(texts).encode()
    whole = cleaned(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_BYTES", size + max((len(text.encode()) for text in texts), default=0) + 1)
        assert cleaned(data) == whole
    assert len(whole) == len(texts) - (bool(texts) and not texts[-1])
    for text, line in zip(texts, whole, strict=False):
        if re.fullmatch(r"[a-z ]*", text):
            assert line == text.rstrip()


@given(st.lists(st.text(st.sampled_from("ab 1\r\x1bé"), max_size=8), min_size=1, max_size=8), st.data())
def test_some_lines_of_a_block_are_those_of_all(texts: list[str], data: st.DataObject) -> None:
    block = "\n".join(texts).encode()
    all_lines = module.lines_of_block(block).to_pylist()
    indices = data.draw(st.lists(st.integers(0, len(all_lines) - 1)))
    assert module.lines_of_block(block, indices).to_pylist() == [all_lines[index] for index in indices]
