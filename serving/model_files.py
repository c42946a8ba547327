"""Model folders: the files that they may hold, and their digests; and the model server's configuration.

A version is loaded from a private copy that was checked after copying, never from the shared folder. So the checked
files are the loaded files, on a disk and on S3 alike. The configuration, which names the folders, is the text form of
TensorFlow Serving's ModelServerConfig.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

from ciml.digest import sha256_json
from ciml.errors import CimlError, IntegrityError
from ciml.limits import MAX_GRAPH_BYTES, MAX_MODEL_BYTES, MAX_MODEL_FILES, MAX_WARMUP_BYTES
from ciml.storage import LocalStore, Store

CONFIG_NAME = "models.config"
_HEADER = "# Written by ciml from the registry; `ciml models reconcile` rewrites it; manual changes are lost.\n"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

#: A folder counts as a model once it holds this file; written last where there is no rename.
LAST_FILE = "saved_model.pb"
#: Warm-up requests of a version: TFRecords of PredictionLog.
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
#: The files of a SavedModel. Anything else (a pickle, a Keras archive, a script) is rejected.
_ALLOWED = re.compile(
    r"saved_model\.pb|fingerprint\.pb|keras_metadata\.pb"
    r"|variables/variables\.(index|data-[0-9]{5}-of-[0-9]{5})"
    r"|assets/[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}"
    r"|assets\.extra/(tf_serving_warmup_requests|[A-Za-z0-9_][A-Za-z0-9_-]{0,100}\.json)"
)
#: Largest size of single files, bytes by path; other files may take MAX_MODEL_BYTES.
_FILE_BYTES = {LAST_FILE: MAX_GRAPH_BYTES, WARMUP_FILE: MAX_WARMUP_BYTES}
_VERSION = re.compile(r"0|[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class ModelEntry:
    """The versions of one model that the server serves.

    Attributes:
      name: the model's name in requests.
      base_path: the folder of its versions, absolute or ``s3://``.
      policy: ``specific`` serves ``versions``; ``latest`` the ``latest`` highest ones; ``all`` every one.
      versions: ascending; only for ``specific``.
      labels: versions by label. A label moves only to a loaded version.
      withdrawn: versions that the registry has withdrawn: they leave service even if no other one can be loaded.
    """

    name: str
    base_path: str
    policy: Literal["specific", "latest", "all"] = "specific"
    versions: tuple[int, ...] = ()
    latest: int = 1
    labels: Mapping[str, int] = field(default_factory=dict)
    withdrawn: frozenset[int] = frozenset()


def check_model_name(name: str) -> str:
    """Return the name if it is safe in a path, a URL and a metric; else raise `CimlError`."""
    return _checked("model name", name)


def check_label(label: str) -> str:
    """Return the label of a version if it is safe in a path, a URL and a metric; else raise `CimlError`."""
    return _checked("label", label)


def _checked(kind: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise CimlError(f"invalid {kind} {name!r:.120}: use up to 100 letters, digits, -, . or _")
    return name


def parse_config(text: str) -> tuple[ModelEntry, ...]:
    """Read a ModelServerConfig in text form.

    Raises:
      CimlError: if it is malformed, has no model_config_list, or uses an unsupported option.
    """
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except text_format.ParseError as error:
        raise CimlError(f"the model configuration is not a ModelServerConfig: {error}") from None
    return entries_of(config)


def entries_of(config: Any) -> tuple[ModelEntry, ...]:
    """Return the entries of a ModelServerConfig message. Raises `CimlError` as `parse_config` does."""
    if config.WhichOneof("config") != "model_config_list":
        # An empty file would otherwise mean "serve nothing", and a file cut short is empty.
        raise CimlError("the model configuration has no model_config_list")
    entries = [_entry(model) for model in config.model_config_list.config]
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        raise CimlError("the model configuration lists a model twice")
    return tuple(entries)


def _entry(config: Any) -> ModelEntry:
    name = check_model_name(config.name)
    if config.model_platform not in ("", "tensorflow"):
        raise CimlError(f"model {name}: unsupported platform {config.model_platform!r:.40}; use tensorflow")
    base_path: str = config.base_path
    if not base_path:
        raise CimlError(f"model {name}: base_path is missing")
    policy = config.model_version_policy
    kind = policy.WhichOneof("policy_choice") or "latest"
    return ModelEntry(
        name=name,
        base_path=base_path,
        policy=kind,  # type: ignore[arg-type]
        versions=tuple(sorted(set(policy.specific.versions))) if kind == "specific" else (),
        latest=max(policy.latest.num_versions, 1),
        labels=dict(config.version_labels),
    )


def render_config(entries: Iterable[ModelEntry]) -> str:
    """Return the text form of ``entries``, which must have the policy ``specific``. Deterministic."""
    lines = [_HEADER + "model_config_list {"]
    for entry in sorted(entries, key=lambda entry: entry.name):
        lines += [
            "  config {",
            f"    name: {_quoted(entry.name)}",
            f"    base_path: {_quoted(entry.base_path)}",
            '    model_platform: "tensorflow"',
            "    model_version_policy { specific { "
            + " ".join(f"versions: {version}" for version in sorted(entry.versions))
            + " } }",
            *(
                f"    version_labels {{ key: {_quoted(label)} value: {version} }}"
                for label, version in sorted(entry.labels.items())
            ),
            "  }",
        ]
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    if any(ord(character) < 32 for character in text):
        raise CimlError(f"invalid name or path {text!r:.120}: contains a control character")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def list_versions(base: Store, *, real: bool = True) -> list[int]:
    """Return the versions in a base path, ascending: folders whose name is a number without a leading zero.

    Symlinks are skipped. With ``real=False``, files and symlinks count too: their numbers are taken.
    """
    if isinstance(base, LocalStore):
        try:
            with os.scandir(base.root) as entries:
                names = [entry.name for entry in entries if not real or entry.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
    else:
        names = [path.split("/", 1)[0] for path in base.list() if "/" in path]
    return sorted({int(name) for name in names if _VERSION.fullmatch(name)})


def read_files(folder: Store) -> Iterator[tuple[str, bytes]]:
    """Yield (relative path, bytes) of each file of a model folder, sorted by path.

    Raises:
      FileNotFoundError: if there is no such folder.
      IntegrityError: for a file that is not part of a SavedModel, an irregular file, or a limit exceeded.
    """
    total = 0
    local = isinstance(folder, LocalStore)
    for path in _model_paths(folder):
        max_bytes = min(_FILE_BYTES.get(path, MAX_MODEL_BYTES), MAX_MODEL_BYTES - total)
        limit = max_bytes + 1
        if local:
            with _open_regular(Path(folder.root, path)) as file:
                data = file.read(limit)
        else:
            data = folder.read_range(path, 0, limit)
        if len(data) > max_bytes:
            raise IntegrityError(
                f"{folder.url(path)} is larger than {max_bytes} bytes"
                + (f": a model has at most {MAX_MODEL_BYTES}" if path not in _FILE_BYTES else "")
            )
        total += len(data)
        yield path, data


def _model_paths(folder: Store) -> Iterator[str]:
    """Yield the relative paths of a model folder, sorted. Raises as `read_files` does, except for limits of size."""
    paths = _local_paths(Path(folder.root)) if isinstance(folder, LocalStore) else folder.list()
    count = 0
    for path in paths:
        if not _ALLOWED.fullmatch(path):
            raise IntegrityError(f"{folder.url(path)} is not part of a SavedModel; move it out of the model's folder")
        count += 1
        if count > MAX_MODEL_FILES:
            raise IntegrityError(f"{folder.root} holds more than {MAX_MODEL_FILES} files")
        yield path
    if not count:
        raise FileNotFoundError(f"no model at {folder.root}")


def _local_paths(root: Path) -> list[str]:
    """Return all files in a folder as relative POSIX paths. Raises `IntegrityError` for a symlink."""
    paths = []
    pending = [root]
    while pending:
        folder = pending.pop()
        if folder.is_symlink():
            raise IntegrityError(f"{folder} is a symbolic link; a model folder must be a real folder")
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise IntegrityError(f"{entry.path} is a symbolic link; a model may hold regular files only")
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                else:
                    paths.append(Path(entry.path).relative_to(root).as_posix())
    return sorted(paths)


def _open_regular(path: Path) -> BufferedReader:
    """Open a regular file. Raises `IntegrityError` for another one."""
    # O_NONBLOCK: opening a FIFO must not wait for its writer. It has no effect on regular files.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise IntegrityError(f"{path} is not a regular file")
    return file


def file_digests(folder: Store, *, limited: bool = True) -> dict[str, str]:
    """Return the hex sha256 of each file of a model folder, by relative path. Raises as `read_files` does.

    Args:
      folder: of a model.
      limited: whether a size beyond a limit is an error. Without, a local file of any size takes little memory.
    """
    if limited:
        return {path: hashlib.sha256(data).hexdigest() for path, data in read_files(folder)}
    return {path: _digest(folder, path) for path in _model_paths(folder)}


def _digest(folder: Store, path: str) -> str:
    if not isinstance(folder, LocalStore):
        return hashlib.sha256(folder.read(path)).hexdigest()
    with _open_regular(Path(folder.root, path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(files: Mapping[str, str]) -> str:
    """Return the digest of a model, from its files' paths and digests."""
    return sha256_json(dict(files))


def check_digests(where: str, digests: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raise `IntegrityError`, naming the first file, if a model's files differ from the recorded ones."""
    for path in sorted(set(digests) | set(expected)):
        if digests.get(path) != expected.get(path):
            problem = "is missing" if path not in digests else "was added" if path not in expected else "was altered"
            raise IntegrityError(f"{where}/{path} {problem} since the model was recorded; not served")


def copy_model(source: Store, target: Path) -> dict[str, str]:
    """Copy a model folder into the new private folder ``target`` and return the copies' digests."""
    target.mkdir(mode=0o700)
    digests = {}
    for path, data in read_files(source):
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        digests[path] = hashlib.sha256(data).hexdigest()
    return digests
