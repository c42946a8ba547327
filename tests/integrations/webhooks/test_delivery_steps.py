"""A delivery of a webhook is remembered and answered after Kafka has it; its order of steps, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from ciml.errors import CimlError, EngineError
from ciml.http.intake import Intake
from ciml.integrations.config import load_receivers
from ciml.integrations.producer import ReceiverMetrics
from ciml.integrations.webhooks.app import Answers, make_endpoints
from tests.integrations.webhooks.hooking import SOURCE, write_config
from tests.integrations.webhooks.test_signatures import BODY, SECRET, github

pytestmark = pytest.mark.usefixtures("probe")

TWO = SOURCE + SOURCE.replace('"hub"', '"lab"')
MTLS = """
[webhooks]
port = 0
proxies = ["10.0.0.0/8"]
[[source]]
receiver = "webhooks"
name = "hub"
adapter = "probe"
auth = "mtls"
client_header = "x-client"
clients = ["CN=one", "CN=two"]
"""


class Hooks:
    """The receiver without its server and its broker: ``outcomes`` are those of the next deliveries to Kafka."""

    def __init__(self, folder: Path, text: str = SOURCE) -> None:
        self.stored: list[dict[str, bytes]] = []
        self.outcomes: list[CimlError] = []
        producer: Any = self
        intake = Intake(body_s=20, max_bytes=1 << 20, max_reading=10)
        self.answers = Answers(producer, intake, ReceiverMetrics("test"), str)
        self.endpoints = make_endpoints(load_receivers(write_config(folder, text)))

    async def deliver(self, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        if self.outcomes:
            raise self.outcomes.pop(0)
        self.stored.append(dict(headers))

    def post(
        self, headers: Mapping[str, str] | list[tuple[str, str]], path: str = "/hooks/hub", address: str = "10.1.2.3"
    ) -> int:
        pairs = headers if isinstance(headers, list) else list(headers.items())
        scope = {
            "type": "http", "method": "POST", "path": path, "query_string": b"", "client": (address, 1),
            "headers": [(name.encode(), value.encode()) for name, value in pairs],
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": BODY, "more_body": False}

        answer = self.answers.endpoint(self.endpoints[path])
        return int(asyncio.run(answer(Request(scope, receive))).status_code)


def test_a_delivery_that_kafka_did_not_acknowledge_is_accepted_when_it_is_sent_again(tmp_path: Path) -> None:
    hooks = Hooks(tmp_path)
    hooks.outcomes = [EngineError("no answer"), CimlError("too large"), EngineError("no answer")]
    assert [hooks.post(github(BODY)) for _ in range(5)] == [503, 413, 503, 202, 202]
    assert len(hooks.stored) == 1


def test_a_copy_is_one_of_the_same_source(tmp_path: Path) -> None:
    """Two sources with the same secret and body are two deliveries."""
    hooks = Hooks(tmp_path, TWO)
    assert [hooks.post(github(BODY), f"/hooks/{name}") for name in ("hub", "lab", "hub", "lab")] == [202] * 4
    assert [headers["ciml_source"] for headers in hooks.stored] == [b"hub", b"lab"]


def test_only_verified_deliveries_use_up_the_rate(tmp_path: Path) -> None:
    hooks = Hooks(tmp_path, SOURCE + "rate = 0.01\nburst = 1\n")
    forged = github(BODY, SECRET + b"x")
    assert [hooks.post(headers) for headers in (forged, forged, github(BODY))] == [401, 401, 202]


@pytest.mark.parametrize(
    ("address", "client", "status"),
    [
        ("10.9.9.9", "CN=one", 202),
        ("10.9.9.9", "CN=two", 202),
        ("10.9.9.9", "CN=three", 401),
        ("11.0.0.1", "CN=one", 401),
        ("", "CN=one", 401),
        ("::1", "CN=one", 401),
    ],
)
def test_a_verified_client_is_one_of_its_list_from_a_proxy(
    tmp_path: Path, address: str, client: str, status: int
) -> None:
    hooks = Hooks(tmp_path, MTLS)
    assert hooks.post({"x-client": client}, address=address) == status
    assert [headers["ciml_auth"] for headers in hooks.stored] == [b"mtls"] * (status == 202)


def test_a_header_that_is_needed_may_not_appear_twice(tmp_path: Path) -> None:
    hooks = Hooks(tmp_path)
    signature = next(iter(github(BODY).items()))
    assert hooks.post([signature, ("x-other", "1"), ("x-other", "2")]) == 202
    assert hooks.post([("x-hub-signature-256", "sha256=" + "0" * 64), signature]) == 400
