"""What a job may refer to: places that workers reach, and secrets by name alone. Does not import Beam."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from ciml.errors import CimlError
from ciml.kafka.options import KafkaOptions
from ciml.pipelines.dataflow.settings import DataflowSettings
from ciml.transforms.fetch.policy import FetchPolicy

_LOOPBACK = re.compile(r"(^|,|//)(localhost|127\.[0-9.]+|\[::1\]|0\.0\.0\.0)(:|,|$)")
_SECRET_OPTION = re.compile(r"password|secret_access_key|session_token|api_key|private_key")
#: Variables of S3 clients that are secret.
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


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
    files = [path for each in fetch.credentials for path in (each.token_file, each.password_file) if path]
    files += [fetch.ca_file] * bool(fetch.ca_file)
    if files:
        raise CimlError(
            f"fetch policy: {files[0]} is a file of this machine, which Dataflow's workers do not have; use token_env, "
            "with the variable in the environment_secret"
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
        return KafkaOptions(
            bootstrap, queue_kib=kafka.queue_kib, timeout_s=kafka.timeout_s, secret=settings.kafka_secret
        )
    if names := kafka.secret_names():
        raise CimlError(
            f"Kafka property {names[0]} would stand in the job description, which everybody in the project can read; "
            "store the properties file in Secret Manager and name it as kafka_secret in the --dataflow file"
        )
    return KafkaOptions(bootstrap, kafka.extra, kafka.queue_kib, kafka.timeout_s)


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
    names = [*_SECRET_VARIABLES, *(each.token_env for each in (fetch.credentials if fetch else ()) if each.token_env)]
    found = [os.environ.get(name, "").encode() for name in names]
    found += kafka.credentials().values() if kafka else ()
    return [secret for secret in found if secret]
