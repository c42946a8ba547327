"""A real broker that asks for TLS, and for a certificate or a password; its keys and passwords are made by the test."""

from __future__ import annotations

import datetime
import ipaddress
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ciml.engines import jars
from ciml.engines.base import SMALL_JVM, java_arguments
from ciml.engines.processes import free_ports, last_lines

USER = "ciml-reader"
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=INSIDE://127.0.0.1:{inside},SSL://127.0.0.1:{ssl},SASL_SSL://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=INSIDE://127.0.0.1:{inside},SSL://127.0.0.1:{ssl},SASL_SSL://127.0.0.1:{sasl}
listener.security.protocol.map=INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL
controller.listener.names=CONTROLLER
inter.broker.listener.name=INSIDE
ssl.keystore.type=PEM
ssl.keystore.location={both}
ssl.truststore.type=PEM
ssl.truststore.location={certificate}
listener.name.ssl.ssl.client.auth=required
sasl.enabled.mechanisms=SCRAM-SHA-256,PLAIN
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}";
log.dirs={data}
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
log.cleaner.dedupe.buffer.size=16777216
broker.heartbeat.interval.ms=500
"""


@dataclass(frozen=True)
class SecureBroker:
    """Where it listens, and what lets one in.

    Attributes:
      ssl: ``host:port`` for those who have the certificate.
      sasl: ``host:port`` for those who have the password.
      certificate, key: files, PEM; the certificate is its own authority, and serves for the client too.
      password: of `USER`.
    """

    ssl: str
    sasl: str
    certificate: Path
    key: Path
    password: str

    def login(self, mechanism: str = "SCRAM-SHA-256", **changes: str) -> dict[str, str]:
        """librdkafka's properties for `sasl`; a name is given with _ for its dots."""
        return {
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(self.certificate),
            "sasl.mechanism": mechanism,
            "sasl.username": USER,
            "sasl.password": self.password,
            **{name.replace("_", "."): value for name, value in changes.items()},
        }


@contextmanager
def secure_broker(folder: Path) -> Iterator[SecureBroker]:
    """Starts it in ``folder``, and ends it."""
    java, class_path = jars.find_java(), jars.class_path("kafka", lambda _: None)
    certificate, key, both = _certificate(folder)
    password = secrets.token_urlsafe(18)
    inside, ssl, sasl, controller = free_ports(4)
    properties = folder / "server.properties"
    properties.write_text(
        _PROPERTIES.format(
            inside=inside, ssl=ssl, sasl=sasl, controller=controller, both=both, certificate=certificate,
            user=USER, password=password, data=folder / "data",
        )
    )  # fmt: skip
    arguments = java_arguments(folder, class_path, ("-Xmx256m", *SMALL_JVM))
    tool = [java, arguments, "kafka.tools.StorageTool", "format", "-t", "c2VjdXJlLWJyb2tlcg", "-c", str(properties)]
    scram = f"SCRAM-SHA-256=[name={USER},password={password}]"
    subprocess.run([*tool, "--add-scram", scram], check=True, capture_output=True, timeout=120)
    log = folder / "broker.log"
    with log.open("wb") as out:
        process = subprocess.Popen([java, arguments, "kafka.Kafka", str(properties)], stdout=out, stderr=out)
    broker = SecureBroker(f"127.0.0.1:{ssl}", f"127.0.0.1:{sasl}", certificate, key, password)
    try:
        deadline = time.monotonic() + 90
        while not _answers(broker):
            assert process.poll() is None, last_lines(log)
            assert time.monotonic() < deadline, last_lines(log)
        yield broker
    finally:
        process.terminate()
        process.wait(60)


def _answers(broker: SecureBroker) -> bool:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient({"bootstrap.servers": broker.sasl, "log_level": 0, **broker.login()})
    try:
        return bool(client.list_topics(timeout=3).brokers)
    except KafkaException:
        return False


def _certificate(folder: Path) -> tuple[Path, Path, Path]:
    """(certificate, key, both in one file) for 127.0.0.1."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    parts = made.public_bytes(pem), key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    paths = folder / "certificate.pem", folder / "key.pem", folder / "both.pem"
    for path, data in zip(paths, (*parts, parts[1] + parts[0]), strict=True):
        path.write_bytes(data)
        path.chmod(0o600)
    return paths
