"""Digests of canonical encodings: equal values have equal digests, whichever process computed them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def canonical_json(value: Any) -> bytes:
    """Encode a value as JSON with sorted keys, no spaces and no NaN: equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_hex(data: bytes) -> str:
    """Return the hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hex sha256 of `canonical_json`."""
    return sha256_hex(canonical_json(value))


def arrays_digest(run_id: str, arrays: Iterable[tuple[str, np.ndarray]], *numbers: int) -> str:
    """Return the hex sha256 of (run id, named arrays, numbers).

    Args:
      run_id: the encoded run id.
      arrays: (name, array) pairs; each array is encoded little-endian in C order, with its dtype and shape. NaNs of any
        payload are equal; -0.0 and 0.0 differ.
      numbers: more whole numbers, such as n_windows.
    """
    import numpy as np

    digest = hashlib.sha256(_sized(run_id.encode()))
    for name, array in arrays:
        array = np.ascontiguousarray(array)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if array.dtype.kind == "f" and np.isnan(array).any():
            array = np.where(np.isnan(array), array.dtype.type(np.nan), array)  # one payload for all
        digest.update(_array_head(name, array.dtype.str, array.shape, array.nbytes))
        digest.update(array.tobytes())
    for number in numbers:
        digest.update(_sized(struct.pack("<q", number)))
    return digest.hexdigest()


def _array_head(name: str, dtype: str, shape: tuple[int, ...], size: int) -> bytes:
    """Encode an array except for its bytes, which follow."""
    return _sized(name.encode()) + _sized(f"{dtype}{shape}".encode()) + struct.pack("<q", size)


def _sized(data: bytes) -> bytes:
    """Return bytes after their length, so that no two sequences have equal bytes."""
    return struct.pack("<q", len(data)) + data


def row_digest(run_id: str, arrays: np.ndarray, features: Sequence[str], n_windows: int) -> str:
    """Return the digest of an example, for comparing two computations of it. ``arrays`` float32 [F, L]."""
    return arrays_digest(run_id, zip(features, arrays), n_windows)


def row_digests(
    run_ids: Sequence[str], unrolled: np.ndarray, features: Sequence[str], n_windows: Sequence[int]
) -> Iterator[str]:
    """Yield the `row_digest` of many examples: ``unrolled`` float32 [F, rows, L], without NaN.

    The parts that rows have in common are encoded once, and each row is hashed in one call.
    """
    if not unrolled.size:
        return
    length = unrolled.shape[2]
    row_bytes = 4 * length
    heads = [_array_head(feature, "<f4", (length,), row_bytes) for feature in features]
    columns = [memoryview(values.reshape(-1)).cast("B") for values in unrolled]
    tails = {count: _sized(struct.pack("<q", count)) for count in set(n_windows)}
    for row, (run_id, count) in enumerate(zip(run_ids, n_windows)):
        start = row * row_bytes
        parts: list[bytes | memoryview] = [_sized(run_id.encode())]
        for head, column in zip(heads, columns):
            parts += (head, column[start : start + row_bytes])
        parts.append(tails[count])
        yield hashlib.sha256(b"".join(parts)).hexdigest()


def telemetry_digest(run_id: str, table: pa.Table) -> str:
    """Return the digest of a run's telemetry: its columns in order, with null as NaN (times: the smallest int64)."""
    names: Sequence[str] = table.column_names
    return arrays_digest(run_id, ((name, _without_nulls(table.column(name))) for name in names))


def _without_nulls(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of times, floats or booleans as int64, float64 or uint8."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    array = column.combine_chunks()
    null: float
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.int64())
        null = np.iinfo(np.int64).min
    elif pa.types.is_floating(array.type):
        array = array.cast(pa.float64())
        null = float("nan")
    elif pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
        null = 0
    else:
        raise TypeError(f"telemetry columns must be times, floats or booleans, got {array.type}")
    if array.null_count:
        array = pc.fill_null(array, null)
    return np.from_dlpack(array)  # Array.to_numpy() would import pandas
