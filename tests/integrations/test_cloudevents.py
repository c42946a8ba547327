"""ciml's own CloudEvents over HTTP are one adapter among the others."""

from __future__ import annotations

from typing import Any

import pytest

from ciml.events.cloudevents import decode_message
from ciml.events.records import Message
from tests.integrations.deliveries import event_of
from tests.integrations.reading import rejection_of
from tests.integrations.samples import RUN, cloudevent, delivery

FINISHED = "dev.ciml.run.finished.v1"


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_the_same_facts_as_on_the_topic_but_for_the_source(mode: str) -> None:
    event = event_of("cloudevents", cloudevent(FINISHED, RUN, mode), "configured")
    value = cloudevent(FINISHED, RUN, "structured").body
    (on_topic,) = decode_message(Message(0, value), {"/ci": "configured"}).run_facts
    assert event.run_facts == (on_topic.replace(adapter="cloudevents", auth="token"),)
    assert (event.key, event.type) == ("configured+token e1", FINISHED)


def test_several_runs() -> None:
    event = event_of("cloudevents", cloudevent(FINISHED, {"runs": [RUN, {**RUN, "id": "r2", "job": ""}]}))
    assert [run.build_uuid for run in event.run_facts] == ["r1"]
    assert [(facts.build_uuid, fault.reason) for facts, fault in event.rejections] == [("r2", "missing_field")]


@pytest.mark.parametrize(
    ("kind", "phase"), [("dev.ciml.run.queued.v1", "queued"), ("dev.ciml.run.started.v1", "started")]
)
def test_runs_on_their_way(kind: str, phase: str) -> None:
    (run,) = event_of("cloudevents", cloudevent(kind, {"id": "r1", "job": "unit"})).run_facts
    assert run.phase == phase


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("dev.ciml.run.lost.v1", RUN, "unknown_type"),
        (FINISHED, {"runs": []}, "bad_field"),
        (FINISHED, {"runs": "r1"}, "bad_field"),
        (FINISHED, {"runs": [[]]}, "bad_field"),
        (FINISHED, {"runs": [RUN] * 1001}, "too_many_runs"),
        (FINISHED, [], "bad_field"),
        (FINISHED, {}, "missing_field"),
    ],
)
@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_a_damaged_event_is_rejected(mode: str, kind: str, data: Any, reason: str) -> None:
    assert rejection_of("cloudevents", cloudevent(kind, data, mode))[0] == reason


@pytest.mark.parametrize(
    ("headers", "body", "reason"),
    [
        ({}, RUN, "not_an_event"),
        ({"content-type": "application/cloudevents-batch+json"}, [], "not_an_event"),
        ({"content-type": "text/plain", "ce-id": "e1"}, RUN, "not_an_event"),
        ({"ce-specversion": "0.3", "ce-id": "e1"}, RUN, "not_an_event"),
        ({"ce-specversion": "1.0", "ce-type": FINISHED}, RUN, "missing_field"),
        ({"ce-specversion": "1.0", "ce-id": "e1"}, RUN, "missing_field"),
        (
            {"content-type": "application/cloudevents+json"},
            {"specversion": "1.0", "id": "e1", "type": FINISHED},
            "bad_field",
        ),
        (
            {"content-type": "application/cloudevents+json"},
            {"specversion": "1.0", "id": {}, "type": FINISHED},
            "bad_field",
        ),
    ],
)
def test_what_is_no_cloudevent_is_rejected(headers: dict[str, str], body: Any, reason: str) -> None:
    assert rejection_of("cloudevents", delivery(body, headers))[0] == reason
