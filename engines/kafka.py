"""A Kafka broker (KRaft, one node) from Maven's jars; librdkafka's mock broker without Java."""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ciml.engines import jars
from ciml.engines.base import HOST, SMALL_JVM, Engine, Launch, Settings, java_arguments, listens
from ciml.engines.processes import python_command, run_once
from ciml.engines.state import LIGHT, EngineState

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
            # As of `StorageTool random-uuid`: 16 random bytes, URL-safe. A leading dash would start an option.
            identity = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
            command = [java, arguments, "kafka.tools.StorageTool", "format", "-t", identity, "-c", str(properties)]
            run_once(command, home / "logs" / "kafka-format.log", 120, "formatting Kafka's storage")
        version = re.search(r"kafka_2\.13-([\w.]+)\.jar", class_path)
        return Launch(
            f"Kafka {version[1] if version else ''}".rstrip(),
            (java, arguments, "kafka.Kafka", str(properties)),
            ports,
            address=f"{HOST}:{ports['kafka']}",
            memory_mb=settings.kafka_heap_mb,
        )

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        return state if listens(state.ports["kafka"]) and _metadata_answers(state.address) else None


class MockKafka(Engine):
    """librdkafka's mock broker, in a Python process. Its data end with it; see docs/engines.md for its limits."""

    name = "kafka"
    kind = LIGHT

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        address_file = _address_file(home)
        address_file.parent.mkdir(parents=True, exist_ok=True)
        address_file.unlink(missing_ok=True)
        command = python_command("ciml.engines.programs", "mock-broker", str(address_file))
        return Launch(MOCK, command, ports)

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        try:
            address = state.address or _address_file(home).read_text()
        except FileNotFoundError:
            return None
        if not _metadata_answers(address):
            return None
        return replace(state, address=address, ports={"kafka": int(address.rpartition(":")[2])})


def _address_file(home: Path) -> Path:
    """Return the file in which the mock broker publishes its address."""
    return home / "kafka" / "mock-broker"


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
      timeout_s: limit for each topic.

    Returns:
      The number of partitions of each topic. It differs from ``topics`` for existing topics, and on the mock broker,
      whose topics have four.

    Raises:
      CimlError: if the broker rejects a topic, for example an invalid name.
      EngineError: if no broker answers in time.
    """
    from ciml.kafka import KafkaOptions
    from ciml.pipelines.kafka.broker import make_topic, topic_of

    options = KafkaOptions(bootstrap, timeout_s=timeout_s)
    for name, count in topics.items():
        make_topic(options, name, count, {"retention.ms": "-1"})
    return {name: len(topic_of(options, name)[1]) for name in topics}
