"""Conversion of steps to OpenLineage events, its client, and a transport into a store. Needs ``ciml[lineage]``.

The transport writes each event as one object, whole or not at all, on a disk and on S3.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    DatasetFacet,
    InputDatasetFacet,
    OutputDatasetFacet,
    RunFacet,
    data_quality_metrics_input_dataset,
    dataset_version_dataset,
    error_message_run,
    execution_parameters_run,
    job_type_job,
    output_statistics_output_dataset,
    parent_run,
    processing_engine_run,
    schema_dataset,
    source_code_location_job,
    test_run,
)
from openlineage.client.serde import Serde
from openlineage.client.transport.noop import NoopConfig, NoopTransport
from openlineage.client.transport.transport import Transport

from ciml.events.redaction import redact_text, redact_url
from ciml.version import __version__

if TYPE_CHECKING:
    from ciml.data_root import DataRoot
    from ciml.lineage import Data, StepEvent
    from ciml.storage import Store

PRODUCER = f"urn:ciml:{__version__}"
#: Limits of an event: a definition may have thousands of features, an exception any text.
MAX_COLUMNS = 1000
MAX_ERROR_CHARACTERS = 1000


class _Client(OpenLineageClient):
    """Redacts the address of the source code, if its facet is configured: git keeps credentials in it."""

    def add_source_code_location_facet(self, event: Any) -> Any:
        event = super().add_source_code_location_facet(event)
        facet = (event.job.facets or {}).get("sourceCodeLocation")
        if isinstance(facet, source_code_location_job.SourceCodeLocationJobFacet):
            facet.url = redact_url(facet.url)
            facet.repoUrl = redact_url(facet.repoUrl) if facet.repoUrl else None
        return event


def make_client(data: DataRoot) -> OpenLineageClient:
    """Open the client that OpenLineage's own configuration describes; without one, events go into the data root."""
    described = _Client(transport=NoopTransport(NoopConfig())).config.transport or {}
    if described.get("type") or os.environ.get("OPENLINEAGE_URL"):
        return _Client()
    return _Client(transport=StoreTransport(data.lineage))


class StoreTransport(Transport):
    """Writes each event to ``<date>/<time>-<job>-<state>-<run id>.json``; sorted by name, they are in order of time.

    Args:
      store: the folder.
    """

    kind = "ciml"

    def __init__(self, store: Store) -> None:
        self._store = store

    def emit(self, event: Any) -> None:
        time = event.eventTime.replace("+00:00", "Z").replace(":", "")
        name = f"{time}-{event.job.name}-{event.eventType.value}-{event.run.runId}.json"
        self._store.create(f"{event.eventTime[:10]}/{name}", Serde.to_json(event).encode())


def run_event(event: StepEvent, data: DataRoot) -> RunEvent:
    """Convert a state of a step."""
    described = event.description
    step_kind = event.job.partition(".")[0].upper()
    job_type = job_type_job.JobTypeJobFacet("BATCH", "CIML", step_kind, producer=PRODUCER)
    return RunEvent(
        eventTime=event.time.isoformat(timespec="microseconds"),  # names with and without them sort differently
        producer=PRODUCER,
        run=Run(event.run_id, _run_facets(event)),
        job=Job(job_namespace(data), event.job, {"jobType": job_type}),
        eventType=RunState(event.state),
        inputs=[_input(data_of_step) for data_of_step in described.inputs],
        outputs=[_output(data_of_step) for data_of_step in described.outputs],
    )


def job_namespace(data: DataRoot) -> str:
    """Return the namespace of the jobs: ``$OPENLINEAGE_NAMESPACE``, or the address of the data root."""
    address = data.url
    return os.environ.get("OPENLINEAGE_NAMESPACE") or (address if "://" in address else f"file://{address}")


def dataset_name(address: str) -> tuple[str, str]:
    """Return (namespace, name) of a folder, an ``s3://`` prefix or another address, as OpenLineage names them."""
    scheme, separator, remainder = redact_url(address).partition("://")
    if not separator or scheme == "file":
        return "file", remainder or address
    host, _, path = remainder.partition("/")
    return f"{scheme}://{host}", path or "/"


def _run_facets(event: StepEvent) -> dict[str, RunFacet]:
    described = event.description
    facets: dict[str, RunFacet] = {
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
            __version__, "ciml", __version__, producer=PRODUCER
        )
    }
    if parent := _parent():
        facets["parent"] = parent
    if described.parameters:
        parameters = [
            execution_parameters_run.ExecutionParameter(name, value=json.dumps(value))
            for name, value in described.parameters.items()
        ]
        facets["executionParameters"] = execution_parameters_run.ExecutionParametersRunFacet(
            parameters, producer=PRODUCER
        )
    if described.checks:
        tests = [test_run.TestExecution(name, "pass" if good else "fail", "error") for name, good in described.checks]
        facets["test"] = test_run.TestRunFacet(tests, producer=PRODUCER)
    if described.facts:
        facets["ciml_evaluation"] = _custom(RunFacet(producer=PRODUCER), described.facts)
    if event.error:
        text = redact_text(" ".join(event.error.split()))[:MAX_ERROR_CHARACTERS]
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(text, "PYTHON", producer=PRODUCER)
    return facets


def _parent() -> RunFacet | None:
    """Return the run that started this one, which ``$OPENLINEAGE_PARENT_ID`` names as NAMESPACE/JOB/RUN-ID."""
    job, _, run_id = os.environ.get("OPENLINEAGE_PARENT_ID", "").rpartition("/")
    namespace, _, name = job.rpartition("/")
    if not (namespace and name):
        return None
    try:
        return parent_run.ParentRunFacet(parent_run.Run(run_id), parent_run.Job(namespace, name), producer=PRODUCER)
    except ValueError:
        return None  # not the id of a run


def _input(data: Data) -> InputDataset:
    facet = data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet({}, data.rows, producer=PRODUCER)
    facets: dict[str, InputDatasetFacet] = {} if data.rows is None else {"dataQualityMetrics": facet}
    return InputDataset(*dataset_name(data.address), inputFacets=facets, facets=_facets(data))


def _output(data: Data) -> OutputDataset:
    facet = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(data.rows, producer=PRODUCER)
    facets: dict[str, OutputDatasetFacet] = {} if data.rows is None else {"outputStatistics": facet}
    return OutputDataset(*dataset_name(data.address), outputFacets=facets, facets=_facets(data))


def _facets(data: Data) -> dict[str, DatasetFacet]:
    facets: dict[str, DatasetFacet] = {}
    if data.version:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(data.version, producer=PRODUCER)
    if data.columns:
        fields = [schema_dataset.SchemaDatasetFacetFields(*column) for column in data.columns[:MAX_COLUMNS]]
        facets["schema"] = schema_dataset.SchemaDatasetFacet(fields, producer=PRODUCER)
    if data.facts:
        facets["ciml_data"] = _custom(DatasetFacet(producer=PRODUCER), data.facts)
    return facets


def _custom(facet: Any, facts: Any) -> Any:
    return facet.with_additional_properties(**facts)
