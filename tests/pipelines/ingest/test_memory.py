"""The worst logs that the limits permit stay below the documented peak of memory, whatever settles them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ciml.limits import SETTLE_PEAK_BYTES


@pytest.mark.whole
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["micro-batches", "backfill"])
def test_the_worst_permitted_logs_take_no_more_than_the_documented_peak(how: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.pipelines.ingest.worst_logs", str(tmp_path), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    found = json.loads(done.stdout.splitlines()[-1])
    # Rows: many rows, many columns, quotes, digits, restarts, a day. The others are words in place of numbers.
    assert found["reasons"] == {"": 6, "empty_telemetry": 8}
    assert found["peak"] < SETTLE_PEAK_BYTES
