"""ciml's own CloudEvents over HTTP are one adapter among the others."""

from __future__ import annotations

import pytest

from ciml.events.cloudevents import decode_message
from ciml.events.records import Message
from tests.integrations.deliveries import event_of
from tests.integrations.samples import RUN, cloudevent

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
