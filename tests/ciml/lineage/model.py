"""Checks events against OpenLineage's model: the classes of its client, which are generated from its JSON Schemas.

Each class becomes a JSON Schema, closed, with what the specification requires beyond the classes: identifiers and
addresses are never empty, and a facet is the one of its key.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from jsonschema import Draft202012Validator, FormatChecker
from openlineage.client import facet_v2
from openlineage.client.event_v2 import RunEvent

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
