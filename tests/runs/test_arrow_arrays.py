"""Arrow arrays of plain values are those that pyarrow makes itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.runs.arrow import numbers, plain, text_maps, texts, times


@given(st.lists(st.text(max_size=3)), st.lists(st.none() | st.integers(0, 1 << 50)))
def test_texts_times_and_maps(words: list[str], numbers_us: list[int | None]) -> None:
    kind = pa.timestamp("us", tz="UTC")
    assert times(numbers_us, kind).equals(pa.array(numbers_us, kind))
    maps = [{"b": word, "a": "2"} for word in words] + [{}]
    made = texts(words), text_maps(maps)
    for array in made:
        array.validate(full=True)
    assert made[0].equals(pa.array(words, pa.string()))
    assert made[1].to_pylist() == [sorted(each.items()) for each in maps]


@pytest.mark.parametrize("dtype", ["f4", "i4", "i8"])
def test_numbers_and_back(dtype: str) -> None:
    values = np.arange(5, dtype=dtype)
    assert numbers(values).to_pylist() == plain(pa.chunked_array([numbers(values)])).tolist() == values.tolist()


def test_a_file_is_read_without_a_thread_that_could_outlive_the_call(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({f"c{number}": list(range(1000)) for number in range(8)}), tmp_path / "file", row_group_size=99
    )
    code = f"""
import os
from pathlib import Path
from ciml.runs.arrow import read_parquet
before = len(os.listdir("/proc/self/task"))
table = read_parquet(Path({str(tmp_path / "file")!r}).read_bytes(), ["c1", "c5"])
print(table.shape, len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(1000, 2) 0\n"
