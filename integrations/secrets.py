"""The secrets of an event source, read from files and environment variables.

A source has at most two secrets at a time: the present one and its successor, while one replaces the other. Files are
read again when they change, so a rotation needs no restart. No message contains a secret.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple

from ciml.errors import CimlError
from ciml.events.run_id import check_source_name
from ciml.limits import MAX_SECRET_BYTES, MAX_SECRETS
from ciml.settings import Settings, as_value_error

#: Bytes of a secret below which a warning is logged: it can be guessed.
_SHORT_BYTES = 16
#: The version of a file that does not exist.
_MISSING: tuple[int, ...] = ()
_log = logging.getLogger(__name__)

#: Turns a secret into a key. Raises `ValueError`, whose message describes a valid secret.
Key = Callable[[bytes], bytes]


class NamedSettings(Settings, frozen=True, kw_only=True):
    """Settings of a source or of a review system.

    Attributes:
      name: its name.
      secret_file, secret_env: files and environment variables with a secret each.
    """

    lists: ClassVar[tuple[str, ...]] = ("secret_file", "secret_env")
    name: str
    secret_file: tuple[str, ...] = ()
    secret_env: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        with as_value_error("name: "):
            check_source_name(self.name)


class _FileKey(NamedTuple):
    """The key in a file, and the `_version` of the file that was read."""

    version: tuple[int, ...]
    key: bytes


class Secrets:
    """The present secrets of a source.

    Args:
      where: of the configuration, for messages: file and source.
      settings: name the files and environment variables; the path of a file is relative to ``folder``.
      folder: of the configuration.
      key: turns a secret into a key.

    Raises:
      CimlError: a secret is missing, empty, too long or invalid, or there are too many.
    """

    def __init__(self, where: str, settings: NamedSettings, folder: Path, key: Key = bytes) -> None:
        count = len(settings.secret_file) + len(settings.secret_env)
        if count > MAX_SECRETS:
            raise CimlError(f"{where}: {count} secrets, at most {MAX_SECRETS} (MAX_SECRETS)")
        self._where = where
        self._key = key
        self._variable_keys = [self._read_variable(name) for name in settings.secret_env]
        self._files = {folder / name: self._read_file(folder / name) for name in settings.secret_file}
        for path in self._files:
            self._check_mode(path)

    def __bool__(self) -> bool:
        return bool(self._files or self._variable_keys)

    def __repr__(self) -> str:
        return f"<{len(self._files) + len(self._variable_keys)} secrets of {self._where}>"

    def keys(self) -> list[bytes]:
        """Return the keys. A file that has become unreadable keeps its last one."""
        for path, file in self._files.items():
            version = _version(path)
            if version in (file.version, _MISSING):
                continue
            try:
                self._files[path] = self._read_file(path)
                _log.warning("%s: secret_file %s was read again", self._where, path)
            except CimlError as error:
                self._files[path] = file._replace(version=version)  # not read again until it changes
                _log.warning("%s; its last secret stays in use", error)
        return [*(file.key for file in self._files.values()), *self._variable_keys]

    def _read_variable(self, name: str) -> bytes:
        if name not in os.environ:
            raise CimlError(f"{self._where}: secret_env: the environment variable {name} is not set")
        return self._key_of(f"secret_env {name}", os.environb[name.encode()])

    def _read_file(self, path: Path) -> _FileKey:
        version = _version(path)  # before reading: a later change is noticed
        try:
            with path.open("rb") as file:
                content = file.read(MAX_SECRET_BYTES + 1)
        except OSError as error:
            raise CimlError(f"{self._where}: secret_file {path}: {error.strerror}") from None
        return _FileKey(version, self._key_of(f"secret_file {path}", content))

    def _key_of(self, origin: str, content: bytes) -> bytes:
        secret = content.rstrip(b"\r\n")
        if not secret.strip():
            raise CimlError(f"{self._where}: {origin} is empty")
        if len(secret) > MAX_SECRET_BYTES:
            raise CimlError(f"{self._where}: {origin} has more than {MAX_SECRET_BYTES} bytes (MAX_SECRET_BYTES)")
        try:
            key = self._key(secret)
        except ValueError as error:
            raise CimlError(f"{self._where}: {origin}: {error}") from None
        if len(key) < _SHORT_BYTES:
            _log.warning("%s: %s has less than %d bytes; choose a longer secret", self._where, origin, _SHORT_BYTES)
        return key

    def _check_mode(self, path: Path) -> None:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            _log.warning("%s: others may read secret_file %s (mode %04o): chmod 600", self._where, path, mode)


def _version(path: Path) -> tuple[int, ...]:
    """Return numbers that differ after a file was changed or replaced."""
    try:
        status = path.stat()
    except OSError:
        return _MISSING
    return status.st_mtime_ns, status.st_size, status.st_ino
