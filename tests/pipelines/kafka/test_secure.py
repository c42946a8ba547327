"""TLS and SASL, to a real broker that insists on them; and what is secret, which nobody gets to see."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError
from ciml.kafka import KafkaOptions, read_properties
from ciml.kafka.connect import _refusals, is_refused
from ciml.pipelines.ingest.committer import IngestConfig, IngestProcessor
from ciml.pipelines.kafka.broker import list_topic, make_topic
from ciml.pipelines.kafka.reader import Reader, close_readers
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from tests.pipelines.ingest.ingesting import account, wait_for
from tests.pipelines.kafka.secure_broker import SecureBroker, secure_broker

# --- the file of properties


def test_a_file_of_properties(tmp_path: Path) -> None:
    path = tmp_path / "kafka.properties"
    path.write_text("# TLS\n\n security.protocol = SASL_SSL \nsasl.password=a=b # no comment\n")
    assert read_properties(path) == {"security.protocol": "SASL_SSL", "sasl.password": "a=b # no comment"}
    options = KafkaOptions.of("h:1", [("security.protocol", "SSL")], str(path))
    assert options == KafkaOptions("h:1", {"security.protocol": "SSL", "sasl.password": "a=b # no comment"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sasl.password hidden-1", "line 1: want name=value"),
        ("a=1\n=hidden-1", "line 2: want name=value"),
        ("sasl.password=hidden-1\nsasl.password=hidden-1", "line 2: sasl.password appears twice"),
        ("sasl password=hidden-1", "line 1: want name=value"),
        ("auto.offset.reset=latest", "auto.offset.reset is reserved"),
        ("bootstrap.servers=h:1", "set by --kafka"),
    ],
)
def test_a_line_that_is_no_property_is_named_by_its_number_alone(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "kafka.properties"
    path.write_text(text)
    with pytest.raises(CimlError) as raised:
        KafkaOptions.of("h:1", (), str(path))
    assert says in str(raised.value)
    assert "hidden-1" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CimlError, match=r"no\.properties: cannot be read: No such file"):
        read_properties(tmp_path / "no.properties")
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(CimlError, match="not UTF-8"):
        read_properties(tmp_path / "x")


@pytest.mark.parametrize(
    "properties",
    [
        {"no.such.property": "x", "sasl.password": "hidden-1"},
        {"security.protocol": "hidden-1", "sasl.password": "hidden-1"},
        {"ssl.key.pem": "hidden-1", "security.protocol": "SSL"},
        {"ssl.ca.location": "/no/such/file", "security.protocol": "SSL", "ssl.key.password": "hidden-1"},
    ],
)
def test_a_property_that_cannot_be_used_is_one_line_without_secrets(properties: dict[str, str]) -> None:
    options = KafkaOptions("127.0.0.1:1", properties, timeout_s=1.0)
    for use in (lambda: list_topic(options, "t"), lambda: Reader(options, "t", 0)):
        with pytest.raises(CimlError, match="invalid Kafka property") as raised:
            use()
        assert "hidden-1" not in str(raised.value)


def test_secrets_are_in_no_text_of_the_options_and_survive_a_pickle() -> None:
    options = KafkaOptions("h:1", {"sasl.password": "hidden-1", "sasl.username": "me"})
    assert "hidden-1" not in f"{options} {options!r} {vars(IngestConfig(DataRoot.open('x').raw, kafka=options))}"
    assert pickle.loads(pickle.dumps(options)) == options
    assert options.hide("Login of me by hidden-1 failed") == "Login of me by *** failed"


def test_asking_for_a_refusal_neither_makes_nor_polls_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    options = KafkaOptions("127.0.0.1:1")

    def fail(_: KafkaOptions) -> None:
        raise AssertionError("a client was used")

    monkeypatch.setattr("ciml.kafka.connect.admin", fail)
    assert not is_refused(options)
    monkeypatch.setitem(_refusals, options, "no such user")
    assert is_refused(options)


# --- a broker that insists


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    from ciml.engines.jars import NoJava

    try:
        with secure_broker(tmp_path_factory.mktemp("secure")) as found:
            yield found
    except NoJava as error:
        pytest.skip(str(error))


@pytest.fixture
def options(broker: SecureBroker, tmp_path: Path) -> Iterator[KafkaOptions]:
    yield KafkaOptions.of(broker.sasl, (), str(write(tmp_path, broker.login())))
    close_readers()


def write(folder: Path, properties: dict[str, str]) -> Path:
    path = folder / "kafka.properties"
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    return path


def send_tombstones(options: KafkaOptions, topic: str, count: int) -> None:
    from confluent_kafka import Producer

    producer = Producer(options.common())
    for _ in range(count):
        producer.produce(topic, None, partition=0)
    assert producer.flush(30) == 0


@pytest.mark.engines
def test_everything_goes_through_tls_with_a_password(options: KafkaOptions, tmp_path: Path) -> None:
    """The questions, the reader, and the transactions of the announcements."""
    make_topic(options, "events")
    send_tombstones(options, "events", 5)
    ours = IngestConfig(DataRoot.open(str(tmp_path / "data")).raw, "events", "runs", kafka=options)
    drive(IngestService(ours), until="end")
    assert account(ours.raw)[0].counts == {("dead_letter", "tombstone"): 5}
    assert list_topic(options, "runs").bounds[0][0] == 0
    IngestProcessor(ours).publisher().close()


@pytest.mark.engines
def test_other_ways_in(broker: SecureBroker) -> None:
    plain = KafkaOptions(broker.sasl, broker.login("PLAIN"))
    make_topic(plain, "ways")
    certificate = KafkaOptions(
        broker.ssl,
        {
            "security.protocol": "SSL",
            "ssl.ca.location": str(broker.certificate),
            "ssl.certificate.location": str(broker.certificate),
            "ssl.key.location": str(broker.key),
        },
    )
    assert list_topic(certificate, "ways") == list_topic(plain, "ways")


@pytest.mark.engines
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sasl_password": "hidden-1"}, "refuses the connection: .*[Aa]uthentication failed"),
        ({"sasl_username": "nobody"}, "refuses the connection: .*[Aa]uthentication failed"),
        ({"ssl_ca_location": "probe"}, "refuses the connection: .*certificate"),
        ({"security_protocol": "PLAINTEXT"}, "does not answer"),
    ],
)
def test_a_rejected_client_gets_the_reason(
    broker: SecureBroker,
    changes: dict[str, str],
    says: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    options = KafkaOptions(broker.sasl, broker.login(**changes), timeout_s=5.0)
    with pytest.raises(EngineError, match=says) as raised:
        list_topic(options, "t")
    output = "".join((str(raised.value), caplog.text, *capfd.readouterr()))
    assert "hidden-1" not in output
    assert broker.password not in output


@pytest.mark.engines
def test_a_reader_whose_password_is_no_longer_good_says_so(broker: SecureBroker) -> None:
    make_topic(KafkaOptions(broker.sasl, broker.login()), "reader")
    reader = Reader(KafkaOptions(broker.sasl, broker.login(sasl_password="hidden-1")), "reader", 0)
    reader.seek(0)
    with pytest.raises(EngineError, match=r"reader\[0\] 0: .*refuses the connection") as raised:
        wait_for(lambda: bool(reader.read(1, 1)))
    assert "hidden-1" not in str(raised.value)
    reader.close()


@pytest.mark.engines
def test_from_the_command_line_by_a_file(broker: SecureBroker, options: KafkaOptions, tmp_path: Path) -> None:
    make_topic(options, "cli-events")
    send_tombstones(options, "cli-events", 3)
    path = write(tmp_path, broker.login())
    command = [
        *(
            sys.executable,
            "-m",
            "ciml.cli.main",
            "ingest",
            "--data-path",
            str(tmp_path / "data"),
            "--kafka",
            broker.sasl,
        ),
        *("--kafka-config", str(path), "--topic", "cli-events", "--runs-topic", "cli-runs", "--once"),
        *("--engine", "micro-batches", "--home", str(tmp_path / "home")),
    ]
    good = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert good.returncode == 0, good.stderr
    assert account(DataRoot.open(str(tmp_path / "data")).raw)[0].counts == {("dead_letter", "tombstone"): 3}
    assert broker.password not in good.stdout + good.stderr
