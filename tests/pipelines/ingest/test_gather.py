"""Results are gathered until there are enough; a retry in progress is not started again."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.testing.util import assert_that, equal_to

from ciml.events.records import Origin, PendingRun, RunFacts
from ciml.pipelines.flink.submit import run_here
from ciml.pipelines.ingest.pipeline import RetriesInProgress
from ciml.pipelines.processor_beam import Gather


def test_results_are_gathered_by_number_and_the_rest_at_the_end() -> None:
    results = [("raw", b"%d" % number) for number in range(5)]

    def build(pipeline: beam.Pipeline) -> None:
        gathered = pipeline | beam.Create(results, reshuffle=False) | beam.ParDo(Gather("raw", 600.0, 2))
        assert_that(gathered, equal_to([("raw", [b"0", b"1"]), ("raw", [b"2", b"3"]), ("raw", [b"4"])]))

    run_here(build)


def test_a_retry_is_repeated_five_minutes_after_its_start_and_the_next_attempt_at_once() -> None:
    def due(attempts: int) -> list[PendingRun]:
        run = RunFacts("zuul~1~1", "1", "unit", source="zuul")
        return [PendingRun(Origin("t", 0, 1), "e", run, attempts=attempts)]

    retries = RetriesInProgress()
    started = [bool(retries.start(due(1), now_s)) for now_s in (0, 100, 299, 300, 500, 601)]
    assert started == [True, False, False, True, False, True]
    assert retries.start(due(2), 602) == due(2)
