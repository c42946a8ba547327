"""The receiver of Gerrit's events: the stream, its faults, and the holes that the REST API fills."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ciml.integrations.gerrit.session as module
from ciml.errors import CimlError
from ciml.integrations.config import load_receivers
from ciml.kafka import KafkaOptions
from ciml.limits import MAX_STREAM_LINE_BYTES
from ciml.services.receivers import GerritService
from tests.integrations.gerrit.samples import CLEO, change, event, person, vote
from tests.integrations.gerrit.server import FakeGerrit
from tests.integrations.mqtt.test_mqtt import problem, stored, values, wait

pytestmark = [pytest.mark.engines, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SETTLE_S", 0.2)


@pytest.fixture
def gerrit(tmp_path: Path) -> Iterator[FakeGerrit]:
    server = FakeGerrit(tmp_path / "gerrit")
    server.start()
    yield server
    server.stop()


def source(gerrit: FakeGerrit, /, **changes: object) -> str:
    keys = {
        "receiver": "gerrit", "name": "zuul", "ssh": f"ssh://ci@127.0.0.1:{gerrit.ssh}",
        "key_file": str(gerrit.folder / "key"), "known_hosts_file": str(gerrit.folder / "known_hosts"),
        "rest": f"http://127.0.0.1:{gerrit.rest}", "secret_file": str(gerrit.folder / "password"), **changes,
    }  # fmt: skip
    return "\n".join(["[[source]]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items() if value), ""])


def service_of(folder: Path, kafka: str, topic: str, text: str) -> GerritService:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "receivers.toml").write_text(text)
    return GerritService(load_receivers(folder / "receivers.toml"), KafkaOptions(kafka), topic)


@contextmanager
def receiving(folder: Path, kafka: str, topic: str, text: str, *, ready: bool = True) -> Iterator[GerritService]:
    service = service_of(folder, kafka, topic, text)
    service.open()
    try:
        if ready:
            wait(lambda: not service.sessions[0][0].problem, "it does not connect")
        yield service
    finally:
        service.close()


def position(folder: Path) -> float:
    """The time up to which the API was compared."""
    file = folder / "state" / "gerrit-zuul.json"
    wait(file.exists, "no position is stored")
    return float(json.loads(file.read_text())["after"])


def found(kafka: str, topic: str, least: int) -> list[dict[str, Any]]:
    return [json.loads(one.value or b"") for one in stored(kafka, topic, least)]


def test_a_line_becomes_a_delivery(kafka: str, topic: Callable[..., str], tmp_path: Path, gerrit: FakeGerrit) -> None:
    name = topic()
    with receiving(tmp_path, kafka, name, source(gerrit)) as service:
        gerrit.wait_for_stream()
        gerrit.write(event("change-merged", 1, 5), b"", b"no JSON", event("patchset-created", 2, 6))
        messages = stored(kafka, name, 3)
        assert json.loads(messages[0].value or b"") == event("change-merged", 1, 5)
        assert messages[1].value == b"no JSON"  # which ingest makes a dead letter
        assert dict(messages[0].headers) == {"ciml_adapter": b"gerrit", "ciml_source": b"zuul", "ciml_auth": b"ssh"}
        service.observe()
    assert gerrit.commands[0].startswith("gerrit stream-events -s patchset-created -s comment-added ")


def test_holes_are_filled_once(kafka: str, topic: Callable[..., str], tmp_path: Path, gerrit: FakeGerrit) -> None:
    name, now = topic(), int(time.time())
    with receiving(tmp_path, kafka, name, source(gerrit)):
        gerrit.wait_for_stream()
        first = position(tmp_path)  # nothing before the first start is wanted
        gerrit.write(event("patchset-created", 1, now))
        stored(kafka, name, 1)
    assert gerrit.asked == []
    gerrit.changes = [
        change(2, now + 1, labels={"Code-Review": {"all": [vote(CLEO, 2, now + 2)]}}), change(1, now - 4000)
    ]  # fmt: skip
    with receiving(tmp_path, kafka, name, source(gerrit)):
        assert [(each["type"], each["change"]["number"]) for each in found(kafka, name, 3)] == [
            ("patchset-created", 1), ("patchset-created", 2), ("comment-added", 2)
        ]  # fmt: skip
        wait(lambda: position(tmp_path) > first or time.time() < first + 2, "the position does not move")
        asked = len(gerrit.asked)
        gerrit.write({"type": "dropped-output", "eventCreatedOn": now})
        wait(lambda: len(gerrit.asked) > asked, "dropped events are not looked for")
    assert len(stored(kafka, name)) == 3


def test_what_the_stream_has_had_is_not_produced_again(
    kafka: str, topic: Callable[..., str], tmp_path: Path, gerrit: FakeGerrit
) -> None:
    name, now = topic(), int(time.time())
    approvals = [{"type": "Code-Review", "value": "2", "oldValue": "0"}, {"type": "Verified", "value": "0"}]
    with receiving(tmp_path, kafka, name, source(gerrit)):
        gerrit.wait_for_stream()
        position(tmp_path)
        gerrit.write(
            event("patchset-created", 1, now + 1),
            event("comment-added", 1, now + 3, author=person(CLEO), approvals=approvals),
        )
        stored(kafka, name, 2)
        labels = {"Code-Review": {"all": [vote(CLEO, 2, now + 2)]}, "Workflow": {"all": [vote(CLEO, 1, now + 4)]}}
        gerrit.changes = [change(1, now, labels=labels)]
        gerrit.write({"type": "dropped-output"})
        assert found(kafka, name, 3)[2]["approvals"] == [{"type": "Workflow", "value": "1", "oldValue": "0"}]
        gerrit.write({"type": "dropped-output"})
        wait(lambda: len(gerrit.asked) >= 2, "the API is not asked again")
        time.sleep(0.5)
    assert len(stored(kafka, name)) == 3


def test_many_changes_come_in_pages(kafka: str, topic: Callable[..., str], tmp_path: Path, gerrit: FakeGerrit) -> None:
    name, now = topic(), int(time.time())
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "gerrit-zuul.json").write_text(json.dumps({"after": now - 100}))
    gerrit.changes = [change(number, now) for number in range(1, 251)]
    gerrit.changes[7] = {"_number": 8}
    with receiving(tmp_path, kafka, name, source(gerrit)) as service:
        numbers = {each["change"]["number"] for each in found(kafka, name, 249)}
        assert numbers == set(range(1, 251)) - {8}
        assert [(each["S"], each["n"]) for each in gerrit.asked] == [
            (["0"], ["100"]),
            (["100"], ["100"]),
            (["200"], ["100"]),
        ]
        assert gerrit.asked[0]["q"][0].startswith('after:"20')
        wait(lambda: values(service.metrics)["ciml_deliveries_total"].get(("accepted", "gerrit", "zuul")) == 249, "?")
        assert values(service.metrics)["ciml_deliveries_total"][("rejected", "gerrit", "zuul")] == 1


def test_a_lost_stream_is_connected_again(
    kafka: str, topic: Callable[..., str], tmp_path: Path, gerrit: FakeGerrit
) -> None:
    name = topic()
    with receiving(tmp_path, kafka, name, source(gerrit)) as service:
        gerrit.wait_for_stream()
        position(tmp_path)
        gerrit.stop()
        wait(lambda: service.sessions[0][0].problem, "the loss is not noticed")
        assert f"source zuul: ssh://ci@127.0.0.1:{gerrit.ssh}" in problem(service)
        gerrit.changes = [change(3, int(time.time()))]
        gerrit.start()
        assert [each["change"]["number"] for each in found(kafka, name, 1)] == [3]


def test_a_line_that_is_too_long_costs_only_itself(
    kafka: str, topic: Callable[..., str], tmp_path: Path, gerrit: FakeGerrit
) -> None:
    name = topic()
    with receiving(tmp_path, kafka, name, source(gerrit)) as service:
        gerrit.wait_for_stream()
        long = b'{"x": "' + b"x" * MAX_STREAM_LINE_BYTES + b'"}'
        gerrit.write(event("change-merged", 1, 5), long, event("change-merged", 2, 6))
        assert [each["change"]["number"] for each in found(kafka, name, 2)] == [1, 2]
        assert values(service.metrics)["ciml_deliveries_total"][("too_large", "gerrit", "zuul")] == 1


def test_an_api_that_refuses_is_reported_and_the_stream_goes_on(
    kafka: str, topic: Callable[..., str], tmp_path: Path, gerrit: FakeGerrit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.2)
    name = topic()
    (tmp_path / "wrong").write_text("a wrong HTTP password")
    with receiving(tmp_path, kafka, name, source(gerrit, secret_file="wrong")) as service:
        gerrit.wait_for_stream()
        session = service.sessions[0][0]
        wait(lambda: session.problem, "nothing is said")
        assert session.problem == (
            f"http://127.0.0.1:{gerrit.rest} rejects the credentials: check user ci and its HTTP password"
        )
        gerrit.write(event("change-merged", 1, 5))
        stored(kafka, name, 1)
        assert not (tmp_path / "state").exists()


def test_a_host_key_is_pinned_and_a_key_may_be_refused(
    kafka: str, topic: Callable[..., str], tmp_path: Path, gerrit: FakeGerrit
) -> None:
    import asyncssh

    other = asyncssh.generate_private_key("ssh-ed25519")
    other.write_private_key(str(tmp_path / "other"))
    (tmp_path / "other").chmod(0o600)
    public = " ".join(other.export_public_key().decode().split()[:2])
    (tmp_path / "hosts").write_text(f"[127.0.0.1]:{gerrit.ssh} {public}\n")
    for changes, said in (
        ({"known_hosts_file": "hosts"}, "its host key is not in known_hosts_file hosts"),
        ({"key_file": "other"}, "refuses key_file other; add its public key to the account's SSH keys"),
    ):
        with receiving(tmp_path, kafka, topic(), source(gerrit, **changes), ready=False) as service:
            session = service.sessions[0][0]
            wait(lambda session=session: session.problem != "is not connected yet", "nothing is said")
            assert said in session.problem
    assert gerrit.commands == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key_file": "missing"}, "source zuul: key_file FOLDER/missing: No such file or directory"),
        ({"key_file": "receivers.toml"}, "source zuul: key_file FOLDER/receivers.toml: "),
        ({"known_hosts_file": "missing"}, "source zuul: known_hosts_file FOLDER/missing: No such file or directory"),
        ({"ssh": "ssh://127.0.0.1"}, "source zuul: ssh: 'ssh://127.0.0.1' names no user; want ssh://USER@HOST:29418"),
        ({"ssh": "http://ci@x"}, "source zuul: ssh: 'http://ci@x' is not ssh://USER@HOST:29418"),
        ({"rest": "ftp://x"}, "source zuul: rest: 'ftp://x' is not an address such as https://review.example.org"),
        ({"rest": ""}, "source zuul: secret_file and secret_env are the HTTP password of rest, which is missing"),
        ({"check_s": 0.5}, "source zuul: check_s: 0.5 is not between 1 and 86400"),
        ({"in_flight": 5000}, "source zuul: in_flight: 5000 is not between 1 and 1024"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, gerrit: FakeGerrit, changes: dict[str, object], said: str) -> None:
    with pytest.raises(CimlError) as caught:
        service_of(tmp_path, "127.0.0.1:1", "events", source(gerrit, **changes))
    assert said.replace("FOLDER", str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)
