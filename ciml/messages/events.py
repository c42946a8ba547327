"""Messages of the topic `ci-events`: events of ciml's own, and the headers of a CI system's deliveries.

`ciml.events.cloudevents` encodes and decodes the events, `ciml.adapters.registry` the deliveries. The schema accepts
each event that the decoder accepts. The decoder checks more: times, limits of texts together, secrets.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, Required, TypedDict

from msgspec import Meta

from ciml.limits import (
    MAX_EVENT_RUNS,
    MAX_ID_CHARACTERS,
    MAX_LABELS,
    MAX_SUBJECTS,
    MAX_TEXT_CHARACTERS,
    MAX_URL_CHARACTERS,
)

#: A text; a whole number becomes its digits.
Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARACTERS)] | int | None
Identifier = Annotated[str, Meta(max_length=MAX_ID_CHARACTERS)] | int
Address = Annotated[str, Meta(max_length=MAX_URL_CHARACTERS)] | int | None
Time = str | float | None


class EventRun(TypedDict, total=False):
    """A run that is queued or has started."""

    id: Required[Annotated[Identifier, Meta(description="The source's own id.")]]
    attempt: Annotated[int | None, Meta(description="A rerun under the same id; 1 by default.")]
    job: Required[Annotated[Text, Meta(description="The job.")]]
    result: Annotated[Text, Meta(description="The CI system's own result; its words are in docs/formats/events.md.")]
    outcome: Annotated[
        Literal["success", "failure", "error", "timeout", "cancellation", "skip", ""] | None,
        Meta(description="Overrides the meaning of result."),
    ]
    start_time: Annotated[Time, Meta(description="ISO 8601 with a zone, or epoch seconds.")]
    end_time: Annotated[Time, Meta(description="As start_time, and not before it.")]
    log_url: Annotated[Address, Meta(description="Address of the telemetry.")]
    event: Annotated[Text, Meta(description="What started the run.")]
    pipeline: Text
    project: Text
    branch: Text
    change: Annotated[Text, Meta(description="The change that was tested.")]
    patchset: Text
    review: Text
    provider: Text
    region: Text
    flavour: Text
    fork: Annotated[Literal["yes", "no", ""] | bool | None, Meta(description="Whether the code comes from a fork.")]
    owner: Annotated[Text, Meta(description="Who started the run.")]
    head: Annotated[Text, Meta(description="The commit that was tested.")]
    url: Annotated[Address, Meta(description="The run's page.")]
    attempt_of: Annotated[Identifier | None, Meta(description="Shared by all attempts of a job of a change.")]
    subjects: Annotated[
        Annotated[list[Identifier | None], Meta(max_length=MAX_SUBJECTS)] | None,
        Meta(description="Texts that later updates name."),
    ]
    labels: Annotated[
        Annotated[dict[str, str | int | float | bool | None], Meta(max_length=MAX_LABELS)] | None,
        Meta(description="Further metadata."),
    ]


class FinishedRun(EventRun, total=False):
    """A run that has finished: it has a result or an outcome, and a start or an end."""


class EventRuns(TypedDict):
    """Several runs that are queued or have started."""

    runs: Annotated[list[EventRun], Meta(min_length=1, max_length=MAX_EVENT_RUNS)]


class FinishedRuns(TypedDict):
    """Several finished runs. One that is wrong, but has an id, costs only itself."""

    runs: Annotated[
        list[dict[str, Any]],
        Meta(min_length=1, max_length=MAX_EVENT_RUNS, extra_json_schema={"items": {"$ref": "#/$defs/FinishedRun"}}),
    ]


class _CloudEvent(TypedDict):
    specversion: Literal["1.0"]
    id: Annotated[Identifier, Meta(description="Unique within the source: the same event has the same id.")]
    source: Annotated[
        Annotated[str, Meta(max_length=MAX_ID_CHARACTERS)] | int,
        Meta(description="A name as in run ids, or a URI reference that has a configured name."),
    ]
    time: NotRequired[Annotated[Time, Meta(description="ISO 8601 with a zone, or epoch seconds.")]]
    datacontenttype: NotRequired[str]


class FinishedEvent(_CloudEvent):
    """A CloudEvent in structured mode that reports finished runs. In binary mode the value is data alone."""

    type: Literal["dev.ciml.run.finished.v1"]
    data: Annotated[
        dict[str, Any],
        Meta(extra_json_schema={"anyOf": [{"$ref": "#/$defs/FinishedRun"}, {"$ref": "#/$defs/FinishedRuns"}]}),
    ]


class UnfinishedEvent(_CloudEvent):
    """A CloudEvent in structured mode that reports queued or started runs."""

    type: Literal["dev.ciml.run.started.v1", "dev.ciml.run.queued.v1"]
    data: Annotated[
        dict[str, Any],
        Meta(extra_json_schema={"anyOf": [{"$ref": "#/$defs/EventRun"}, {"$ref": "#/$defs/EventRuns"}]}),
    ]


class DeliveryHeaders(TypedDict):
    """Headers of a delivery of a CI system. The value is its body, unchanged, in the system's own format.

    A header ciml_header_NAME holds the header NAME of the request, where the adapter needs it.
    """

    ciml_adapter: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]*$", description="The adapter that reads the body.")]
    ciml_source: Annotated[str, Meta(min_length=1, description="The configured name of the source, as in run ids.")]
    ciml_auth: NotRequired[
        Annotated[
            str,
            Meta(
                pattern="^[a-z0-9][a-z0-9-]{0,62}$",
                description="How the receiver proved the sender, such as hmac-sha256; absent without a proof.",
            ),
        ]
    ]
    ciml_id: NotRequired[Annotated[str, Meta(description="The delivery's id, where its proof covers it.")]]


_Structured = TypedDict("_Structured", {"content-type": Annotated[str, Meta(pattern="^application/cloudevents")]})
_ContentType = TypedDict("_ContentType", {"content-type": NotRequired[str]})


class StructuredHeaders(_Structured):
    """Headers of an event of ciml's own in structured mode."""


class NoHeaders(TypedDict):
    """No headers that ciml reads: a bare event of ciml's own."""


class BinaryHeaders(_ContentType):
    """Headers of an event of ciml's own in binary mode: the attributes of the CloudEvent."""

    ce_specversion: Literal["1.0"]
    ce_id: str
    ce_source: str
    ce_type: Literal["dev.ciml.run.finished.v1", "dev.ciml.run.started.v1", "dev.ciml.run.queued.v1"]
    ce_time: NotRequired[str]
