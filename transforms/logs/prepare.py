"""Prepare an output to be stored: without secrets, compressed, with its templates, in one pass and little memory.

    chunks ─► unpacked ─► blocks of lines ─► plain lines ─► redacted ─► frames of zstd: a head and a tail
                                                                  └─► templates, counts, first lines

A block is compressed when its lines are redacted, so memory holds one block as text. Of an output that is too large,
blocks in the middle are dropped; their templates are counted.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ciml.events.records import OutputFile
from ciml.events.redaction import REDACTED
from ciml.limits import (
    MAX_OUTPUT_BYTES,
    MAX_OUTPUT_KEY_LINES,
    MAX_OUTPUT_STORED_LINE_BYTES,
    MAX_OUTPUT_TEMPLATES,
    MAX_OUTPUT_UNPACKED_BYTES,
    MAX_STORED_TEMPLATES_BYTES,
)
from ciml.runs.outputs import OutputTemplates, PreparedOutput, compress, decompressed
from ciml.transforms.fetch.decompress import unpack
from ciml.transforms.logs.lines import lines_of_block, plain_lines_of_block
from ciml.transforms.logs.redact import redact_lines
from ciml.transforms.logs.templates import MASKS, templates_of
from ciml.transforms.logs.text_arrays import codes_of, flags_of, joined, sizes_of, strings

_BLOCK_BYTES = 2 << 20
#: Blocks that the threads of a process have as arrays, each about ten times its size.
_blocks_in_work = threading.BoundedSemaphore(2)
#: A long line loses the word that its cut would split, and a secret with it.
_LAST_WORD_CHARACTERS = 1024
#: A private key has many lines. The first begins it, and the last ends it.
_KEY_BEGIN = r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY"
_KEY_END = "-----END "
_KEY_WORD = re.compile(r"[A-Za-z0-9+/=]{8,}")


def prepare_output(
    chunks: Iterable[bytes], limit: int = MAX_OUTPUT_BYTES, grow: Callable[[int], None] | None = None
) -> PreparedOutput:
    """Prepare an output, plain or gzip.

    Args:
      chunks: its bytes, in their order.
      limit: most bytes of text to keep: a half at the beginning, a half at the end.
      grow: called with the bytes by which the memory of the result grows.

    Raises:
      RejectedInput: ``log_too_large`` if it unpacks to more than `MAX_OUTPUT_UNPACKED_BYTES`; ``corrupt_gzip``.
    """
    blocks = _Blocks(_Preparation(limit // 2, grow))
    unpack(chunks, MAX_OUTPUT_UNPACKED_BYTES, blocks.add)
    return blocks.end()


def prepare_small(outputs: Sequence[bytes]) -> list[PreparedOutput]:
    """Prepare small outputs together, each as `prepare_output` does: to compile the patterns takes longer than one.

    Args:
      outputs: unpacked, of at most a few MiB in all.
    """
    preparations = [_Preparation(MAX_OUTPUT_BYTES // 2) for _ in outputs]
    with _blocks_in_work:
        lines = [preparation.plain(output) for preparation, output in zip(preparations, outputs, strict=True)]
        redacted = _redacted(pa.concat_arrays(lines)) if lines else strings(())
        clean = lines_of_block(joined(redacted)) if lines else redacted
        templates = templates_of(clean)
    prepared = []
    start = 0
    for preparation, plain in zip(preparations, lines, strict=True):
        preparation.add_redacted(redacted[start : start + len(plain)], templates[start : start + len(plain)], True)
        prepared.append(preparation.result())
        start += len(plain)
    return prepared


class _Blocks:
    """Splits bytes into blocks of whole lines. Of a line that is longer than a block, only the beginning is kept."""

    def __init__(self, preparation: _Preparation) -> None:
        self._preparation = preparation
        self._bytes = bytearray()
        self._is_cut = False  # whether the rest of the last line is left out

    def add(self, data: bytes) -> None:
        if self._is_cut:
            end = data.find(b"\n")
            self._preparation.cut_bytes += len(data) if end < 0 else end
            if end < 0:
                return
            data = data[end:]
            self._is_cut = False
        self._bytes += data
        if len(self._bytes) < _BLOCK_BYTES:
            return
        end = self._bytes.rfind(b"\n")
        if end >= 0:
            self._preparation.add(bytes(self._bytes[:end]))
            del self._bytes[: end + 1]
        limit = MAX_OUTPUT_STORED_LINE_BYTES + 1  # so that it counts as a long line
        if len(self._bytes) > limit:
            self._preparation.cut_bytes += len(self._bytes) - limit
            del self._bytes[limit:]
            self._is_cut = True

    def end(self) -> PreparedOutput:
        return self._preparation.end(bytes(self._bytes))


class _Frame(NamedTuple):
    """A compressed block: its frame, and the bytes and line feeds of its text."""

    data: bytes
    size: int
    line_feeds: int


class _Preparation:
    """Takes the blocks of an output, and holds what is kept of them.

    Attributes:
      cut_bytes: bytes that were cut from long lines.
    """

    def __init__(self, half: int, grow: Callable[[int], None] | None = None) -> None:
        self.cut_bytes = 0
        self._half = half
        self._grow = grow or (lambda size: None)
        self._head: list[_Frame] = []
        self._tail: deque[_Frame] = deque()
        self._tail_size = 0
        self._dropped: list[tuple[int, int]] = []  # size and line feeds
        self._size = 0
        self._digest = hashlib.sha256()
        self._templates = _Templates()
        self._key_lines = 0  # the next lines that may belong to a private key

    def add(self, block: bytes, is_last: bool = False) -> None:
        """Add the lines of a block, which has no line feed at its end."""
        with _blocks_in_work:
            lines = _redacted(self.plain(block))
            self.add_redacted(lines, templates_of(lines_of_block(joined(lines))), is_last)

    def plain(self, block: bytes) -> pa.StringArray:
        """Return the lines of the next block as they are shown, cut, and without the lines of private keys."""
        return self._without_keys(self._cut(plain_lines_of_block(block)))

    def add_redacted(self, lines: pa.StringArray, templates: pa.StringArray, is_last: bool) -> None:
        """Add redacted lines and their templates."""
        text = joined(lines)
        self._templates.add(templates)
        if not is_last:
            text += b"\n"
        frame = _Frame(compress(text), len(text), len(lines) - is_last)
        self._grow(len(frame.data))
        if not self._tail and self._size + len(text) <= self._half:
            self._head.append(frame)
            self._size += len(text)
            self._digest.update(text)
            return
        self._tail.append(frame)
        self._tail_size += frame.size
        while self._tail_size > self._half:
            first = self._tail.popleft()
            self._tail_size -= first.size
            self._dropped.append((first.size, first.line_feeds))
            self._grow(-len(first.data))

    def _cut(self, lines: pa.StringArray) -> pa.StringArray:
        sizes = sizes_of(lines)
        if sizes.max(initial=0) <= MAX_OUTPUT_STORED_LINE_BYTES:
            return lines
        texts = lines.to_pylist()
        for index in np.flatnonzero(sizes > MAX_OUTPUT_STORED_LINE_BYTES):
            start = texts[index].encode()[:MAX_OUTPUT_STORED_LINE_BYTES].decode(errors="ignore")
            texts[index] = _without_last_word(start)
            self.cut_bytes += int(sizes[index]) - len(texts[index].encode())
        return strings(texts)

    def _without_keys(self, lines: pa.StringArray) -> pa.StringArray:
        """Redact the lines of private keys: `redact_lines` sees one line at a time."""
        begins = flags_of(pc.match_substring_regex(lines, _KEY_BEGIN))
        if not begins.any() and not self._key_lines:
            return lines
        texts = lines.to_pylist()
        for index, is_begin in enumerate(begins.tolist()):
            if self._key_lines and _KEY_END in texts[index]:
                self._key_lines = 0
            elif self._key_lines:
                self._key_lines -= 1
                texts[index] = _KEY_WORD.sub(REDACTED, texts[index])
            if is_begin:
                self._key_lines = MAX_OUTPUT_KEY_LINES
        return strings(texts)

    def end(self, block: bytes) -> PreparedOutput:
        """Add the last block, and return the result."""
        self.add(block, is_last=True)
        return self.result()

    def result(self) -> PreparedOutput:
        """Return the output, whose last block was added."""
        for frame in self._tail:
            for piece in decompressed(frame.data, "the output"):
                self._digest.update(piece)
        frames = [*self._head, *self._tail]
        dropped_lines = sum(line_feeds for _, line_feeds in self._dropped)
        head_lines = sum(frame.line_feeds for frame in self._head)
        file = OutputFile(
            digest=self._digest.hexdigest(),
            size=sum(frame.size for frame in frames),
            lines=sum(frame.line_feeds for frame in frames) + dropped_lines + 1,
            head_lines=head_lines if self._dropped else 0,
            dropped_lines=dropped_lines,
            dropped_bytes=sum(size for size, _ in self._dropped) + self.cut_bytes,
        )
        return PreparedOutput(b"".join(frame.data for frame in frames), self._templates.encode(), file)


class _Templates:
    """Counts the templates of lines, in the order in which they first appear."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {"": 0}
        self._most = MAX_OUTPUT_TEMPLATES
        self._size = 0
        self._counts = np.zeros(0, np.int64)
        self._first_lines = np.zeros(0, np.int64)
        self._lines = 0

    def add(self, templates: pa.StringArray) -> None:
        """Add the templates of the next lines."""
        before = len(self._numbers)
        codes = codes_of(templates, self._numbers, self._most)
        count = len(self._numbers)
        counts = np.bincount(codes, minlength=count)
        counts[: len(self._counts)] += self._counts
        self._counts = counts
        values, firsts = np.unique(codes, return_index=True)
        self._first_lines = np.concatenate([self._first_lines, np.zeros(count - len(self._first_lines), np.int64)])
        is_new = values >= before
        self._first_lines[values[is_new]] = self._lines + firsts[is_new] + 1
        self._lines += len(templates)
        self._size += sum(len(name) for name in list(self._numbers)[before:])
        if self._size > MAX_STORED_TEMPLATES_BYTES:
            self._most = count

    def encode(self) -> bytes:
        return OutputTemplates(
            tuple(self._numbers)[1:],
            tuple(self._counts[1:].tolist()),
            tuple(self._first_lines[1:].tolist()),
            self._lines,
            int(self._counts[0]),
            MASKS,
        ).encode()


def _without_last_word(text: str) -> str:
    text = text.rstrip()
    words = text[-_LAST_WORD_CHARACTERS:].split()
    return text[: -len(words[-1])].rstrip() if words else text


def _redacted(lines: pa.StringArray) -> pa.StringArray:
    """Redact lines. A secret under an encoding is shown decoded, perhaps with line feeds, which become spaces."""
    redacted = redact_lines(lines)
    return lines if redacted is lines else pc.replace_substring(redacted, "\n", " ")
