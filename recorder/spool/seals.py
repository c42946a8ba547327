"""Seals of unsent recordings, by which a later process recognises a recording that may use its credentials.

A leftover recording is untrusted input: an earlier job of this user may have created or changed it. So an unsent
recording is sealed with the credentials of its destinations. A process that can make the seal has them, and could have
sent the same without the spool. A sealed recording is therefore sent as it is; any other gets no rights of the process
that finds it (`ciml.recorder.spool.flush`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ciml.errors import CimlError
from ciml.kafka import KafkaOptions
from ciml.limits import MAX_RECORDING_FILE_BYTES, MAX_RECORDING_LOG_BYTES
from ciml.recorder.spool.recording import END, LOG, RUN, SEAL, STARTS, Recording

_SEALED_FILES = (RUN, STARTS, END, LOG)
#: Environment variables of boto3 that contain a credential of S3, or name a file with one.
_S3_SECRETS = "AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_CONTAINER_AUTHORIZATION_TOKEN".split()
_S3_SECRET_FILES = (
    "AWS_SHARED_CREDENTIALS_FILE AWS_WEB_IDENTITY_TOKEN_FILE AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE".split()
)
_PIECE = 1 << 20


@dataclass(frozen=True)
class _Seal:
    """The content of ``seal.json``, in hexadecimal digits."""

    salt: str
    mac: str


def secrets_of(kafka: KafkaOptions | None, log_dir: str, environment: Mapping[str, str] = os.environ) -> bytes:
    """Return the credentials of the destinations: b"" where these are open to everyone.

    Args:
      kafka: the broker of the recording; None for none.
      log_dir: the folder of its log.
      environment: contains the credentials of S3.
    """
    secrets = kafka.credentials() if kafka else {}
    if log_dir.startswith("s3://"):
        secrets |= {name: environment[name].encode() for name in _S3_SECRETS if name in environment}
        secrets |= {name: _content(environment[name]) for name in _S3_SECRET_FILES if environment.get(name)}
    lines = [f"{name} {hashlib.sha256(value).hexdigest()}\n" for name, value in sorted(secrets.items()) if value]
    return "".join(lines).encode()


def seal_recording(recording: Recording, secrets: bytes) -> None:
    """Seal a recording in its present state; not without secrets, as anyone could make that seal. Raises `OSError`."""
    if not secrets:
        return
    salt = os.urandom(16)
    seal = _Seal(salt.hex(), _mac(recording, secrets, salt))
    recording.folder.write(SEAL, json.dumps(asdict(seal)).encode())


def is_sealed(recording: Recording, secrets: bytes) -> bool:
    """Return whether a process with the same secrets sealed it, and it is unchanged since."""
    if not secrets:
        return False
    try:
        seal = _Seal(**json.loads(recording.folder.read(SEAL, MAX_RECORDING_FILE_BYTES)))
        mac = _mac(recording, secrets, bytes.fromhex(seal.salt))
        return hmac.compare_digest(seal.mac.encode(), mac.encode())
    # The file may have any content.
    except (CimlError, OSError, ValueError, TypeError, AttributeError, RecursionError):
        return False


def _mac(recording: Recording, secrets: bytes, salt: bytes) -> str:
    # scrypt: the next job can read the file, and a password may be short.
    key = hashlib.scrypt(secrets, salt=salt, n=1 << 14, r=8, p=1, dklen=32)
    mac = hmac.new(key, digestmod="sha256")
    for name in _SEALED_FILES:
        mac.update(f"{name} {_digest(recording, name)}\n".encode())
    return mac.hexdigest()


def _digest(recording: Recording, name: str) -> str:
    """Return the hex sha256 of a file; "-" if it does not exist."""
    digest = hashlib.sha256()
    try:
        with os.fdopen(recording.folder.open(name), "rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                if file.tell() > MAX_RECORDING_LOG_BYTES:
                    raise CimlError(f"{recording.folder.path / name} is larger than {MAX_RECORDING_LOG_BYTES} bytes")
    except FileNotFoundError:
        return "-"
    return digest.hexdigest()


def _content(path: str) -> bytes:
    """Return the content of a file, up to the limit; b"" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_RECORDING_FILE_BYTES)
    except OSError:
        return b""
