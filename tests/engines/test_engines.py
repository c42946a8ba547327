from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ciml import engines
from ciml.engines import processes, state
from ciml.errors import CimlError, EngineError
from ciml.kafka import KafkaOptions
from ciml.pipelines.kafka.broker import is_mock
from ciml.storage import open_store

pytestmark = pytest.mark.engines
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    engines.stop(home=tmp_path / "home")


def ciml(*arguments: str, home: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "ciml.cli.main", *arguments, "--home", str(home)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "160", **environment},
        timeout=100,
        check=False,
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done


def pids(home: Path) -> dict[str, int]:
    return {name: one.pid for name, one in engines.read(home).items() if one.pid is not None}


def test_up_status_down(home: Path, tmp_path: Path):
    """A user's round: start, start again, look, end; topics outlive the broker."""
    done = ciml("up", "kafka", "s3", "logs", "--logs-root", str(tmp_path), home=home)
    first = engines.read(home)
    assert sorted(first) == ["kafka", "logs", "s3"]
    assert f"kafka: Kafka 4.1.1 at {first['kafka'].address} (pid {first['kafka'].pid}, ready in " in done.stdout
    assert all(one.kind == "real" and one.log and Path(one.log).is_file() for one in first.values())
    assert engines.create_topics(first["kafka"].address, {"kept": 3}) == {"kept": 3}

    again = ciml("up", "kafka", "s3", home=home)
    assert again.stdout == (
        f"kafka: already running: Kafka 4.1.1 at {first['kafka'].address}\n"
        f"s3: already running: S3 by moto at {first['s3'].address}\n"
    )
    assert engines.read(home) == first

    seen = json.loads(ciml("status", "--json", home=home).stdout)
    assert {name: (one["health"], one["kind"], one["pid"]) for name, one in seen.items()} == {
        name: ("ok", "real", one.pid) for name, one in first.items()
    }
    assert 0 < seen["kafka"]["memory_used_mb"] < 700
    table = ciml("status", home=home).stdout
    for one in first.values():
        assert str(one.pid) in table
        assert one.address in table

    os.kill(first["s3"].pid or 0, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while processes.find(first["s3"].process) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert json.loads(ciml("status", "--json", home=home, code=3).stdout)["s3"]["health"] == "dead"
    ciml("up", "s3", home=home)
    assert pids(home)["kafka"] == first["kafka"].pid
    assert pids(home)["s3"] != first["s3"].pid

    running = pids(home)
    assert ciml("down", home=home).stdout == "Stopped kafka, logs, s3.\n"
    assert engines.read(home) == {}
    assert not [pid for pid in running.values() if psutil.pid_exists(pid) and _command_runs(pid)]
    assert ciml("down", home=home).stdout == "No engine was running.\n"

    with engines.start(["kafka"], home) as running_again:
        from confluent_kafka.admin import AdminClient

        topics = AdminClient({"bootstrap.servers": running_again.kafka}).list_topics(timeout=10).topics
        assert len(topics["kept"].partitions) == 3
    ciml("down", "--purge", home=home)
    assert not (home / "kafka").exists()


def _command_runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_without_java_light_engines_take_over_and_are_named(home: Path):
    done = ciml("up", "kafka", "flink", home=home, CIML_NO_JAVA="1")
    assert done.stderr == (
        "CIML_NO_JAVA is set: light: librdkafka mock broker replaces kafka\n"
        "CIML_NO_JAVA is set: light: bounded micro-batches replaces flink\n"
    )
    written = state.read(home)
    assert {name: (engine.kind, engine.what) for name, engine in written.items()} == {
        "kafka": ("light", "light: librdkafka mock broker"),
        "flink": ("light", "light: bounded micro-batches"),
    }
    assert f"kafka: light: librdkafka mock broker at {written['kafka'].address} (pid " in done.stdout
    table = ciml("status", home=home).stdout
    assert "light: librdkafka mock broker" in table
    assert "light: bounded micro-batches" in table
    pid = written["kafka"].pid
    assert ciml("down", home=home).stdout == "Stopped flink, kafka.\n"
    assert not _command_runs(pid)


def test_the_light_kafka_does_what_the_light_pipelines_need(home: Path, monkeypatch: pytest.MonkeyPatch):
    from confluent_kafka import Consumer, Producer, TopicPartition
    from confluent_kafka.admin import AdminClient, OffsetSpec

    monkeypatch.setenv("CIML_NO_JAVA", "1")
    with engines.start(["kafka"], home) as running:
        address = {"bootstrap.servers": running.kafka}
        admin = AdminClient(address)
        assert is_mock(KafkaOptions(running.kafka))
        assert engines.create_topics(running.kafka, {"light": 1}) == {"light": 4}
        producer = Producer({**address, "transactional.id": "light"})
        producer.init_transactions(10)
        producer.begin_transaction()
        producer.produce("light", b"value", key=b"key", partition=2, headers=[("a", b"b")], timestamp=1_600_000_000_000)
        producer.commit_transaction(10)
        # The marker of the commit takes an offset, as on a real broker.
        latest = admin.list_offsets({TopicPartition("light", 2): OffsetSpec.latest()})
        assert [one.result(timeout=10).offset for one in latest.values()] == [2]
        consumer = Consumer({**address, "group.id": "x", "isolation.level": "read_committed"})
        assert consumer.get_watermark_offsets(TopicPartition("light", 2), timeout=10) == (0, 2)
        consumer.assign([TopicPartition("light", 2, 0)])
        (message,) = consumer.consume(1, 10)
        assert (message.offset(), message.key(), message.value()) == (0, b"key", b"value")
        assert (message.headers(), message.timestamp()) == ([("a", b"b")], (1, 1_600_000_000_000))
        consumer.close()


def test_tied_engines_end_with_a_killed_process(home: Path):
    code = (
        "import os, signal; from ciml import engines;"
        f"engines.start(['kafka', 's3'], {str(home)!r}, engines.Settings(tied=True));"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CIML_NO_JAVA": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while engines.read(home) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert engines.read(home) == {}


def test_a_port_in_use_is_one_line(home: Path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        for name in ("s3", "kafka"):
            done = ciml("up", name, "--port", f"{name}={port}", home=home, code=3)
            assert done.stderr == f"ciml: port {port} for {name} is in use by another program\n"
    assert engines.read(home) == {}


def kill(one: engines.EngineState) -> None:
    """Kills an engine as a crash does. The system may still be ending its threads."""
    assert one.pid is not None
    os.kill(one.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while processes.find(one.process):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_broker_that_crashed_comes_back_where_its_clients_look_for_it(home: Path):
    from confluent_kafka import Producer

    ciml("up", "kafka", home=home)
    first = engines.read(home)["kafka"]
    engines.create_topics(first.address, {"kept": 1})
    failures: list[object] = []
    client = Producer({"bootstrap.servers": first.address, "reconnect.backoff.max.ms": 200, "log_level": 0})
    client.produce("kept", b"before", on_delivery=lambda error, _: failures.append(error))
    assert client.flush(20) == 0
    kill(first)
    client.produce("kept", b"after", on_delivery=lambda error, _: failures.append(error))
    with pytest.raises(EngineError, match="kafka is not ready"):  # a start that fails forgets no port
        engines.start(["kafka"], home, engines.Settings(timeout_s=0.0))
    ciml("up", "logs", "--logs-root", str(home), home=home)  # nor does the start of another engine
    assert ciml("up", "kafka", home=home).stderr == ""
    again = engines.read(home)["kafka"]
    assert (again.address, again.ports) == (first.address, first.ports)
    assert again.pid != first.pid
    assert client.flush(30) == 0
    assert failures == [None, None]


def test_a_broker_whose_port_was_taken_says_where_it_is_and_what_to_do(home: Path):
    ciml("up", "kafka", home=home)
    first = engines.read(home)["kafka"]
    kill(first)
    assert processes.becomes_free(first.ports["kafka"], 20)
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", first.ports["kafka"]))
        holder.listen()
        errors = ciml("up", "kafka", home=home).stderr
    now = engines.read(home)["kafka"]
    port = first.ports["kafka"]
    assert now.address != first.address
    assert errors == (
        f"kafka: port {port}, used before, is in use by another program; it listens at {now.address}. "
        f"Give clients this address, or free the port and run: ciml down kafka; ciml up kafka --port kafka={port}\n"
    )


def test_ports_are_none_that_connections_are_given():
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = processes.lasting_ports(5)
    assert len(set(ports)) == 5
    assert all(port < first for port in ports) or first <= 18_000  # where the system gives nearly all to connections


def test_an_unknown_engine_is_one_line(home: Path):
    done = ciml("up", "kafak", home=home, code=2)
    assert (
        done.stderr
        == "ciml: unknown engine kafak; choose from kafka, flink, cluster, s3, logs, models, mosquitto, gerrit\n"
    )
    done = ciml("up", "--port", "kafka=http", home=home, code=2)
    assert "'kafka=http' is not USE=PORT" in done.stderr


def test_topics_are_made_with_the_partitions_asked_for(kafka: str, topic: Callable[..., str]):
    name = topic(partitions=3, name="made")
    if not os.environ.get("CIML_NO_JAVA"):
        assert engines.create_topics(kafka, {name: 1}) == {name: 3}
        with pytest.raises(CimlError, match="the broker rejects topic 'a/b'"):
            engines.create_topics(kafka, {"a/b": 1})


def test_no_broker_is_one_line():
    (port,) = processes.free_ports(1)
    with pytest.raises(EngineError, match=f"Kafka at 127.0.0.1:{port} does not answer"):
        engines.create_topics(f"127.0.0.1:{port}", {"x": 1}, timeout_s=1)


def test_s3_is_a_store_with_an_atomic_create(s3):
    store = open_store(s3.bucket())
    assert store.create("a/b", b"1")
    assert not store.create("a/b", b"2")
    assert store.read("a/b") == b"1"
    assert store.list() == ["a/b"]
