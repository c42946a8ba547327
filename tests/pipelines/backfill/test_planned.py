"""A planned backfill: its one pipeline settles each line once, also twice, and the rest after an interruption."""

from __future__ import annotations

from pathlib import Path

from ciml.events.listing import open_listing
from ciml.pipelines.backfill.backfill import backfill, plan_backfill
from ciml.pipelines.flink.submit import run_here
from tests.pipelines.backfill.backfilling import listed, rows_of


def test_one_pipeline_settles_each_line_once(tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=24)
    some = made.config(tmp_path / "data", limit=10)
    backfill(some, open_listing(str(made.path)))
    ours = made.config(tmp_path / "data")
    planned = plan_backfill(ours, open_listing(str(made.path)))
    assert planned.lines == len(made.lines) - 10
    run_here(planned.build)
    rows = rows_of(made, tmp_path / "data")
    run_here(planned.build)  # as a template that is run again
    assert rows_of(made, tmp_path / "data") == rows
    nothing = plan_backfill(ours, open_listing(str(made.path)))
    assert (nothing.works, nothing.lines) == ((), 0)
