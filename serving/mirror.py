"""A mirror of the served models on a local disk, for a model server that reads no S3 and no registry.

TensorFlow Serving's own image reads a local folder and a configuration, and verifies nothing. A mirror gives it both:
a version is copied and compared with the registry before a server can see it.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
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
from ciml.serving.registries import registered_models
from ciml.serving.registry import Registry
from ciml.storage import LocalStore

_STAGING = "staging-"
#: Marks a folder as a mirror, in which versions may be removed.
_MARK = ".ciml-mirror"


class MirrorChanges(NamedTuple):
    """The changes of a call of `mirror`.

    Attributes:
      copied: each (model, version) that is new in the mirror.
      removed: each (model, version) whose files were removed.
      faults: a line for each version that was left out, because its files are missing or differ from the registry, and
        for each model that keeps its entry, because its registry is damaged.
      changed: whether the configuration changed.
    """

    copied: tuple[tuple[str, int], ...]
    removed: tuple[tuple[str, int], ...]
    faults: tuple[str, ...]
    changed: bool


def mirror(data: DataRoot, folder: Path) -> MirrorChanges:
    """Copy the served versions of all models to a folder, with a configuration for TensorFlow Serving.

    The configuration (``models.config``) names complete versions only. The files of a version that is no longer served
    are removed by the next call, so that a server has read the new configuration by then. If a version is left out, its
    labels keep their version in the mirror.

    Args:
      data: the data root.
      folder: the mirror, used by one process; created if it is missing.

    Raises:
      CimlError: the folder has files of something else, such as the models of a data root.
      EngineError: the store does not answer, or the folder cannot be written.
    """
    try:
        return _mirror(data, folder)
    except OSError as error:
        raise EngineError(f"cannot write the mirror {folder}: {error.strerror or error}") from error


def _mirror(data: DataRoot, folder: Path) -> MirrorChanges:
    _prepare(folder)
    store = LocalStore(str(folder))
    old_config = store.read(CONFIG_NAME).decode() if store.exists(CONFIG_NAME) else None
    old_entries = {} if old_config is None else {entry.name: entry for entry in parse_config(old_config)}
    versions = {path.name: set(list_versions(LocalStore(str(path)))) for path in folder.iterdir() if path.is_dir()}
    entries: dict[str, ModelEntry] = {}
    copied: list[tuple[str, int]] = []
    faults: list[str] = []
    for model in registered_models(data):
        registry = Registry(data, model)
        try:
            served = registry.entry()
        except IntegrityError as error:
            faults.append(f"model {model}: {error}")
            entries |= {model: old_entries[model]} if model in old_entries else {}
            continue
        if served is None:
            continue
        mirrored = versions.setdefault(model, set())
        for number in sorted(set(served.versions) - mirrored):
            try:
                _copy(registry, number, folder / model)
            except IntegrityError as error:
                faults.append(f"model {model}, version {number}: {error}")
            else:
                mirrored.add(number)
                copied.append((model, number))
        old_labels = old_entries[model].labels if model in old_entries else {}
        entry = _mirror_entry(served, folder / model, mirrored - registry.state.withdrawn, old_labels)
        if entry is not None:
            entries[model] = entry
    config = render_config(entries.values())
    if config != old_config:
        store.replace(CONFIG_NAME, config.encode())
    removed = _remove_versions(folder, versions, old_entries, entries)
    return MirrorChanges(tuple(copied), tuple(removed), tuple(faults), config != old_config)


def _prepare(folder: Path) -> None:
    """Create the folder and mark it, before anything can be removed in it."""
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


def _mirror_entry(
    served: ModelEntry, base: Path, mirrored: set[int], old_labels: Mapping[str, int]
) -> ModelEntry | None:
    """Return a model's entry in the mirror; None without a version.

    Args:
      served: its entry in the registry.
      base: its folder in the mirror.
      mirrored: the versions in that folder that are not withdrawn.
      old_labels: the labels of its old entry, for labels whose version is not mirrored. If the old one is not either,
        the label names the highest one below, as in the model server.
    """
    labels: dict[str, int] = {}
    for label, number in served.labels.items():
        below = {other for other in mirrored if other < number}
        if number in mirrored:
            labels[label] = number
        elif old_labels.get(label) in mirrored:
            labels[label] = old_labels[label]
        elif below:
            labels[label] = max(below)
    versions = set(served.versions) & mirrored | set(labels.values())
    if not versions:
        return None
    return ModelEntry(served.name, str(base), versions=tuple(sorted(versions)), labels=labels)


def _remove_versions(
    folder: Path,
    versions: Mapping[str, set[int]],
    old_entries: Mapping[str, ModelEntry],
    entries: Mapping[str, ModelEntry],
) -> list[tuple[str, int]]:
    """Remove the versions that neither the old nor the new configuration names. Return each (model, version)."""
    removed = []
    for model, numbers in sorted(versions.items()):
        configured = [entry for entry in (old_entries.get(model), entries.get(model)) if entry is not None]
        named = {number for entry in configured for number in entry.versions}
        for number in sorted(numbers - named):
            shutil.rmtree(folder / model / str(number))
            removed.append((model, number))
    return removed
