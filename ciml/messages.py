"""The messages of all topics: the types that the encoders return, and the JSON Schemas that are generated from them.

A schema describes what this version publishes, and accepts what version 0.1 published. Fields are only added: none is
removed or renamed, and none becomes optional or another type. So a consumer ignores unknown fields.

The module encodes and decodes nothing. `ciml.events.cloudevents` decodes the events of `ci-events`, and
`ciml.integrations.registry` the deliveries of CI systems. The schema of `ci-events` accepts each event that the decoder
accepts. The decoder also checks times, limits on texts together, and secrets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import Annotated, Any, Literal, NotRequired, Required, TypedDict

import msgspec
from msgspec import Meta

from ciml.errors import CimlError
from ciml.events.records import Origin, OutputFile, RunFacts
from ciml.events.samples import EndMessage, SamplesMessage
from ciml.limits import (
    MAX_EVENT_RUNS,
    MAX_ID_CHARACTERS,
    MAX_LABELS,
    MAX_SUBJECTS,
    MAX_TEXT_CHARACTERS,
    MAX_URL_CHARACTERS,
)
from ciml.verdict_rules import Verdict

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
    output_url: Annotated[Any, Meta(description="Address of the job's output; anything but an address is left out.")]
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
    """Several finished runs. An invalid run that has an id does not affect the others."""

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


# This form of TypedDict is for keys that are not identifiers.
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


Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
RunId = Annotated[str, Meta(min_length=1, description="The encoded run id, source~id~attempt.")]
#: The state of a run: running; ended with all samples, or after waiting for them; silent for too long; or given up
#: after its windows raised an unexpected exception.
Standing = Literal["running", "ended", "silent", "failed"]
#: JSON forms of records; the schemas of the records follow from their classes.
_Facts = Annotated[Mapping[str, Any], Meta(extra_json_schema={"$ref": "#/$defs/RunFacts"})]
_Output = Annotated[Mapping[str, Any], Meta(extra_json_schema={"$ref": "#/$defs/OutputFile"})]
_Verdict = Annotated[Mapping[str, Any], Meta(extra_json_schema={"$ref": "#/$defs/Verdict"})]
_Origin = Annotated[Sequence[Any], Meta(extra_json_schema={"$ref": "#/$defs/Origin"})]
#: float32 values as numbers, and rows of them.
_Values = Annotated[Any, Meta(extra_json_schema={"type": "array", "items": {"type": "number"}})]
_Rows = Annotated[
    Any,
    Meta(
        description="n_windows rows of a value for each feature; null above 4 MiB.",
        extra_json_schema={
            "type": ["array", "null"],
            "items": {"type": "array", "items": {"type": "number"}},
        },
    ),
]


class ProjectionHeaders(TypedDict):
    """Headers of a message that publishes a delta of a manifest."""

    manifest: Annotated[str, Meta(pattern="^[1-9][0-9]*$", description="Version of the delta.")]
    log: Annotated[str, Meta(pattern="^[0-9a-f]{16}$", description="Identity of the manifest.")]


class RunAnnouncement(TypedDict):
    """A committed row of the raw store. Key: the run id."""

    run_id: RunId
    build_name: Annotated[str, Meta(description="The job.")]
    path: Annotated[str, Meta(description="Parquet object with the telemetry, below DATA/raw.")]
    digest: Annotated[Digest, Meta(description="Digest of the telemetry.")]
    raw_version: Annotated[int, Meta(ge=1, description="Version of the raw manifest.")]
    facts: NotRequired[Annotated[_Facts, Meta(description="Facts of the run; absent in messages of version 0.1.")]]
    output: NotRequired[
        Annotated[_Output, Meta(description="The stored output of the job; absent if none was looked for.")]
    ]
    reclaim: NotRequired[
        Annotated[Literal[True], Meta(description="The row replaces one of a less trusted event; predict again.")]
    ]


class OpenDeadLetter(TypedDict):
    """An input that could not be used. Key: [topic, partition, offset, run id] as JSON."""

    state: Literal["open"]
    origin: _Origin
    run_id: Annotated[str, Meta(description="The encoded run id; empty where the message could not be decoded.")]
    build_name: Annotated[str, Meta(description="The job; empty where unknown.")]
    reason: Annotated[str, Meta(min_length=1, description="From a closed set; later versions may add reasons.")]
    detail: Annotated[str, Meta(description="One line for people, without secrets.")]
    event_key: NotRequired[Annotated[str, Meta(description="Source and id of the event.")]]
    first_seen_us: NotRequired[Annotated[int, Meta(description="First try, epoch microseconds.")]]
    log_url: NotRequired[Annotated[str, Meta(description="Address of the log, without secrets.")]]
    time_us: Annotated[int, Meta(description="Time of the commit, epoch microseconds.")]
    raw_version: Annotated[int, Meta(ge=1, description="Version of the raw manifest.")]


class ClosedDeadLetter(TypedDict):
    """A dead letter that a replay has closed. Key: as of the open one."""

    state: Literal["closed"]
    origin: _Origin
    run_id: str
    raw_version: Annotated[int, Meta(ge=1, description="Version of the raw manifest.")]


_JsonHeaders = TypedDict("_JsonHeaders", {"content-type": Literal["application/json"]})


class _PredictionHeaders(_JsonHeaders, ProjectionHeaders):
    ce_specversion: Literal["1.0"]
    ce_id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$", description="Id of the prediction.")]


class PredictionHeaders(_PredictionHeaders):
    """Headers of a prediction: the attributes of a CloudEvent in binary mode, and the headers of a projection."""

    ce_source: Annotated[str, Meta(pattern="^/ciml/models/", description="/ciml/models/MODEL")]
    ce_type: Literal["dev.ciml.prediction.v1"]


class CandidatePredictionHeaders(_PredictionHeaders):
    """Headers of a prediction by a candidate: those of a prediction, with another source and type."""

    ce_source: Annotated[
        str, Meta(pattern="^/ciml/models/[^/]+/candidate$", description="/ciml/models/MODEL/candidate")
    ]
    ce_type: Literal["dev.ciml.candidate.prediction.v1"]


_Class = TypedDict("_Class", {"class": Annotated[str, Meta(description="The class with the highest probability.")]})


class RunSignature(TypedDict):
    """The failure signature of a run: failed runs that share a line of their outputs, this one included."""

    id: str
    runs: Annotated[int, Meta(ge=1)]
    changes: Annotated[int, Meta(ge=1)]
    jobs: Annotated[int, Meta(ge=0)]
    first_us: Annotated[int, Meta(description="End of the first run, epoch microseconds.")]
    changes_near: Annotated[int, Meta(ge=0, description="Within six hours of the run; 0 without a trusted run.")]
    note: NotRequired[Annotated[dict[str, str], Meta(description="An operator's: author, name, text, cause.")]]


class RunOutput(TypedDict):
    """What the output of a failed run showed when it was predicted. Its texts are hostile, and have no secrets."""

    sentences: Annotated[list[str], Meta(description="As evidence shows them.")]
    line: Annotated[dict[str, str | int] | None, Meta(description="The new line: text, number, file, step.")]
    failed_tests: Annotated[int, Meta(ge=0, description="Their number.")]
    signature: RunSignature | None
    url: Annotated[str, Meta(description='Address of the output or the line; "" where it is not known.')]


class _Prediction(_Class):
    id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$", description="Digest of run, model and version or candidate.")]
    run_id: RunId
    build_name: Annotated[str, Meta(description="The job.")]
    model: str
    definition: NotRequired[Annotated[Digest, Meta(description="Of the resolved definition of the model.")]]
    snapshot: NotRequired[Annotated[Digest, Meta(description="Of the runs that the model learned.")]]
    label: Annotated[str, Meta(description="The predicted property: the class label of the data set.")]
    probabilities: Annotated[dict[str, float], Meta(description="By class.")]
    n_windows: Annotated[int, Meta(ge=1, description="Number of the run's windows.")]
    prepare_ms: Annotated[float, Meta(ge=0, description="Time of the batch's preparation, milliseconds.")]
    server_ms: Annotated[float, Meta(ge=0, description="Time of the model's answer, milliseconds.")]
    batch: Annotated[int, Meta(ge=1, description="Number of runs in that call.")]
    time_us: Annotated[int, Meta(description="Time of the answer, epoch microseconds.")]
    latency_ms: Annotated[float, Meta(ge=0, description="From the run's announcement to the answer, milliseconds.")]
    run: NotRequired[Annotated[_Facts, Meta(description="With a verdict: facts of the run, without its log.")]]
    verdict: NotRequired[Annotated[_Verdict, Meta(description="Of a failed run, by a model that gives verdicts.")]]
    path: NotRequired[Annotated[str, Meta(description="With a verdict: the telemetry, below DATA/raw.")]]
    output: NotRequired[Annotated[RunOutput, Meta(description="With a verdict: of a run whose output is stored.")]]


class Prediction(_Prediction):
    """A model's answer for a run. Key: the run id."""

    version: Annotated[int, Meta(ge=1, description="Version of the model.")]


class Candidate(TypedDict):
    """A model that is not served, and the gate's decision on it."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{16}$", description="Id in the registry; it names the files.")]
    blessed: Annotated[bool, Meta(description="Whether the gate blessed it.")]
    reasons: Annotated[list[str], Meta(description="Of the gate, a line each.")]


class CandidatePrediction(_Prediction):
    """The answer of a candidate, which is not served, for a run. Key: the run id."""

    version: Annotated[None, Meta(description="Always null: a candidate has no version.")]
    candidate: Candidate


class _Live(TypedDict):
    run_id: RunId
    dataset: Annotated[str, Meta(description="The data set.")]
    version: Annotated[int, Meta(ge=1, description="Version of the data set's definition.")]
    definition: Annotated[Digest, Meta(description="Digest of the resolved definition: equal ones are comparable.")]
    samples: Annotated[int, Meta(ge=0, description="Number of samples; it only grows.")]
    revision: Annotated[int, Meta(ge=0, description="The number of samples: the greatest is the newest.")]


class Window(_Live):
    """A window of a running job. Key: the run id. Equal run, data set, day, number and revision have equal values."""

    day: Annotated[str, Meta(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$", description="Its midnight is window 0.")]
    number: Annotated[int, Meta(description="Number of the window from that midnight.")]
    start: Annotated[str, Meta(description="Start of the window, ISO 8601 in UTC.")]
    pane: Literal["early", "final", "late"]
    values: Annotated[_Values, Meta(description="A float32 for each feature.")]


class Exclusion(TypedDict):
    """Why a run is not an example."""

    reason: str
    detail: str


class LiveExample(_Live):
    """The example of a run so far. Key: the run id."""

    standing: Annotated[Standing, Meta(description="All but running are the last of the run.")]
    ended: bool
    missing: Annotated[int, Meta(ge=0, description="Number of missing samples.")]
    n_windows: Annotated[int, Meta(ge=0)]
    features: NotRequired[Sequence[str]]
    values: NotRequired[_Rows]
    digest: NotRequired[Annotated[str, Meta(description="Digest of the example of a finished run.")]]
    excluded: NotRequired[Exclusion]


class RejectedSamples(TypedDict):
    """A message of `samples` that could not be decoded."""

    reason: Annotated[str, Meta(min_length=1, description="From a closed set; later versions may add reasons.")]
    detail: str
    origin: _Origin
    payload: Annotated[Mapping[str, Any], Meta(description="The message, as in a dead letter.")]


class LateSamples(TypedDict):
    """Samples of a run that is over. Key: the run id."""

    reason: Annotated[str, Meta(min_length=1, description="From a closed set; later versions may add reasons.")]
    detail: str
    origin: _Origin
    last_offset: Annotated[int, Meta(ge=0, description="The samples are between origin and this offset.")]
    run_id: RunId
    samples: Annotated[int, Meta(ge=0)]
    sequences: Annotated[dict[str, list[int]], Meta(description="Numbers of the samples by start of the recorder.")]


DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: Parts of the schemas that the types cannot express, by definition.
_RULES: Mapping[str, Mapping[str, Any]] = {
    "FinishedRun": {
        "allOf": [
            {"anyOf": [{"required": ["result"]}, {"required": ["outcome"]}]},
            {"anyOf": [{"required": ["start_time"]}, {"required": ["end_time"]}]},
        ]
    },
    "DeliveryHeaders": {"patternProperties": {"^ciml_header_": {"type": "string"}}},
    "NoHeaders": {"propertyNames": {"not": {"pattern": "^(ciml_|ce_|content-type$)"}}},
}


@dataclass(frozen=True)
class _Schema:
    """The types that a schema describes.

    Attributes:
      title: in one line.
      forms: the types of the messages, of which each message has one.
      referenced: types that the forms refer to by their names.
    """

    title: str
    forms: tuple[Any, ...]
    referenced: tuple[Any, ...] = ()


#: By name: a topic's usual name for its values, and with ``-headers`` for its headers.
_SCHEMAS: Mapping[str, _Schema] = {
    "ci-events": _Schema(
        "An event of ciml's own on the topic ci-events; a delivery of a CI system has the system's own format.",
        (FinishedEvent, UnfinishedEvent),
        (EventRun, EventRuns, FinishedRun, FinishedRuns),
    ),
    "ci-events-headers": _Schema(
        "Headers of a message of the topic ci-events.",
        (DeliveryHeaders, StructuredHeaders, BinaryHeaders, NoHeaders),
    ),
    "samples": _Schema("Samples of a running job, or its end.", (SamplesMessage, EndMessage)),
    "runs": _Schema("A run that was stored.", (RunAnnouncement,), (RunFacts, OutputFile)),
    "runs-headers": _Schema("Headers of a message of the topic runs.", (ProjectionHeaders,)),
    "dead-letters": _Schema("A dead letter that was opened or closed.", (OpenDeadLetter, ClosedDeadLetter), (Origin,)),
    "dead-letters-headers": _Schema("Headers of a message of the topic dead-letters.", (ProjectionHeaders,)),
    "predictions": _Schema(
        "A prediction, with a verdict where the run failed.",
        (Prediction, CandidatePrediction),
        (RunFacts, Verdict),
    ),
    "predictions-headers": _Schema(
        "Headers of a message of the topic predictions.", (PredictionHeaders, CandidatePredictionHeaders)
    ),
    "windows": _Schema("A window of a running job.", (Window,)),
    "live-examples": _Schema("The example of a running job so far.", (LiveExample,)),
    "live-dead-letters": _Schema("Samples that could not be used.", (RejectedSamples, LateSamples), (Origin,)),
}


def schema_titles() -> dict[str, str]:
    """Return the titles of all schemas by name."""
    return {name: described.title for name, described in _SCHEMAS.items()}


def schema(name: str) -> dict[str, Any]:
    """Return a JSON Schema of draft 2020-12.

    Args:
      name: the usual name of a topic, for its values; with ``-headers`` for its headers as an object of texts.

    Raises:
      CimlError: no schema has this name.

    Example:
      >>> schema("runs")["$defs"]["RunAnnouncement"]["required"]
      ['build_name', 'digest', 'path', 'raw_version', 'run_id']
    """
    if name not in _SCHEMAS:
        raise CimlError(f"no schema {name!r:.80}; choose from {', '.join(_SCHEMAS)}")
    described = _SCHEMAS[name]
    types = (*described.forms, *described.referenced)  # `refs` has their order
    refs, definitions = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    forms = list(refs)[: len(described.forms)]
    for type_name, definition in definitions.items():
        definition |= _RULES.get(type_name, {})
        if definition.get("additionalProperties") is False:
            del definition["additionalProperties"]  # a later version may add fields
        definition["description"] = cleandoc(definition["description"])
    document = {
        "$schema": DIALECT,
        "$id": f"urn:ciml:schema:{name}",
        "title": described.title,
        **({"anyOf": forms} if len(forms) > 1 else forms[0]),
        "$defs": dict(sorted(definitions.items())),
    }
    as_json: dict[str, Any] = json.loads(json.dumps(document))  # a default may be a tuple
    return as_json


def schema_text(name: str) -> str:
    """Return a schema as the text of its file."""
    return json.dumps(schema(name), indent=2, ensure_ascii=False) + "\n"
