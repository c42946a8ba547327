"""What is stored of an output: the lines that a terminal would show, without secrets, and their templates."""

from __future__ import annotations

import gzip
import hashlib
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from unittest.mock import Mock

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ciml.errors import RejectedInput
from ciml.limits import MAX_OUTPUT_STORED_LINE_BYTES
from ciml.runs.outputs import OutputTemplates, PreparedOutput, decompressed
from ciml.transforms.logs import prepare as module
from ciml.transforms.logs.prepare import prepare_output, prepare_small
from ciml.transforms.logs.ranking import scan
from tests.tier import tries


def text_of(output: PreparedOutput) -> bytes:
    text = b"".join(decompressed(output.text, ""))
    assert hashlib.sha256(text).hexdigest() == output.file.digest
    assert len(text) == output.file.size
    return text


def templates_of(output: PreparedOutput) -> OutputTemplates:
    content = b"".join(decompressed(output.templates, ""))
    assert hashlib.sha256(content[64:]).hexdigest().encode() == content[:64]
    return msgspec.json.decode(content[64:], type=OutputTemplates)


def chunks_of(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 64)


@pytest.mark.usefixtures("small_blocks")
@given(st.lists(st.integers(0, 12), max_size=80), st.integers(256, 900), st.integers(1, 90))
@example([12] * 60, 256, 50)
def test_kept_lines_are_those_of_the_output_with_their_numbers(lengths: list[int], limit: int, chunk: int) -> None:
    """By an oracle: what is kept are lines of the output, a head and a tail, and the rest is counted."""
    lines = [("word" * length)[:length].rjust(length, "x") + f" at{number}" for number, length in enumerate(lengths)]
    data = "\n".join(lines).encode()
    output = prepare_output(chunks_of(data, chunk), limit)
    text = text_of(output)
    file = output.file
    texts = text.decode().split("\n")
    assert file.lines == len(lines) or not lines
    assert len(text) + file.dropped_bytes == len(data)
    assert text.count(b"\n") + file.dropped_lines == data.count(b"\n")
    assert len(text) <= max(limit, 0) or not file.dropped_bytes
    for number, line in enumerate(texts, 1):
        place = number if not file.dropped_lines or number <= file.head_lines else number + file.dropped_lines
        assert line == (lines[place - 1] if place <= len(lines) else "")
    if len(data) <= limit // 2:
        assert text == data


def test_templates_are_those_of_the_text() -> None:
    generator = random.Random(7)
    lines = [f"step {generator.choice('abcde')} took {generator.random():.3f}s" for _ in range(5000)] + ["", "end"]
    output = prepare_output([("\n".join(lines)).encode()])
    scanned = scan(text_of(output))
    templates = templates_of(output)
    counts = Counter(scanned.codes.tolist())
    assert list(templates.templates) == scanned.templates.to_pylist()[1:]
    assert list(templates.counts) == [counts[code] for code in range(1, len(counts))]
    assert list(templates.first_lines) == [scanned.codes.tolist().index(code) + 1 for code in range(1, len(counts))]
    assert (templates.lines, templates.others) == (5002, 1)


@pytest.mark.usefixtures("small_blocks")
def test_templates_of_dropped_lines_are_counted() -> None:
    data = b"".join(b"line %d of the middle\n" % number for number in range(1000)) + b"end"
    output = prepare_output([data], 200)
    templates = templates_of(output)
    assert output.file.dropped_lines > 900
    assert (templates.templates, templates.counts) == (("line <*> of the middle", "end"), (1000, 1))
    assert templates.first_lines == (1, 1001)


def test_lines_are_those_that_a_terminal_shows() -> None:
    data = b"\x1b[32mok\x1b[0m\n10%\r100%\r\n2026-01-01 00:00:00 | node | \xff done  \npass\x1b[0mword=x\n"
    assert (
        text_of(prepare_output([data])).decode()
        == "ok\n100%\n2026-01-01 00:00:00 | node | \ufffd done\npassword=REDACTED\n"
    )


def test_gzip_is_unpacked_and_broken_gzip_is_rejected() -> None:
    data = b"one\ntwo\n" * 1000
    packed = gzip.compress(data)
    assert prepare_output([packed]) == prepare_output([data])
    with pytest.raises(RejectedInput, match="corrupt_gzip"):
        prepare_output([packed[:-9]])


def test_too_much_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTPUT_UNPACKED_BYTES", 1 << 20)
    with pytest.raises(RejectedInput, match="log_too_large"):
        prepare_output([gzip.compress(bytes(2 << 20))])


@pytest.mark.parametrize("size", [100_000, 9_000_000])
def test_a_long_line_is_cut_at_a_word(size: int) -> None:
    """So that no secret is cut: the part before the cut would not be recognised."""
    data = b"start\n" + b"ab cdef " * (size // 8) + b"ab\nend"
    output = prepare_output(chunks_of(data, 1 << 16))
    first, second, third = text_of(output).decode().split("\n")
    assert (first, third, output.file.lines) == ("start", "end", 3)
    assert MAX_OUTPUT_STORED_LINE_BYTES - 10 < len(second) < MAX_OUTPUT_STORED_LINE_BYTES
    assert second.endswith(("ab", "cdef"))
    assert output.file.dropped_bytes == len(data) - len(first + second + third) - 2


def test_private_keys_of_many_lines_are_redacted() -> None:
    body = ["MIIEpAIBAAKCAQEA0Z3VS5JJcds3xfn/ygWyF8PbnGy0AHB7MbzYLdZ7ZvVy7F7V"] * 3 + ["Nq=="]
    lines = [
        "cat key.pem",
        "-----BEGIN RSA PRIVATE KEY-----",
        *body,
        "-----END RSA PRIVATE KEY-----",
        "abcdefghijklmnop",
    ]
    text = text_of(prepare_output(["\n".join(lines).encode()])).decode().split("\n")
    assert text == ["cat key.pem", "REDACTED", *["REDACTED"] * 3, "Nq==", *lines[-2:]]


@pytest.mark.usefixtures("small_blocks")
def test_a_private_key_may_reach_into_the_next_blocks() -> None:
    body = ["aaaabbbbccccddddeeeeffffgggghhhhiiiijjjj"] * 12
    lines = ["-----BEGIN PRIVATE KEY-----", *body, "-----END PRIVATE KEY-----", "aaaabbbbccccddddeeee"]
    text = text_of(prepare_output(chunks_of("\n".join(lines).encode(), 40))).decode().split("\n")
    assert text[1:13] == ["REDACTED"] * 12
    assert text[-1] == "aaaabbbbccccddddeeee"


def test_each_line_is_searched_for_the_words_of_keys_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Mock(sub=Mock(side_effect=lambda _, text: text))
    monkeypatch.setattr(module, "_KEY_WORD", words)
    prepare_output([b"-----BEGIN PRIVATE KEY-----\n" * 1000])
    assert words.sub.call_count == 1000


def test_memory_holds_blocks_and_what_is_compressed() -> None:
    tracemalloc.start()
    prepare_output((b"the same line again and again, %d\n" % number) * 1000 for number in range(1000))  # 35 MB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_templates_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STORED_TEMPLATES_BYTES", 50)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 64)
    words = ["".join(chr(97 + (number // 26**place) % 26) for place in range(4)) for number in range(500)]
    output = prepare_output(chunks_of("\n".join(words).encode(), 32))
    templates = templates_of(output)
    assert 10 < len(templates.templates) < 60
    assert sum(templates.counts) + templates.others == templates.lines == 500


_LINES = ["", "a b", "x" * 9, "password=p", "\x1b[1mc\x1b[0m", "1\r2", "é", r"a\u000apassword\u003dp"]


@settings(max_examples=tries(40))
@given(st.lists(st.lists(st.sampled_from(_LINES), max_size=12), max_size=6))
@example([])
@example([[], ["-----BEGIN PRIVATE KEY-----", "abcdefghijklmnop"], ["abcdefghijklmnop"]])
def test_small_outputs_are_prepared_together_as_each_alone(outputs: list[list[str]]) -> None:
    data = ["\n".join(lines).encode() for lines in outputs]
    assert prepare_small(data) == [prepare_output([each]) for each in data]


def test_a_decoded_line_feed_makes_no_line() -> None:
    """Otherwise the numbers of later lines would be wrong."""
    output = prepare_output([rb"a\u000apassword\u003dhunter2" + b"\nlast"])
    assert text_of(output) == b"a password=REDACTED\nlast"
    assert templates_of(output).lines == output.file.lines == 2
