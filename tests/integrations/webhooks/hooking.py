"""What tests of the receiver of webhooks share: a running receiver, signed requests, and what is in the topic."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ciml.events.records import Message
from ciml.integrations.config import load_receivers
from ciml.kafka import KafkaOptions
from ciml.services.receivers import WebhooksService
from tests.integrations.webhooks.test_signatures import SECRET, github
from tests.messages import published

SOURCE = """
[[source]]
receiver = "webhooks"
name = "hub"
adapter = "probe"
secret_file = ["secret"]
"""


@dataclass
class Answer:
    """An answer: status, JSON, and headers by lower-case name."""

    status: int
    value: Any
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Hooks:
    """A receiver's address, and the topic behind it."""

    port: int
    kafka: str
    topic: str

    def ask(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        one = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            one.request(method, path, body, dict(headers or {}))
            got = one.getresponse()
            found = {name.lower(): value for name, value in got.getheaders()}
            return Answer(got.status, json.loads(got.read() or b"null"), found)
        finally:
            one.close()

    def post(self, body: bytes, headers: Mapping[str, str] | None = None, path: str = "/hooks/hub") -> Answer:
        """Post a signed delivery; ``headers`` add to those of the signature and replace them."""
        return self.ask("POST", path, body, {**github(body), "content-type": "application/json", **(headers or {})})

    def stored(self) -> list[Message]:
        """The messages of the topic."""
        return published(self.kafka, self.topic, "ci-events")


def write_config(folder: Path, text: str = SOURCE) -> Path:
    """Write a configuration on a port that the system chooses, and its secret."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "secret").write_bytes(SECRET)
    (folder / "secret").chmod(0o600)
    file = folder / "receivers.toml"
    file.write_text(text if "[webhooks]" in text else f"[webhooks]\nport = 0\n{text}")
    return file


@contextmanager
def receiving(folder: Path, kafka: str, topic: str, text: str = SOURCE) -> Iterator[tuple[Hooks, WebhooksService]]:
    """A receiver in this process."""
    service = WebhooksService(load_receivers(write_config(folder, text)), KafkaOptions(kafka), topic)
    service.open()
    try:
        yield Hooks(service.port, kafka, topic), service
    finally:
        service.close()


def delivery(number: int, **run: Any) -> bytes:
    """The body of the delivery of a run."""
    return json.dumps({"id": f"e-{number}", "run": {"id": f"r-{number}", "job": "unit", **run}}).encode()
