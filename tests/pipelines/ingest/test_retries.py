"""A retry in progress is not started again."""

from __future__ import annotations

from ciml.events.records import Origin, PendingRun, RunFacts
from ciml.pipelines.ingest.pipeline import RetriesInProgress


def test_a_retry_is_repeated_five_minutes_after_its_start_and_the_next_attempt_at_once() -> None:
    def due(attempts: int) -> list[PendingRun]:
        run = RunFacts("zuul~1~1", "1", "unit", source="zuul")
        return [PendingRun(Origin("t", 0, 1), "e", run, attempts=attempts)]

    retries = RetriesInProgress()
    started = [bool(retries.start(due(1), now_s)) for now_s in (0, 100, 299, 300, 500, 601)]
    assert started == [True, False, False, True, False, True]
    assert retries.start(due(2), 602) == due(2)
