"""The seal of an unsent recording: made with the credentials with which it is sent.

A process that can make the seal holds those credentials, and could have sent the same without the spool. So a sealed
recording is sent as it is; any other gets no rights of the process that finds it (`ciml.recorder.spool.leftovers`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterator, Mapping

from ciml.errors import CimlError
from ciml.kafka.options import KafkaOptions
from ciml.limits import MAX_RECORDING_FILE_BYTES, MAX_RECORDING_LOG_BYTES
from ciml.recorder.spool.recording import END, LOG, RUN, SEAL, STARTS, Recording

_SEALED = (RUN, STARTS, END, LOG)
_SECRETS_OF_S3 = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)
_FILES_OF_S3 = (
    "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
)  # fmt: skip
_PIECE = 1 << 20


def secrets_of(kafka: KafkaOptions | None, log_dir: str, environment: Mapping[str, str] = os.environ) -> bytes:
    """Return the credentials of the destinations: b"" where these are open to everyone.

    Args:
      kafka: the broker of the recording; None for none.
      log_dir: the folder of its log.
      environment: holds the credentials of S3.
    """
    found = kafka.credentials() if kafka else {}
    if log_dir.startswith("s3://"):
        found |= {name: environment[name].encode() for name in _SECRETS_OF_S3 if environment.get(name)}
        for name in _FILES_OF_S3:
            if environment.get(name):
                found[name] = _content(environment[name])
    lines = [f"{name} {hashlib.sha256(value).hexdigest()}\n" for name, value in sorted(found.items()) if value]
    return "".join(lines).encode()


def seal(recording: Recording, secrets: bytes) -> None:
    """Seal a recording in its present state; not without secrets, as anyone could make that seal. Raises `OSError`."""
    if not secrets:
        return
    salt = os.urandom(16)
    content = {"salt": salt.hex(), "mac": _mac(recording, secrets, salt)}
    recording.folder.write(SEAL, json.dumps(content).encode())


def is_sealed(recording: Recording, secrets: bytes) -> bool:
    """Return whether a process with the same secrets sealed it, and it is unchanged since."""
    if not secrets:
        return False
    try:
        content = json.loads(recording.folder.read(SEAL, MAX_RECORDING_FILE_BYTES))
        salt, mac = bytes.fromhex(content["salt"]), content["mac"]
        return hmac.compare_digest(mac.encode(), _mac(recording, secrets, salt).encode())
    except (CimlError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def _mac(recording: Recording, secrets: bytes, salt: bytes) -> str:
    # scrypt: the next job can read the file, and a password may be short.
    key = hashlib.scrypt(secrets, salt=salt, n=1 << 14, r=8, p=1, dklen=32)
    mac = hmac.new(key, digestmod="sha256")
    for name in _SEALED:
        mac.update(f"{name} {_digest(recording, name)}\n".encode())
    return mac.hexdigest()


def _digest(recording: Recording, name: str) -> str:
    digest = hashlib.sha256()
    try:
        for piece in _pieces(recording, name):
            digest.update(piece)
    except FileNotFoundError:
        return "-"
    return digest.hexdigest()


def _pieces(recording: Recording, name: str) -> Iterator[bytes]:
    left = MAX_RECORDING_LOG_BYTES
    with os.fdopen(recording.folder.open(name), "rb") as file:
        while piece := file.read(_PIECE):
            left -= len(piece)
            if left < 0:
                raise CimlError(f"{recording.folder.path / name} is larger than {MAX_RECORDING_LOG_BYTES} bytes")
            yield piece


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_RECORDING_FILE_BYTES)
    except OSError:
        return b""
