"""A pipeline as a job of Dataflow: written as a template, or submitted, by Beam's own runner.

Before that, the serialised pipeline is searched for secrets. Its functions and elements are packed.
"""

from __future__ import annotations

import argparse
import base64
import bz2
import contextlib
import logging
import os
import re
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from ciml.errors import CimlError, EngineError
from ciml.pipelines.dataflow.settings import DataflowSettings, check_beam_options, job_flags

#: Beam packs a pickled object by bz2 or zlib, and then by base64: both have a fixed beginning.
_PACKED = re.compile(rb"(?:QlpoO|eNo|eNr|eNp|eJx)[A-Za-z0-9+/]{8,}={0,2}")
_LIST_S = 60.0

#: Wires a pipeline.
Build = Callable[[beam.Pipeline], object]


@dataclass(frozen=True)
class Launched:
    """A job that was submitted, or whose description was written as a template.

    Attributes:
      name: of the job.
      template: where its description was written; "" for a submitted job.
      job_id: of the submitted job; "" for a template.
      pipeline: URL of its staged pipeline.
      size: bytes of that pipeline, which grow with the runs of a data set.
    """

    name: str
    template: str
    job_id: str
    pipeline: str
    size: int


def launch(
    build: Build,
    settings: DataflowSettings,
    name: str,
    *,
    streaming: bool,
    template: str = "",
    update: bool = False,
    extra: Sequence[str] = (),
    hidden: Iterable[bytes] = (),
) -> Launched:
    """Stage a pipeline in GCS, and write its job as a template or submit it. The job is not awaited.

    Args:
      build: wires the pipeline.
      settings: of all jobs.
      name: of the job.
      streaming: whether the pipeline is unbounded.
      template: a file or ``gs://`` object for the job's description; "" submits the job.
      update: replace the running job of that name.
      extra: further options of Beam as command-line flags; they take precedence.
      hidden: secrets of this process: it is an error if one is in the pipeline.

    Raises:
      CimlError: the pipeline would hold a secret, Beam rejects an option, or ``update`` finds no job of that name.
      EngineError: Google Cloud rejects the request or does not answer, or the template cannot be written.
    """
    import google.auth

    check_beam_options(extra)
    place = template
    local = bool(template) and not template.startswith("gs://")
    if local:  # Beam writes in place; the file is renamed when it is complete
        place = f"{os.path.abspath(template)}.{secrets.token_hex(4)}.tmp"
    flags = [*job_flags(settings, name, streaming=streaming), *extra]
    if place:
        flags.append(f"--template_location={place}")
    if update:
        flags.append("--update")
    try:
        with _one_line_errors(name):
            options = PipelineOptions(flags)
            if not options.view_as(GoogleCloudOptions).no_auth:
                google.auth.default()  # Beam would retry for half a minute, and then go on without
            pipeline = beam.Pipeline(options=options)
            build(pipeline)
            data = pipeline.to_runner_api().SerializeToString()
            if holds(data + "\n".join(flags).encode(), hidden):  # everybody in the project can read a description
                raise CimlError(
                    "the job description would hold a secret of this process; name it by environment_secret or "
                    "kafka_secret of the --dataflow file, and remove it from options and policies"
                )
            if update:
                _check_running(options, name)
            result = pipeline.run()
        if local:
            try:
                os.replace(place, template)
            except OSError as error:
                raise EngineError(f"{template}: cannot be written: {error.strerror}") from error
    finally:
        if local:
            with contextlib.suppress(OSError):
                os.remove(place)
    staged = pipeline.runner.job.google_cloud_options.staging_location  # with a folder of this job
    return Launched(name, template, "" if template else str(result.job_id()), f"{staged}/pipeline.pb", len(data))


class CimlOptions(PipelineOptions):
    """The options that `ciml.pipelines.dataflow.worker` reads."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--ciml_version", help="Version of ciml that made the job.")
        parser.add_argument("--ciml_environment_secret", help="Secret with the workers' environment.")


def holds(data: bytes, secrets: Iterable[bytes]) -> bool:
    """Return whether a serialised pipeline holds one of the secrets, plain or packed."""
    values = [secret for secret in secrets if secret]
    return bool(values) and any(secret in content for content in unpacked(data) for secret in values)


def unpacked(data: bytes) -> Iterator[bytes]:
    """Yield the data, and all that is packed in it, at any depth."""
    waiting = [data]
    while waiting:
        layer = waiting.pop()
        yield layer
        for match in _PACKED.finditer(layer):
            content = base64.b64decode(match[0][: len(match[0]) // 4 * 4])
            try:  # what follows the end is ignored: letters after the text may belong to something else
                unpack = bz2.BZ2Decompressor() if content.startswith(b"BZh") else zlib.decompressobj()
                inner = unpack.decompress(content)
            except (OSError, zlib.error):
                continue  # not packed
            if inner:
                waiting.append(inner)


def _check_running(options: PipelineOptions, name: str) -> None:
    """Raise `CimlError` unless a job of that name runs, which Beam 2.77 would look for without an end."""
    from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient
    from google.cloud.dataflow import JobState, ListJobsRequest

    cloud = options.view_as(GoogleCloudOptions)
    request = ListJobsRequest(project_id=cloud.project, location=cloud.region, filter=ListJobsRequest.Filter.ACTIVE)
    active = (JobState.JOB_STATE_RUNNING, JobState.JOB_STATE_DRAINING)
    jobs = DataflowApplicationClient(options)._jobs_client.list_jobs(request=request, timeout=_LIST_S)
    if not any(job.name == name and job.current_state in active for job in jobs):
        raise CimlError(
            f"--update: no job {name} runs in {cloud.project}, {cloud.region}; leave --update out to start one"
        )


@contextlib.contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turn errors of Beam and of Google's clients into one line."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    logger = logging.getLogger("apache_beam")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # Beam logs each error too, in many lines
    try:
        yield
    except CimlError:
        raise
    except GoogleAuthError as error:
        raise EngineError(
            f"no access to Google Cloud: {_line(error)}; log in: gcloud auth application-default login"
        ) from None
    except (GoogleAPIError, OSError) as error:
        raise EngineError(f"Google Cloud rejects job {name}: {_line(error)}") from error
    except (ValueError, RuntimeError) as error:  # Beam's own checks of options and graphs
        raise CimlError(f"Beam rejects job {name}: {_line(error)}") from error
    finally:
        logger.setLevel(level)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
