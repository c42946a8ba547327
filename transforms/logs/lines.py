"""Split the output of a job into lines of clean text: no colours, no overwritten parts, no timestamps, no worker names.

What is removed differs between equal runs, or is never seen by a person who watches the job. The rest of a line is kept
as it is, so that it can be quoted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ciml.limits import MAX_OUTPUT_LINE_CHARACTERS
from ciml.transforms.logs.text_arrays import int64s, replace_where, sizes_of

#: Lines are made in blocks of so many bytes: large enough for Arrow's vectors, small beside the output.
_BLOCK_BYTES = 4 << 20

#: ECMA-48 control sequences and operating system commands; their ``^[[`` form is that of ``script`` and ``cat -v``.
_CONTROLS = r"\^\[\[[0-9;?]*[A-Za-z]|\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]"
#: All but what the last carriage return leaves. A line that a carriage return ends has lost it before.
_OVERWRITTEN = r"^(?s:.*)\r"
#: GitLab's beginning and end of a section of the output. A terminal overwrites them; they name the step of later lines.
_SECTION = r"section_(start|end):\d{1,12}:([\w.-]{1,128})(?:\[[^\]\r]{0,200}\])?\r"
_DATE = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"
#: GitHub's ``DATE text``, Zuul's ``DATE | node | text``, GitLab's ``DATE 00O text`` and Jenkins' ``[DATE] text``.
_AFTER_DATE = r" \d\d[OE][ +]?| \| [\w.-]{1,64} \| ?| \| ?| "
_TIME = r"\d\d:\d\d:\d\d(?:\.\d+)? {1,2}"
_STAMP = rf"^\x{{FEFF}}?(?:\[{_DATE}\] ?|{_DATE}(?:{_AFTER_DATE})?|{_TIME})"
#: pytest-xdist's ``[gw3] text``, and ``service-1  | text`` of Docker Compose.
_WORKER = r"^(?:\[gw\d+\] |[\w.-]+[-_]\d+\s+\| )"


def clean_lines(data: bytes) -> Iterator[pa.StringArray]:
    r"""Yield the lines of an output, block by block.

    A line ends at ``\n``. Bytes that are not UTF-8 become U+FFFD. A line longer than
    `MAX_OUTPUT_LINE_CHARACTERS` is cut.

    Example:
      >>> [lines.to_pylist() for lines in clean_lines(b"2026-01-01T00:00:00Z \x1b[31mFAILED\x1b[0m\n10%\r100%\n")]
      [['FAILED', '100%']]
    """
    for begin, end in blocks_of(data):
        yield lines_of_block(data[begin:end])


def blocks_of(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield begin and end of whole lines, about `_BLOCK_BYTES` at a time, or of the beginning of a longer line."""
    begin = 0
    while begin < len(data):
        end = data.rfind(b"\n", begin, begin + _BLOCK_BYTES)
        if end >= 0:
            yield begin, end
        else:
            end = data.find(b"\n", begin)
            end = len(data) if end < 0 else end
            yield begin, min(end, begin + _BLOCK_BYTES)
        begin = end + 1


def lines_of_block(block: bytes, indices: Iterable[int] | None = None) -> pa.StringArray:
    """Return the clean lines of a block of `blocks_of`, or only those with some indices, counted from 0."""
    lines = _lines_of(block)
    return _clean(lines if indices is None else lines.take(int64s(indices)), block)


def plain_lines_of_block(block: bytes) -> pa.StringArray:
    """Return the whole lines of a block as a terminal would show them, with their timestamps and workers."""
    return _without_controls(_lines_of(block), block)


def _lines_of(block: bytes) -> pa.StringArray:
    """Return the lines of a block, each with the line feed after it."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    offsets = np.concatenate([[0], ends, [len(block)]]).astype(np.int32)
    lines = pa.StringArray.from_buffers(len(ends) + 1, pa.py_buffer(offsets), pa.py_buffer(block))
    try:
        lines.validate(full=True)
    except pa.ArrowInvalid:
        return _lines_of(block.decode("utf-8", "replace").encode())
    return lines


def _clean(lines: pa.StringArray, block: bytes) -> pa.StringArray:
    """Clean lines. Bytes that a block does not have are not searched in its lines."""
    if sizes_of(lines).max(initial=0) > MAX_OUTPUT_LINE_CHARACTERS:
        lines = pc.utf8_slice_codeunits(lines, 0, MAX_OUTPUT_LINE_CHARACTERS)
    lines = _without_controls(lines, block)
    lines = pc.replace_substring_regex(lines, _STAMP, "")
    return pc.replace_substring_regex(lines, _WORKER, "")


def _without_controls(lines: pa.StringArray, block: bytes) -> pa.StringArray:
    if b"\x1b" in block or b"^[[" in block:
        lines = replace_where(lines, r"\x1b|\^\[\[", _CONTROLS, "")
    if b"section_" in block:
        lines = replace_where(lines, "section_", _SECTION, r"section_\1:\2 ")
    lines = pc.utf8_rtrim_whitespace(lines)
    if b"\r" in block:
        lines = replace_where(lines, r"\r", _OVERWRITTEN, "")
    return lines
