"""Arrow arrays of texts from Python's, and codes of their values, without ``pa.array`` and ``pa.scalar``.

These two import pandas.

`RowOfText` remembers what was computed for a text: outputs of the same job have many templates in common.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def strings(texts: Iterable[str]) -> pa.StringArray:
    """Return texts as an Arrow array."""
    encoded = [text.encode() for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def codes_of(texts: pa.StringArray, numbers: dict[str, int], most: int) -> npt.NDArray[np.int32]:
    """Return the number of each text, int32 [n].

    Args:
      texts: without null.
      numbers: by text; new texts are added with the next numbers.
      most: size up to which ``numbers`` grows. Later texts have the number 0.
    """
    encoded = texts.dictionary_encode()
    of_values = np.zeros(len(encoded.dictionary), np.int32)
    for place, text in enumerate(encoded.dictionary.to_pylist()):
        number = numbers.get(text)
        if number is None:
            number = len(numbers) if len(numbers) < most else 0
            if len(numbers) < most:
                numbers[text] = number
        of_values[place] = number
    indices = np.frombuffer(encoded.indices.buffers()[1], np.int32, len(encoded), 4 * encoded.indices.offset)
    return of_values[indices]


def flags_of(values: pa.BooleanArray) -> npt.NDArray[np.bool_]:
    """Return booleans, bool [n], without pandas, which `Array.to_numpy` would import."""
    as_bytes = pc.cast(values, pa.uint8())
    return np.frombuffer(as_bytes.buffers()[1], np.uint8, len(as_bytes), as_bytes.offset).astype(bool)


def sizes_of(texts: pa.StringArray) -> npt.NDArray[np.int32]:
    """Return the bytes of each text, int32 [n]."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1, 4 * texts.offset)
    return np.diff(offsets)


def joined(lines: pa.StringArray) -> bytes:
    """Return texts as one, with line feeds between them."""
    ended = pc.binary_join_element_wise(lines, *strings(("", "\n")))
    if not len(ended):
        return b""
    begin, end = np.frombuffer(ended.buffers()[1], np.int32, len(ended) + 1, 4 * ended.offset)[[0, -1]].tolist()
    text: bytes = ended.buffers()[2].slice(begin, end - begin - 1).to_pybytes()
    return text


def replace_where(texts: pa.StringArray, mark: str, pattern: str, replacement: str) -> pa.StringArray:
    """Replace a pattern in the texts that have a mark.

    To find the mark takes a tenth of the time, and few texts have it.

    Args:
      texts: without null.
      mark: a regular expression of RE2 that matches in every text in which the pattern does.
      pattern: the same, of what is replaced.
      replacement: of each match.
    """
    has_mark = pc.match_substring_regex(texts, mark)
    if not pc.any(has_mark).as_py():
        return texts
    replaced = pc.replace_substring_regex(texts.filter(has_mark), pattern, replacement)
    return pc.replace_with_mask(texts, has_mark, replaced)


class RowOfText:
    """Computes a row for each of many texts, and remembers the rows of those it has seen. Thread-safe.

    It knows texts by Python's hash, of 64 bits and with a seed of the process, which a sender cannot make collide.

    Args:
      compute: returns an array [n, ...] of rows for n different texts. A row depends on its text alone.
      most: rows to remember. Before there are more, all are forgotten; more texts in one call are not remembered.

    Example:
      >>> lengths = RowOfText(lambda texts: sizes_of(texts).astype(np.int64))
      >>> lengths(strings(["error", "ok", "error"])).tolist()
      [5, 2, 5]
    """

    def __init__(self, compute: Callable[[pa.StringArray], npt.NDArray[Any]], most: int = 1 << 17) -> None:
        self._compute = compute
        self._most = most
        self._rows = compute(strings(()))
        self._numbers: dict[int, int] = {}
        self._lock = threading.Lock()

    def __call__(self, texts: pa.StringArray) -> npt.NDArray[Any]:
        """Return the rows of texts, [n, ...]."""
        if len(texts) > self._most:
            return self._compute(texts)
        keys = [hash(text) for text in texts.to_pylist()]
        with self._lock:
            new = self._new(keys)
            if len(self._numbers) + len(new) > self._most:
                self._numbers.clear()
                self._rows = self._rows[:0]
                new = self._new(keys)
            if new:
                rows = self._compute(texts.take(int64s(new.values())))
                self._numbers.update(zip(new, range(len(self._rows), len(self._rows) + len(rows)), strict=True))
                self._rows = np.concatenate([self._rows, rows])
            return self._rows[[self._numbers[key] for key in keys]] if keys else self._rows[:0]

    def _new(self, keys: Iterable[int]) -> dict[int, int]:
        """Return the keys without a row, each with the index of a text that has it."""
        return {key: index for index, key in enumerate(keys) if key not in self._numbers}


def int64s(values: Iterable[int]) -> pa.Int64Array:
    """Return integers as an Arrow array."""
    array = np.fromiter(values, np.int64)
    return pa.Int64Array.from_buffers(pa.int64(), len(array), [None, pa.py_buffer(array)])
