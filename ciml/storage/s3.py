"""Objects in an S3 bucket, created by conditional PUTs.

One boto3 client per process serves all stores. It is made again when its settings in the environment change, or when
S3 rejects its credentials.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ciml.errors import CimlError, EngineError
from ciml.storage.base import PIECE, Entry, Store, checked

_MAX_ATTEMPTS = 5
_MAX_CONCURRENT_READS = 16
_RENEWAL_PAUSE_S = 5.0  # between two clients, while the credentials are invalid

#: Key of the metadata of a created object: the id of its call of `create`.
_WRITE_ID = "ciml-write"
#: Environment variables whose change requires a new client.
_CLIENT_SETTINGS = (
    "AWS_ENDPOINT_URL_S3 AWS_ENDPOINT_URL AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_PROFILE "
    "AWS_DEFAULT_REGION AWS_CONFIG_FILE AWS_SHARED_CREDENTIALS_FILE AWS_CA_BUNDLE"
).split()
#: Codes of S3's errors, by their meaning. Credentials that are invalid or expired may have been replaced in their file.
_NOT_FOUND = frozenset({"NoSuchKey", "404", "NotFound"})
_EXISTS = frozenset({"PreconditionFailed", "412"})
_CONFLICT = frozenset({"ConditionalRequestConflict", "OperationAborted", "409"})
_BEYOND_END = frozenset({"InvalidRange", "416"})
_BAD_CREDENTIALS = frozenset(
    {"AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "403"}
)


class _Exists(Exception):
    """The object exists already.

    Attributes:
      retried: whether boto3 sent the request more than once.
    """

    def __init__(self, key: str, retried: bool) -> None:
        super().__init__(key)
        self.retried = retried


class _Conflict(EngineError):
    """Another operation on the object is in progress."""


class _BeyondEnd(Exception):
    """The object ends before the range starts."""


@dataclass(frozen=True)
class Timeouts:
    """Limits of a request: time to connect and to wait for the next bytes, seconds; number of attempts."""

    connect_s: float = 5.0
    read_s: float = 30.0
    attempts: int = 7


_PATIENT = Timeouts()
_timeouts = ContextVar("timeouts", default=_PATIENT)


@contextmanager
def impatient() -> Iterator[None]:
    """Give the stores that are opened in the context short timeouts: a store that hangs is reported within 10 s."""
    token = _timeouts.set(Timeouts(connect_s=2.0, read_s=4.0, attempts=2))
    try:
        yield
    finally:
        _timeouts.reset(token)


@lru_cache(maxsize=8)
def _make_client(pid: int, timeouts: Timeouts, *settings: str | None) -> Any:
    """Return the client of a process for all stores: creating it takes 0.1 s, and it is thread-safe."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": timeouts.attempts},
        connect_timeout=timeouts.connect_s,
        read_timeout=timeouts.read_s,
        max_pool_connections=2 * _MAX_CONCURRENT_READS,
    )
    return boto3.session.Session().client("s3", config=config)


_renewed_s = -_RENEWAL_PAUSE_S


def _renew_credentials() -> None:
    """Let the next request make a client, which reads the credentials again: a client never does that by itself."""
    global _renewed_s
    if time.monotonic() - _renewed_s >= _RENEWAL_PAUSE_S:
        _renewed_s = time.monotonic()
        _make_client.cache_clear()


class S3Store(Store):
    """A bucket and prefix. ``create`` is a conditional PUT (``If-None-Match: *``): the atomic commit there."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        bucket, _, prefix = root.removeprefix("s3://").rstrip("/").partition("/")
        if not bucket:
            raise CimlError(f"{root!r} has no bucket; give s3://bucket or s3://bucket/prefix")
        self._bucket = bucket
        self._prefix = prefix
        self._timeouts = _timeouts.get()

    @property
    def _client(self) -> Any:
        return _make_client(os.getpid(), self._timeouts, *(os.environ.get(name) for name in _CLIENT_SETTINGS))

    def settings(self) -> dict[str, str]:
        """Return endpoint, region and credentials for another client of this store. They are secrets: never print them.

        Returns:
          ``aws_endpoint``, ``aws_region``, ``aws_access_key_id``, ``aws_secret_access_key`` and ``aws_session_token``,
          without those that are not set.
        """
        import boto3

        about = self._client.meta
        credentials = boto3.session.Session().get_credentials()
        keys = credentials.get_frozen_credentials() if credentials is not None else None
        settings = {
            "aws_endpoint": about.endpoint_url,
            "aws_region": about.region_name,
            "aws_access_key_id": keys.access_key if keys else None,
            "aws_secret_access_key": keys.secret_key if keys else None,
            "aws_session_token": keys.token if keys else None,
        }
        return {name: value for name, value in settings.items() if value}

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{checked(path)}" if self._prefix else checked(path)

    def _call(self, verb: str, **arguments: Any) -> Any:
        """Call a method of the client for this bucket.

        Raises:
          FileNotFoundError: the object does not exist.
          _Exists, _Conflict, _BeyondEnd: see there.
          EngineError: any other failure.
        """
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            CredentialRetrievalError,
            NoCredentialsError,
            PartialCredentialsError,
        )

        try:
            return getattr(self._client, verb)(Bucket=self._bucket, **arguments)
        except ClientError as error:
            raise self._error_of_answer(verb, arguments.get("Key", ""), error.response) from error
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
            _renew_credentials()
            file = os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
            raise EngineError(
                f"{self.root}: no S3 credentials ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                f"write them to {file}"
            ) from error
        except BotoCoreError as error:
            raise EngineError(f"{self.root}: {verb} failed: {error}") from error

    def _error_of_answer(self, verb: str, key: str, answer: Mapping[str, Any]) -> Exception:
        code = str(answer.get("Error", {}).get("Code", ""))
        if code in _NOT_FOUND:
            return FileNotFoundError(f"{self.root}: no object {key}")
        if code in _EXISTS:
            return _Exists(key, retried=answer.get("ResponseMetadata", {}).get("RetryAttempts", 0) > 0)
        if code in _CONFLICT:
            return _Conflict(f"{self.root}: {verb} of {key} conflicts with another operation; try again")
        if code in _BEYOND_END:
            return _BeyondEnd(key)
        if code in _BAD_CREDENTIALS:
            _renew_credentials()
        return EngineError(f"{self.root}: {verb} answered {code}")

    def create(self, path: str, data: bytes) -> bool:
        key = self._key(path)
        write_id = secrets.token_hex(16)
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                self._call("put_object", Key=key, Body=data, IfNoneMatch="*", Metadata={_WRITE_ID: write_id})
                return True
            except _Exists as error:
                # A retried PUT whose first answer was lost finds its own object.
                return (attempt > 1 or error.retried) and self._was_created_by(key, write_id)
            except _Conflict:  # another PUT of this key is in progress
                time.sleep(0.1 * attempt)
        raise EngineError(f"{self.root}: put_object of {path} keeps conflicting with another writer; try again")

    def _was_created_by(self, key: str, write_id: str) -> bool:
        """Return whether the object was created by the call of `create` with this id."""
        try:
            return bool(self._call("head_object", Key=key)["Metadata"].get(_WRITE_ID) == write_id)
        except FileNotFoundError:
            return False  # removed meanwhile, so its content is irrelevant

    def replace(self, path: str, data: bytes) -> None:
        self._call("put_object", Key=self._key(path), Body=data)

    def read_while(self, paths: Sequence[str]) -> list[bytes]:
        if len(paths) < 2:
            return super().read_while(paths)
        objects: list[bytes] = []
        with ThreadPoolExecutor(min(len(paths), _MAX_CONCURRENT_READS)) as pool, suppress(FileNotFoundError):
            for data in pool.map(self.read, paths):
                objects.append(data)
        return objects

    def read_range(self, path: str, start: int, size: int) -> bytes:
        try:
            return self._get(path, Range=f"bytes={start}-{start + size - 1}")
        except _BeyondEnd:  # a truncated object is damaged; the store works
            return b""

    def read(self, path: str) -> bytes:
        return self._get(path)

    def _get(self, path: str, **arguments: Any) -> bytes:
        """Return the object, or a range of it. Read it again if the connection breaks within the body."""
        from botocore.exceptions import BotoCoreError

        failure: Exception | None = None
        for attempt in range(min(_MAX_ATTEMPTS, self._timeouts.attempts)):
            time.sleep(0.1 * attempt)
            body = self._call("get_object", Key=self._key(path), **arguments)["Body"]
            try:
                return bytes(body.read())
            except (BotoCoreError, OSError) as error:  # boto3 retries requests, but not their bodies
                failure = error
            finally:
                body.close()
        raise EngineError(f"{self.root}: reading {path} failed: {failure}") from failure

    def pieces(self, path: str) -> Iterator[bytes]:
        from botocore.exceptions import BotoCoreError

        body = self._call("get_object", Key=self._key(path))["Body"]
        try:
            while piece := body.read(PIECE):
                yield piece
        except (BotoCoreError, OSError) as error:  # not read again: some chunks were returned already
            raise EngineError(f"{self.root}: reading {path} failed: {error}") from error
        finally:
            body.close()

    def exists(self, path: str) -> bool:
        try:
            self._call("head_object", Key=self._key(path))
        except FileNotFoundError:
            return False
        return True

    def _pages(self, prefix: str, after: str = "") -> Iterator[dict[str, Any]]:
        """Yield the listing's items, in the order of their keys."""
        folder = (self._key(prefix) if prefix else self._prefix).rstrip("/")
        arguments: dict[str, Any] = {"Prefix": f"{folder}/" if folder else ""}
        if after:
            arguments["StartAfter"] = self._key(after)
        while True:
            page = self._call("list_objects_v2", **arguments)
            yield from page.get("Contents", ())
            if not page.get("IsTruncated"):
                break
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def _path(self, key: str) -> str:
        """Return the path of an object by its key."""
        return key[len(self._prefix) + 1 :] if self._prefix else key

    def list(self, prefix: str = "", after: str = "") -> list[str]:
        return sorted(self._path(item["Key"]) for item in self._pages(prefix, after))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for item in self._pages(prefix):
            yield Entry(self._path(item["Key"]), int(item["Size"]), item["LastModified"].timestamp())

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._call("delete_object", Key=self._key(path))

    def child(self, path: str) -> S3Store:
        child = S3Store(f"{self.root}/{checked(path)}")
        child._timeouts = self._timeouts
        return child
