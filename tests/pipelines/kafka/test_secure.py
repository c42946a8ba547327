"""TLS and SASL, to a real broker that insists on them; and what is secret, which nobody gets to see."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from unittest.mock import Mock, patch

import pytest
from click.testing import CliRunner
from confluent_kafka import KafkaError
from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from ciml import engines
from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.engines import kafka as engine
from ciml.engines.processes import lasting_ports
from ciml.errors import CimlError, EngineError
from ciml.kafka import KafkaOptions
from ciml.kafka.connect import admin, is_refused, make_client
from ciml.pipelines.ingest.committer import IngestConfig
from ciml.pipelines.kafka.broker import list_topic, make_topic
from ciml.pipelines.kafka.reader import Reader, close_readers
from tests.pipelines.ingest.ingesting import account, produce, wait_for
from tests.transforms.fetch.certificates import make_certificate

# --- the file of properties


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"sasl.password hidden-1", "line 1: want name=value"),
        (b"a=1\n=hidden-1", "line 2: want name=value"),
        (b"sasl.password=hidden-1\nsasl.password=hidden-1", "line 2: sasl.password appears twice"),
        (b"sasl password=hidden-1", "line 1: want name=value"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "kafka.properties: cannot be read: No such file"),
    ],
)
def test_a_line_that_is_no_property_is_named_by_its_number_alone(tmp_path: Path, text: bytes | None, says: str) -> None:
    path = tmp_path / "kafka.properties"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(CimlError) as raised:
        KafkaOptions.of("h:1", (), str(path))
    assert says in str(raised.value)
    assert "hidden-1" not in str(raised.value)


def test_a_file_of_properties(tmp_path: Path) -> None:
    path = tmp_path / "kafka.properties"
    path.write_text("# TLS\n\n security.protocol = SASL_SSL \nsasl.password=a=b # no comment\n")
    options = KafkaOptions.of("h:1", [("security.protocol", "SSL")], str(path))
    assert options == KafkaOptions("h:1", {"security.protocol": "SSL", "sasl.password": "a=b # no comment"})


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

    monkeypatch.setattr("ciml.kafka.connect.admin", Mock(side_effect=AssertionError("a client was used")))
    assert not is_refused(options)
    client = make_client(dict, options, {})
    client["error_cb"](KafkaError(KafkaError._AUTHENTICATION, "no such user"))
    assert is_refused(options)


# --- a broker that insists


USER = "ciml-reader"
_SECURITY = """\
ssl.keystore.type=PEM
ssl.keystore.location={certificate}
ssl.truststore.type=PEM
ssl.truststore.location={certificate}
listener.name.ssl.ssl.client.auth=required
sasl.enabled.mechanisms=SCRAM-SHA-256,PLAIN
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}";
"""


@dataclass(frozen=True)
class SecureBroker:
    """A broker that asks for its own certificate at ``ssl``, and for a password at ``sasl``."""

    ssl: str
    sasl: str
    certificate: str
    password: str

    def login(self, mechanism: str = "SCRAM-SHA-256", **changes: str) -> dict[str, str]:
        """librdkafka's properties for `sasl`; a name is given with _ for its dots."""
        return {
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": self.certificate,
            "sasl.mechanism": mechanism,
            "sasl.username": USER,
            "sasl.password": self.password,
            **{name.replace("_", "."): value for name, value in changes.items()},
        }


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    """The broker of the engines, with two more listeners."""
    folder = tmp_path_factory.mktemp("secure")
    ssl, sasl = (f"127.0.0.1:{port}" for port in lasting_ports(2))
    secure = SecureBroker(ssl, sasl, make_certificate(folder, "127.0.0.1", "localhost"), token_urlsafe(18))
    security = _SECURITY.format(certificate=secure.certificate, user=USER, password=secure.password)
    listener = "listeners=PLAINTEXT://{host}:{kafka}"  # and advertised ones
    properties = engine._PROPERTIES.replace(listener, f"{listener},SSL://{ssl},SASL_SSL://{sasl}")
    properties = properties.replace("CONTROLLER:PLAINTEXT", "CONTROLLER:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL")
    with (
        patch.object(engine, "_PROPERTIES", properties + security),
        engines.start(["kafka"], folder / "home", engines.Settings(tied=True)) as running,
    ):
        if running.light:
            pytest.skip("TLS needs Java")
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        user = UserScramCredentialUpsertion(USER, scram, secure.password.encode())
        admin(KafkaOptions(running.kafka)).alter_user_scram_credentials([user])[USER].result(30)
        yield secure


@pytest.fixture
def options(broker: SecureBroker, tmp_path: Path) -> Iterator[KafkaOptions]:
    yield KafkaOptions.of(broker.sasl, (), str(write(tmp_path, broker.login())))
    close_readers()


def write(folder: Path, properties: dict[str, str]) -> Path:
    path = folder / "kafka.properties"
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    return path


@pytest.mark.engines
def test_other_ways_in(broker: SecureBroker) -> None:
    plain = KafkaOptions(broker.sasl, broker.login("PLAIN"))
    make_topic(plain, "ways")
    certificate = KafkaOptions(
        broker.ssl,
        {
            "security.protocol": "SSL",
            **{f"ssl.{kind}.location": broker.certificate for kind in ("ca", "certificate", "key")},
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
    timeout_s = 2.0 if says == "does not answer" else 30.0
    options = KafkaOptions(broker.sasl, broker.login(**changes), timeout_s=timeout_s)
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
def test_from_the_command_line_by_a_file(
    broker: SecureBroker, options: KafkaOptions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_topic(options, "cli-events")
    produce(options, "cli-events", [(None, ())] * 3)
    path = write(tmp_path, broker.login())
    words = ["ingest", "--data-path", str(tmp_path / "data"), "--kafka", broker.sasl, "--kafka-config", str(path)]
    words += ["--topic", "cli-events", "--runs-topic", "cli-runs", "--once", "--engine", "micro-batches"]
    done = CliRunner().invoke(cli, [*words, "--home", str(tmp_path / "home")])
    assert done.exit_code == 0, done.output
    assert account(DataRoot.open(str(tmp_path / "data")).raw)[0].counts == {("dead_letter", "tombstone"): 3}
    assert list_topic(options, "cli-runs").bounds[0][0] == 0
    assert broker.password not in "".join((done.output, *capfd.readouterr()))
