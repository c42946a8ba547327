"""Backfill with its commits, as a ratio to a plain loop of the same pure functions, which commits nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from ciml.events.listing import open_listing
from ciml.events.records import OffsetRange
from ciml.pipelines.backfill.backfill import backfill
from ciml.pipelines.backfill.plan import BackfillConfig
from ciml.runs.writer import store
from ciml.storage import open_store
from ciml.transforms.fetch.fetch import shared_fetcher
from ciml.transforms.ingest.decode import decode_lines
from ciml.transforms.parse.logs import parse
from ciml.trust import evaluate_batch
from tests.bench.measuring import report_ratio, seconds
from tests.pipelines.backfill.backfilling import config, listed

pytestmark = pytest.mark.bench

RUNS = 4000
ROUNDS = 3


def loop(ours: BackfillConfig, path: Path) -> None:
    """Blocks of 500, one after the other; logs are fetched by 16 threads, objects written by 16."""
    listing = open_listing(str(path))
    for block in listing.blocks:
        covers = OffsetRange(listing.topic, "", 0, block.start, block.end)
        batch = evaluate_batch(decode_lines(covers, listing.read(block), ours.reading), ours.trust)
        settled = store(parse(shared_fetcher(ours.fetch).fetch(batch, 0)), ours.raw).settled
        assert {outcome.kind for outcome in settled} == {"run"}
    listing.close()


@pytest.mark.parametrize("runner", [None, "fnapi"])
def test_backfill_against_a_plain_loop(tmp_path: Path, runner: str | None) -> None:
    import ciml.pipelines.backfill.beam  # noqa: F401  (Beam; its import is not a run's time)

    made = listed(tmp_path / "logs", runs=RUNS, tricks=False)
    pairs = []
    for number in range(ROUNDS):
        theirs = seconds(partial(loop, config(made.folder, tmp_path / f"loop-{number}"), made.path))
        ours = config(made.folder, tmp_path / f"backfill-{number}")
        pairs.append((seconds(partial(backfill, ours, open_listing(str(made.path)), runner=runner)), theirs))
        assert open_store(tmp_path / f"loop-{number}" / "raw").list("runs") == ours.raw.list("runs")
    report_ratio(f"backfill, {runner or 'directly'}", pairs, "plain loop", RUNS)
