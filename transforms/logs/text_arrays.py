"""Arrow arrays of texts from Python's, and codes of their values. ``pa.array`` of a list would import pandas."""

from __future__ import annotations

from collections.abc import Iterable

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
    offsets = pa.py_buffer(np.array([0, len(lines)], np.int32))
    child = lines if lines.offset == 0 else pa.concat_arrays([lines])
    lists = pa.ListArray.from_buffers(pa.list_(pa.string()), 1, [None, offsets], children=[child])
    return bytes(pc.binary_join(lists, "\n")[0].as_buffer())
