"""A real mosquitto for tests: TLS, users, client certificates, an access list, messages that survive a kill."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from ciml.engines.processes import lasting_ports
from tests.faults.children import Program

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
{options}
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
persistence {persistence}
persistence_location {folder}/
autosave_interval 1
max_queued_messages 0
"""


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
        """Make them."""
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
        ca = folder / "ca"
        _run("openssl", "req", "-x509", *curve, "-subj", "/CN=test-ca", "-keyout", f"{ca}.key", "-out", f"{ca}.pem")
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        for name, subject in (("server", "localhost"), ("client", "ciml-receiver")):
            one = folder / name
            _run(
                "openssl", "req", *curve[:-2], "-subj", f"/CN={subject}", "-keyout", f"{one}.key", "-out", f"{one}.csr"
            )
            _run(
                "openssl", "x509", "-req", "-in", f"{one}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key",
                "-CAcreateserial", "-days", "2", "-out", f"{one}.pem", "-extfile", folder / "names",
            )  # fmt: skip
        return cls(folder)


@dataclass
class Mosquitto:
    """A broker of its own folder and ports, which may be killed and started again.

    Attributes:
      tls, mutual, plain: ports: with TLS and users, with client certificates, and for anyone.
      persistent: whether sessions and messages survive a kill, if they are a second old.
    """

    folder: Path
    certificates: Certificates
    persistent: bool = True
    options: str = ""
    ports: Sequence[int] = field(default_factory=lambda: lasting_ports(3))
    program: Program | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "passwords").touch(mode=0o600)
        for user, password in USERS.items():
            self.set_password(user, password)
        (self.folder / "acl").write_text(_ACL)
        (self.folder / "acl").chmod(0o600)

    @property
    def tls(self) -> int:
        return self.ports[0]

    @property
    def mutual(self) -> int:
        return self.ports[1]

    @property
    def plain(self) -> int:
        return self.ports[2]

    def set_password(self, user: str, password: str) -> None:
        """Set a password, for the next start."""
        _run(found("mosquitto_passwd"), "-b", self.folder / "passwords", user, password)

    def start(self) -> None:
        """Start it, and wait until it listens."""
        tls, mutual, plain = self.ports
        persistence = "true" if self.persistent else "false"
        (self.folder / "mosquitto.conf").write_text(
            _CONFIG.format(
                tls=tls, mutual=mutual, plain=plain, folder=self.folder, certificates=self.certificates.folder,
                options=self.options, persistence=persistence, me=os.environ.get("USER", "root"),
            )
        )  # fmt: skip
        command = [found("mosquitto"), "-c", str(self.folder / "mosquitto.conf")]
        self.program = Program(command, self.folder / "mosquitto.log")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.tls), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"mosquitto does not start: {self.program.said()}")

    def kill(self) -> None:
        """SIGKILL, by its pid."""
        if self.program is not None:
            self.program.kill()

    def stop(self) -> None:
        """SIGTERM: it stores its messages."""
        assert self.program is not None
        self.program.stop()

    @contextmanager
    def publisher(self, user: str = "zuul", **options: Any) -> Iterator[mqtt.Client]:
        """A connected client that may publish to ``zuul/#``."""
        client = mqtt.Client(CallbackAPIVersion.VERSION2, **options)
        client.username_pw_set(user, USERS[user])
        client.tls_set(str(self.certificates.folder / "ca.pem"))
        client.connect("127.0.0.1", self.tls)
        client.loop_start()
        while not client.is_connected():  # what is published before is lost with QoS 0
            time.sleep(0.01)
        try:
            yield client
        finally:
            client.disconnect()
            client.loop_stop()

    def publish(self, *bodies: bytes, topic: str = "zuul/tenant/check", qos: int = 1, retain: bool = False) -> None:
        """Publish messages; with QoS 1, until the broker has them."""
        with self.publisher() as client:
            for one in [client.publish(topic, body, qos, retain) for body in bodies]:
                one.wait_for_publish(30)
                assert one.is_published()
