"""Objects in a folder or an S3 bucket behind one small interface, whose ``create`` is the atomic commit."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from ciml.errors import CimlError, EngineError


class Store(ABC):
    """A root under which objects have relative POSIX paths.

    Every method raises `ciml.errors.EngineError` when the storage itself does not answer, and `CimlError` for a path
    that leaves the root. Stores can be pickled: clients are made lazily, one a process.
    """

    root: str

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Writes a new object, whole or not at all. Returns False, and writes nothing, where one exists already."""

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Writes an object whole, over an older one. Only for what is no record: reports, caches, pointers."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The object's bytes. Raises `FileNotFoundError` where there is none."""

    def read_head(self, path: str, size: int) -> bytes:
        """At most the first ``size`` bytes of the object, however large. Raises as `read` does."""
        return self.read(path)[:size]

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is such an object (a folder is none)."""

    @abstractmethod
    def list(self, prefix: str = "", after: str = "") -> list[str]:
        """The paths of all objects below the folder ``prefix``, sorted; only those greater than ``after``."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes an object; none there is no error."""

    @abstractmethod
    def child(self, path: str) -> Store:
        """The store whose root is the folder ``path`` of this one."""

    def url(self, path: str = "") -> str:
        """The full address of an object, as pyarrow, Beam and TensorFlow take it."""
        return f"{self.root}/{_checked(path)}" if path else self.root

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.root!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)


def open_store(url: str | os.PathLike[str]) -> Store:
    """The store at a local folder or an ``s3://bucket/prefix``.

    S3 takes its endpoint and credentials from the environment, as boto3 does (``AWS_ENDPOINT_URL_S3``, …).

    Raises:
      CimlError: for any other scheme.
    """
    text = os.fspath(url)
    if text.startswith("s3://"):
        return S3Store(text)
    if "://" in text:
        raise CimlError(f"{text}: only local paths and s3:// are stores")
    return LocalStore(text)


def _checked(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\x00" in path:
        raise CimlError(f"{path!r} is no path below a store's root")
    return "/".join(parts)


class LocalStore(Store):
    """A folder. ``create`` is a temporary file and a hard link, so it survives kills and races; files are synced."""

    _STAGING = ".staging-"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(os.fspath(root))

    def _path(self, path: str) -> Path:
        return Path(self.root, _checked(path))

    def _stage(self, target: Path, data: bytes) -> str:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, staged = tempfile.mkstemp(prefix=self._STAGING, dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            os.chmod(staged, 0o644)
        except BaseException:
            os.unlink(staged)
            raise
        return staged

    def create(self, path: str, data: bytes) -> bool:
        target = self._path(path)
        if target.exists():
            return False
        try:
            staged = self._stage(target, data)
        except OSError as error:
            raise EngineError(f"cannot write {target}: {error.strerror or error}") from error
        try:
            os.link(staged, target)
        except FileExistsError:
            return False
        except OSError as error:
            raise EngineError(f"cannot write {target}: {error.strerror or error}") from error
        finally:
            os.unlink(staged)
        _sync_folder(target.parent)
        return True

    def replace(self, path: str, data: bytes) -> None:
        target = self._path(path)
        try:
            os.replace(self._stage(target, data), target)
        except OSError as error:
            raise EngineError(f"cannot write {target}: {error.strerror or error}") from error
        _sync_folder(target.parent)

    def read(self, path: str) -> bytes:
        try:
            return self._path(path).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise EngineError(f"cannot read {self._path(path)}: {error.strerror or error}") from error

    def exists(self, path: str) -> bool:
        return self._path(path).is_file()

    def list(self, prefix: str = "", after: str = "") -> list[str]:
        top = self._path(prefix) if prefix else Path(self.root)
        found = [
            os.path.relpath(os.path.join(folder, name), self.root)
            for folder, _, names in os.walk(top)
            for name in names
            if not name.startswith(self._STAGING)
        ]
        return sorted(path for path in found if path > after)

    def delete(self, path: str) -> None:
        self._path(path).unlink(missing_ok=True)

    def child(self, path: str) -> LocalStore:
        return LocalStore(self._path(path))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


#: What in the environment makes another client.
_S3_SETTINGS = (
    "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_PROFILE",
    "AWS_DEFAULT_REGION",
)  # fmt: skip


@lru_cache(maxsize=8)
def _s3_client(pid: int, *settings: str | None) -> Any:
    """One client a process for all stores: making one takes a tenth of a second, and clients are thread-safe."""
    import boto3
    from botocore.config import Config

    retries = Config(retries={"mode": "standard", "max_attempts": 6}, connect_timeout=5, read_timeout=30)
    return boto3.session.Session().client("s3", config=retries)


class S3Store(Store):
    """A bucket and prefix. ``create`` is a conditional PUT (``If-None-Match: *``): the atomic commit there."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        bucket, _, prefix = root.removeprefix("s3://").rstrip("/").partition("/")
        if not bucket:
            raise CimlError(f"{root!r} names no bucket: want s3://bucket or s3://bucket/prefix")
        self._bucket, self._prefix = bucket, prefix

    @property
    def _client(self) -> Any:
        return _s3_client(os.getpid(), *(os.environ.get(name) for name in _S3_SETTINGS))

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{_checked(path)}" if self._prefix else _checked(path)

    def _call(self, verb: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, verb)(Bucket=self._bucket, **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ("NoSuchKey", "404", "NotFound"):
                raise FileNotFoundError(f"{self.root}: no object {arguments.get('Key', '')}") from None
            if code in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                raise FileExistsError(arguments.get("Key", "")) from None
            raise EngineError(f"{self.root}: {verb} answered {code}") from error
        except BotoCoreError as error:
            raise EngineError(f"{self.root}: {verb} failed: {error}") from error

    def create(self, path: str, data: bytes) -> bool:
        key = self._key(path)
        try:
            self._call("put_object", Key=key, Body=data, IfNoneMatch="*")
        except FileExistsError:
            # A retried PUT whose first answer was lost finds its own object: that one was created by this call,
            # or by another with the same bytes, which for content-named objects is the same thing.
            return False
        return True

    def replace(self, path: str, data: bytes) -> None:
        self._call("put_object", Key=self._key(path), Body=data)

    def read(self, path: str) -> bytes:
        return self.read_head(path)

    def read_head(self, path: str, size: int | None = None) -> bytes:
        from botocore.exceptions import BotoCoreError

        body = self._call("get_object", Key=self._key(path))["Body"]
        try:
            return bytes(body.read(size))
        except (BotoCoreError, OSError) as error:  # the connection broke within the body
            raise EngineError(f"{self.root}: reading {path} failed: {error}") from error
        finally:
            body.close()

    def exists(self, path: str) -> bool:
        try:
            self._call("head_object", Key=self._key(path))
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "", after: str = "") -> list[str]:
        folder = (self._key(prefix) if prefix else self._prefix).rstrip("/")
        arguments: dict[str, Any] = {"Prefix": f"{folder}/" if folder else ""}
        if after:
            arguments["StartAfter"] = self._key(after)
        found: list[str] = []
        start = len(self._prefix) + 1 if self._prefix else 0
        while True:
            page = self._call("list_objects_v2", **arguments)
            found.extend(item["Key"][start:] for item in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return sorted(found)
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, path: str) -> None:
        self._call("delete_object", Key=self._key(path))

    def child(self, path: str) -> S3Store:
        return S3Store(f"{self.root}/{_checked(path)}")
