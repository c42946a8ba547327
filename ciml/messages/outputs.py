"""Messages of the topics that ciml publishes for others: `runs`, `dead-letters`, `predictions` and live output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
RunId = Annotated[str, Meta(min_length=1, description="The encoded run id, source~id~attempt.")]
#: The state of a run: running; ended with all samples, or after waiting for them; silent for too long; or given up
#: after its windows raised an unexpected exception.
Standing = Literal["running", "ended", "silent", "failed"]
#: JSON forms of records; the schemas of the records follow from their classes.
_Facts = Annotated[Mapping[str, Any], Meta(extra_json_schema={"$ref": "#/$defs/RunFacts"})]
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
    digest: Annotated[Digest, Meta(description="Of the telemetry.")]
    raw_version: Annotated[int, Meta(ge=1, description="Version of the raw manifest.")]
    facts: NotRequired[Annotated[_Facts, Meta(description="Facts of the run; absent in messages of version 0.1.")]]
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


class _PredictionHeaders(TypedDict):
    ce_specversion: Literal["1.0"]
    ce_id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$", description="Id of the prediction.")]
    ce_source: Annotated[str, Meta(pattern="^/ciml/models/", description="/ciml/models/MODEL")]
    ce_type: Literal["dev.ciml.prediction.v1"]


_JsonHeaders = TypedDict("_JsonHeaders", {"content-type": Literal["application/json"]})


class PredictionHeaders(_PredictionHeaders, _JsonHeaders, ProjectionHeaders):
    """Headers of a prediction: the attributes of a CloudEvent in binary mode, and those of a projection."""


_Class = TypedDict("_Class", {"class": Annotated[str, Meta(description="The class with the highest probability.")]})


class Prediction(_Class):
    """A model's answer for a run. Key: the run id."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$", description="Of the run, the model and its version.")]
    run_id: RunId
    build_name: Annotated[str, Meta(description="The job.")]
    model: str
    version: Annotated[int, Meta(ge=1, description="Version of the model.")]
    label: Annotated[str, Meta(description="What is predicted: the class label of the data set.")]
    probabilities: Annotated[dict[str, float], Meta(description="By class.")]
    n_windows: Annotated[int, Meta(ge=1, description="Number of the run's windows.")]
    prepare_ms: Annotated[float, Meta(ge=0, description="Time of the batch's preparation, milliseconds.")]
    server_ms: Annotated[float, Meta(ge=0, description="Time of the model server's answer, milliseconds.")]
    batch: Annotated[int, Meta(ge=1, description="Number of runs in that call.")]
    time_us: Annotated[int, Meta(description="Time of the answer, epoch microseconds.")]
    latency_ms: Annotated[float, Meta(ge=0, description="From the run's announcement to the answer, milliseconds.")]
    run: NotRequired[Annotated[_Facts, Meta(description="With a verdict: facts of the run, without its log.")]]
    verdict: NotRequired[Annotated[_Verdict, Meta(description="Of a failed run, by a model that gives verdicts.")]]
    path: NotRequired[Annotated[str, Meta(description="With a verdict: the telemetry, below DATA/raw.")]]


class _Live(TypedDict):
    run_id: RunId
    dataset: Annotated[str, Meta(description="The data set.")]
    version: Annotated[int, Meta(ge=1, description="Of the data set's definition.")]
    definition: Annotated[Digest, Meta(description="Of the resolved definition: equal ones are comparable.")]
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
    """Why a run is no example."""

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
    digest: NotRequired[Annotated[str, Meta(description="Of the example of a finished run.")]]
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
