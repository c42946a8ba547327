"""Options of a broker: no property changes what is read, and a refusal is reported once and without secrets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, KafkaException

from ciml import kafka
from ciml.errors import CimlError
from ciml.kafka import RESERVED, KafkaOptions, connect
from ciml.kafka.connect import NoTopicError, as_engine_error, is_refused, make_client

#: What decides which messages a consumer gets.
OFF = ("allow.auto.create.topics", "enable.auto.commit", "enable.auto.offset.store")
READING = dict.fromkeys(OFF, False) | {
    "auto.offset.reset": "error", "enable.partition.eof": True, "group.id": "ciml", "isolation.level": "read_committed",
}  # fmt: skip


def test_a_consumer_reads_by_its_own_properties_and_connects_by_those_of_the_user() -> None:
    options = KafkaOptions("h:1", {"group.id": "other", "sasl.username": "me", "fetch.wait.max.ms": 5}, queue_kib=7)
    consumer = options.consumer()
    assert {name: consumer[name] for name in READING} == READING
    assert (consumer["bootstrap.servers"], consumer["sasl.username"]) == ("h:1", "me")
    assert (consumer["fetch.wait.max.ms"], consumer["queued.max.messages.kbytes"]) == (5, 7)
    assert set(READING) - {"group.id"} < set(RESERVED)


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_property_is_an_error_wherever_it_comes_from(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kafka.properties").write_text(f"{name}=1\n")
    monkeypatch.setattr(kafka, "read_secret", lambda _: f"{name}=1\n")
    for make in (
        lambda: KafkaOptions("h:1", {name: "1"}),
        lambda: KafkaOptions.of("h:1", [(name, "1")]),
        lambda: KafkaOptions.of("h:1", (), str(tmp_path / "kafka.properties")),
        lambda: KafkaOptions("h:1", secret="projects/p/secrets/s").common(),
    ):
        with pytest.raises(CimlError, match=rf"the Kafka property {name} is "):
            make()


def test_credentials_are_passwords_and_the_content_of_key_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"private")
    secret = {"sasl.password": "p", "ssl.key.password": "q", "sasl.oauthbearer.config": "c"}
    files = {"ssl.key.location": str(tmp_path / "key"), "ssl.keystore.location": str(tmp_path / "none")}
    public = {"sasl.username": "me", "ssl.ca.location": str(tmp_path / "key"), "client.id": "token"}
    options = KafkaOptions("h:1", {**secret, **files, **public})
    contents = {name: value.encode() for name, value in secret.items()}
    assert options.credentials() == {**contents, "ssl.key.location": b"private", "ssl.keystore.location": b""}
    assert options.secret_names() == sorted({**secret, **files})


def failed(code: int) -> KafkaException:
    return KafkaException(KafkaError(code, "for me by hunter2"))


def test_a_refusal_is_reported_once_and_without_secrets() -> None:
    options = KafkaOptions("h:1", {"sasl.password": "hunter2"}, timeout_s=0.1)
    client = make_client(dict, options, options.common())
    on_error = client["error_cb"]
    on_error(failed(KafkaError._ALL_BROKERS_DOWN).args[0])
    assert not is_refused(options)
    on_error(failed(KafkaError._AUTHENTICATION).args[0])
    assert is_refused(options)
    assert str(as_engine_error(options, "t", failed(KafkaError._TIMED_OUT))) == (
        "Kafka at h:1 refuses the connection: for me by ***"
    )
    assert not is_refused(options)
    assert str(as_engine_error(options, "t", failed(KafkaError._TIMED_OUT))) == (
        "Kafka at h:1 does not answer (for me by ***); check --kafka"
    )


def test_an_old_refusal_does_not_explain_a_later_error(monkeypatch: pytest.MonkeyPatch) -> None:
    options = KafkaOptions("h:2")
    clock = Mock(return_value=1000.0)
    monkeypatch.setattr(time, "monotonic", clock)
    make_client(dict, options, options.common())["error_cb"](failed(KafkaError._AUTHENTICATION).args[0])
    assert is_refused(options)
    clock.return_value += 5 * 3600
    assert not is_refused(options)
    assert "does not answer" in str(as_engine_error(options, "t", failed(KafkaError._TIMED_OUT)))


def test_a_refusal_before_a_call_of_the_admin_client_does_not_explain_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = KafkaOptions("h:3")
    waiting = [failed(KafkaError._AUTHENTICATION).args[0]]

    def make(properties: dict[str, Any]) -> Mock:
        return Mock(poll=lambda _: [properties["error_cb"](waiting.pop()) for _ in waiting[:]])

    monkeypatch.setattr(connect, "AdminClient", make)
    connect.admin(options)  # which was refused long ago, but nothing has polled it
    assert "does not answer" in str(as_engine_error(options, "t", failed(KafkaError._TIMED_OUT)))
    waiting.append(failed(KafkaError._AUTHENTICATION).args[0])
    assert "refuses the connection" in str(as_engine_error(options, "t", failed(KafkaError._TIMED_OUT)))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (KafkaError.UNKNOWN_TOPIC_OR_PART, "has no topic t; create it"),
        (KafkaError.REQUEST_TIMED_OUT, r"does not answer \(for me by \*\*\*\); check --kafka"),
        (KafkaError.NOT_LEADER_FOR_PARTITION, "does not answer"),
        (KafkaError._SSL, r"refuses the connection: for me by \*\*\*"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, r", topic t: for me by \*\*\*$"),
        (KafkaError._UNKNOWN_PARTITION, r", topic t: for me by \*\*\*$"),
    ],
)
def test_the_error_of_a_call_names_the_broker_and_hides_secrets(code: int, message: str) -> None:
    error = as_engine_error(KafkaOptions("h:1", {"sasl.password": "hunter2"}), "t", failed(code))
    with pytest.raises(type(error), match=message):
        raise error
    assert isinstance(error, NoTopicError) == (code == KafkaError.UNKNOWN_TOPIC_OR_PART)
