"""What arrives at a real broker: each sample of the log, the run's events, and nothing that is a secret."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ciml import engines
from ciml.events.cloudevents import FINISHED, STARTED, Event, decode_message
from ciml.events.records import Message
from ciml.events.samples import End, Samples, decode, to_table
from ciml.kafka import KafkaOptions
from ciml.pipelines.kafka.broker import list_topic
from ciml.storage import open_store
from ciml.transforms.fetch.outputs import fetch_outputs, output_addresses
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.parse.logs import Log, parse_logs
from tests.faults.broker import Broker
from tests.messages import check_message
from tests.recorder.recorded import environment, record, recorder, wait_for
from tests.recorder.test_tail import assert_same
from tests.transforms.fetch.fetching import run as run_fetch

pytestmark = pytest.mark.engines


def consume(broker: str, topic: str, schema: str) -> list[Message]:
    """All messages of a topic of one partition, each checked against a schema."""
    from confluent_kafka import Consumer, TopicPartition

    wanted = list_topic(KafkaOptions(broker), topic).bounds[0][1]
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "t", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[Message] = []
    while len(found) < wanted:
        for one in consumer.consume(500, 1.0):
            assert one.error() is None, one.error()
            headers = tuple((name, bytes(value)) for name, value in one.headers() or ())
            found.append(Message(one.offset(), one.value(), headers, one.key(), one.timestamp()[1]))
    consumer.close()
    for message in found:
        check_message(schema, message)
    return found


def heard(broker: str, topic: str) -> tuple[list[Samples], list[End]]:
    """The samples and ends of a topic; what comes after a run's end is a repeat."""
    messages = [decode(message.value) for message in consume(broker, topic, "samples")]
    return [each for each in messages if isinstance(each, Samples)], [
        each for each in messages if isinstance(each, End)
    ]


def events(broker: str, topic: str) -> list[Event]:
    return [decode_message(message) for message in consume(broker, topic, "ci-events")]


def parsed(log: Path) -> pa.Table:
    (table,) = parse_logs([Log(log.read_bytes())])
    assert isinstance(table, pa.Table), table
    return table


def test_a_run_arrives_whole_and_ingest_finds_its_log_and_its_output(
    kafka: str, topic: Callable[..., str], tmp_path: Path
) -> None:
    samples, ci_events, logs = topic(name="samples"), topic(name="events"), tmp_path / "lo gs"
    done = record(
        tmp_path / "spool", "--kafka", kafka, "--samples-topic", samples, "--topic", ci_events, "--log-dir", str(logs),
        "--job", "unit tests", "--run-id", "b/1", "--source", "zuul", "--label", "change=42", "--label", "size=3",
        "--label", "pipeline=gate", "--output", command=["sh", "-c", "echo printed; sleep 2.2; exit 3"],
        env={"CIML_DOOL": ""},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "printed\n")
    assert list((tmp_path / "spool").iterdir()) == []
    (log,) = logs.glob("*/*/dstat*.gz")
    assert log.relative_to(logs).parts == ("unit%20tests", "zuul~b%2F1~1", "dstat-csv_log.txt.gz")
    table = parsed(log)
    parts, ends = heard(kafka, samples)
    assert_same(to_table(parts), table)
    assert {part.run_id for part in parts} == {"zuul~b%2F1~1"}
    assert ends == [End("zuul~b%2F1~1", parts[0].recorder_us, table.num_rows)]
    assert {message.key for message in consume(kafka, samples, "samples")} == {b"zuul~b%2F1~1"}

    started, finished = events(kafka, ci_events)
    assert (started.type, finished.type) == (STARTED, FINISHED)
    (run,) = finished.run_facts
    assert (run.run_id, run.build_name, run.change, run.pipeline, run.result, run.outcome) == (
        "zuul~b%2F1~1", "unit tests", "42", "gate", "FAILURE", "failure",
    )  # fmt: skip
    assert run.labels == {"size": "3", "exit_code": "3"}
    assert run.start_us is not None
    assert run.end_us is not None
    assert run.end_us - run.start_us >= 2.2e6
    assert run.start_us <= table.column("time")[0].value
    policy = FetchPolicy().allowing(roots=(str(logs),))
    fetched, _ = run_fetch(policy, run.log_url)
    assert fetched == [gzip.decompress(log.read_bytes())]
    read = fetch_outputs([output_addresses(policy, run)], policy, lambda _, address, chunks: b"".join(chunks), 30.0)
    assert [gzip.decompress(data) for data in read if isinstance(data, bytes)] == [b"printed\n"]


def test_the_log_of_a_run_is_stored_on_s3(s3: Any, tmp_path: Path) -> None:
    prefix = f"{s3.bucket()}/ci"
    recorded = ["--log-dir", prefix, "--job", "unit", "--run-id", "1", "--output"]
    done = record(tmp_path / "spool", *recorded, "--flush", "20s", command=["true"])
    assert (done.returncode, list((tmp_path / "spool").iterdir())) == (0, []), done.stderr
    store = open_store(prefix)
    names = ("dstat-csv_log.txt.gz", "job-output.txt.gz", "run.json")
    assert sorted(store.list()) == [f"unit/record~1~1/{name}" for name in names]
    (table,) = parse_logs([Log(store.read("unit/record~1~1/dstat-csv_log.txt.gz"))])
    assert isinstance(table, pa.Table)
    assert table.num_rows >= 1


def test_a_broker_that_is_killed_loses_no_sample(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "broker")
    engines.create_topics(broker.address, {"samples": 1, "ci-events": 1})
    logs, spool = tmp_path / "logs", tmp_path / "spool"
    options = ("--kafka", broker.address, "--log-dir", str(logs), "--job", "job", "--run-id", "1")
    process = subprocess.Popen(
        [*recorder(spool, *options, "--flush", "1s"), "sh", "-c", "read x"],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdin is not None
    log = wait_for(lambda: list(spool.glob("*/dstat-csv_log.txt")))[0]

    def rows() -> int:
        return sum(line[:1].isdigit() for line in log.read_text().splitlines())

    def arrived() -> int:
        return sum(len(part.sequence) for part in heard(broker.address, "samples")[0])

    wait_for(lambda: arrived() >= 2)
    broker.kill()
    before = rows()
    wait_for(lambda: rows() >= before + 2)  # it goes on recording
    process.stdin.write("x\n")
    process.stdin.flush()
    _, reported = process.communicate(timeout=30)
    assert process.returncode == 0
    assert f"kept in {log.parent} for the next ciml record, or ciml record --send" in reported

    broker.start()
    done = record(spool, "--kafka", broker.address, "--send", "--flush", "30s", command=[])
    assert done.returncode == 0, done.stderr
    assert list(spool.iterdir()) == []
    (put,) = logs.glob("job/*/*.gz")
    parts, ends = heard(broker.address, "samples")
    assert_same(to_table(parts), parsed(put))
    assert [end.samples for end in ends] == [parsed(put).num_rows]
    found = events(broker.address, "ci-events")
    assert [event.type for event in found if event.type == FINISHED] == [FINISHED]
    assert len({event.key for event in found}) == 2
    assert found[-1].run_facts[0].result == "SUCCESS"
    broker.kill()


def test_no_secret_is_printed_or_stored(tmp_path: Path) -> None:
    secret, spool = "pa55-w0rd", tmp_path / "spool"
    config = tmp_path / "kafka.properties"
    config.write_text(f"ssl.key.password={secret}-2\n")
    done = record(
        spool, "--kafka", "127.0.0.1:9", "-X", "security.protocol=SASL_PLAINTEXT", "-X", "sasl.mechanism=PLAIN", "-X",
        "sasl.username=me", "-X", f"sasl.password={secret}", "--kafka-config", str(config), "--flush", "100ms",
        command=["sleep", "1.2"],
    )  # fmt: skip
    assert done.returncode == 0
    assert "not everything was sent (Kafka at 127.0.0.1:9" in done.stderr
    kept = [path.read_bytes() for path in spool.glob("*/*")]
    assert len(kept) >= 4
    assert not any(secret.encode() in each for each in [done.stderr.encode(), done.stdout.encode(), *kept])
