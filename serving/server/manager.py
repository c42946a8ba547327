"""Loads and unloads versions by the configuration; an old version stays until the new one is available.

A version is unloaded only while another configured version is available. A version that fails to load changes nothing:
its status shows the error, and the load is retried. A label moves only to a loaded version. Each model has a thread of
its own while it changes, so that a version that loads slowly holds up no other model. A version whose process has ended
is loaded again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.http.intake import RequestError, invalid, not_found
from ciml.serving.model_files import ModelEntry, list_versions
from ciml.serving.server.model.loaded_model import LoadedModel, load_model
from ciml.storage import Store, open_store

_LOG = logging.getLogger(__name__)

State = Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
Verifier = Callable[[str, int, Mapping[str, str]], None]
_RETRY_S = (1.0, 60.0)  # first and longest delay; it doubles each time
_RETRY_SHARE = 10  # a failed load is retried after so many times the time that it took
_CLOSE_S = 5.0  # for changes that have begun, at the end


@dataclass(frozen=True)
class VersionStatus:
    """State of a version. ``code`` names a gRPC status, ``OK`` without an error."""

    version: int
    state: State
    code: str = "OK"
    message: str = ""


@dataclass
class _Model:
    """State of one model. Replaced as a whole, so that requests need no lock."""

    entry: ModelEntry
    loaded: dict[int, LoadedModel] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    statuses: dict[int, VersionStatus] = field(default_factory=dict)
    retries: dict[int, tuple[float, float]] = field(default_factory=dict)  # version: (not before, next delay)
    fault: str = ""  # why its folder cannot be listed
    listed: bool = False  # whether its folder was listed ever
    retry: tuple[float, float] = (0.0, _RETRY_S[0])  # (not before, next delay) of listing it again


class ModelManager:
    """Loads, serves and unloads versions. `apply` sets the target, `step` moves towards it, requests use `find`.

    Args:
      verifier: raises unless a version's files (digests by path) may be served; None accepts all.
      load: loads a version.
      clock: monotonic seconds.
    """

    def __init__(
        self,
        verifier: Verifier | None = None,
        load: Callable[..., LoadedModel] = load_model,
        clock: Callable[[], float] = time.monotonic,
        on_load: Callable[[str, str, float], None] = lambda model, outcome, seconds: None,
    ) -> None:
        self._verifier = verifier
        self._load = load
        self._clock = clock
        self._on_load = on_load
        self._models: dict[str, _Model] = {}
        self._wanted: tuple[ModelEntry, ...] = ()
        self._lock = threading.Lock()  # of `_models`, `_wanted` and `_threads`
        self._threads: dict[str, threading.Thread] = {}  # models that change at present
        self._closed = False

    def find(self, name: str, version: int | None = None, label: str = "") -> tuple[int, LoadedModel]:
        """Return the version for a request: the named, the labelled, or the highest available one.

        Raises:
          RequestError: NOT_FOUND, INVALID_ARGUMENT for an unknown label, or UNAVAILABLE while the model's first version
            is loaded.
        """
        model = self._models.get(name)
        self._check_loading(name)
        if label:
            number = model.labels.get(label) if model else None
            if number is None:
                raise invalid(f"Unrecognized servable version label: {label}")
        elif version is not None:
            number = version
        else:
            number = max(model.loaded, default=None) if model else None
        if model is None or number is None or number not in model.loaded:
            servable = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            raise not_found(f"Servable not found for request: {servable}")
        return number, model.loaded[number]

    @contextmanager
    def lease(self, name: str, version: int | None = None, label: str = "") -> Iterator[tuple[int, LoadedModel]]:
        """Find a version as `find` does, and keep it loaded until the block ends."""
        while True:
            number, model = self.find(name, version, label)
            if model.acquire():
                break  # else it was replaced meanwhile: retry finds its successor
        try:
            yield number, model
        finally:
            model.release()

    def status(self, name: str, version: int | None = None, label: str = "") -> list[VersionStatus]:
        """Return the statuses of a model's versions, highest first.

        Raises:
          RequestError: NOT_FOUND, INVALID_ARGUMENT for an unknown label, or UNAVAILABLE for a label while the model's
            first version is loaded.
        """
        model = self._models.get(name)
        if label:
            self._check_loading(name)
            if model is None or label not in model.labels:
                raise invalid(f"Unrecognized servable version label: {label}")
            version = model.labels[label]
        if model is None or not model.statuses:
            why = f": {model.fault}" if model is not None and model.fault else ""
            raise not_found(f"Could not find any versions of model {name}{why}")
        if version is None:
            return [status for _, status in sorted(model.statuses.items(), reverse=True)]
        if version not in model.statuses:
            raise not_found(f"Could not find version {version} of model {name}")
        return [model.statuses[version]]

    def _check_loading(self, name: str) -> None:
        """Raise `RequestError` UNAVAILABLE while a model's first version is loaded: the client should try again."""
        model = self._models.get(name)
        if not (model and model.loaded) and name in self.loading:
            raise RequestError("UNAVAILABLE", f"model {name} is being loaded")

    def labels(self, name: str) -> Mapping[str, int]:
        """Return the labels of a model as they are served at present."""
        model = self._models.get(name)
        return dict(model.labels) if model else {}

    def available(self, name: str) -> dict[int, float]:
        """Return the available versions of a model with their load times, epoch seconds."""
        model = self._models.get(name)
        return {version: loaded.loaded_at for version, loaded in sorted(model.loaded.items())} if model else {}

    def names(self) -> list[str]:
        """Return the names of the configured models."""
        return sorted(self._models)

    @property
    def loading(self) -> list[str]:
        """Names of the configured models without an available version whose first load has not ended."""
        models = self._models
        return sorted(entry.name for entry in self._wanted if _is_loading(models.get(entry.name)))

    @property
    def ready(self) -> bool:
        """Whether every configured model has an available version."""
        models = self._models
        return all(entry.name in models and models[entry.name].loaded for entry in self._wanted)

    def apply(self, entries: Iterable[ModelEntry]) -> None:
        """Set the target configuration. Earlier failures are retried at once."""
        with self._lock:
            self._wanted = tuple(entries)
            for model in self._models.values():
                model.retries.clear()
                model.retry = (0.0, _RETRY_S[0])

    def step(self, wait: bool = True) -> None:
        """Move towards the target as far as possible. Requests continue meanwhile.

        Args:
          wait: until all models have changed; else those that still change from an earlier step are left alone.
        """
        if wait:
            self._join()
        with self._lock:
            if self._closed:
                return
            entries = {entry.name: entry for entry in self._wanted}
            dropped = [
                self._models[name] for name in sorted(set(self._models) - set(entries)) if name not in self._threads
            ]
            self._models = {name: model for name, model in self._models.items() if model not in dropped}
            for name, entry in entries.items():
                if name not in self._threads:
                    thread = threading.Thread(target=self._run_step, args=(name, entry), name=f"model {name}")
                    thread.daemon = True  # a load that does not end must not hold up the end of the process
                    thread.start()
                    self._threads[name] = thread  # it removes itself, under the lock
        for model in dropped:
            _unload_all(model)
        if wait:
            self._join()

    def _join(self, timeout_s: float | None = None) -> None:
        for thread in list(self._threads.values()):
            thread.join(timeout_s)

    def _run_step(self, name: str, entry: ModelEntry) -> None:
        try:
            self._step_model(name, entry)
        except _ClosedError:
            _LOG.info("model %s: no longer wanted", name)
        except Exception:  # noqa: BLE001 - other models go on, and the next step tries again
            _LOG.exception("model %s: the change to its configured versions failed", name)
        finally:
            with self._lock:
                del self._threads[name]

    def close(self) -> None:
        """Unload everything. A load that has not ended unloads its own version later."""
        with self._lock:
            self._wanted = ()
            self._closed = True
        self._join(_CLOSE_S)
        with self._lock:
            models = self._models
            self._models = {}
        for model in models.values():
            _unload_all(model)

    def _publish(self, name: str, model: _Model) -> _Model:
        copy = replace(
            model,
            loaded=dict(model.loaded),
            labels=dict(model.labels),
            statuses=dict(model.statuses),
            retries=dict(model.retries),
        )
        with self._lock:
            if self._closed:
                raise _ClosedError
            self._models = {**self._models, name: model}
        return copy

    def _step_model(self, name: str, entry: ModelEntry) -> None:
        current = self._models.get(name)
        model = self._publish(name, replace(current, entry=entry) if current else _Model(entry))
        if self._clock() < model.retry[0]:
            return
        try:
            base = open_store(entry.base_path)
            versions = self._wanted_versions(entry, base)
        except (CimlError, OSError, ValueError) as error:  # ValueError: an impossible path
            self._postpone(name, model, error)
            return
        model.fault = ""
        model.retry = (0.0, _RETRY_S[0])
        model.listed = True
        for version in versions - set(model.loaded) - set(model.statuses):
            model.statuses[version] = VersionStatus(version, "START")
        # The highest first: it most likely has a label.
        for version in sorted(versions, reverse=True):
            held = model.loaded.get(version)
            folder = base.child(str(version))
            if held is not None and held.source == folder.root and not held.ended:
                continue
            if self._clock() < model.retries.get(version, (0.0, 0.0))[0]:
                continue
            model.statuses[version] = VersionStatus(version, "LOADING")
            model = self._publish(name, model)
            self._load_version(model, version, folder)
            if held is not None and held.ended and model.loaded.get(version) is held:
                del model.loaded[version]  # it answers no call
            _move_labels(model)
            try:
                model = self._publish(name, model)
            except _ClosedError:
                if (loaded := model.loaded.get(version)) is not None:
                    loaded.close()
                return
            if held is not None and model.loaded.get(version) is not held:
                held.close()
        _move_labels(model)
        self._unload(name, model, versions)

    def _postpone(self, name: str, model: _Model, error: Exception) -> None:
        """Record that a model's folder cannot be listed. Its loaded versions and other models keep serving."""
        fault = str(error)
        code = "UNAVAILABLE" if isinstance(error, EngineError | OSError) else "INVALID_ARGUMENT"
        if fault != model.fault:
            _LOG.error("model %s: %s", name, fault)
        delay = model.retry[1]
        model.fault, model.retry = fault, (self._clock() + delay, min(delay * 2, _RETRY_S[1]))
        for version in set(model.entry.versions) - set(model.loaded):
            model.statuses[version] = VersionStatus(version, "END", code, fault)
        self._publish(name, model)

    def _wanted_versions(self, entry: ModelEntry, base: Store) -> set[int]:
        if entry.policy == "specific":
            return set(entry.versions)
        there = list_versions(base)
        return set(there if entry.policy == "all" else there[-entry.latest :])

    def _load_version(self, model: _Model, version: int, folder: Store) -> None:
        name = model.entry.name
        verify = None
        if self._verifier is not None:
            verifier = self._verifier

            def verify(digests: Mapping[str, str]) -> None:
                verifier(name, version, digests)

        started_s = self._clock()
        try:
            loaded = self._load(folder, verify)
        except Exception as error:  # noqa: BLE001 - a bad model must not stop the others
            code = "NOT_FOUND" if isinstance(error, FileNotFoundError) else "UNKNOWN"
            code = "DATA_LOSS" if isinstance(error, IntegrityError) else code
            first, longest = _RETRY_S
            delay = model.retries.get(version, (0.0, first))[1]
            now = self._clock()
            model.retries[version] = (now + max(delay, _RETRY_SHARE * (now - started_s)), min(delay * 2, longest))
            model.statuses[version] = VersionStatus(version, "END", code, str(error))
            _LOG.error("model %s: version %d failed to load: %s", name, version, error)
            self._on_load(name, "refused" if code == "DATA_LOSS" else "failed", self._clock() - started_s)
            return
        model.retries.pop(version, None)
        model.loaded[version] = loaded
        model.statuses[version] = VersionStatus(version, "AVAILABLE")
        self._on_load(name, "loaded", self._clock() - started_s)
        _LOG.info("model %s: version %d available", name, version)

    def _unload(self, name: str, model: _Model, configured: set[int]) -> None:
        surplus = set(model.loaded) - configured
        if configured and not configured & set(model.loaded):
            surplus = set()  # no configured version is available: keep serving the loaded ones
        surplus -= set(model.labels.values())
        for version in set(model.statuses) - configured - set(model.loaded):
            del model.statuses[version]  # the status of a version that is no longer configured
        closing: list[LoadedModel] = []
        for version in sorted(surplus):
            closing.append(model.loaded.pop(version))
            model.statuses[version] = VersionStatus(version, "UNLOADING")
        model = self._publish(name, model)
        for loaded, version in zip(closing, sorted(surplus), strict=True):
            loaded.close()
            model.statuses[version] = VersionStatus(version, "END")
            _LOG.info("model %s: version %d unloaded", name, version)
        if closing:
            self._publish(name, model)


class _ClosedError(Exception):
    """The manager was closed meanwhile."""


def _is_loading(model: _Model | None) -> bool:
    if model is None:
        return True
    changing = any(status.state in ("START", "LOADING") for status in model.statuses.values())
    return not model.loaded and not model.fault and (changing or not model.listed)


def _unload_all(model: _Model) -> None:
    for version, loaded in model.loaded.items():
        loaded.close()
        _LOG.info("model %s: version %d unloaded", model.entry.name, version)


def _move_labels(model: _Model) -> None:
    """Move each label to its version if that is loaded; else keep its present version while that is loaded."""
    labels: dict[str, int] = {}
    for label, target in model.entry.labels.items():
        present = model.labels.get(label)
        if target in model.loaded:
            labels[label] = target
        elif present is not None and present in model.loaded:
            labels[label] = present
        elif (status := model.statuses.get(target)) is not None and status.state == "END":
            # After a start with a bad version its predecessor answers; each response names the version.
            below = [version for version in model.loaded if version < target]
            if below:
                labels[label] = max(below)
                _LOG.error("model %s: label %s falls back to version %d", model.entry.name, label, labels[label])
    model.labels = labels
