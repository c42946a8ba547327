"""Checks of a job description: it names only places that workers reach, and contains no secret.

Everybody in the Google Cloud project can read the description. This module does not import Beam.
"""

from __future__ import annotations

import base64
import bz2
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ciml.errors import CimlError
from ciml.kafka import KafkaOptions
from ciml.pipelines.dataflow.settings import DataflowSettings
from ciml.transforms.fetch.policy import FetchPolicy

_LOOPBACK = re.compile(r"(^|,|//)(localhost|127\.[0-9.]+|\[::1\]|0\.0\.0\.0)(:|,|$)")
#: Variables of S3 clients that are secret.
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_SECRET_OPTION = re.compile(r"password|secret_access_key|session_token|api_key|private_key")
#: Base64 of bz2 or zlib data, wherever it may begin: a false beginning hides no true one. bz2 data begins with "BZh".
#: zlib data begins with the byte 78 and, depending on the level, 01, 5e, 9c or da. The third character of the base64
#: also has two bits of the third byte, so it has four values.
_PACKED = re.compile(rb"(?=((?:Qlpo|eA[E-H]|eF[4-7]|eJ[w-z]|eN[o-r])[A-Za-z0-9+/]{8,}={0,2}))")


def check_on_s3(place: str, option: str) -> None:
    """Raise `CimlError` unless a place is on S3, the only store with conditional writes that workers reach.

    Args:
      place: a path or URL, as the user wrote it.
      option: the name of the option, for the message.
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
    """Return the Kafka connection of the workers, with properties that are not secret, or with the name of a secret.

    Args:
      kafka: the connection of this process.
      settings: the settings of the job. With a ``kafka_secret``, workers use only the properties in this secret.

    Raises:
      CimlError: a property is secret and no secret is named, or the broker's address is a loopback address.
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


def secrets_here(kafka: KafkaOptions | None = None, fetch: FetchPolicy | None = None) -> list[bytes]:
    """Return the secrets of this process that a job description must not hold."""
    tokens = [credential.token_env for credential in fetch.credentials] if fetch else []
    values = [os.environ.get(name, "").encode() for name in (*_SECRET_VARIABLES, *tokens) if name]
    values += kafka.credentials().values() if kafka else ()
    return [secret for secret in values if secret]


def check_beam_options(options: Iterable[str]) -> None:
    """Raise `CimlError` for an option of Beam with the name of a secret: options stand in the job description."""
    for option in options:
        name = option.partition("=")[0]
        if _SECRET_OPTION.search(name):
            raise CimlError(
                f"--beam-option {name}: its value would stand in the job description, which everybody in the project "
                "can read; name it by environment_secret of the --dataflow file"
            )


def holds(data: bytes, secrets: Iterable[bytes]) -> bool:
    """Return whether a serialised pipeline holds one of the secrets, plain or packed."""
    values = [secret for secret in secrets if secret]
    return bool(values) and any(secret in content for content in unpacked(data) for secret in values)


def unpacked(data: bytes) -> Iterator[bytes]:
    """Yield the data and everything that Beam packed in it, at any depth.

    Beam compresses pickled functions and elements by bz2 or zlib, and encodes the result as base64.
    """
    waiting = [data]
    while waiting:
        layer = waiting.pop()
        yield layer
        waiting += filter(None, (_unpack(match[1]) for match in _PACKED.finditer(layer)))


def _unpack(text: bytes) -> bytes:
    """Return the unpacked content of a base64 text; b"" if the text is not packed data.

    The end of the text is ignored: letters after the packed data may belong to something else.
    """
    content = base64.b64decode(text[: len(text) // 4 * 4])
    decompressor = bz2.BZ2Decompressor() if content.startswith(b"BZh") else zlib.decompressobj()
    try:
        return decompressor.decompress(content)
    except (OSError, zlib.error):
        return b""
