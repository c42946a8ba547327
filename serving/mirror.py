"""A mirror of the served models on a local disk, for a model server that reads no S3 and no registry.

TensorFlow Serving's own image reads a local folder and a configuration, and verifies nothing. A mirror gives it both:
a version is copied and compared with the registry before a server can see it.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.serving.model_files import (
    CONFIG_NAME,
    ModelEntry,
    check_digests,
    copy_model,
    list_versions,
    parse_config,
    render_config,
)
from ciml.serving.registry import Registry, registered_models
from ciml.storage import LocalStore

_STAGING = "staging-"
#: Marks a folder as a mirror, in which versions may be removed.
_MARK = ".ciml-mirror"


class Mirrored(NamedTuple):
    """What a call of `mirror` changed.

    Attributes:
      copied: (model, version) that are new in the mirror.
      removed: (model, version) whose files were removed.
      faults: a line for each version that was left out, because its files are missing or differ from the registry.
      changed: whether the configuration changed.
    """

    copied: tuple[tuple[str, int], ...]
    removed: tuple[tuple[str, int], ...]
    faults: tuple[str, ...]
    changed: bool


def mirror(data: DataRoot, folder: Path) -> Mirrored:
    """Copy the served versions of all models to a folder, with a configuration for TensorFlow Serving.

    The configuration (``models.config``) names complete versions only. A version that is not served any more keeps its
    files until the next call, so that a server has read the new configuration by then. If a version is left out, its
    labels stay where they are in the mirror.

    Args:
      data: the data root.
      folder: the mirror, used by one process; it is made where it is missing.

    Raises:
      CimlError: the folder has files of something else, such as the models of a data root.
      EngineError: the store does not answer, or the folder cannot be written.
    """
    copied: list[tuple[str, int]] = []
    faults: list[str] = []
    try:
        _prepare(folder)
        store = LocalStore(str(folder))
        text = store.read(CONFIG_NAME).decode() if store.exists(CONFIG_NAME) else None
        before = {entry.name: entry for entry in parse_config(text)} if text is not None else {}
        present = {path.name: set(list_versions(LocalStore(str(path)))) for path in folder.iterdir() if path.is_dir()}
        entries: dict[str, ModelEntry] = {}
        for registry, entry in _served(data):
            has = present.setdefault(entry.name, set())
            for number in sorted(set(entry.versions) - has):
                try:
                    _copy(registry, number, folder / entry.name)
                except IntegrityError as error:
                    faults.append(f"model {entry.name}, version {number}: {error}")
                else:
                    has.add(number)
                    copied.append((entry.name, number))
            old = before[entry.name].labels if entry.name in before else {}
            if local := _mirrored(entry, folder / entry.name, has, old):
                entries[entry.name] = local
        new = render_config(entries.values())
        if changed := new != text:
            store.replace(CONFIG_NAME, new.encode())
        removed = tuple(_remove(folder, present, before, entries))
    except OSError as error:
        raise EngineError(f"cannot write the mirror {folder}: {error.strerror or error}") from error
    return Mirrored(tuple(copied), removed, tuple(faults), changed)


def _served(data: DataRoot) -> Iterator[tuple[Registry, ModelEntry]]:
    for model in registered_models(data):
        registry = Registry(data, model)
        if entry := registry.entry():
            yield registry, entry


def _prepare(folder: Path) -> None:
    """Make the folder and mark it, before anything can be removed in it."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / _MARK).exists():
        return
    if any(folder.iterdir()):
        raise CimlError(f"{folder} is not empty and no mirror; choose another folder")
    (folder / _MARK).touch()


def _copy(registry: Registry, number: int, target: Path) -> None:
    """Copy a version to a staging folder, compare it with the registry, and give it its number."""
    target.mkdir(exist_ok=True)
    for leftover in target.glob(f"{_STAGING}*"):
        shutil.rmtree(leftover)
    staged = target / f"{_STAGING}{number}-{secrets.token_hex(4)}"
    source = registry.folder(number)
    try:
        digests = copy_model(source, staged)
        check_digests(source.root, digests, registry.state.files(number))
        os.chmod(staged, 0o755)  # noqa: S103  # the server may run as another user
        os.rename(staged, target / str(number))
    except FileNotFoundError:
        raise IntegrityError(f"{source.root} is missing") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _mirrored(entry: ModelEntry, base: Path, present: set[int], old: Mapping[str, int]) -> ModelEntry | None:
    """Return a model's entry in the mirror; None without a version."""
    labels = {name: number if number in present else old.get(name) for name, number in entry.labels.items()}
    present_labels = {name: number for name, number in labels.items() if number in present}
    versions = set(entry.versions) & present | set(present_labels.values())
    if not versions:
        return None
    return ModelEntry(entry.name, str(base), versions=tuple(sorted(versions)), labels=present_labels)


def _remove(
    folder: Path, present: Mapping[str, set[int]], before: Mapping[str, ModelEntry], now: Mapping[str, ModelEntry]
) -> Iterator[tuple[str, int]]:
    """Remove the versions that neither the former nor the new configuration names; yield them."""
    for model, versions in sorted(present.items()):
        named = {number for entries in (before, now) if model in entries for number in entries[model].versions}
        for number in sorted(versions - named):
            shutil.rmtree(folder / model / str(number))
            yield model, number
