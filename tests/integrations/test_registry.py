"""The registry: a message is decoded by the adapter that its headers name, and what the adapter says is checked."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from typing import Any
from unittest import mock

import pytest

from ciml.errors import CimlError, RejectedInput
from ciml.events.payloads import message_of, payload_of
from ciml.events.records import Batch, Message, OffsetRange, Outcome
from ciml.integrations import registry
from ciml.integrations.adapter import Adapter, Delivery, Ignored, Reading, Run, RunUpdate
from ciml.integrations.registry import delivered, find_adapter, read_event
from ciml.limits import MAX_EVENT_RUNS
from ciml.transforms.guard import guarded_messages
from ciml.transforms.ingest.decode import decode


def read_toy(delivery: Delivery) -> Reading | Ignored:
    body = delivery.json()
    if body["kind"] == "push":
        return Ignored(delivery.id, "push", "a push starts no run")
    runs = tuple(Run("finished", run) for run in body["runs"])
    updates = tuple(RunUpdate(*update) for update in body.get("updates", ()))
    return Reading(delivery.id, delivery.headers["x-toy-event"], body.get("time"), runs, updates)


TOY = Adapter("toy", ("x-toy-event",), read_toy)
RUN = {"id": 7, "job": "unit", "result": "FAILURE", "start_time": 1795521600, "log_url": "https://logs.example/7"}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "adapters", lambda: {"toy": TOY})


def message(body: str, **changes: Any) -> Message:
    headers = {"x-toy-event": "done", "authorization": "Bearer secret"}
    value, named = delivered(
        TOY, "toys", body.encode(), headers, **{"auth": "hmac-sha256", "delivery_id": "d1"} | changes
    )
    return Message(5, value, tuple(named))


def body(*runs: dict[str, Any], **more: Any) -> str:
    return json.dumps({"kind": "done", "runs": runs, **more})


def test_a_payload_cannot_claim_how_it_was_proved() -> None:
    (facts,) = read_event(message(body({**RUN, "auth": "hmac-sha256"}), auth="")).run_facts
    assert facts.auth == ""


def test_a_bad_run_costs_only_itself() -> None:
    event = read_event(message(body({**RUN, "result": "??"}, {**RUN, "id": 8})))
    assert [facts.run_id for facts in event.run_facts] == ["toys~8~1"]
    assert [(facts.run_id, fault.reason) for facts, fault in event.rejections] == [("toys~7~1", "bad_field")]


def test_updates_are_checked() -> None:
    said = message(body(updates=[["change:7", {"fork": "no"}]]))
    event = read_event(said)
    (update,) = event.updates
    assert (update.source, update.subject, update.facts) == ("toys", "change:7", {"fork": "no"})
    assert (update.auth, update.time_us) == ("hmac-sha256", event.time_us)
    (outcome,) = decode(Batch(OffsetRange("ci-events", "", 0, 5, 6), [said]), read_event=read_event).settled
    assert (outcome.kind, outcome.event_key, outcome.run_id) == ("update", event.key, "")
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome
    with pytest.raises(RejectedInput, match="auth"):
        read_event(message(body(updates=[["change:7", {"auth": "ssh"}]])))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (Message(5, b"{", message("{}").headers), "broken_json"),
        (Message(5, b"[]", message("{}").headers), "bad_field"),
        (Message(5, b"", message("{}").headers), "tombstone"),
        (Message(5, b"{}", (*message("{}").headers, ("ciml_source", b"other"))), "not_an_event"),
        (Message(5, b"{}", (("ciml_adapter", b"none"), ("ciml_source", b"toys"))), "unknown_type"),
        (Message(5, b"{}", (("ciml_adapter", b"toy"), ("ciml_source", b"\xff"))), "bad_field"),
        (message(body(RUN), delivery_id=""), "missing_field"),
        (Message(5, b"{}", (("ciml_adapter", None), ("ciml_source", b"toys"))), "unknown_type"),
        (message(body(RUN), auth="x" * 100_000), "bad_field"),  # each run of a message would hold it
        (message(body(RUN), auth="hmac sha"), "bad_field"),
    ],
)
def test_a_damaged_message_is_rejected(changed: Message, reason: str) -> None:
    with pytest.raises(RejectedInput) as caught:
        read_event(changed)
    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", ["runs", "updates"])
def test_a_delivery_has_at_most_as_many_runs_and_updates_as_the_limit(kind: str) -> None:
    runs = [{**RUN, "id": number} for number in range(MAX_EVENT_RUNS + 1)]
    items = runs if kind == "runs" else [[f"change:{run['id']}", {"fork": "no"}] for run in runs]
    texts = [json.dumps({"kind": "job", "runs": [], kind: items[:count]}) for count in (-1, None)]
    event = read_event(message(texts[0]))
    assert len(event.run_facts if kind == "runs" else event.updates) == MAX_EVENT_RUNS
    with pytest.raises(RejectedInput) as caught:
        read_event(message(texts[1]))
    assert caught.value.reason == "too_many_runs"


def test_an_adapter_of_another_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    registry.adapters.cache_clear()
    entry = EntryPoint("toy", f"{__name__}:TOY", "ciml.adapters")
    with mock.patch("importlib.metadata.entry_points", lambda group: [entry] if group == "ciml.adapters" else []):
        assert find_adapter("toy") is TOY
        with pytest.raises(CimlError, match="no adapter 'none'"):
            find_adapter("none")
    registry.adapters.cache_clear()


@pytest.mark.parametrize("error", [OSError("gone"), ImportError("gone"), CimlError("gone")])
def test_an_error_of_an_adapter_costs_only_its_delivery(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(delivery: Delivery) -> Reading:
        if b"bad" in delivery.body:
            raise error
        return Reading(delivery.id, "done", None, (Run("finished", RUN),))

    monkeypatch.setattr(registry, "adapters", lambda: {"toy": Adapter("toy", (), read)})
    batch = Batch(OffsetRange("ci-events", "", 0, 5, 6), [message("{}"), message("bad")])
    found = guarded_messages("decode", lambda part: decode(part, read_event=read_event), batch)
    assert [one.mention.run_id for one in found.pending_runs] == ["toys~7~1"]
    assert [(one.kind, one.reason) for one in found.settled] == [("dead_letter", "internal_error")]


def test_a_replayed_delivery_is_proved_as_it_was() -> None:
    sent = message(body(RUN))
    assert message_of(payload_of(sent), 5).headers == sent.headers
    secret = dict(message_of(payload_of(message(body(RUN), auth="Bearer hUnter2zq")), 5).headers)
    assert secret["ciml_auth"] == b"REDACTED"


def test_an_event_without_proof_does_not_claim_the_id_of_a_proved_one() -> None:
    forged, proved = (read_event(message(body(RUN), auth=auth)) for auth in ("", "hmac-sha256"))
    assert forged.id == proved.id
    assert forged.key != proved.key
