"""The receiver's answers over real HTTP, with a real broker behind it."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ciml.errors import EngineError
from ciml.events.records import Message
from ciml.integrations.registry import read_event
from ciml.limits import MAX_DELIVERY_BYTES
from ciml.services.receivers import WebhooksService
from tests.integrations.webhooks.hooking import SOURCE, Hooks, delivery, receiving, write_config
from tests.integrations.webhooks.test_signatures import SECRET, altered, buildkite, github, standard
from tests.scraping import collected

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("probe")]

MORE = """
[webhooks]
port = 0
header_s = 1
body_s = 2
proxies = ["127.0.0.1"]

[[source]]
receiver = "webhooks"
name = "hub"
adapter = "probe"
secret_file = ["secret"]

[[source]]
receiver = "webhooks"
name = "small"
adapter = "probe"
secret_file = ["secret"]
max_bytes = 100

[[source]]
receiver = "webhooks"
name = "slow"
adapter = "probe"
secret_file = ["secret"]
rate = 0.5
burst = 2

[[source]]
receiver = "webhooks"
name = "standard"
adapter = "probe"
auth = "standard-webhooks"
secret_file = ["key"]

[[source]]
receiver = "webhooks"
name = "kite"
adapter = "probe"
auth = "buildkite"
secret_file = ["secret"]

[[source]]
receiver = "webhooks"
name = "lab"
adapter = "probe"
auth = "gitlab-token"
secret_file = ["secret"]

[[source]]
receiver = "webhooks"
name = "tekton"
adapter = "probe"
auth = "mtls"
client_header = "X-Client"
clients = ["CN=tekton"]

[[source]]
receiver = "webhooks"
name = "open"
adapter = "probe"
auth = "none"
"""


@pytest.fixture(scope="module")
def running(
    kafka: str, tmp_path_factory: pytest.TempPathFactory, probe: Path
) -> Iterator[tuple[Hooks, WebhooksService]]:
    from ciml import engines

    folder = tmp_path_factory.mktemp("hooks")
    write_config(folder)
    from tests.integrations.webhooks.test_signatures import STANDARD

    (folder / "key").write_bytes(STANDARD)
    engines.create_topics(kafka, {"hooked": 2})
    with receiving(folder, kafka, "hooked", MORE) as found:
        yield found


@pytest.fixture
def hooks(running: tuple[Hooks, WebhooksService]) -> Hooks:
    return running[0]


def read_all(one: socket.socket) -> bytes:
    found = b""
    while part := one.recv(4096):
        found += part
    return found


def bodies(messages: list[Message]) -> Counter[bytes]:
    return Counter(message.value or b"" for message in messages)


def test_an_accepted_delivery_is_in_the_topic_as_the_adapter_needs_it(hooks: Hooks) -> None:
    body = b' {"id": "e-1",\n "run": {"id": "1", "job": "unit"}} '
    got = hooks.post(body, {"X-Probe-Event": "run", "X-GitHub-Delivery": "d-1", "Cookie": "x"})
    assert (got.status, got.value) == (202, {"accepted": True})
    (message,) = [each for each in hooks.stored() if each.value == body]
    assert dict(message.headers) == {
        "ciml_adapter": b"probe", "ciml_source": b"hub", "ciml_auth": b"hmac-sha256",
        "ciml_header_x-probe-event": b"run",
    }  # fmt: skip
    event = read_event(message)
    assert (event.key, event.source, event.ignored) == ("hub+hmac-sha256 e-1", "hub", "")


def test_a_ping_is_acknowledged_and_ignored_by_its_adapter(hooks: Hooks) -> None:
    body = b'{"zen": "Design for failure.", "hook_id": 1}'
    assert hooks.post(body, {"X-Probe-Event": "ping"}).status == 202
    (message,) = [each for each in hooks.stored() if each.value == body]
    assert read_event(message).ignored == "a ping only tests the webhook"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 404), ("POST", "/hooks/hub/", 404), ("POST", "/hooks/Hub", 404), ("GET", "/hooks/none", 404),
        ("GET", "/hooks/hub", 405), ("PUT", "/hooks/hub", 405), ("POST", "/healthz", 405),
    ],
)  # fmt: skip
def test_another_path_or_method_is_answered_without_reading(hooks: Hooks, method: str, path: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", hooks.port), timeout=10) as one:
        one.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode())
        assert one.recv(4096).startswith(f"HTTP/1.1 {status} ".encode())


def test_health(hooks: Hooks, running: tuple[Hooks, WebhooksService]) -> None:
    assert hooks.ask("GET", "/healthz").value == {"alive": True}
    running[1].observe()
    assert (hooks.ask("GET", "/readyz").status, hooks.ask("GET", "/readyz").value) == (200, {"ready": True})


def test_nothing_that_is_altered_or_unsigned_is_accepted(hooks: Hooks) -> None:
    chance, before = random.Random(7), bodies(hooks.stored())
    good = delivery(20)
    for number in range(100):
        body, headers = altered(good.decode(), chance).encode(), github(good)
        if number % 2:
            body = good
            headers["x-hub-signature-256"] = altered(headers["x-hub-signature-256"], chance)
        try:
            got = hooks.post(body, {name: value.encode("utf-8").decode("latin-1") for name, value in headers.items()})
        except ValueError:  # http.client does not send such a header
            continue
        assert (got.status, got.value) == (401, {"error": "unauthorized"})
    assert hooks.ask("POST", "/hooks/hub", good).status == 401
    assert hooks.ask("POST", "/hooks/hub", good, {"x-hub-signature": "sha1=" + "0" * 40}).status == 401
    assert bodies(hooks.stored()) == before
    assert hooks.post(good).status == 202


def test_a_request_without_a_proof_is_answered_before_its_body(hooks: Hooks) -> None:
    for path, header in (("/hooks/hub", ""), ("/hooks/lab", "X-Gitlab-Token: wrong\r\n")):
        with socket.create_connection(("127.0.0.1", hooks.port), timeout=10) as one:
            one.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n{header}Content-Length: 1000\r\n\r\n".encode())
            assert one.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_a_signature_twice_is_rejected(hooks: Hooks) -> None:
    body = delivery(30)
    value = github(body)["x-hub-signature-256"]
    other = "sha256=" + "0" * 64
    for first, second in ((value, other), (other, value), (value, value)):
        with socket.create_connection(("127.0.0.1", hooks.port), timeout=10) as one:
            one.sendall(
                f"POST /hooks/hub HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: {first}\r\n"
                f"X-Hub-Signature-256: {second}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            assert one.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert body not in bodies(hooks.stored())


def test_a_copy_within_the_window_is_acknowledged_and_not_stored_again(hooks: Hooks) -> None:
    body = delivery(40)
    answers = [hooks.post(body, {"X-GitHub-Delivery": f"d-{number}"}).status for number in range(5)]
    assert answers == [202] * 5
    kite = delivery(41)
    assert [hooks.ask("POST", "/hooks/kite", kite, buildkite(kite, at=time.time())).status for _ in range(3)] == [
        202
    ] * 3
    for at in (0.0, 60.0):  # a retry is signed again, with the same id
        signed = standard(delivery(42), at=time.time() - at, message="m-42")
        assert hooks.ask("POST", "/hooks/standard", delivery(42), signed).status == 202
    stored = bodies(hooks.stored())
    assert [stored[each] for each in (body, kite, delivery(42))] == [1, 1, 1]
    (message,) = [each for each in hooks.stored() if each.value == delivery(42)]
    assert dict(message.headers)["ciml_id"] == b"m-42"
    assert dict(message.headers)["ciml_auth"] == b"standard-webhooks"


def test_an_old_delivery_is_rejected(hooks: Hooks) -> None:
    body = delivery(50)
    for path, headers in (
        ("/hooks/kite", buildkite(body, at=time.time() - 302)), ("/hooks/kite", buildkite(body, at=time.time() + 302)),
        ("/hooks/standard", standard(body, at=time.time() - 302)),
    ):  # fmt: skip
        assert hooks.ask("POST", path, body, headers).status == 401
    assert body not in bodies(hooks.stored())


def test_tokens_and_verified_clients(hooks: Hooks, running: tuple[Hooks, WebhooksService]) -> None:
    body = delivery(60)
    for path, headers, status in [
        ("/hooks/lab", {"x-gitlab-token": SECRET.decode(), "Idempotency-Key": "k-1"}, 202),
        ("/hooks/lab", {"x-gitlab-token": SECRET.decode() + "x"}, 401),
        ("/hooks/lab", {}, 401),
        ("/hooks/tekton", {"X-Client": "CN=tekton"}, 202),
        ("/hooks/tekton", {"X-Client": "CN=other"}, 401),
        ("/hooks/tekton", {}, 401),
        ("/hooks/open", {}, 202),
    ]:
        assert hooks.ask("POST", path, body, headers).status == status, (path, headers)
    found = {dict(each.headers)["ciml_source"]: dict(each.headers) for each in hooks.stored() if each.value == body}
    assert {source: headers.get("ciml_auth") for source, headers in found.items()} == {
        b"lab": b"token", b"tekton": b"mtls", b"open": None,
    }  # fmt: skip
    assert found[b"lab"]["ciml_id"] == b"k-1"


@pytest.mark.parametrize("path", ["/hooks/hub", "/hooks/small"])
def test_a_body_over_the_limit_is_rejected_before_it_is_in_memory(hooks: Hooks, path: str) -> None:
    most = 100 if path == "/hooks/small" else MAX_DELIVERY_BYTES
    body = b"x" * (most + 1)
    got = hooks.ask("POST", path, body, github(body))
    assert got.status == 413
    assert got.value == {"error": f"the request is larger than {most} bytes (MAX_DELIVERY_BYTES)"}
    with socket.create_connection(("127.0.0.1", hooks.port), timeout=10) as one:
        signature = github(b"")["x-hub-signature-256"]
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: {signature}\r\n"
        one.settimeout(1.0)  # the body would have two
        one.sendall(f"{head}Content-Length: 100000000\r\n\r\n".encode())
        assert one.recv(4096).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", hooks.port), timeout=10) as one:
        one.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        part = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        answer = b""
        one.settimeout(0.01)
        for _ in range(200):  # 6 MiB; it is answered after 1
            one.sendall(part)
            try:
                answer = one.recv(4096)
                break
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 413 ")
    assert hooks.ask("POST", path, b"x" * most, github(b"x" * most)).status == 202


def test_forms_encodings_and_empty_bodies_are_rejected(hooks: Hooks) -> None:
    body = delivery(70)
    assert hooks.post(body, {"Content-Type": "application/x-www-form-urlencoded"}).value == {
        "error": "want JSON as it is, not a form: choose the content type application/json at the sender"
    }
    assert hooks.post(body, {"Content-Encoding": "gzip"}).status == 415
    assert hooks.post(b"").status == 400
    assert body not in bodies(hooks.stored())


def test_the_rate_of_a_source_is_of_its_verified_deliveries(hooks: Hooks) -> None:
    forged = [hooks.ask("POST", "/hooks/slow", delivery(80), {"x-hub-signature-256": "sha256=" + "0" * 64})] * 10
    assert {each.status for each in forged} == {401}
    answers = [hooks.post(delivery(number), path="/hooks/slow") for number in range(81, 85)]
    assert [each.status for each in answers[:2]] == [202, 202]
    assert answers[3].status == 429
    assert answers[3].headers["retry-after"] in ("1", "2", "3", "4")
    assert "more than 0.5 deliveries a second" in answers[3].value["error"]
    assert hooks.post(delivery(84)).status == 202  # another source


def test_a_slow_body_and_a_slow_header_are_ended(hooks: Hooks) -> None:
    def ask(sent: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", hooks.port), timeout=10) as one:
            one.sendall(sent)
            return read_all(one)

    body = delivery(90)
    head = b"POST /hooks/hub HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: %s\r\n" % (
        github(body)["x-hub-signature-256"].encode()
    )
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(ask, [b"", head, head + b"Content-Length: %d\r\n\r\n{" % len(body)]))
    assert [answer.partition(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 408 Request Timeout"] * 3
    assert b"the request did not arrive within 2 s (MAX_BODY_S)" in answers[2]


def test_deliveries_are_answered_beside_slow_clients(kafka: str, topic: Callable[..., str], tmp_path: Path) -> None:
    text = f"[webhooks]\nport = 0\nconnections = 40\nbody_s = 3\n{SOURCE}"
    with receiving(tmp_path, kafka, topic(), text) as (hooks, _):
        head = b"POST /hooks/hub HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: sha256=" + b"0" * 64
        stop = threading.Event()

        def besiege() -> None:
            while not stop.is_set():
                try:
                    with socket.create_connection(("127.0.0.1", hooks.port), 5, ("127.0.0.2", 0)) as one:
                        one.sendall(random.choice([b"", head, head + b"\r\nContent-Length: 1000\r\n\r\n{"]))
                        one.settimeout(1)
                        one.recv(100)
                except OSError:
                    continue

        with ThreadPoolExecutor(80) as pool:
            for _ in range(80):
                pool.submit(besiege)
            try:
                answers = [hooks.post(delivery(number)).status for number in range(100)]
            finally:
                stop.set()
        assert answers == [202] * 100
        assert bodies(hooks.stored()) == Counter(map(delivery, range(100)))


def test_an_address_with_many_complete_requests_is_not_taken_for_slow(tmp_path: Path) -> None:
    """A proxy is one address: its deliveries wait for the broker, and slow clients lose their connections."""
    text = f"[webhooks]\nport = 0\nconnections = 20\nanswer_s = 3\n{SOURCE}"
    with receiving(tmp_path, "127.0.0.1:1", "events", text) as (hooks, _), ThreadPoolExecutor(15) as pool:
        waiting = [pool.submit(hooks.post, delivery(number)) for number in range(15)]
        body = delivery(15)
        with socket.create_connection(("127.0.0.1", hooks.port), timeout=20) as half:
            head = (
                f"POST /hooks/hub HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: {github(body)['x-hub-signature-256']}\r\n"
            )
            half.sendall(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:-1])
            time.sleep(0.5)
            slow = [
                socket.create_connection(("127.0.0.1", hooks.port), 20, ("127.0.0.2", 0)) for _ in range(10)
            ]  # 26 in all
            assert b"more than 20 connections (MAX_HOOK_CONNECTIONS)" in read_all(slow[0])
            half.sendall(body[-1:])
            assert b"the broker did not acknowledge the delivery" in read_all(half)
        for one in slow:
            one.close()
        answers = [each.result().value["error"] for each in waiting]
        assert answers == ["the broker did not acknowledge the delivery; send it again"] * 15


def test_new_connections_are_not_taken_for_slow_ones(tmp_path: Path) -> None:
    """More new connections of a busy sender than those of a slow client, which has held them for long."""
    with receiving(tmp_path, "127.0.0.1:1", "events", f"[webhooks]\nport = 0\nconnections = 20\n{SOURCE}") as (
        hooks,
        _,
    ):
        slow = [socket.create_connection(("127.0.0.1", hooks.port), 20, ("127.0.0.2", 0)) for _ in range(8)]
        time.sleep(3)
        new = [socket.create_connection(("127.0.0.1", hooks.port), 20) for _ in range(13)]  # one more than the limit
        assert b"more than 20 connections" in read_all(slow[0])
        for one in new:
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert [read_all(one).partition(b"\r\n")[0] for one in new] == [b"HTTP/1.1 200 OK"] * 13
        for one in (*slow, *new):
            one.close()


def test_an_absent_broker_is_answered_503_and_nothing_is_lost(tmp_path: Path) -> None:
    from ciml.engines.processes import free_ports

    (port,) = free_ports(1)
    text = f"[webhooks]\nport = 0\nanswer_s = 1\n{SOURCE}"
    with receiving(tmp_path, f"127.0.0.1:{port}", "events", text) as (hooks, service):
        began = time.monotonic()
        got = hooks.post(delivery(1))
        assert (got.status, got.headers["retry-after"]) == (503, "5")
        assert 0.9 < time.monotonic() - began < 4.0
        assert hooks.post(delivery(1)).status == 503  # not taken for a copy: it was not acknowledged
        with pytest.raises(EngineError, match="does not answer"):
            service.observe()
        assert hooks.ask("GET", "/readyz").status == 503
        assert hooks.ask("GET", "/healthz").status == 200


def test_the_end_answers_what_was_read(kafka: str, topic: Callable[..., str], tmp_path: Path) -> None:
    with receiving(tmp_path, kafka, topic()) as (hooks, service):
        body = delivery(1)
        with socket.create_connection(("127.0.0.1", hooks.port), timeout=10) as one:
            one.sendall(
                f"POST /hooks/hub HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: {github(body)['x-hub-signature-256']}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body[:-1]
            )
            time.sleep(0.3)
            closing = threading.Thread(target=service.close)
            closing.start()
            time.sleep(0.5)
            with pytest.raises(OSError, match=r"refused|reset"):
                hooks.post(delivery(2))
            one.sendall(body[-1:])
            assert one.recv(4096).startswith(b"HTTP/1.1 202 ")
        closing.join(15)
        assert not closing.is_alive()
        assert bodies(hooks.stored()) == Counter([body])


def test_metrics_count_what_became_of_deliveries(kafka: str, topic: Callable[..., str], tmp_path: Path) -> None:
    with receiving(tmp_path, kafka, topic()) as (hooks, service):
        for _ in range(2):
            hooks.post(delivery(1))
        hooks.post(b"")
        hooks.ask("POST", "/hooks/hub", b"{}")
        hooks.ask("POST", "/hooks/other", b"{}")
        counted = collected(service.metrics.collectors[0])["ciml_deliveries_total"]
        assert counted == {
            ("accepted", "webhooks", "hub"): 1, ("repeat", "webhooks", "hub"): 1, ("rejected", "webhooks", "hub"): 1,
            ("unauthorized", "webhooks", "hub"): 1, ("not_found", "webhooks", "_unknown"): 1,
        }  # fmt: skip
        assert collected(service.metrics.collectors[1])["ciml_delivery_seconds_count"] == {("webhooks", "hub"): 1}


def test_a_secret_is_replaced_without_a_restart(kafka: str, topic: Callable[..., str], tmp_path: Path) -> None:
    with receiving(tmp_path, kafka, topic()) as (hooks, _):
        body, new = delivery(1), b"the next secret of this source"
        assert hooks.post(body, github(body, new)).status == 401
        (tmp_path / "secret").write_bytes(new)
        assert hooks.post(body, github(body, new)).status == 202
        assert hooks.post(delivery(2)).status == 401


def test_a_server_that_ends_by_itself_is_noticed(tmp_path: Path) -> None:
    with receiving(tmp_path, "127.0.0.1:1", "events") as (hooks, service):
        assert hooks.ask("GET", "/healthz").status == 200
        service.check_alive()
        assert service._loop is not None
        service._loop.call_soon_threadsafe(service._loop.stop)
        service._threads[0].join(10)
        with pytest.raises(RuntimeError, match="a thread of the receiver webhooks ended by itself"):
            service.observe()


def test_a_port_in_use_is_an_error_in_one_line(kafka: str, topic: Callable[..., str], tmp_path: Path) -> None:
    with receiving(tmp_path, kafka, topic()) as (hooks, _):
        text = f"[webhooks]\nport = {hooks.port}\n{SOURCE}"
        with (
            pytest.raises(EngineError, match=f"cannot listen on 127.0.0.1:{hooks.port}: Address already in use"),
            receiving(tmp_path / "other", kafka, "x", text),
        ):
            pass


@pytest.mark.parametrize(("size", "status"), [(1, b"400"), (128, b"202")])
def test_a_body_in_tiny_chunks_is_rejected_at_once(hooks: Hooks, size: int, status: bytes) -> None:
    body = delivery(700 + size, note="x" * 128 * 100)[: 128 * 100]
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    head = [b"POST /hooks/hub HTTP/1.1", b"Host: h", b"Transfer-Encoding: chunked", b"Connection: close"]
    head += [f"{name}: {value}".encode() for name, value in github(body).items()]
    with socket.create_connection(("127.0.0.1", hooks.port), timeout=30) as one:
        one.sendall(b"\r\n".join([*head, b"", b""]))
        one.sendall(b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in chunks) + b"0\r\n\r\n")
        answer = read_all(one)
    assert answer.split(b" ", 2)[1] == status
    assert (b"MIN_CHUNK_BYTES" in answer) == (size == 1)
