"""A delivery of a webhook is remembered and answered after Kafka has it; its order of steps, in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from ciml.errors import CimlError, EngineError
from ciml.http.intake import Intake
from ciml.integrations.config import load_receivers
from ciml.integrations.producer import ReceiverMetrics
from ciml.integrations.webhooks.app import Answers, make_endpoints
from tests.integrations.webhooks.hooking import SOURCE, write_config
from tests.integrations.webhooks.test_signatures import BODY, SECRET, STANDARD, buildkite, github, standard
from tests.scraping import collected

pytestmark = pytest.mark.usefixtures("probe")

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


def source(name: str, auth: str) -> str:
    return SOURCE.replace('"hub"', f'"{name}"') + f'auth = "{auth}"\n'


class Hooks:
    """The receiver without its server and its broker.

    Attributes:
      outcomes: errors of the next deliveries to Kafka.
      messages: the deliveries that Kafka has: value and headers.
      answer: the last one.
    """

    def __init__(self, folder: Path, text: str = SOURCE) -> None:
        self.messages: list[tuple[bytes, dict[str, bytes]]] = []
        self.outcomes: list[CimlError] = []
        self.answer = Response()
        self.metrics = ReceiverMetrics("test")
        producer: Any = self
        intake = Intake(body_s=20, max_bytes=1 << 20, max_reading=10)
        self._answers = Answers(producer, intake, self.metrics, str)
        self._endpoints = make_endpoints(load_receivers(write_config(folder, text)))

    async def deliver(self, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        await asyncio.sleep(0)
        if self.outcomes:
            raise self.outcomes.pop(0)
        self.messages.append((value, dict(headers)))

    def post(self, headers: Mapping[str, str] | list[tuple[str, str]], path: str = "/hooks/hub", **more: Any) -> int:
        self.answer = asyncio.run(self.request(headers, path, **more))
        return self.answer.status_code

    async def request(
        self,
        headers: Mapping[str, str] | list[tuple[str, str]],
        path: str = "/hooks/hub",
        address: str = "10.1.2.3",
        body: bytes = BODY,
    ) -> Response:
        pairs = headers if isinstance(headers, list) else list(headers.items())
        scope = {
            "type": "http", "method": "POST", "path": path, "query_string": b"", "client": (address, 1),
            "headers": [(name.encode(), value.encode()) for name, value in pairs],
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        return await self._answers.endpoint(self._endpoints[path])(Request(scope, receive))

    @property
    def sources(self) -> list[tuple[bytes, bytes | None]]:
        """Source and proof of each delivery that Kafka has."""
        return [(headers["ciml_source"], headers.get("ciml_auth")) for _, headers in self.messages]


def test_a_delivery_that_kafka_did_not_acknowledge_is_accepted_when_it_is_sent_again(tmp_path: Path) -> None:
    hooks = Hooks(tmp_path)
    hooks.outcomes = [EngineError("no answer")]
    assert hooks.post(github(BODY)) == 503
    assert hooks.answer.headers["retry-after"] == "5"
    assert hooks.answer.body == b'{"error": "the broker did not acknowledge the delivery; send it again"}'
    hooks.outcomes = [CimlError("too large"), EngineError("no answer")]
    assert [hooks.post(github(BODY)) for _ in range(4)] == [413, 503, 202, 202]
    assert len(hooks.messages) == 1


def test_a_copy_within_the_window_is_acknowledged_and_not_stored_again(tmp_path: Path) -> None:
    """A copy is one of the same source: two sources with the same secret and body are two deliveries."""
    (tmp_path / "key").write_bytes(STANDARD)
    third = source("standard", "standard-webhooks").replace('"secret"', '"key"')
    hooks = Hooks(tmp_path, SOURCE + source("copy", "github") + source("kite", "buildkite") + third)
    now_s = time.time()
    for number in range(3):
        assert hooks.post({**github(BODY), "x-github-delivery": f"d-{number}"}) == 202
        assert hooks.post(github(BODY), "/hooks/copy") == 202
        assert hooks.post(buildkite(BODY, at=now_s), "/hooks/kite") == 202
        again = standard(BODY, at=now_s - 60.0 * number, message="m-42")  # a retry is signed again, with the same id
        assert hooks.post(again, "/hooks/standard") == 202
    assert [headers["ciml_source"] for _, headers in hooks.messages] == [b"hub", b"copy", b"kite", b"standard"]
    assert hooks.messages[3][1]["ciml_id"] == b"m-42"
    assert hooks.messages[3][1]["ciml_auth"] == b"standard-webhooks"


def test_copies_that_come_together_are_stored_once_and_take_the_rate_of_one(tmp_path: Path) -> None:
    hooks = Hooks(tmp_path, SOURCE + "rate = 0.01\nburst = 2\n")
    hooks.outcomes = [EngineError("no answer")]

    async def post_together() -> list[int]:
        answers = await asyncio.gather(*(hooks.request(github(BODY)) for _ in range(10)))
        return [answer.status_code for answer in answers]

    assert [asyncio.run(post_together()) for _ in range(3)] == [[503] * 10, [202] * 10, [202] * 10]
    assert len(hooks.messages) == 1


def test_an_old_delivery_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(STANDARD)
    second = source("standard", "standard-webhooks").replace('"secret"', '"key"')
    hooks = Hooks(tmp_path, source("kite", "buildkite") + second)
    for age_s in (360.0, -360.0):
        assert hooks.post(buildkite(BODY, at=time.time() - age_s), "/hooks/kite") == 401
        assert hooks.post(standard(BODY, at=time.time() - age_s), "/hooks/standard") == 401
    assert hooks.messages == []


def test_what_is_unsigned_or_altered_is_not_accepted(tmp_path: Path) -> None:
    hooks = Hooks(tmp_path)
    good = github(BODY)
    altered = {"x-hub-signature-256": good["x-hub-signature-256"][:-1] + "é"}
    for headers, body in (
        ({}, BODY),
        ({"x-hub-signature": "sha1=" + "0" * 40}, BODY),
        (good, BODY + b" "),
        (altered, BODY),
    ):
        assert hooks.post(headers, body=body) == 401
        assert hooks.answer.body == b'{"error": "unauthorized"}'
    assert hooks.messages == []


def test_tokens_prove_a_source_and_no_scheme_proves_none(tmp_path: Path) -> None:
    open_source = SOURCE.replace('"hub"', '"open"').replace('secret_file = ["secret"]', 'auth = "none"')
    hooks = Hooks(tmp_path, source("lab", "gitlab-token") + open_source)
    token = SECRET.decode()
    assert hooks.post({"x-gitlab-token": token, "idempotency-key": "k-1"}, "/hooks/lab") == 202
    assert hooks.post({"x-gitlab-token": token + "x"}, "/hooks/lab") == 401
    assert hooks.post({}, "/hooks/lab") == 401
    assert hooks.post({}, "/hooks/open") == 202
    assert hooks.sources == [(b"lab", b"token"), (b"open", None)]
    assert hooks.messages[0][1]["ciml_id"] == b"k-1"


def test_forms_encodings_and_empty_bodies_are_rejected(tmp_path: Path) -> None:
    hooks = Hooks(tmp_path)
    assert hooks.post({**github(BODY), "content-type": "application/x-www-form-urlencoded"}) == 415
    assert b"choose the content type application/json at the sender" in hooks.answer.body
    assert hooks.post({**github(BODY), "content-encoding": "gzip"}) == 415
    assert hooks.post(github(b""), body=b"") == 400
    assert hooks.messages == []


def test_only_verified_deliveries_use_up_the_rate(tmp_path: Path) -> None:
    hooks = Hooks(tmp_path, SOURCE + "rate = 0.01\nburst = 1\n" + source("other", "github"))
    forged = github(BODY, SECRET + b"x")
    assert [hooks.post(headers) for headers in (forged, forged, github(BODY))] == [401, 401, 202]
    assert hooks.post(github(b"{}"), body=b"{}") == 429
    assert 0 < int(hooks.answer.headers["retry-after"]) <= 100
    assert hooks.answer.body == b'{"error": "more than 0.01 deliveries a second"}'
    assert hooks.post(github(BODY), "/hooks/other") == 202


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
    assert hooks.sources == [(b"hub", b"mtls")] * (status == 202)


def test_a_header_that_is_needed_may_not_appear_twice(tmp_path: Path) -> None:
    hooks = Hooks(tmp_path)
    signature = next(iter(github(BODY).items()))
    other = ("x-hub-signature-256", "sha256=" + "0" * 64)
    assert [hooks.post(pair) for pair in ([other, signature], [signature, other], [signature, signature])] == [400] * 3
    assert hooks.post([signature, ("x-other", "1"), ("x-other", "2")]) == 202


def test_a_secret_is_replaced_without_a_restart(tmp_path: Path) -> None:
    hooks = Hooks(tmp_path)
    new = b"the next secret of this source"
    assert hooks.post(github(BODY, new)) == 401
    (tmp_path / "secret").write_bytes(new)
    assert hooks.post(github(BODY, new)) == 202
    assert hooks.post(github(BODY)) == 401


def test_metrics_count_what_became_of_deliveries(tmp_path: Path) -> None:
    hooks = Hooks(tmp_path)
    for headers, body in ((github(BODY), BODY), (github(BODY), BODY), (github(b""), b""), ({}, BODY)):
        hooks.post(headers, body=body)
    outcomes = ("accepted", "repeat", "rejected", "unauthorized")
    counted = collected(hooks.metrics.collectors[0])["ciml_deliveries_total"]
    assert counted == {(outcome, "test", "hub"): 1 for outcome in outcomes}
    assert collected(hooks.metrics.collectors[1])["ciml_delivery_seconds_count"] == {("test", "hub"): 1}
