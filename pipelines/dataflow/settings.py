"""Settings of jobs on Dataflow: one TOML file for all commands, and the options of Beam that follow from it.

This module does not import Beam.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import field

from ciml.secret_manager import check_secret_name
from ciml.settings import Settings
from ciml.version import __version__

_GCS = (
    re.compile(r"gs://[a-z0-9][a-z0-9_.-]{1,220}[a-z0-9](/[^\s]*)?"),
    "gs://BUCKET or gs://BUCKET/FOLDER; Dataflow keeps its own files in GCS",
)
_IMAGE = r"[a-z0-9.-]{1,100}(:[0-9]{1,5})?(/[a-z0-9._-]{1,100}){1,8}(:[A-Za-z0-9._-]{1,128}|@sha256:[0-9a-f]{64})"
_WORD = (re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/-]{0,250}"), "one word")
#: The form of texts by their key: a pattern, and its description for people.
_FORMS: Mapping[str, tuple[re.Pattern[str], str]] = {
    "project": (re.compile(r"([a-z0-9.-]{1,60}:)?[a-z][a-z0-9-]{4,28}[a-z0-9]"), "the id of a project"),
    "region": (re.compile(r"[a-z]{2,20}(-[a-z]{2,20}){1,3}[0-9]{1,2}"), "a region, such as europe-west1"),
    "temp_location": _GCS,
    "staging_location": _GCS,
    "image": (re.compile(_IMAGE), "REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST"),
    "kafka": (re.compile(r"[\w.:,\[\]-]{1,1000}"), "one word"),
    **dict.fromkeys(("machine_type", "service_account", "network", "subnetwork"), _WORD),
    "labels": (re.compile(r"[a-z][a-z0-9_-]{0,62}=[a-z0-9_-]{0,63}"), "NAME=VALUE in lower case"),
}
_REQUIRED = ("project", "region", "temp_location", "image", "environment_secret", "labels")
#: Names of jobs, as Dataflow defines them.
_JOB = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


class DataflowSettings(Settings, frozen=True):
    """The keys of a ``--dataflow`` file.

    Attributes:
      project: Google Cloud project.
      region: of the job and its workers, such as ``europe-west1``.
      temp_location: ``gs://`` folder of temporary files.
      staging_location: ``gs://`` folder of the pipeline, for as long as a job or a template of it may start.
        [default: temp_location]
      image: workers' image, with a tag or a digest: ``deploy/dataflow/Dockerfile``.
      environment_secret: secret with environment variables of workers, a line ``NAME=VALUE`` each: the credentials and
        the endpoint of S3, and the variables that a fetch policy names; ``projects/PROJECT/secrets/SECRET``.
      kafka_secret: secret with librdkafka's properties, as a ``--kafka-config`` file.
      kafka: ``host:port`` of the broker for workers, where ``--kafka`` is an address that only this machine knows.
      machine_type: of workers, such as ``e2-standard-2``. [default: Dataflow's]
      max_workers: maximum number of workers. [default: Dataflow's]
      service_account: of workers. [default: the project's Compute Engine account]
      network: VPC network of workers.
      subnetwork: its subnetwork: ``regions/REGION/subnetworks/NAME`` or a URL.
      public_addresses: whether workers have public addresses; without them, S3 outside of Google needs a NAT.
      labels: ``NAME=VALUE`` of the job.
    """

    title = "Dataflow settings"

    project: str
    region: str
    temp_location: str
    image: str
    environment_secret: str
    staging_location: str = ""
    kafka_secret: str = ""
    kafka: str = ""
    machine_type: str = ""
    max_workers: int | None = None
    service_account: str = ""
    network: str = ""
    subnetwork: str = ""
    public_addresses: bool = True
    labels: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for name, (pattern, form) in _FORMS.items():
            value = getattr(self, name)
            for text in value if isinstance(value, tuple) else (value,):
                if (text or name in _REQUIRED) and not pattern.fullmatch(text):
                    raise ValueError(f"{name}: {text!r:.120} is not valid; give {form}")
        for name in ("environment_secret", "kafka_secret"):
            value = getattr(self, name)
            if not value and name not in _REQUIRED:
                continue
            try:
                check_secret_name(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if self.max_workers is not None and not 1 <= self.max_workers <= 1000:
            raise ValueError("max_workers: must be 1 to 1000")

    @property
    def staging(self) -> str:
        """The folder of staged pipelines."""
        return self.staging_location or self.temp_location


def job_name(text: str) -> str:
    """Return a name of a job as Dataflow takes it, from words such as ``ciml-ingest-ci.events``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].rstrip("-")


def check_job_name(name: str) -> None:
    """Raise `ValueError` for a name that Dataflow rejects."""
    if not _JOB.fullmatch(name):
        raise ValueError(
            f"{name!r:.80} is not the name of a job; use at most 63 lower-case letters, digits and dashes, first a "
            "letter"
        )


def job_flags(settings: DataflowSettings, name: str, *, streaming: bool) -> list[str]:
    """Return Beam's options of a job.

    Python's streaming jobs always use Streaming Engine, which keeps state and timers off the workers' disks.

    Args:
      settings: of all jobs.
      name: of this job.
      streaming: whether it is unbounded.
    """
    values: Mapping[str, str | int | None] = {
        "runner": "DataflowRunner",
        "project": settings.project,
        "region": settings.region,
        "job_name": name,
        "temp_location": settings.temp_location,
        "staging_location": settings.staging,
        "sdk_container_image": settings.image,
        # The image has Beam and ciml: nothing is installed when a worker starts.
        "sdk_location": "container",
        "machine_type": settings.machine_type,
        "max_num_workers": settings.max_workers,
        "service_account_email": settings.service_account,
        "network": settings.network,
        "subnetwork": settings.subnetwork,
        # Read by `ciml.pipelines.dataflow.worker`, which each worker process imports before anything else.
        "beam_plugin": "ciml.pipelines.dataflow.worker",
        "ciml_version": __version__,
        "ciml_environment_secret": settings.environment_secret,
    }
    flags = [f"--{key}={value}" for key, value in values.items() if value not in ("", None)]
    flags += [f"--label={label}" for label in (*settings.labels, f"ciml-version={__version__.replace('.', '-')}")]
    # The image has all modules; the main module, the packages and the paths of this process stay here.
    flags += ["--no_save_main_session", "--experiment=disable_logging_submission_environment"]
    flags += ["--no_use_public_ips"] * (not settings.public_addresses)
    return [*flags, *(["--streaming", "--enable_streaming_engine"] if streaming else [])]
