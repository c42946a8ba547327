"""Lineage whose events a test reads, checked against OpenLineage's model: the classes of its client.

The classes are generated from its JSON Schemas. Each class becomes a JSON Schema, closed, with what the specification
requires beyond the classes: identifiers and addresses are never empty, and a facet is the one of its key.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import msgspec
from jsonschema import Draft202012Validator, FormatChecker
from openlineage.client import facet_v2
from openlineage.client.event_v2 import RunEvent
from openlineage.client.serde import Serde

from ciml.data_root import DataRoot
from ciml.lineage import Lineage, StepEvent
from ciml.lineage.openlineage import run_event


class Recorded(Lineage):
    """Keeps the events of steps, converted, and checked against OpenLineage's model."""

    def __init__(self, data: DataRoot) -> None:
        super().__init__(data)
        self._data = data
        self.events: list[dict[str, Any]] = []

    def emit(self, event: StepEvent) -> None:
        self.events.append(checked(json.loads(Serde.to_json(run_event(event, self._data)))))


def checked(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event. Fails if it does not follow OpenLineage's model."""
    found = fault(event)
    assert not found, f"{found}: {json.dumps(event)[:1000]}"
    return event


def stored(data: DataRoot) -> list[dict[str, Any]]:
    """Return the events in a data root, in order of time."""
    return [checked(json.loads(data.lineage.read(path))) for path in data.lineage.list()]


def states(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (job, state) of events."""
    return [(event["job"]["name"], event["eventType"]) for event in events]


def names(data: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (name, version) of inputs or outputs."""
    return [(each["name"], each["facets"].get("version", {}).get("datasetVersion", "")) for each in data]


#: The module and class of each facet by its key, as the specification names it.
_FACETS = {
    "processing_engine": "processing_engine_run.ProcessingEngineRunFacet",
    "parent": "parent_run.ParentRunFacet",
    "executionParameters": "execution_parameters_run.ExecutionParametersRunFacet",
    "test": "test_run.TestRunFacet",
    "errorMessage": "error_message_run.ErrorMessageRunFacet",
    "tags": "tags_run.TagsRunFacet",
    "jobType": "job_type_job.JobTypeJobFacet",
    "sourceCodeLocation": "source_code_location_job.SourceCodeLocationJobFacet",
    "version": "dataset_version_dataset.DatasetVersionDatasetFacet",
    "schema": "schema_dataset.SchemaDatasetFacet",
    "dataQualityMetrics": "data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet",
    "outputStatistics": "output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet",
}
_PLACES = ("facets", "inputFacets", "outputFacets")


def fault(event: dict[str, Any]) -> str:
    """Return what is wrong with an event; "" if nothing is."""
    for error in _validator(RunEvent).iter_errors(event):
        return f"{error.json_path}: {error.message[:300]}"
    for owner in (event["run"], event["job"], *event.get("inputs", ()), *event.get("outputs", ())):
        for place in _PLACES:
            for key, facet in owner.get(place, {}).items():
                if found := _facet_fault(key, facet):
                    return f"{place}.{key}{found}"
    return ""


def _facet_fault(key: str, facet: dict[str, Any]) -> str:
    for name in ("_producer", "_schemaURL"):
        if "://" not in facet.get(name, "") and not facet.get(name, "").startswith("urn:"):
            return f".{name}: no address"
    if key.startswith("ciml_"):
        return "" if len(facet) > 2 else ": empty"
    if key not in _FACETS:
        return ": unknown"
    module, _, name = _FACETS[key].partition(".")
    kind = getattr(facet_v2, module)
    for error in _validator(getattr(kind, name)).iter_errors(facet):
        return f"{error.json_path[1:]}: {error.message[:300]}"
    return ""


@cache
def _validator(kind: Any) -> Draft202012Validator:
    schema = msgspec.json.schema(kind)
    definitions = schema["$defs"]
    for name, each in definitions.items():
        if each.get("type") == "object" and (kind is not RunEvent or not name.endswith("Facet")):
            each["additionalProperties"] = False
    if kind is RunEvent:
        event, run = definitions["RunEvent"], definitions["Run"]
        event["required"] = [*event["required"], "producer", "schemaURL", "eventType", "inputs", "outputs"]
        event["properties"]["eventTime"] = {"type": "string", "format": "date-time"}
        run["properties"]["runId"] = {"type": "string", "format": "uuid"}
        for name in ("Job", "InputDataset", "OutputDataset"):
            for text in ("namespace", "name"):
                definitions[name]["properties"][text] = {"type": "string", "minLength": 1}
    return Draft202012Validator(schema, format_checker=FormatChecker())
