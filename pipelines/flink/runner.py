"""Submission of a pipeline to Beam's job server."""

from __future__ import annotations

from functools import partial

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_job_api_pb2_grpc as job_api
from apache_beam.runners.portability.portable_runner import JobServiceHandle, PortableRunner


class SetOptionsRunner(PortableRunner):
    """Beam's portable runner, without unset options.

    Beam's own runner sends every default. Flink then writes them all, with Java's descriptions, into the name of every
    piece of state: about 5 KB at each rest of a source, in all later checkpoints.
    """

    def create_job_service_handle(
        self, job_service: job_api.JobServiceStub, options: PipelineOptions
    ) -> JobServiceHandle:
        """Return the job server's handle, with the set options only."""
        handle = super().create_job_service_handle(job_service, options)
        handle.options = _OnlySet(options)
        return handle


class _OnlySet:
    def __init__(self, options: PipelineOptions) -> None:
        self.get_all_options = partial(options.get_all_options, drop_default=True)
