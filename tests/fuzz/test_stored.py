"""Whatever happens to a stored file, reading it gives an error that names it, or what was written."""

from __future__ import annotations

import resource
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.runs.writer import SEAL
from tests.fuzz.frame import fuzz
from tests.fuzz.strategies.stored import altered
from tests.runs.stored import FORMATS, KINDS, Stored, make

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
