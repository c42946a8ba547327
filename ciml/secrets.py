"""Secrets that processes read by name where they need them, so that nothing else holds their content.

`Secrets` reads those of a source from files and environment variables: at most two at a time, while one replaces the
other. `read_secret` reads one from Google's Secret Manager. Everyone who may view a project and its bucket can read a
job description of Dataflow. So it holds names, and workers read the content with their service account.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ciml.errors import CimlError, EngineError
from ciml.extras import needs
from ciml.limits import MAX_SECRET_BYTES, MAX_SECRETS

_NAME = re.compile(r"projects/[a-z0-9][a-z0-9.:-]{0,99}/secrets/[A-Za-z0-9_-]{1,255}(/versions/(latest|[0-9]{1,9}))?")
_TIMEOUT_S = 30.0
_SHORT = 16  # bytes: less can be guessed
_log = logging.getLogger(__name__)
Key = Callable[[bytes], bytes]


def check_secret_name(name: str) -> None:
    """Raise `ValueError` unless it is ``projects/PROJECT/secrets/SECRET``, optionally with ``/versions/VERSION``."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r:.120} is not the name of a secret; give projects/PROJECT/secrets/SECRET, optionally with "
            "/versions/VERSION"
        )


def read_secret(name: str) -> str:
    """Return the content of a secret's version, the latest by default, as text.

    Args:
      name: see `check_secret_name`.

    Raises:
      CimlError: it does not exist, this process may not read it, it is not UTF-8, or ciml[dataflow] is not installed.
      EngineError: Secret Manager does not answer. The message never holds the content.
    """
    try:
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
    except ImportError:
        raise needs("dataflow") from None
    version = name if "/versions/" in name else f"{name}/versions/latest"
    try:
        answer = _client().access_secret_version(request={"name": version}, timeout=_TIMEOUT_S)
        return bytes(answer.payload.data).decode()
    except (exceptions.NotFound, exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise CimlError(
            f"secret {version} cannot be read ({type(error).__name__}): create it, and give the role "
            "roles/secretmanager.secretAccessor to the account of this process"
        ) from None
    except (exceptions.GoogleAPICallError, GoogleAuthError) as error:
        raise EngineError(f"secret {version}: Secret Manager does not answer: {error!s:.200}") from None
    except UnicodeDecodeError:
        raise CimlError(f"secret {version}: not UTF-8; store text, a line NAME=VALUE each") from None


def _client() -> Any:
    from google.cloud import secretmanager

    return secretmanager.SecretManagerServiceClient()


class Secrets:
    """The present secrets of a source. Files are read again when they change, so a rotation needs no restart.

    Args:
      where: of the configuration, for messages: file and source. No message has a secret.
      files: paths; a relative one is below ``folder``.
      variables: names of environment variables.
      key: turns a secret into a key; raises `ValueError` with what is wanted.
      folder: of the configuration.

    Raises:
      CimlError: a secret is missing, empty, too long or invalid, or there are too many.
    """

    def __init__(
        self, where: str, files: Sequence[str], variables: Sequence[str], key: Key = bytes, folder: Path = Path()
    ) -> None:
        if len(files) + len(variables) > MAX_SECRETS:
            raise CimlError(f"{where}: {len(files) + len(variables)} secrets, at most {MAX_SECRETS} (MAX_SECRETS)")
        self._where = where
        self._key = key
        self._variables = tuple(self._checked(f"secret_env {name}", _variable(where, name)) for name in variables)
        self._files = {folder / name: self._read(folder / name) for name in files}
        for path in self._files:
            self._check_mode(path)

    def __bool__(self) -> bool:
        return bool(self._files or self._variables)

    def __repr__(self) -> str:
        return f"<{len(self._files) + len(self._variables)} secrets of {self._where}>"

    def keys(self) -> list[bytes]:
        """Return the keys. A file that has become unreadable keeps its last one."""
        for path, (version, _) in self._files.items():
            if _version(path) not in (version, None):
                try:
                    self._files[path] = self._read(path)
                    _log.warning("%s: secret_file %s was read again", self._where, path)
                except CimlError as error:
                    self._files[path] = (_version(path), self._files[path][1])
                    _log.warning("%s; its last secret stays in use", error)
        return [*(key for _, key in self._files.values()), *self._variables]

    def _read(self, path: Path) -> tuple[object, bytes]:
        version = _version(path)
        try:
            with path.open("rb") as file:
                content = file.read(MAX_SECRET_BYTES + 1)
        except OSError as error:
            raise CimlError(f"{self._where}: secret_file {path}: {error.strerror}") from None
        return version, self._checked(f"secret_file {path}", content.rstrip(b"\r\n"))

    def _checked(self, source: str, secret: bytes) -> bytes:
        if not secret.strip():
            raise CimlError(f"{self._where}: {source} is empty")
        if len(secret) > MAX_SECRET_BYTES:
            raise CimlError(f"{self._where}: {source} has more than {MAX_SECRET_BYTES} bytes (MAX_SECRET_BYTES)")
        try:
            key = self._key(secret)
        except ValueError as error:
            raise CimlError(f"{self._where}: {source}: {error}") from None
        if len(key) < _SHORT:
            _log.warning("%s: %s has less than %d bytes; choose a longer secret", self._where, source, _SHORT)
        return key

    def _check_mode(self, path: Path) -> None:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            _log.warning("%s: others may read secret_file %s (mode %04o): chmod 600", self._where, path, mode)


def _variable(where: str, name: str) -> bytes:
    if name not in os.environ:
        raise CimlError(f"{where}: secret_env: the environment variable {name} is not set")
    return os.environb[name.encode()].rstrip(b"\r\n")


def _version(path: Path) -> object:
    """Return what differs where a file was changed or replaced; None where it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
