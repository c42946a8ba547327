"""All registries of a data root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError, UnknownModelError
from ciml.manifest.log import ManifestLog, catch_up
from ciml.serving.model_files import ModelEntry, check_digests, check_model_name, file_digests, list_versions
from ciml.serving.registry import Registry, RegistryState
from ciml.storage import open_store


def registered_models(data: DataRoot) -> list[str]:
    """Return the names of the models with a registry in a data root."""
    return sorted({path.split("/")[0] for path in data.registry.list() if "/" in path})


def known_registries(data: DataRoot, model: str | None = None) -> dict[str, Registry]:
    """Return the registries of a data root by model name; with ``model``, only that one.

    Raises:
      CimlError: there is no such model.
    """
    names = registered_models(data)
    if model is not None and model not in names:
        choices = ", ".join(names) or "none: push one by ciml refresh"
        raise UnknownModelError(f"no model {model!r} in {data.url}; choose from {choices}")
    return {name: Registry(data, name) for name in names if model in (None, name)}


def verify_versions(data: DataRoot, model: str) -> dict[int, str]:
    """Compare the folders of a model with its registry.

    Returns:
      By version, "" if its files match the registry, else the defect. Includes folders that were never pushed.
    """
    registry = Registry(data, model)
    state = registry.state
    failures: dict[int, str] = {}
    for number in sorted({*state.pushed(), *list_versions(registry.base)}):
        folder = registry.folder(number)
        try:
            if number not in state.pushed():
                raise IntegrityError(f"{folder.root} was not pushed by ciml and is never served; move it elsewhere")
            check_digests(folder.root, file_digests(folder), state.files(number))
            failures[number] = ""
        except (CimlError, OSError) as error:
            failures[number] = str(error) or type(error).__name__
    return failures


class RegistryVerifier:
    """Verifies, for what loads a model, that a version's files are those of a blessed push.

    Args:
      root: the folder of all registries, local or ``s3://``.
    """

    def __init__(self, root: str) -> None:
        self._root = open_store(root)
        self._states: dict[str, tuple[ManifestLog, RegistryState]] = {}

    def __call__(self, model: str, version: int, digests: Mapping[str, str]) -> None:
        """Raise `IntegrityError` unless ``version`` was pushed and its files match the registry."""
        state = catch_up(ManifestLog(self._root.child(check_model_name(model))), RegistryState())
        try:
            files = state.files(version)
        except CimlError as error:
            raise IntegrityError(f"model {model}: {error}") from None
        if not state.is_blessed(state.versions[version].candidate):
            raise IntegrityError(f"model {model}: version {version} is not blessed")
        check_digests(f"{model}/{version}", digests, files)

    def current(self, entry: ModelEntry) -> ModelEntry | None:
        """Return a model's part of the configuration, or the registry's if it still names a withdrawn version.

        The latest or all versions are the latest or all that are not withdrawn.
        A process that withdraws a version writes the configuration afterwards, and may die in between.

        Returns:
          The entry; None if no version has a label any more.

        Raises:
          CimlError: the registry cannot be read.
        """
        log, state = self._states.setdefault(
            entry.name, (ManifestLog(self._root.child(check_model_name(entry.name))), RegistryState())
        )
        catch_up(log, state)
        withdrawn = state.withdrawn
        entry = replace(entry, withdrawn=withdrawn)
        if withdrawn and entry.policy != "specific":
            usable = [number for number in state.pushed() if number not in withdrawn]
            versions = usable if entry.policy == "all" else usable[-entry.latest :]
            entry = replace(entry, policy="specific", versions=tuple(versions))
        if withdrawn.isdisjoint((*entry.versions, *entry.labels.values())):
            return entry
        return replace(entry, versions=tuple(state.served()), labels=dict(state.labels)) if state.labels else None
