"""Objects in a folder or an S3 bucket behind one small interface, whose ``create`` is the atomic commit."""

from __future__ import annotations

import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ciml.errors import CimlError, EngineError

_PIECE = 1 << 20


class Entry(NamedTuple):
    """An object of a listing: its path, its size in bytes, and when it was written, epoch seconds by the storage."""

    path: str
    size: int
    modified_s: float


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

    def read_range(self, path: str, start: int, size: int) -> bytes:
        """At most ``size`` bytes (at least one) from ``start`` on, which lies within the object. Raises as `read`."""
        return self.read(path)[start : start + size]

    def pieces(self, path: str) -> Iterator[bytes]:
        """The object's bytes in their order, piece by piece: for what may be larger than memory. Raises as `read`."""
        yield self.read(path)

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is such an object (a folder is none)."""

    @abstractmethod
    def list(self, prefix: str = "", after: str = "") -> list[str]:
        """The paths of all objects below the folder ``prefix``, sorted; only those greater than ``after``."""

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """All objects below the folder ``prefix``, one by one, in no promised order. What vanishes meanwhile is left
        out, what appears meanwhile may be."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes an object; none there is no error."""

    def sweep(self, prefix: str, before_s: float) -> int:
        """Removes below ``prefix`` what killed writers left half-written before ``before_s`` (epoch seconds), and
        folders that have been empty since then. Never an object. Returns how many files were removed."""
        return 0

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
        _make_folder(target.parent)
        handle, staged = tempfile.mkstemp(prefix=self._STAGING, dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            os.chmod(staged, 0o644)
        except BaseException:
            with suppress(OSError):
                os.unlink(staged)
            raise
        return staged

    def _put(self, target: Path, data: bytes, *, exclusive: bool) -> bool:
        staged = self._stage(target, data)
        try:
            (os.link if exclusive else os.replace)(staged, target)
            written = True
        except FileExistsError:
            written = False
        finally:
            with suppress(OSError):  # a file that stays is swept; what was written is written
                os.unlink(staged)
        _sync_folder(target.parent)  # also for another's object: it may be named by what is written next
        return written

    def _write(self, path: str, data: bytes, *, exclusive: bool) -> bool:
        target = self._path(path)
        for attempt in range(1, _FOLDER_ATTEMPTS + 1):
            try:
                if exclusive and target.exists():
                    _sync_folder(target.parent)
                    return False
                return self._put(target, data, exclusive=exclusive)
            except FileNotFoundError as error:  # its folder was empty, and was swept within these lines
                if attempt == _FOLDER_ATTEMPTS:
                    raise _failed("write", target, error) from error
            except OSError as error:
                raise _failed("write", target, error) from error
        raise AssertionError("unreachable")

    def create(self, path: str, data: bytes) -> bool:
        return self._write(path, data, exclusive=True)

    def replace(self, path: str, data: bytes) -> None:
        self._write(path, data, exclusive=False)

    def read(self, path: str) -> bytes:
        try:
            return self._path(path).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _failed("read", self._path(path), error) from error

    def read_range(self, path: str, start: int, size: int) -> bytes:
        try:
            with open(self._path(path), "rb") as source:
                source.seek(start)
                return source.read(size)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _failed("read", self._path(path), error) from error

    def pieces(self, path: str) -> Iterator[bytes]:
        try:
            with self._path(path).open("rb") as file:
                while piece := file.read(_PIECE):
                    yield piece
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _failed("read", self._path(path), error) from error

    def exists(self, path: str) -> bool:
        return self._path(path).is_file()

    def _walk(self, prefix: str) -> Iterator[tuple[str, list[str]]]:
        """(folder, names of files) below ``prefix``, the staged ones too."""

        def broken(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # a listing that leaves something out is no listing
                raise _failed("list", error.filename or top, error) from error

        top = self._path(prefix) if prefix else Path(self.root)
        for folder, folders, names in os.walk(top, onerror=broken):
            folders.sort()
            yield folder, sorted(names)

    def list(self, prefix: str = "", after: str = "") -> list[str]:
        found = [
            os.path.relpath(os.path.join(folder, name), self.root)
            for folder, names in self._walk(prefix)
            for name in names
            if not name.startswith(self._STAGING)
        ]
        return sorted(path for path in found if path > after)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for folder, names in self._walk(prefix):
            for name in names:
                if name.startswith(self._STAGING):
                    continue
                path = os.path.join(folder, name)
                try:
                    found = os.stat(path)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise _failed("list", path, error) from error
                yield Entry(os.path.relpath(path, self.root), found.st_size, found.st_mtime)

    def delete(self, path: str) -> None:
        try:
            self._path(path).unlink(missing_ok=True)
        except OSError as error:
            raise _failed("delete", self._path(path), error) from error

    def sweep(self, prefix: str, before_s: float) -> int:
        removed = 0
        top = self._path(prefix)
        for folder, names in self._walk(prefix):
            for name in names:
                if name.startswith(self._STAGING):
                    removed += _remove_old(os.path.join(folder, name), before_s)
            with suppress(OSError):  # rmdir takes none that has anything in it
                if not names and Path(folder) != top and os.stat(folder).st_mtime < before_s:
                    os.rmdir(folder)
        return removed

    def child(self, path: str) -> LocalStore:
        return LocalStore(self._path(path))


_FOLDER_ATTEMPTS = 5


def _failed(verb: str, path: str | os.PathLike[str], error: OSError) -> EngineError:
    return EngineError(f"cannot {verb} {os.fspath(path)}: {error.strerror or error}")


def _remove_old(path: str, before_s: float) -> bool:
    try:
        if os.stat(path).st_mtime >= before_s:
            return False
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _failed("delete", path, error) from error
    return True


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, each of them on the disk before the next."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_S3_ATTEMPTS = 5


class _Conflict(Exception):
    """S3 cannot say yet whether there is such an object."""


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
            if code in ("PreconditionFailed", "412"):
                raise FileExistsError(arguments.get("Key", "")) from None
            if code in ("ConditionalRequestConflict", "OperationAborted", "409"):
                raise _Conflict(arguments.get("Key", "")) from None
            raise EngineError(f"{self.root}: {verb} answered {code}") from error
        except BotoCoreError as error:
            raise EngineError(f"{self.root}: {verb} failed: {error}") from error

    def create(self, path: str, data: bytes) -> bool:
        key = self._key(path)
        for attempt in range(1, _S3_ATTEMPTS + 1):
            try:
                self._call("put_object", Key=key, Body=data, IfNoneMatch="*")
                return True
            except FileExistsError:
                # A retried PUT whose first answer was lost finds its own object: that one was created by this call,
                # or by another with the same bytes, which for content-named objects is the same thing.
                return False
            except _Conflict:  # another PUT of this key is under way, and nobody knows yet whether it will be
                time.sleep(0.1 * attempt)
        raise EngineError(f"{self.root}: put_object of {path} conflicts with another all the time")

    def replace(self, path: str, data: bytes) -> None:
        self._call("put_object", Key=self._key(path), Body=data)

    def read(self, path: str) -> bytes:
        return self.read_head(path)

    def read_head(self, path: str, size: int | None = None) -> bytes:
        return self._get(path, size)

    def read_range(self, path: str, start: int, size: int) -> bytes:
        return self._get(path, None, Range=f"bytes={start}-{start + size - 1}")

    def _get(self, path: str, size: int | None, **arguments: Any) -> bytes:
        from botocore.exceptions import BotoCoreError

        for attempt in range(1, _S3_ATTEMPTS + 1):
            body = self._call("get_object", Key=self._key(path), **arguments)["Body"]
            try:
                return bytes(body.read(size))
            except (BotoCoreError, OSError) as error:  # the connection broke within the body, after boto's own retries
                if attempt == _S3_ATTEMPTS:
                    raise EngineError(f"{self.root}: reading {path} failed: {error}") from error
                time.sleep(0.1 * attempt)
            finally:
                body.close()
        raise AssertionError("unreachable")

    def pieces(self, path: str) -> Iterator[bytes]:
        from botocore.exceptions import BotoCoreError

        body = self._call("get_object", Key=self._key(path))["Body"]
        try:
            while piece := body.read(_PIECE):
                yield piece
        except (BotoCoreError, OSError) as error:  # what was given out already cannot be taken back
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
        """The listing's items, in the order of their keys."""
        folder = (self._key(prefix) if prefix else self._prefix).rstrip("/")
        arguments: dict[str, Any] = {"Prefix": f"{folder}/" if folder else ""}
        if after:
            arguments["StartAfter"] = self._key(after)
        while True:
            page = self._call("list_objects_v2", **arguments)
            yield from page.get("Contents", ())
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    @property
    def _start(self) -> int:
        return len(self._prefix) + 1 if self._prefix else 0

    def list(self, prefix: str = "", after: str = "") -> list[str]:
        return sorted(item["Key"][self._start :] for item in self._pages(prefix, after))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for item in self._pages(prefix):
            yield Entry(item["Key"][self._start :], int(item["Size"]), item["LastModified"].timestamp())

    def delete(self, path: str) -> None:
        self._call("delete_object", Key=self._key(path))

    def child(self, path: str) -> S3Store:
        return S3Store(f"{self.root}/{_checked(path)}")
