"""Loads and unloads versions by the configuration; an old version is served until the new one is available.

A version is unloaded only while another configured version is available. If a version fails to load, the others stay
served, and its status shows the error until a retry succeeds. A label moves to a version that is loaded. Each model
changes in its own thread, so that a version that loads slowly delays no other model. A version whose process has ended
is loaded again.

The states have the names of TensorFlow Serving. A version that answers stays AVAILABLE while it is reloaded from
another folder. If that load fails, it stays AVAILABLE and its status also shows the error.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.http.intake import RequestError, invalid, not_found
from ciml.serving.model_files import ModelEntry, list_versions
from ciml.serving.server.model.loaded_model import LoadedModel, load_model
from ciml.storage import Store, open_store

_LOG = logging.getLogger(__name__)

State = Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
Verifier = Callable[[str, int, Mapping[str, str]], None]
#: How long `ModelManager.close` waits for all changes that have begun, seconds.
_CLOSE_S = 5.0
#: How long versions that are unloaded together wait for their requests, seconds.
_DRAIN_S = 30.0


class ModelChoice(NamedTuple):
    """The model that a request names, and its version or label; without both, the highest available version."""

    name: str
    version: int | None = None
    label: str = ""


@dataclass(frozen=True)
class VersionStatus:
    """State of a version. ``code`` names a gRPC status, ``OK`` without an error."""

    version: int
    state: State
    code: str = "OK"
    message: str = ""


@dataclass
class _Retry:
    """Backoff after a failure: the delay doubles each time, and is at least ten times the duration of the attempt."""

    not_before_s: float = 0.0
    delay_s: float = 1.0

    def postpone(self, now_s: float, took_s: float = 0.0) -> None:
        self.not_before_s = now_s + max(self.delay_s, 10 * took_s)
        self.delay_s = min(self.delay_s * 2, 60.0)


@dataclass
class _Version:
    status: VersionStatus
    loaded: LoadedModel | None = None
    retry: _Retry = field(default_factory=_Retry)

    @property
    def answering(self) -> LoadedModel | None:
        """The loaded model, unless its process has ended."""
        return None if self.loaded is None or self.loaded.ended else self.loaded


@dataclass
class _Model:
    """State of one model. Its thread changes it, under the manager's lock. `ModelManager.apply` resets the retries."""

    entry: ModelEntry
    versions: dict[int, _Version] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    fault: str = ""  # why its folder cannot be listed
    listed: bool = False  # whether its folder has ever been listed
    retry: _Retry = field(default_factory=_Retry)  # of listing it

    @property
    def loaded(self) -> dict[int, LoadedModel]:
        return {number: version.loaded for number, version in self.versions.items() if version.loaded is not None}

    @property
    def loading(self) -> bool:
        """Whether no version is available, and the first load has not ended."""
        changing = any(version.status.state in ("START", "LOADING") for version in self.versions.values())
        return not self.loaded and not self.fault and (changing or not self.listed)

    def move_labels(self) -> None:
        """Move each label to its version if this is loaded; otherwise keep its present version while this is loaded.

        If neither is loaded and the label's version has failed, the label falls back to the highest lower version.
        """
        loaded = set(self.loaded) - self.entry.withdrawn
        labels: dict[str, int] = {}
        for label, target in self.entry.labels.items():
            present = self.labels.get(label)
            below = [number for number in loaded if number < target]
            if target in loaded:
                labels[label] = target
            elif present in loaded:
                labels[label] = present
            elif below and target in self.versions and self.versions[target].status.state == "END":
                # After a start with a bad version, its predecessor answers. Each response names the version.
                labels[label] = max(below)
                _LOG.error("model %s: label %s falls back to version %d", self.entry.name, label, labels[label])
        self.labels = labels


class ModelManager:
    """Loads, serves and unloads versions. `apply` sets the target, `step` moves towards it, requests use `lease`.

    Args:
      verifier: raises unless a version's files (digests by path) may be served; None accepts all.
      load: loads a version.
      clock: monotonic seconds.
      on_load: called with model, outcome (``loaded``; ``refused``: it may not be served; ``failed``) and seconds.
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
        self._target: dict[str, ModelEntry] = {}
        self._lock = threading.RLock()  # of all state; never held during a load
        self._threads: dict[str, threading.Thread] = {}  # models that change at present
        self._closed = False

    def apply(self, entries: Iterable[ModelEntry]) -> None:
        """Set the target configuration. Earlier failures are retried immediately."""
        with self._lock:
            self._target = {entry.name: entry for entry in entries}
            for model in self._models.values():
                model.retry = _Retry()
                for version in model.versions.values():
                    version.retry = _Retry()

    def step(self, wait: bool = True) -> None:
        """Move towards the target as far as possible. Requests continue meanwhile.

        The models that are no longer configured are unloaded, which waits up to `_DRAIN_S` for their requests.

        Args:
          wait: wait until all models have changed; otherwise models that still change from an earlier step are skipped.
        """
        if wait:
            self._join()
        dropped = self._drop_models()
        try:
            self._start_threads()
        finally:
            _unload_all(dropped)
        if wait:
            self._join()

    def close(self) -> None:
        """Unload everything. A load that has not ended unloads its own version later."""
        with self._lock:
            self._target = {}
            self._closed = True
        self._join(_CLOSE_S)
        with self._lock:
            models = self._models
            self._models = {}
        _unload_all(models.values())

    def find(self, choice: ModelChoice) -> tuple[int, LoadedModel]:
        """Return the version for a request, and its number.

        Raises:
          RequestError: NOT_FOUND, INVALID_ARGUMENT for an unknown label, or UNAVAILABLE while the model's first version
            is loaded.
        """
        name, version, label = choice
        with self._lock:
            loaded = self._models[name].loaded if name in self._models else {}
            if label:
                version = self._labelled(name, label)
            elif self._is_loading(name):
                raise _being_loaded(name)
            # The highest may have lost its process, and be loaded again at present.
            living = [number for number in loaded if not loaded[number].ended]
            number = max(living or loaded, default=None) if version is None else version
            if number is None or number not in loaded:
                servable = f"Latest({name})" if number is None else f"Specific({name}, {number})"
                raise not_found(f"Servable not found for request: {servable}")
            return number, loaded[number]

    @contextmanager
    def lease(self, choice: ModelChoice) -> Iterator[tuple[int, LoadedModel]]:
        """Find a version as `find` does, and keep it loaded until the block ends."""
        with self._lock:
            number, model = self.find(choice)
            model.acquire()
        try:
            yield number, model
        finally:
            model.release()

    def status(self, choice: ModelChoice) -> list[VersionStatus]:
        """Return the statuses of a model's versions, highest first; with a version or label, only of this version.

        Raises:
          RequestError: NOT_FOUND, INVALID_ARGUMENT for an unknown label, or UNAVAILABLE for a label while the model's
            first version is loaded.
        """
        name, version, label = choice
        with self._lock:
            if label:
                version = self._labelled(name, label)
            model = self._models.get(name)
            if model is None or not model.versions:
                why = f": {model.fault}" if model is not None and model.fault else ""
                raise not_found(f"Could not find any versions of model {name}{why}")
            if version is None:
                return [model.versions[number].status for number in sorted(model.versions, reverse=True)]
            if version not in model.versions:
                raise not_found(f"Could not find version {version} of model {name}")
            return [model.versions[version].status]

    def labels(self, name: str) -> dict[str, int]:
        """Return the labels of a model as they are served at present."""
        with self._lock:
            return dict(self._models[name].labels) if name in self._models else {}

    def available(self, name: str) -> dict[int, float]:
        """Return the available versions of a model with their load times, epoch seconds."""
        with self._lock:
            loaded = self._models[name].loaded if name in self._models else {}
            return {number: loaded[number].loaded_at for number in sorted(loaded)}

    def names(self) -> list[str]:
        """Return the names of the configured models."""
        with self._lock:
            return sorted(self._models)

    @property
    def loading(self) -> list[str]:
        """Names of the configured models without an available version whose first load has not ended."""
        with self._lock:
            return sorted(name for name in self._target if self._is_loading(name))

    @property
    def ready(self) -> bool:
        """Whether every configured model has an available version."""
        return all(self.available(name) for name in self._target)

    def _is_loading(self, name: str) -> bool:
        return name in self._target and (name not in self._models or self._models[name].loading)

    def _labelled(self, name: str, label: str) -> int:
        if self._is_loading(name):
            raise _being_loaded(name)
        labels = self.labels(name)
        if label not in labels:
            raise invalid(f"Unrecognized servable version label: {label}")
        return labels[label]

    def _drop_models(self) -> list[_Model]:
        """Remove and return the models that are no longer configured, except models that still change."""
        with self._lock:
            names = set(self._models) - set(self._target) - set(self._threads)
            return [self._models.pop(name) for name in sorted(names)]

    def _start_threads(self) -> None:
        """Start a thread for each configured model that does not change at present."""
        with self._lock:
            for name, entry in self._target.items():
                if name not in self._threads:
                    thread = threading.Thread(target=self._run_step, args=(name, entry), name=f"model {name}")
                    thread.daemon = True  # a load that never ends must not keep the process
                    thread.start()
                    self._threads[name] = thread  # it removes itself, under the lock

    def _join(self, timeout_s: float = math.inf) -> None:
        """Wait until no model changes, ``timeout_s`` seconds at most."""
        until_s = time.monotonic() + timeout_s
        for thread in list(self._threads.values()):
            thread.join(min(max(until_s - time.monotonic(), 0.0), threading.TIMEOUT_MAX))

    def _run_step(self, name: str, entry: ModelEntry) -> None:
        try:
            self._step_model(name, entry)
        except Exception:  # noqa: BLE001 - the other models continue, and the next step tries again
            _LOG.exception("model %s: the change to its configured versions failed", name)
        finally:
            with self._lock:
                del self._threads[name]

    def _step_model(self, name: str, entry: ModelEntry) -> None:
        with self._lock:
            model = self._models.setdefault(name, _Model(entry))
            if model.entry.base_path != entry.base_path:  # the failures belong to another folder
                model.versions = {number: model.versions[number] for number in model.loaded}
            model.entry = entry
            if self._clock() < model.retry.not_before_s:
                return
        try:
            base = open_store(entry.base_path)
            configured = _configured_versions(entry, base)
        except (CimlError, OSError, ValueError) as error:  # ValueError: an impossible path
            self._postpone(model, error)
            return
        with self._lock:
            model.fault = ""
            model.retry = _Retry()
            model.listed = True
            for number in configured:
                model.versions.setdefault(number, _Version(VersionStatus(number, "START")))
        for number in sorted(configured, reverse=True):  # the highest most likely has a label
            self._load_version(model, number, base.child(str(number)))
        self._unload(model, configured)

    def _postpone(self, model: _Model, error: Exception) -> None:
        """Record that a model's folder cannot be listed. Its loaded versions and other models stay served."""
        fault = str(error)
        code = _code_of(error, "INVALID_ARGUMENT")
        if fault != model.fault:
            _LOG.error("model %s: %s", model.entry.name, fault)
        with self._lock:
            model.fault = fault
            model.retry.postpone(self._clock())
            for number in set(model.entry.versions) - set(model.loaded):
                status = VersionStatus(number, "END", code, fault)
                model.versions.setdefault(number, _Version(status)).status = status

    def _load_version(self, model: _Model, number: int, folder: Store) -> None:
        """Load a version unless its folder is loaded already, or a failed load must wait."""
        name = model.entry.name
        version = model.versions[number]
        started_s = self._clock()
        with self._lock:
            if version.answering is not None and version.answering.source == folder.root:
                return
            if self._closed or started_s < version.retry.not_before_s:
                return
            if version.answering is None and version.status.state != "END":  # a retry leaves the error readable
                version.status = VersionStatus(number, "LOADING")
        result = self._try_load(name, number, folder)
        took_s = self._clock() - started_s
        for unused in self._record(model, number, result, took_s):
            unused.close()
        self._on_load(name, _outcome_of(result), took_s)

    def _try_load(self, name: str, number: int, folder: Store) -> LoadedModel | Exception:
        try:
            loaded = self._load(folder, partial(self._verifier, name, number) if self._verifier else None)
        except Exception as error:  # noqa: BLE001 - a bad model must not stop the others
            _LOG.error("model %s: version %d failed to load: %s", name, number, error)
            return error
        _LOG.info("model %s: version %d available", name, number)
        return loaded

    def _record(self, model: _Model, number: int, result: LoadedModel | Exception, took_s: float) -> list[LoadedModel]:
        """Record the result of a load. Return the loaded models that are no longer served."""
        with self._lock:
            version = model.versions[number]
            loaded = [version.loaded]
            if isinstance(result, Exception):
                answering = version.answering
                state: State = "END" if answering is None else "AVAILABLE"
                version.status = VersionStatus(number, state, _code_of(result, "UNKNOWN"), str(result))
                version.retry.postpone(self._clock(), took_s)
                version.loaded = answering
            else:
                loaded.append(result)
                version.status = VersionStatus(number, "AVAILABLE")
                version.retry = _Retry()
                version.loaded = None if self._closed else result
            model.move_labels()
            return [unused for unused in loaded if unused is not None and unused is not version.loaded]

    def _unload(self, model: _Model, configured: set[int]) -> None:
        """Unload the versions of a model that are neither configured nor labelled, if a configured one is available."""
        with self._lock:
            model.move_labels()
            loaded = model.loaded
            for number in set(model.versions) - configured - set(loaded):
                del model.versions[number]
            surplus = set(loaded) - configured - set(model.labels.values())
            if configured and not configured & set(loaded):
                surplus &= model.entry.withdrawn  # no configured version is available: keep serving the loaded ones
            for number in surplus:
                model.versions[number] = _Version(VersionStatus(number, "UNLOADING"))
        until_s = time.monotonic() + _DRAIN_S
        for number in sorted(surplus):
            _unload(model.entry.name, number, loaded[number], until_s)
            with self._lock:
                model.versions[number].status = VersionStatus(number, "END")


def _configured_versions(entry: ModelEntry, base: Store) -> set[int]:
    if entry.policy == "specific":
        return set(entry.versions)
    present = list_versions(base)
    return set(present if entry.policy == "all" else present[-entry.latest :])


def _unload_all(models: Iterable[_Model]) -> None:
    """Unload all versions of models that are no longer served, once their requests have ended or after `_DRAIN_S`."""
    until_s = time.monotonic() + _DRAIN_S
    for model in models:
        for number, loaded in model.loaded.items():
            _unload(model.entry.name, number, loaded, until_s)


def _unload(name: str, number: int, loaded: LoadedModel, until_s: float) -> None:
    """Unload a version that no new request is given, once its requests have ended, or at a time, monotonic seconds."""
    loaded.close(max(until_s - time.monotonic(), 0.0))
    _LOG.info("model %s: version %d unloaded", name, number)


def _code_of(error: Exception, other: str) -> str:
    """Return the gRPC status of an error; ``other`` if only the message explains the error."""
    if isinstance(error, FileNotFoundError):
        return "NOT_FOUND"
    if isinstance(error, EngineError | OSError):
        return "UNAVAILABLE"
    return "DATA_LOSS" if isinstance(error, IntegrityError) else other


def _outcome_of(result: LoadedModel | Exception) -> str:
    if isinstance(result, IntegrityError):
        return "refused"
    return "failed" if isinstance(result, Exception) else "loaded"


def _being_loaded(name: str) -> RequestError:
    return RequestError("UNAVAILABLE", f"model {name} is being loaded")
