"""Topic processors as Beam pipelines: results are gathered, committed, and published.

A bounded pipeline commits once. An unbounded one commits when enough results wait, or the first has waited long enough.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, CombiningValueStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp

from ciml.events.records import Batch
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.source import ReadFromKafka
from ciml.pipelines.processor import BatchProcessor, PipelineProcessor
from ciml.transforms.ingest.beam import COMMIT
from ciml.transforms.ingest.run_stages import keep_error


def build_processor(
    pipeline: beam.Pipeline, processor: BatchProcessor[Any, Any, Any], reads: Sequence[PartitionRead]
) -> beam.PCollection[int]:
    """Wire a processor: bounded if the ``reads`` are, else unbounded. Return the committed versions."""
    config = processor.config
    source, stage = processor.labels
    batches = pipeline | source >> ReadFromKafka(config.kafka, reads, config.read)
    results = batches | stage >> beam.ParDo(Read(processor)).with_output_types(tuple[str, bytes])
    return commit_and_publish(results, processor, bounded=all(read.end is not None for read in reads))


def commit_and_publish(
    results: beam.PCollection[tuple[str, bytes]], processor: PipelineProcessor[Any, Any, Any], *, bounded: bool
) -> beam.PCollection[int]:
    """Wire the end of a processor's pipeline. Return the committed versions.

    Args:
      results: encoded results by the processor's name.
      processor: the processor.
      bounded: whether the pipeline ends.
    """
    config = processor.config
    gather = Gather(processor.name, config.commit_s, config.commit_batches)
    gathered = results | (beam.GroupByKey() if bounded else "Gather" >> beam.ParDo(gather))
    return gathered | "Commit" >> beam.ParDo(Commit(processor)) | "Publish" >> beam.ParDo(Publish(processor))


class Read(beam.DoFn):
    """Batches of messages -> (name of the processor, encoded result)."""

    def __init__(self, processor: BatchProcessor[Any, Any, Any]) -> None:
        self._processor = processor

    def process(self, batch: Batch) -> Iterator[tuple[str, bytes]]:
        with keep_error():
            yield self._processor.name, self._processor.encode(self._processor.read(batch))


class Commit(beam.DoFn):
    """(name, encoded results) -> the version at which they are committed, by this or another process."""

    def __init__(self, processor: PipelineProcessor[Any, Any, Any]) -> None:
        self._processor = processor

    def process(self, element: tuple[str, Iterable[bytes]]) -> Iterator[int]:
        processor = self._processor
        with keep_error():
            results = [processor.decode(data) for data in element[1]]
            processor.check_topics(results)
            with COMMIT.timed(processor.name):
                version = processor.commit(results)
            replica = processor.replica()
            if version is None:  # a repeated bundle, whose commit may not have been published
                with replica.state() as state:
                    version = state.version
            if processor.config.maintains:
                replica.maintain()
            yield version


class Publish(beam.DoFn):
    """Publishes all commits that were not published. The incoming version is only a trigger."""

    def __init__(self, processor: PipelineProcessor[Any, Any, Any]) -> None:
        self._processor = processor

    def process(self, version: int) -> Iterator[int]:
        with keep_error():
            self._processor.publisher().announce()
        yield version


class Gather(beam.DoFn):
    """Holds results until there are enough, or the first has waited long enough (processing time).

    Independent of the watermark, so no batch is late, except at the end of a drained job: Flink ends stages without
    firing their processing-time timers.
    """

    _waiting = BagStateSpec("waiting", BytesCoder())
    _count = CombiningValueStateSpec("count", sum)
    _time = TimerSpec("time", TimeDomain.REAL_TIME)
    _end = TimerSpec("end", TimeDomain.WATERMARK)

    def __init__(self, name: str, most_s: float, most: int) -> None:
        self._name = name
        self._most_s = most_s
        self._most = most

    def process(
        self,
        element: tuple[str, bytes],
        waiting: Any = beam.DoFn.StateParam(_waiting),  # noqa: B008
        count: Any = beam.DoFn.StateParam(_count),  # noqa: B008
        timer: Any = beam.DoFn.TimerParam(_time),  # noqa: B008
        end: Any = beam.DoFn.TimerParam(_end),  # noqa: B008
    ) -> Iterator[tuple[str, list[bytes]]]:
        waiting.add(element[1])
        count.add(1)
        number = count.read()
        if number == 1:
            timer.set(Timestamp.of(time.time() + self._most_s))
            end.set(GlobalWindow().max_timestamp())
        if number >= self._most:
            yield from self._flush(waiting, count)

    @on_timer(_time)
    def on_time(
        self,
        waiting: Any = beam.DoFn.StateParam(_waiting),  # noqa: B008
        count: Any = beam.DoFn.StateParam(_count),  # noqa: B008
    ) -> Iterator[tuple[str, list[bytes]]]:
        yield from self._flush(waiting, count)

    @on_timer(_end)
    def on_end(
        self,
        waiting: Any = beam.DoFn.StateParam(_waiting),  # noqa: B008
        count: Any = beam.DoFn.StateParam(_count),  # noqa: B008
        timer: Any = beam.DoFn.TimerParam(_time),  # noqa: B008
    ) -> Iterator[tuple[str, list[bytes]]]:
        timer.clear()
        yield from self._flush(waiting, count)

    def _flush(self, waiting: Any, count: Any) -> Iterator[tuple[str, list[bytes]]]:
        results = list(waiting.read())
        waiting.clear()
        count.clear()
        if results:
            yield self._name, results
