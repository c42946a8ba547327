"""Whatever happens to a stored file, reading it gives an error that names it, or what was written."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.runs.writer import SEAL
from tests.fuzz.frame import fuzz
from tests.runs.stored import FORMATS, KINDS, Stored, make


@st.composite
def altered(draw: st.DrawFn, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Bytes after one to three accidents; perhaps, when one undoes another, as they were.

    Args:
      draw: hypothesis'.
      data: as it was written.
      others: other files of its kind, which a part of it, or all of it, may come from.
    """
    for _ in range(draw(st.integers(1, 3))):
        data = draw(_accident(data, others))
    return data


def _accident(data: bytes, others: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    if not data:
        return st.binary(max_size=100)
    ways = [_flipped(data), _cut(data), _moved(data), st.binary(max_size=40).map(data.__add__)]
    if others:
        ways += [st.sampled_from(others), st.sampled_from(others).flatmap(lambda other: _mixed(data, other))]
    return st.one_of(ways)


@st.composite
def _flipped(draw: st.DrawFn, data: bytes) -> bytes:
    """A byte has other bits."""
    at, bits = draw(_places(data)), draw(st.sampled_from([1 << bit for bit in range(8)]) | st.integers(1, 255))
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


@st.composite
def _cut(draw: st.DrawFn, data: bytes) -> bytes:
    """A part is lost, at the end or within; or it is noughts, or other bytes."""
    start = draw(_places(data))
    end = draw(st.just(len(data)) | st.integers(start + 1, min(len(data), start + 64)))
    filling = draw(st.sampled_from([b"", bytes(end - start)]) | st.binary(min_size=end - start, max_size=end - start))
    return data[:start] + filling + data[end:]


@st.composite
def _moved(draw: st.DrawFn, data: bytes) -> bytes:
    """Two parts of equal length have changed places."""
    size = draw(st.integers(1, min(64, len(data))))
    first, second = sorted(draw(st.tuples(*[st.integers(0, len(data) - size)] * 2)))
    if second < first + size:
        return data[::-1]
    one, other = data[first : first + size], data[second : second + size]
    return data[:first] + other + data[first + size : second] + one + data[second + size :]


@st.composite
def _mixed(draw: st.DrawFn, data: bytes, other: bytes) -> bytes:
    """The beginning of one file, and the end of another."""
    at = draw(_places(data))
    return data[:at] + other[at:]


def _places(data: bytes) -> st.SearchStrategy[int]:
    """A position: anywhere, or near the end, where a file describes itself."""
    return st.integers(0, len(data) - 1) | st.integers(max(0, len(data) - 1500), len(data) - 1)


_MOST_KIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stored")


@cache
def stored(folder: Path, kind: str, form: str) -> Stored:
    return make(kind, form, Path(mkdtemp(dir=folder)))


@fuzz
@given(st.data(), st.sampled_from(KINDS), st.sampled_from(FORMATS))
def test_what_is_read_is_what_was_written(folder: Path, data: st.DataObject, kind: str, form: str) -> None:
    one = stored(folder, kind, form)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    changed = data.draw(altered(one.data, one.others))
    outcome = one.outcome(changed)
    assert outcome in ("error", "same")
    # An object of an older version has no seal: one in the place of a sealed object is judged by its telemetry.
    if form == "new" and kind != "pack" and SEAL in changed:
        assert (outcome == "same") == (changed == one.data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MOST_KIB
