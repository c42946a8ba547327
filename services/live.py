"""How live windows are run: as one job on Flink, or once in this process, from the runs' first samples."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from confluent_kafka.admin import OffsetSpec

from pipelines.flink.submit import FlinkJob, flink_options, run_here
from pipelines.kafka.broker import offsets_of
from pipelines.kafka.client import Listing, close_readers, list_again, list_topic, make_topic
from pipelines.kafka.plan import PartitionRead
from pipelines.kafka.produce import MAX_MESSAGE_BYTES
from pipelines.live.pipeline import LiveConfig, begin_anew, build_live, reached
from services.progress import Seen, Until, watch_job

#: Told how many messages were read since the start, and how many are to be read.
Report = Callable[[int, int], None]

_PAUSE_S = 0.5
_STALL_S = 120.0
_RENEW_S = 3600.0  # the source's state grows with every rest: docs/kafka.md; a new job begins with none
#: Options of Flink: a checkpoint holds the samples of all runs that are running.
FLINK = {"checkpointing_interval": 10_000}


def plan_live(config: LiveConfig, listing: Listing, since_s: float | None, *, bounded: bool) -> list[PartitionRead]:
    """What is read: each partition from the first message that is not older than ``since_s``; None for all there are.

    Raises:
      EngineError: the broker does not answer.
    """
    starts = {partition: first for partition, (first, _) in listing.bounds.items()}
    if since_s is not None:
        spec = OffsetSpec.for_timestamp(round((time.time() - since_s) * 1000))
        found = offsets_of(config.kafka, config.topic, listing.bounds, spec)
        # A partition without a younger message has -1.
        starts = {part: found[part] if found[part] >= 0 else end for part, (_, end) in listing.bounds.items()}
    return [
        PartitionRead(listing.topic, listing.topic_id, partition, starts[partition], end if bounded else None)
        for partition, (_, end) in sorted(listing.bounds.items())
        if not bounded or starts[partition] < end
    ]


def make_topics(config: LiveConfig) -> Listing:
    """Makes the topics that are not there; returns that of the samples as it is."""
    make_topic(config.kafka, config.topic)
    listing = list_topic(config.kafka, config.topic)
    for topic in (config.windows_topic, config.examples_topic, config.letters_topic):
        if topic:
            make_topic(config.kafka, topic, len(listing.bounds), {"max.message.bytes": str(MAX_MESSAGE_BYTES)})
    return listing


def live_once(config: LiveConfig, *, since_s: float | None, report: Report | None = None) -> None:
    """Reads the runs again from their first samples to the topic's present end, and tells what there is to tell.

    A run that ended and has all its samples is told as such; any other as it stands.

    Raises:
      EngineError: the broker does not answer.
    """
    reads = plan_live(config, make_topics(config), since_s, bounded=True)
    total = sum((read.end or 0) - read.start for read in reads)
    if report is not None:
        report(0, total)
    try:
        if reads:
            run_here(partial(build_live, config=config, reads=reads, clock=time.time))
    finally:
        close_readers()
    if report is not None:
        report(total, 0)


def live_on_flink(
    config: LiveConfig,
    endpoint: str,
    *,
    since_s: float | None,
    until: Until = None,
    stop: threading.Event | None = None,
    report: Report | None = None,
    renew_s: float = _RENEW_S,
    extra: tuple[str, ...] = (),
) -> None:
    """Tells windows and examples by one job on Flink, whose workers are threads of this process.

    Args:
      config: what to tell, and how.
      endpoint: ``host:port`` of Beam's job server.
      since_s: how far back a new job begins to read, s: longer than a run lasts. None for all that the topic has.
      until: when to end.
      stop: ends it, when set.
      report: told twice a second.
      renew_s: after so long a new job begins, which reads again what is not older than ``since_s``.
      extra: further options of Beam.

    Raises:
      EngineError: Flink or the broker does not answer, or the job failed.
      IntegrityError: the topic was deleted, made anew, or lost what was not read.
    """
    listing = first = make_topics(config)
    begun: dict[int, int] = {}

    def submit() -> FlinkJob:
        nonlocal begun
        begin_anew(config.topic)
        reads = plan_live(config, list_again(config.kafka, listing), since_s, bounded=False)
        begun = {read.partition: read.start for read in reads}
        options = flink_options(endpoint, f"ciml-live-{config.topic}", changes=FLINK, extra=extra)
        return FlinkJob(partial(build_live, config=config, reads=reads, clock=time.time), options)

    def look(_: str) -> Seen:
        nonlocal listing
        listing = list_again(config.kafka, listing)
        target = first if until == "end" else listing
        done = reached(config.topic)
        at = {partition: max(start, done.get(partition, start)) for partition, start in begun.items()}
        read = sum(at[partition] - start for partition, start in begun.items())
        left = sum(max(end - at.get(partition, 0), 0) for partition, (_, end) in target.bounds.items())
        if report is not None:
            report(read, left)
        return Seen(read, left)

    try:
        watch_job(
            submit, look, until=until, stop=stop or threading.Event(), stall_s=_STALL_S, renew_s=renew_s,
            pause_s=_PAUSE_S,
        )  # fmt: skip
    finally:
        close_readers()
