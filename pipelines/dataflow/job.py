"""A pipeline as a job of Dataflow, written as a template or submitted by Beam's own runner.

First, the serialised pipeline is searched for secrets, also within the functions and elements that Beam compresses.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from ciml.errors import CimlError, EngineError
from ciml.pipelines.dataflow.checks import check_beam_options, holds
from ciml.pipelines.dataflow.settings import DataflowSettings, job_flags

_LIST_S = 60.0

#: Wires a pipeline.
Build = Callable[[beam.Pipeline], object]


@dataclass(frozen=True)
class Launched:
    """A submitted job, or the template of a job.

    Attributes:
      name: name of the job.
      template: location of the template; "" for a submitted job.
      job_id: id of the submitted job; "" for a template.
      pipeline: URL of the staged pipeline.
      size: bytes of the staged pipeline, which grow with the runs of a data set.
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
    """Stage a pipeline in GCS, and submit its job or write it as a template. Does not wait for the job.

    Args:
      build: wires the pipeline.
      settings: the settings of all jobs.
      name: name of the job.
      streaming: whether the pipeline is unbounded.
      template: a file or ``gs://`` object for the job's description; "" submits the job.
      update: replace the running job with this name.
      extra: further options of Beam as command-line flags; they take precedence.
      hidden: secrets of this process, which neither the pipeline nor a flag may contain.

    Raises:
      CimlError: the pipeline would hold a secret, Beam rejects an option, or ``update`` finds no job with this name.
      EngineError: Google Cloud rejects the request or does not answer, or the template cannot be written.
    """
    import google.auth

    check_beam_options(extra)
    with _template_location(template) as location, _one_line_errors(name):
        flags = [*job_flags(settings, name, streaming=streaming), *extra]
        if location:
            flags.append(f"--template_location={location}")
        if update:
            flags.append("--update")
        options = PipelineOptions(flags)
        if not options.view_as(GoogleCloudOptions).no_auth:
            google.auth.default()  # Beam would retry for half a minute, and then continue without credentials
        pipeline = beam.Pipeline(options=options)
        build(pipeline)
        data = pipeline.to_runner_api().SerializeToString()
        if holds(data + "\n".join(flags).encode(), hidden):
            raise CimlError(
                "the job description would hold a secret of this process; name it by environment_secret or "
                "kafka_secret of the --dataflow file, and remove it from options and policies"
            )
        if update:
            _check_running(options, name)
        result = pipeline.run()
    # Beam 2.77 has no public name for the staging folder of a job.
    staged = pipeline.runner.job.google_cloud_options.staging_location
    return Launched(name, template, "" if template else str(result.job_id()), f"{staged}/pipeline.pb", len(data))


class CimlOptions(PipelineOptions):
    """The options that `ciml.pipelines.dataflow.worker` reads."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--ciml_version", help="Version of ciml that made the job.")
        parser.add_argument("--ciml_environment_secret", help="Secret with the workers' environment.")


@contextlib.contextmanager
def _template_location(template: str) -> Iterator[str]:
    """Yield the location where Beam writes a template. A local file is renamed after the block, if it succeeds."""
    if not template or template.startswith("gs://"):
        yield template
        return
    location = f"{os.path.abspath(template)}.{secrets.token_hex(4)}.tmp"
    try:
        yield location
        os.replace(location, template)
    except OSError as error:
        raise EngineError(f"{template}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(location)


def _check_running(options: PipelineOptions, name: str) -> None:
    """Raise `CimlError` unless a job with this name runs: Beam 2.77 would search for one forever.

    Beam 2.77 has no public method that lists jobs.
    """
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
