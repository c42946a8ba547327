"""A real mosquitto for tests: TLS, users, client certificates, an access list, messages that survive a kill."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from ciml.engines.processes import lasting_ports
from ciml.integrations.config import MqttSource, load_receivers
from ciml.integrations.mqtt import MqttSession
from tests.faults.children import Program
from tests.integrations.receivers.kept import wait

USERS = {"zuul": "zuul-secret", "ciml": "ciml-secret-of-the-broker", "other": "a secret without rights"}
_ACL = "user zuul\ntopic write zuul/#\n\nuser ciml\ntopic read zuul/#\n\nuser ciml-receiver\ntopic read zuul/#\n"
_CONFIG = """\
per_listener_settings true
listener {tls} 127.0.0.1
cafile {certificates}/ca.pem
certfile {certificates}/server.pem
keyfile {certificates}/server.key
allow_anonymous false
password_file {folder}/passwords
acl_file {folder}/acl

listener {mutual} 127.0.0.1
cafile {certificates}/ca.pem
certfile {certificates}/server.pem
keyfile {certificates}/server.key
require_certificate true
use_identity_as_username true
acl_file {folder}/acl

listener {plain} 127.0.0.1
allow_anonymous true

user {me}
persistence true
persistence_location {folder}/
autosave_interval 1
max_queued_messages 0
"""


def write_source(folder: Path, **changes: object) -> Path:
    """Write ``receivers.toml`` with one source, named zuul unless changed, and the user's password next to it."""
    (folder / "password").write_text(USERS["ciml"] + "\n")
    (folder / "password").chmod(0o600)
    source = {"receiver": "mqtt", "name": "zuul", "adapter": "zuul", "topics": ["zuul/#"], **changes}
    lines = [f"{key} = {json.dumps(value)}" for key, value in source.items()]
    (folder / "receivers.toml").write_text("\n".join(["[[source]]", *lines, ""]))
    return folder / "receivers.toml"


def session_of(folder: Path, **changes: object) -> MqttSession:
    receivers = load_receivers(write_source(folder, **changes))
    return MqttSession(receivers, receivers.of(MqttSource)[0])


def _run(*command: object) -> None:
    subprocess.run([str(each) for each in command], check=True, capture_output=True)


def found(name: str) -> str:
    """Return the path of a program of Debian's package mosquitto; without it tests fail in CI and are skipped else."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        missing = f"{name} is not there: apt-get install mosquitto"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return path


@dataclass(frozen=True)
class Certificates:
    """Files ``ca.pem``, and ``server`` and ``client`` with the endings ``.pem`` and ``.key``."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> Certificates:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        ca = folder / "ca"
        _run("openssl", "req", "-x509", *curve, "-subj", "/CN=test-ca", "-keyout", f"{ca}.key", "-out", f"{ca}.pem")
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        for name, subject in (("server", "localhost"), ("client", "ciml-receiver")):
            one = folder / name
            _run("openssl", "req", *curve, "-subj", f"/CN={subject}", "-keyout", f"{one}.key", "-out", f"{one}.csr")
            signed = ("-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial", "-extfile", folder / "names")
            _run("openssl", "x509", "-req", "-in", f"{one}.csr", "-out", f"{one}.pem", *signed)
        return cls(folder)


@dataclass
class Mosquitto:
    """A broker of its own folder and ports, which may be killed and started again.

    Attributes:
      ports: with TLS and users, with client certificates, and for anyone.
    """

    folder: Path
    certificates: Certificates
    ports: Sequence[int] = field(default_factory=lambda: lasting_ports(3))
    program: Program | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "passwords").touch(mode=0o600)
        for user, password in USERS.items():
            _run(found("mosquitto_passwd"), "-b", self.folder / "passwords", user, password)
        (self.folder / "acl").write_text(_ACL)
        (self.folder / "acl").chmod(0o600)
        self.tls, self.mutual, self.plain = self.ports

    @property
    def user(self) -> dict[str, object]:
        """The settings of a source that connects as the user ciml, with its password."""
        ca_file = str(self.certificates.folder / "ca.pem")
        broker = f"mqtts://127.0.0.1:{self.tls}"
        return {"broker": broker, "user": "ciml", "secret_file": "password", "ca_file": ca_file}

    def start(self) -> None:
        """Start it, and wait until it listens."""
        config = self.folder / "mosquitto.conf"
        ports = {"tls": self.tls, "mutual": self.mutual, "plain": self.plain}
        me = os.environ.get("USER", "root")
        config.write_text(_CONFIG.format(**ports, folder=self.folder, certificates=self.certificates.folder, me=me))
        program = Program([found("mosquitto"), "-c", str(config)], self.folder / "mosquitto.log")
        self.program = program

        def listens() -> bool:
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", self.tls)) == 0

        wait(listens, f"mosquitto does not start: {program.said()}")

    def kill(self) -> None:
        """SIGKILL, by its pid."""
        if self.program is not None:
            self.program.kill()

    def stop(self) -> None:
        """SIGTERM: it stores its messages."""
        assert self.program is not None
        self.program.stop()

    def publish(self, *bodies: bytes, topic: str = "zuul/tenant/check", qos: int = 1, retain: bool = False) -> None:
        """Publish messages as the user zuul; with QoS 1, until the broker has them."""
        client = mqtt.Client(CallbackAPIVersion.VERSION2)
        client.username_pw_set("zuul", USERS["zuul"])
        client.tls_set(str(self.certificates.folder / "ca.pem"))
        client.connect("127.0.0.1", self.tls)
        client.loop_start()
        wait(client.is_connected, "the publisher does not connect")  # a message of QoS 0 would be lost
        for one in [client.publish(topic, body, qos, retain) for body in bodies]:
            one.wait_for_publish(30)
            assert one.is_published()
        client.disconnect()
        client.loop_stop()
