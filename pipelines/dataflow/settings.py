"""Settings of jobs on Dataflow: one TOML file for all commands, and checks of what a job refers to.

A job may refer only to places that workers reach, and to secrets by name. This module does not import Beam.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from msgspec import field

from ciml.errors import CimlError
from ciml.kafka import KafkaOptions
from ciml.secret_manager import check_secret_name
from ciml.settings import Settings
from ciml.transforms.fetch.policy import FetchPolicy
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
_LOOPBACK = re.compile(r"(^|,|//)(localhost|127\.[0-9.]+|\[::1\]|0\.0\.0\.0)(:|,|$)")
_SECRET_OPTION = re.compile(r"password|secret_access_key|session_token|api_key|private_key")
#: Variables of S3 clients that are secret.
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
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


def check_on_s3(place: str, option: str) -> None:
    """Raise `CimlError` unless workers can open a place: only S3 has both conditional writes and a network.

    Args:
      place: a path or URL, as the user wrote it.
      option: its option, for the message.
    """
    if place.startswith("s3://"):
        return
    if place.startswith("gs://"):
        raise CimlError(
            f"{option} {place}: gs:// is not supported, on Dataflow neither: ciml commits by conditional writes of S3 "
            "(If-None-Match). Give s3://BUCKET/PREFIX; GCS holds the staged pipeline alone"
        )
    raise CimlError(
        f"{option} {place}: a path of this machine, which Dataflow's workers do not have; copy it to S3 "
        f"(aws s3 sync {place} s3://BUCKET/PREFIX) and give {option} s3://BUCKET/PREFIX"
    )


def check_fetch(fetch: FetchPolicy) -> None:
    """Raise `CimlError` if a fetch policy names files of this machine."""
    for root in fetch.file_roots:
        check_on_s3(root, "--allow-root")
    files = [fetch.ca_file]
    for credential in fetch.credentials:
        files += [credential.token_file, credential.password_file]
    local_files = [path for path in files if path]
    if local_files:
        raise CimlError(
            f"fetch policy: {local_files[0]} is a file of this machine, which Dataflow's workers do not have; use "
            "token_env, with the variable in the environment_secret"
        )


def kafka_of_workers(kafka: KafkaOptions, settings: DataflowSettings) -> KafkaOptions:
    """Return the connection that workers use: with properties that are not secret, or with the name of their secret.

    Args:
      kafka: the connection of this process.
      settings: of the job. With a ``kafka_secret`` workers use its properties alone.

    Raises:
      CimlError: a property is secret and no secret is named, or the broker's address is of this machine.
    """
    bootstrap = settings.kafka or kafka.bootstrap
    if _LOOPBACK.search(bootstrap):
        raise CimlError(
            f"--kafka {bootstrap}: workers would look for the broker on themselves; give the address that the workers' "
            "network knows, or set kafka in the --dataflow file where this machine needs another one"
        )
    if settings.kafka_secret:
        return replace(kafka, bootstrap=bootstrap, extra={}, secret=settings.kafka_secret)
    secret_names = kafka.secret_names()
    if secret_names:
        raise CimlError(
            f"Kafka property {secret_names[0]} would stand in the job description, which everybody in the project can "
            "read; store the properties file in Secret Manager and name it as kafka_secret in the --dataflow file"
        )
    return replace(kafka, bootstrap=bootstrap)


def check_beam_options(options: Iterable[str]) -> None:
    """Raise `CimlError` for an option of Beam that is secret by its name: options stand in the job description."""
    for option in options:
        name = option.partition("=")[0]
        if _SECRET_OPTION.search(name):
            raise CimlError(
                f"--beam-option {name}: its value would stand in the job description, which everybody in the project "
                "can read; name it by environment_secret of the --dataflow file"
            )


def secrets_here(kafka: KafkaOptions | None = None, fetch: FetchPolicy | None = None) -> Iterable[bytes]:
    """Return the secrets of this process that a job description must not hold."""
    tokens = [credential.token_env for credential in fetch.credentials] if fetch else []
    values = [os.environ.get(name, "").encode() for name in (*_SECRET_VARIABLES, *tokens) if name]
    values += kafka.credentials().values() if kafka else ()
    return [secret for secret in values if secret]
