"""Row 8: retention passes an offset that was never read; the topic is made anew."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from tests.faults.broker import Broker, own_broker
from tests.faults.judge import Delivery
from tests.faults.scene import Scene, make_topic
from tests.faults.story import Story
from tests.faults.verdict import Verdict

ROW = 8
TITLE = "retention passes the offset; topic made anew"
INJECTED = (
    "by turns: retention.ms=1 on the topic, records deleted by the admin API, the topic deleted and made anew with "
    "more or with fewer messages; while ingest is stopped, or frozen so that it finds out as it goes on"
)
EXPECTED = "a loud stop (exit code 4, the reason in one line), nothing skipped; what was read before stays exact"
INVARIANTS = ("I1", "I2", "I3", "I4", "alarm")
TRIALS = 20
ENGINES = ("micro-batches",)


def trial(seed: int, scene: Scene) -> Verdict:
    broker = own_broker(scene.served.parent)
    story = Story(scene, seed, broker=broker.address)
    story.poll()
    story.produce(story.planner.mixed(150))
    story.ingest()
    if not story.settle():
        return story.finish(data_sets=False)
    before, version = story.deliveries(), story.ledger.version
    running = seed % 3 == 0
    if running:
        story.ingests[-1].send(signal.SIGSTOP)
    else:
        story.stop_ingest()
    says = _FAULTS[seed % 4](story, broker)
    if running:
        story.ingests[-1].send(signal.SIGCONT)
    else:
        story.ingest()
    story.verdict.count("faults")
    _alarm(story, version, before, says)
    return story.finish(data_sets=False, only=before)  # what came later is none of the store's business


def _alarm(story: Story, version: int, before: list[Delivery], says: tuple[str, ...]) -> None:
    """The last ingest has to end by itself, with 4, its reason said, and nothing committed."""
    code, verdict = story.ingests[-1].wait(60), story.verdict
    verdict.expect(code == 4, f"alarm: ingest ended with {code}, not with 4: {story.ingests[-1].said()[-200:]}")
    said = " ".join(story.ingests[-1].said().split())
    verdict.expect(any(each in said for each in says), f"alarm: it says {said[-300:]!r}, and nothing of {says}")
    story.ledger.poll()
    covered = {(partition, n) for (_, partition), numbers in story.ledger.covered.items() for n in numbers}
    more = covered - {(one.partition, one.offset) for one in before}
    verdict.expect(not more, f"alarm: it went on and covered {sorted(more)[:3]}")
    verdict.expect(story.ledger.version == version, f"alarm: it went on to version {story.ledger.version}")


def _produce_more(story: Story, runs: int = 40) -> None:
    story.produce(story.planner.mixed_again(runs))
    while not story.all_sent():
        time.sleep(0.05)


def _retention(story: Story, broker: Broker) -> tuple[str, ...]:
    """New messages come and are gone before they are read."""
    _produce_more(story)
    _set_retention(broker, story.topic, "1")
    ends = _bounds(broker, story.topic)
    deadline = time.monotonic() + 60
    while any(first < ends[part][1] for part, (first, _) in _bounds(broker, story.topic).items()):
        if time.monotonic() > deadline:
            raise RuntimeError("retention did not pass")
        time.sleep(0.2)
    _set_retention(broker, story.topic, "-1")
    return ("expired before they were read", "does not hold")


def _deleted(story: Story, broker: Broker) -> tuple[str, ...]:
    """All but the last of the new messages of each partition are deleted."""
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    _produce_more(story)
    client = AdminClient({"bootstrap.servers": broker.address, "log_level": 0})
    places = [TopicPartition(story.topic, part, end - 1) for part, (_, end) in _bounds(broker, story.topic).items()]
    for future in client.delete_records(places).values():
        future.result()
    return ("expired before they were read", "does not hold")


def _anew(runs: int) -> Callable[[Story, Broker], tuple[str, ...]]:
    def fault(story: Story, broker: Broker) -> tuple[str, ...]:
        from confluent_kafka.admin import AdminClient

        client = AdminClient({"bootstrap.servers": broker.address, "log_level": 0})
        client.delete_topics([story.topic], operation_timeout=30)[story.topic].result()
        deadline = time.monotonic() + 30
        while True:  # the name is free a moment later
            try:
                make_topic(broker.address, story.topic, 2)
                break
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        _produce_more(story, runs)
        return ("created again", "it is not the topic that was read", "does not hold")

    return fault


_FAULTS: tuple[Callable[[Story, Broker], tuple[str, ...]], ...] = (_retention, _deleted, _anew(20), _anew(400))


def _set_retention(broker: Broker, topic: str, value: str) -> None:
    from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

    client = AdminClient({"bootstrap.servers": broker.address, "log_level": 0})
    entry = ConfigEntry("retention.ms", value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    for future in client.incremental_alter_configs([resource]).values():
        future.result()


def _bounds(broker: Broker, topic: str) -> dict[int, tuple[int, int]]:
    from confluent_kafka import Consumer, TopicPartition

    client = Consumer({"bootstrap.servers": broker.address, "group.id": "faults", "log_level": 0})
    try:
        parts = client.list_topics(topic, timeout=30).topics[topic].partitions
        return {part: client.get_watermark_offsets(TopicPartition(topic, part), timeout=30) for part in parts}
    finally:
        client.close()
