"""A flipped bit in what is stored is an error or makes no difference, in each kind of object and each format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.runs.stored import FORMATS, KINDS
from tests.tier import tries

ROOT = Path(__file__).parents[2]
FLIPS = tries(400)


def test_a_flipped_bit_is_an_error_or_makes_no_difference(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.runs.stored", str(tmp_path), str(FLIPS), "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # -11 would be the end of the process
    outcomes = {(kind, form): counts for kind, form, counts in map(json.loads, done.stdout.splitlines())}
    assert len(outcomes) == len(KINDS) * len(FORMATS)
    for (kind, form), counts in outcomes.items():
        assert sum(counts.values()) == FLIPS
        assert counts.keys() <= {"error", "same"}, (kind, form, counts)
        if form == "new":  # the whole file is sealed, and of a pack all that is read
            assert counts["error"] == FLIPS if kind != "pack" else counts["error"] > 0.9 * FLIPS
