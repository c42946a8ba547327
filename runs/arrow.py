"""Conversions between Arrow arrays and plain values.

`pyarrow.array` and `to_numpy` would import pandas if it is installed: a third of a second. Casts and similar calls of
tables and columns import `pyarrow.compute`, which takes a tenth of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_TYPES = {"f4": pa.float32(), "i4": pa.int32(), "i8": pa.int64()}


def read_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file in this thread alone, with its page checksums verified.

    By default, Arrow reads in threads of its own, which may hold ``data`` a little longer than the call. If the
    interpreter shuts down before they let go of it, the process is aborted ("terminate called without an active
    exception").

    Args:
      data: the file.
      columns: only these; all by default.

    Raises:
      pyarrow.ArrowException, OSError: the file is broken.
    """
    file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, page_checksum_verification=True)
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


def numbers(values: np.ndarray) -> pa.Array:
    """Convert a contiguous array float32, int32 or int64 [n] to Arrow, without a copy."""
    return pa.Array.from_buffers(_TYPES[values.dtype.str[1:]], values.size, [None, pa.py_buffer(values)])


def plain(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column of numbers or times without nulls to an array [n], times as int64; no copy for one chunk."""
    array = column.combine_chunks()
    return np.from_dlpack(array.view(pa.int64()) if pa.types.is_timestamp(array.type) else array)


def texts(values: Sequence[str]) -> pa.StringArray:
    """Convert texts without nulls to Arrow."""
    if values and values.count(values[0]) == len(values):  # common for facts
        same = values[0].encode()
        offsets = pa.py_buffer(np.arange(len(values) + 1, dtype=np.int32) * np.int32(len(same)))
        return pa.Array.from_buffers(pa.string(), len(values), [None, offsets, pa.py_buffer(same * len(values))])
    builder = pa.lib.StringBuilder()
    builder.append_values(values)
    return builder.finish()


def times(values: Sequence[int | None], kind: pa.DataType) -> pa.Array:
    """Convert whole numbers or nulls to a type of 64 bits, such as timestamps."""
    missing = [value is None for value in values]
    filled = np.fromiter((value or 0 for value in values), np.int64, len(values))
    there = pa.py_buffer(np.packbits(~np.array(missing, bool), bitorder="little")) if any(missing) else None
    return pa.Array.from_buffers(kind, filled.size, [there, pa.py_buffer(filled)])


def flags(values: Sequence[bool]) -> pa.BooleanArray:
    """Convert truth values without nulls to Arrow."""
    packed = np.packbits(np.array(values, bool), bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(packed)])


def text_maps(values: Sequence[Mapping[str, str]]) -> pa.MapArray:
    """Convert maps from text to text without nulls to Arrow, each in the order of its keys."""
    ordered = [sorted(value.items()) for value in values]
    offsets = np.fromiter(accumulate(map(len, ordered), initial=0), np.int32, len(ordered) + 1)
    flat = list(chain.from_iterable(ordered))
    return pa.MapArray.from_arrays(numbers(offsets), texts([key for key, _ in flat]), texts([text for _, text in flat]))


def empty_table(schema: pa.Schema) -> pa.Table:
    """Return a table without rows."""
    return pa.Table.from_batches([], schema=schema)
