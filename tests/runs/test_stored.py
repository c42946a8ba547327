"""A flipped bit in what is stored is an error or makes no difference, in each kind of object and each format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.stored import FORMATS, KINDS
from tests.tier import tries

ROOT = Path(__file__).parents[2]
FLIPS = tries(400)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_an_error_or_makes_no_difference(kind: str, form: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.runs.stored", str(tmp_path / "data"), kind, form, str(FLIPS), "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # -11 would be the end of the process
    outcomes = json.loads(done.stdout)
    assert sum(outcomes.values()) == FLIPS
    assert outcomes.keys() <= {"error", "same"}, outcomes
    if form == "new":  # the whole file is sealed, and of a pack all that is read
        assert outcomes["error"] == FLIPS if kind != "pack" else outcomes["error"] > 0.9 * FLIPS
