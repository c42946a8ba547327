"""Engines by ``ciml up``, ``ciml status`` and ``ciml down``, and by `ciml.engines`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from ciml import engines
from ciml.cli import main
from ciml.engines import processes
from ciml.errors import CimlError, EngineError
from ciml.kafka import KafkaOptions
from ciml.pipelines.kafka.broker import is_mock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    engines.stop(home=tmp_path / "home")


class Output(NamedTuple):
    stdout: str
    stderr: str


def ciml(*arguments: str, home: Path, code: int = 0, **environment: str) -> Output:
    """Run a command in this process."""
    with (
        patch.dict(os.environ, {"COLUMNS": "160", **environment}),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        pytest.raises(SystemExit) as ended,
    ):
        main.run(main.cli, [*arguments, "--home", str(home)])
    output = Output(out.getvalue(), err.getvalue())
    assert ended.value.code == code, output
    return output


def wait_for(done: Callable[[], object], most_s: float = 60.0) -> None:
    deadline = time.monotonic() + most_s
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def kill(engine: engines.EngineState) -> None:
    """Kill an engine as a crash does. The system may still be ending its threads."""
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    wait_for(lambda: processes.find(engine.process) is None)


@pytest.mark.engines
def test_up_status_down_and_a_crash(home: Path, tmp_path: Path):
    command = [sys.executable, "-m", "ciml", "up", "kafka", "s3", "logs", "--logs-root", str(tmp_path)]
    done = subprocess.run([*command, "--home", str(home)], capture_output=True, text=True, cwd=ROOT, check=True)
    first = engines.read(home)
    kafka = first["kafka"]
    assert sorted(first) == ["kafka", "logs", "s3"]
    assert f"kafka: Kafka 4.1.1 at {kafka.address} (pid {kafka.pid}, ready in " in done.stdout
    assert all(one.kind == "real" and one.log and Path(one.log).is_file() for one in first.values())
    assert ciml("up", "kafka", "s3", home=home).stdout == (
        f"kafka: already running: Kafka 4.1.1 at {kafka.address}\n"
        f"s3: already running: S3 by moto at {first['s3'].address}\n"
    )
    assert engines.read(home) == first
    rows = json.loads(ciml("status", "--json", home=home).stdout)
    assert {name: (row["health"], row["pid"]) for name, row in rows.items()} == {
        name: ("ok", one.pid) for name, one in first.items()
    }
    assert 0 < rows["kafka"]["memory_used_mb"] < 700
    table = ciml("status", home=home).stdout
    assert all(str(one.pid) in table and one.address in table for one in first.values())
    assert [row.rpartition("  ")[2] for row in table.splitlines()] == ["health", "ok", "ok", "ok"]

    assert engines.create_topics(kafka.address, {"kept": 1}) == {"kept": 1}
    failures: list[object] = []
    client = Producer({"bootstrap.servers": kafka.address, "reconnect.backoff.max.ms": 200, "log_level": 0})
    client.produce("kept", b"before", on_delivery=lambda error, _: failures.append(error))
    assert client.flush(20) == 0
    kill(kafka)
    client.produce("kept", b"after", on_delivery=lambda error, _: failures.append(error))
    assert json.loads(ciml("status", "--json", home=home, code=3).stdout)["kafka"]["health"] == "dead"
    assert ciml("up", "kafka", home=home).stderr == ""
    again = engines.read(home)
    assert (again["kafka"].address, again["kafka"].ports) == (kafka.address, kafka.ports)
    assert again["kafka"].pid != kafka.pid
    assert again["s3"] == first["s3"]
    assert client.flush(30) == 0
    assert failures == [None, None]

    assert ciml("down", "--purge", home=home).stdout == "Stopped kafka, logs, s3.\n"
    assert engines.read(home) == {}
    assert [one for one in again.values() if processes.find(one.process)] == []
    assert not (home / "kafka").exists()
    assert ciml("down", home=home).stdout == "No engine was running.\n"


@pytest.mark.engines
def test_without_java_light_engines_take_over_and_are_named(home: Path):
    done = ciml("up", "kafka", "flink", home=home, CIML_NO_JAVA="1")
    assert done.stderr == (
        "CIML_NO_JAVA is set: light: librdkafka mock broker replaces kafka\n"
        "CIML_NO_JAVA is set: light: bounded micro-batches replaces flink\n"
    )
    states = engines.read(home)
    assert {name: (engine.kind, engine.what) for name, engine in states.items()} == {
        "kafka": ("light", "light: librdkafka mock broker"),
        "flink": ("light", "light: bounded micro-batches"),
    }
    broker = states["kafka"].address
    assert f"kafka: light: librdkafka mock broker at {broker} (pid " in done.stdout
    table = ciml("status", home=home).stdout
    assert "light: librdkafka mock broker" in table
    assert "light: bounded micro-batches" in table

    address = {"bootstrap.servers": broker}
    assert is_mock(KafkaOptions(broker))
    assert engines.create_topics(broker, {"light": 1}) == {"light": 4}
    producer = Producer({**address, "transactional.id": "light"})
    producer.init_transactions(10)
    producer.begin_transaction()
    producer.produce("light", b"value", key=b"key", partition=2, headers=[("a", b"b")], timestamp=1_600_000_000_000)
    producer.commit_transaction(10)
    # The marker of the commit takes an offset, as on a real broker.
    admin = AdminClient(address)
    latest = admin.list_offsets({TopicPartition("light", 2): OffsetSpec.latest()})
    assert [one.result(timeout=10).offset for one in latest.values()] == [2]
    consumer = Consumer({**address, "group.id": "x", "isolation.level": "read_committed"})
    assert consumer.get_watermark_offsets(TopicPartition("light", 2), timeout=10) == (0, 2)
    consumer.assign([TopicPartition("light", 2, 0)])
    (message,) = consumer.consume(1, 10)
    assert (message.offset(), message.key(), message.value()) == (0, b"key", b"value")
    assert (message.headers(), message.timestamp()) == ([("a", b"b")], (1, 1_600_000_000_000))
    consumer.close()

    assert ciml("down", home=home).stdout == "Stopped flink, kafka.\n"
    assert processes.find(states["kafka"].process) is None


@pytest.mark.engines
def test_tied_engines_end_with_a_killed_process(home: Path):
    code = (
        "import os, signal; from ciml import engines;"
        f"engines.start(['kafka', 's3'], {str(home)!r}, engines.Settings(tied=True));"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CIML_NO_JAVA": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_for(lambda: engines.read(home) == {})


def test_wrong_use_is_one_line(home: Path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        done = ciml("up", "s3", "--port", f"s3={port}", home=home, code=3)
    assert done.stderr == f"ciml: port {port} for s3 is in use by another program\n"
    assert engines.read(home) == {}
    known = "kafka, flink, cluster, s3, logs, models, mosquitto, gerrit"
    done = ciml("up", "kafak", home=home, code=2)
    assert done.stderr == f"ciml: unknown engine kafak; choose from {known}\n"
    assert "'kafka=http' is not USE=PORT" in ciml("up", "--port", "kafka=http", home=home, code=2).stderr
    assert "'folder/x' is not s3://BUCKET/PREFIX" in ciml("up", "--state", "folder/x", home=home, code=2).stderr
    with pytest.raises(CimlError, match="'file:///x' is not s3://BUCKET/PREFIX"):
        engines.Settings(state="file:///x")
    assert ciml("up", "cluster", home=home, code=3, CIML_NO_JAVA="1").stderr == (
        "ciml: a Flink cluster needs Java (CIML_NO_JAVA is set); without Java use --engine micro-batches\n"
    )


@pytest.mark.engines
def test_topics_keep_their_partitions(kafka: str, topic: Callable[..., str]):
    name = topic(partitions=3, name="made")
    if not os.environ.get("CIML_NO_JAVA"):
        assert engines.create_topics(kafka, {name: 1}) == {name: 3}
        with pytest.raises(CimlError, match="the broker rejects topic 'a/b'"):
            engines.create_topics(kafka, {"a/b": 1})


def test_no_broker_is_one_line():
    (port,) = processes.free_ports(1)
    with pytest.raises(EngineError, match=f"Kafka at 127.0.0.1:{port} does not answer"):
        engines.create_topics(f"127.0.0.1:{port}", {"x": 1}, timeout_s=1)


@pytest.mark.engines
def test_a_missing_bucket_of_a_cluster_is_reported_at_once(home: Path, s3):
    with pytest.raises(EngineError, match="no-such-bucket"):
        engines.start(["cluster"], home, engines.Settings(state="s3://no-such-bucket/x"))
    assert engines.read(home) == {}
