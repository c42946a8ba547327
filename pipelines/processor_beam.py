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
from ciml.transforms.guard import keep_error
from ciml.transforms.ingest.beam import COMMIT


def build_processor(
    pipeline: beam.Pipeline, processor: BatchProcessor[Any, Any, Any], reads: Sequence[PartitionRead]
) -> beam.PCollection[int]:
    """Wire a processor: bounded if the ``reads`` are, else unbounded. Return the committed versions."""
    config = processor.config
    source, stage = processor.labels
    batches = pipeline | source >> ReadFromKafka(config.kafka, reads, config.read)
    results = batches | stage >> beam.Map(_read, processor).with_output_types(tuple[str, bytes])
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
    return gathered | "Commit" >> beam.ParDo(Commit(processor)) | "Publish" >> beam.Map(_publish, processor)


def _read(batch: Batch, processor: BatchProcessor[Any, Any, Any]) -> tuple[str, bytes]:
    with keep_error():
        return processor.name, processor.encode(processor.read(batch))


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


def _publish(version: int, processor: PipelineProcessor[Any, Any, Any]) -> int:
    """Publish all commits that were not published. The incoming version is only a trigger."""
    with keep_error():
        processor.publisher().announce()
    return version


_WAITING = beam.DoFn.StateParam(BagStateSpec("waiting", BytesCoder()))
_COUNT = beam.DoFn.StateParam(CombiningValueStateSpec("count", sum))
_TIME = beam.DoFn.TimerParam(TimerSpec("time", TimeDomain.REAL_TIME))
_END = beam.DoFn.TimerParam(TimerSpec("end", TimeDomain.WATERMARK))


class Gather(beam.DoFn):
    """Holds results until there are enough, or the first has waited long enough (processing time).

    The watermark plays no role, so no result is late. Only at the end of a drained job does it flush the rest, since
    Flink then ends stages without firing their processing-time timers.
    """

    def __init__(self, name: str, wait_s: float, most: int) -> None:
        self._name = name
        self._wait_s = wait_s
        self._most = most

    def process(
        self,
        element: tuple[str, bytes],
        waiting: Any = _WAITING,
        count: Any = _COUNT,
        timer: Any = _TIME,
        end: Any = _END,
    ) -> Iterator[tuple[str, list[bytes]]]:
        waiting.add(element[1])
        count.add(1)
        number = count.read()
        if number == 1:
            timer.set(Timestamp.of(time.time() + self._wait_s))
            end.set(GlobalWindow().max_timestamp())
        if number >= self._most:
            yield from self._flush(waiting, count)

    @on_timer(_TIME.timer_spec)
    def on_time(self, waiting: Any = _WAITING, count: Any = _COUNT) -> Iterator[tuple[str, list[bytes]]]:
        yield from self._flush(waiting, count)

    @on_timer(_END.timer_spec)
    def on_end(
        self, waiting: Any = _WAITING, count: Any = _COUNT, timer: Any = _TIME
    ) -> Iterator[tuple[str, list[bytes]]]:
        timer.clear()
        yield from self._flush(waiting, count)

    def _flush(self, waiting: Any, count: Any) -> Iterator[tuple[str, list[bytes]]]:
        results = list(waiting.read())
        waiting.clear()
        count.clear()
        if results:
            yield self._name, results
