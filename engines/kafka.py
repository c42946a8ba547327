"""A Kafka broker (KRaft, one node) from Maven's jars; librdkafka's mock broker without Java."""

from __future__ import annotations

import base64
import contextlib
import re
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

from ciml.engines import jars
from ciml.engines.base import HOST, SMALL_JVM, Engine, Launch, Settings, java_arguments, listens
from ciml.engines.processes import last_lines, python_command, python_environment
from ciml.engines.state import LIGHT, REAL, EngineState
from ciml.errors import CimlError, EngineError

MOCK = "light: librdkafka mock broker"

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{kafka},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{kafka}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
# Topics are created explicitly with their partitions; a mistyped name is an error.
auto.create.topics.enable=false
num.partitions=1
# Replayed events have old timestamps: a retention would purge them within minutes.
log.retention.ms=-1
log.retention.bytes=-1
# One node.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
# A small machine: few threads, and 16 MiB instead of 128 for the log cleaner, which takes them from the heap at start.
num.network.threads=2
num.io.threads=2
num.recovery.threads.per.data.dir=1
background.threads=2
log.cleaner.dedupe.buffer.size=16777216
# The broker is unfenced by its second heartbeat.
broker.heartbeat.interval.ms=500
"""


class Kafka(Engine):
    """The broker. Its data in ``<home>/kafka`` survive a restart."""

    name = "kafka"
    uses = ("kafka", "kafka-controller")

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        java = jars.find_java()
        class_path = jars.class_path("kafka", settings.notify)
        folder = home / "kafka"
        options = (f"-Xmx{settings.kafka_heap_mb}m", f"-Xms{min(64, settings.kafka_heap_mb)}m", *SMALL_JVM)
        arguments = java_arguments(folder, class_path, options)
        data = folder / "data"
        properties = folder / "server.properties"
        properties.write_text(
            _PROPERTIES.format(host=HOST, kafka=ports["kafka"], controller=ports["kafka-controller"], data=data)
        )
        if not (data / "meta.properties").exists():
            _format(java, arguments, properties, home / "logs" / "kafka-format.log")
        version = re.search(r"kafka_2\.13-([\w.]+)\.jar", class_path)
        state = EngineState(
            name=self.name,
            kind=REAL,
            what=f"Kafka {version[1] if version else ''}".rstrip(),
            ports={use: ports[use] for use in self.uses},
            address=f"{HOST}:{ports['kafka']}",
            memory_mb=settings.kafka_heap_mb,
        )
        return Launch(state, (java, arguments, "kafka.Kafka", str(properties)))

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        return state if listens(state.ports["kafka"]) and _metadata_answers(state.address) else None


class MockKafka(Engine):
    """librdkafka's mock broker, in a Python process. Its data end with it; see docs/engines.md for its limits."""

    name = "kafka"

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        published = _published(home)
        published.parent.mkdir(parents=True, exist_ok=True)
        published.unlink(missing_ok=True)
        command = python_command("ciml.engines.mock_broker", str(published))
        return Launch(EngineState(self.name, LIGHT, MOCK), command, python_environment())

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        try:
            address = state.address or _published(home).read_text()
        except FileNotFoundError:
            return None
        if not _metadata_answers(address):
            return None
        return state.at(address=address, ports={"kafka": int(address.rpartition(":")[2])})


def _published(home: Path) -> Path:
    return home / "kafka" / "mock-broker"


def _format(java: str, arguments: str, properties: Path, log: Path) -> None:
    # As of `StorageTool random-uuid`: 16 random bytes, URL-safe, without a leading dash (it would start an option).
    identity = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    command = [java, arguments, "kafka.tools.StorageTool", "format", "-t", identity.replace("-", "_")]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.run([*command, "-c", str(properties)], stdout=out, stderr=out, timeout=120, check=False)
    if process.returncode != 0:
        raise EngineError(f"formatting Kafka's storage failed: {last_lines(log)}")


def _metadata_answers(address: str) -> bool:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient({"bootstrap.servers": address, "log_level": 0, "socket.connection.setup.timeout.ms": 2000})
    try:
        return bool(client.list_topics(timeout=2).brokers)
    except KafkaException:
        return False


def create_topics(bootstrap: str, topics: Mapping[str, int], timeout_s: float = 30.0) -> dict[str, int]:
    """Create missing topics without retention, and wait until all partitions have leaders.

    Args:
      bootstrap: ``host:port`` of a broker.
      topics: number of partitions by topic.
      timeout_s: limit of the whole call.

    Returns:
      The number of partitions of each topic. It differs from ``topics`` for existing topics, and on the mock broker,
      whose topics have four.

    Raises:
      CimlError: if the broker rejects a topic, for example an invalid name.
      EngineError: if no broker answers in time.
    """
    import time

    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import AdminClient, NewTopic

    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    deadline = time.monotonic() + timeout_s
    try:
        metadata = client.list_topics(timeout=timeout_s)
        if is_mock(metadata.cluster_id):
            return {name: len(client.list_topics(name, timeout=timeout_s).topics[name].partitions) for name in topics}
        absent = [
            NewTopic(name, count, 1, config={"retention.ms": "-1"})
            for name, count in topics.items()
            if name not in metadata.topics
        ]
        for name, future in client.create_topics(absent, operation_timeout=timeout_s).items() if absent else ():
            try:
                future.result()
            except KafkaException as error:
                code = error.args[0].code()
                if code in (KafkaError.TOPIC_EXCEPTION, KafkaError.INVALID_PARTITIONS, KafkaError.POLICY_VIOLATION):
                    raise CimlError(f"the broker rejects topic {name!r}: {error.args[0].str()}") from error
                if code != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
        while True:
            now = client.list_topics(timeout=timeout_s).topics
            counts = {name: len(now[name].partitions) for name in topics if name in now and _led(now[name])}
            if len(counts) == len(topics):
                return counts
            if time.monotonic() > deadline:
                missing = sorted(set(topics) - set(counts))
                raise EngineError(f"{bootstrap}: no leader for topics {', '.join(missing)} within {timeout_s:g} s")
            time.sleep(0.05)
    except KafkaException as error:
        raise EngineError(f"Kafka at {bootstrap} does not answer: {error.args[0].str()}") from error


def is_mock(cluster_id: str | None) -> bool:
    """Return whether the cluster of that id (in a client's metadata) is librdkafka's mock broker."""
    return (cluster_id or "").startswith("mockCluster")


def _led(topic: object) -> bool:
    with contextlib.suppress(AttributeError):
        return topic.error is None and all(part.leader >= 0 for part in topic.partitions.values())  # type: ignore[attr-defined]
    return False
