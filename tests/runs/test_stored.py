"""A flipped bit in what is stored is an error or makes no difference, in each kind of object and each format."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.runs.stored import FORMATS, KINDS, make
from tests.tier import tries

FLIPS = tries(400)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_an_error_or_makes_no_difference(tmp_path: Path, kind: str, form: str) -> None:
    stored = make(kind, form, tmp_path)
    assert stored.outcome(stored.data) == "same"
    counts: Counter[str] = Counter()
    for bit in Random(1).sample(range(8 * len(stored.data)), FLIPS):
        changed = bytearray(stored.data)
        changed[bit // 8] ^= 1 << bit % 8
        counts[stored.outcome(bytes(changed))] += 1
    assert counts.keys() <= {"error", "same"}, counts
    if form == "new":  # the whole file is sealed, and of a pack all that is read
        assert counts["error"] == FLIPS if kind != "pack" else counts["error"] > 0.9 * FLIPS
