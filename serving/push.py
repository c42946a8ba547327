"""Push, rollback and repair: how a blessed candidate becomes a served version.

In this order, each step harmless when it is the last one: the version number is taken in the registry; the files are
staged beside the versions under a name that no server loads, and checked; the folder is renamed to its number (S3 has
no rename: there the files are copied, ``saved_model.pb`` last, and the number is named nowhere yet); the registry
commits version and label; the server's configuration, which is derived from the registry, is replaced. A pusher that
dies leaves the old version served; the next push, or `reconcile`, clears up after it.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.manifest.log import Delta
from ciml.storage.open import LocalStore, Store
from serving.model_config import CONFIG_NAME, render_config
from serving.model_files import LAST_FILE, check_digests, file_digests, list_versions, read_files
from serving.registry import STABLE, Candidate, Registry, RegistryState, Verdict, registered_models

_LOG = logging.getLogger(__name__)
_STAGING = "staging-"


class NotBlessedError(CimlError):
    """A push of a candidate that the gate did not bless."""


@dataclass(frozen=True)
class Pushed:
    """A version that may be served now, and its label."""

    model: str
    version: int
    label: str
    candidate: str


def push(
    data: Store,
    model: str,
    candidate_folder: Store,
    verdict: Verdict,
    *,
    label: str = STABLE,
    facts: Mapping[str, Any] | None = None,
    check: bool = True,
) -> Pushed:
    """Record a candidate and its verdict, and push it where it is blessed.

    Args:
      data: the data root.
      model: the model's name.
      candidate_folder: the SavedModel as it was exported.
      verdict: the gate's.
      label: what will name the new version; ``stable`` makes it the champion.
      facts: what the candidate was made of, for the record.
      check: whether to load the candidate first and to query it (`serving.contract.check_candidate`).

    Raises:
      NotBlessedError: with the verdict's reasons. Candidate and verdict are recorded all the same.
      IntegrityError: when the candidate is no model that ciml serves, or its files changed meanwhile.
    """
    registry = Registry(data, model)
    candidate = registry.record_candidate(candidate_folder, facts)
    registry.record_verdict(candidate.id, verdict)
    return push_candidate(registry, candidate.id, label=label, check=check)


def push_candidate(registry: Registry, candidate_id: str, *, label: str = STABLE, check: bool = True) -> Pushed:
    """Push a candidate that is recorded and blessed. Again is no harm: it becomes no second version. See `push`."""
    state = registry.state
    candidate = state.candidates.get(candidate_id)
    verdict = state.verdicts.get(candidate_id)
    if candidate is None or verdict is None or not verdict.blessed:
        why = "; ".join(verdict.reasons) if verdict else "the gate has not spoken"
        raise NotBlessedError(f"model {registry.model}: candidate {candidate_id} is not blessed: {why}")
    reconcile(registry)
    if check:
        from serving.contract import check_candidate

        check_candidate(_store(candidate.folder))
    number = _known_version(registry.state, candidate_id)
    if number is None:
        number = _take_number(registry, candidate_id)
        staged = _stage(registry, number, candidate)
        _check_staged(staged, candidate)
        _place(registry, number, staged)
        _commit(registry, number, label)
    else:
        _relabel(registry, number, label)
    write_config(registry.data)
    return Pushed(registry.model, number, label, candidate_id)


def _store(root: str) -> Store:
    from ciml.storage.open import open_store

    return open_store(root)


def _known_version(state: RegistryState, candidate_id: str) -> int | None:
    return max((one for one in state.pushed() if state.versions[one].candidate == candidate_id), default=None)


def _take_number(registry: Registry, candidate_id: str) -> int:
    """Take the next version number: above all that were ever taken, and above whatever lies there."""
    taken: list[int] = []
    pusher = secrets.token_hex(8)

    def build(state: RegistryState) -> Delta:
        number = max([0, *state.versions, *list_versions(registry.base, real=False)]) + 1
        taken[:] = [number]
        # With the pusher's own mark: two that take a number at once must not take each other's delta for their own.
        return {"kind": "staged", "candidate": candidate_id, "model_version": number, "pusher": pusher}

    registry.commit(build)
    return taken[0]


def _stage(registry: Registry, number: int, candidate: Candidate) -> Store:
    """Copy the candidate to where it can be placed from; return that folder."""
    base = registry.base
    local = isinstance(base, LocalStore)
    target = base.child(f"{_STAGING}{number}-{secrets.token_hex(4)}" if local else str(number))
    files = dict(read_files(_store(candidate.folder)))
    for path in sorted(files, key=lambda one: (one == LAST_FILE, one)):
        # Read back where something is there already: a writer that was answered twice finds what it wrote itself.
        if not target.create(path, files[path]) and target.read(path) != files[path]:
            raise IntegrityError(f"{target.url(path)} exists already: another wrote into {base.root}")
    return target


def _check_staged(staged: Store, candidate: Candidate) -> None:
    """Read back what was staged. Raises `IntegrityError` where it is not what was blessed."""
    check_digests(staged.root, file_digests(staged), candidate.files)


def _place(registry: Registry, number: int, staged: Store) -> None:
    """Rename the staged folder to its number. On S3 it lies there already."""
    if not isinstance(staged, LocalStore):
        return
    target = registry.folder(number).root
    try:
        os.rename(staged.root, target)  # fails where something is there already
        handle = os.open(registry.base.root, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise EngineError(f"cannot rename {staged.root} to {target}: {error.strerror or error}") from error


def _commit(registry: Registry, number: int, label: str) -> None:
    def build(state: RegistryState) -> Delta:
        if state.versions[number].state != "staged":
            raise CimlError(f"model {registry.model}: another pusher gave up version {number} for dead; push again")
        return {"kind": "pushed", "model_version": number, "labels": {label: number}}

    registry.commit(build)


def _relabel(registry: Registry, number: int, label: str) -> None:
    registry.commit(
        lambda state: None if state.labels.get(label) == number else {"kind": "labels", "labels": {label: number}}
    )


def write_config(data: Store) -> bool:
    """Bring the server's configuration to what the registries say; return whether it had to change.

    Several pushers may write it: each looks at the registries again after writing, so the last one to write has seen
    the last commit.
    """
    models = data.child("models")
    changed = False
    while True:
        entries = [Registry(data, name).entry() for name in registered_models(data)]
        text = render_config([entry for entry in entries if entry is not None]).encode()
        try:
            present: bytes | None = models.read(CONFIG_NAME)
        except FileNotFoundError:
            present = None
        if text == present or (present is None and not any(entries)):
            return changed
        models.replace(CONFIG_NAME, text)
        changed = True


def rollback(data: Store, model: str, version: int | None = None, *, label: str = STABLE) -> Pushed:
    """Move a label to an earlier version (or any that was pushed). Higher versions are withdrawn.

    Args:
      version: where to go; None means the predecessor of what the label names now.

    Raises:
      CimlError: where there is no such version; `IntegrityError` where its files were altered.
    """
    registry = Registry(data, model)
    state = registry.state
    present = state.labels.get(label)
    if present is None:
        raise CimlError(f"model {model}: nothing is labelled {label}")
    if version is None:
        version = state.predecessor(present)
        if version is None:
            raise CimlError(f"model {model}: version {present} has no predecessor to go back to")
    target, files = version, state.files(version)
    folder = registry.folder(target)
    try:
        check_digests(folder.root, file_digests(folder), files)
    except FileNotFoundError:
        raise IntegrityError(f"{folder.root} is gone") from None

    def build(state: RegistryState) -> Delta | None:
        now = state.labels.get(label)
        if now == target:
            return None
        withdrawn = [one for one in state.pushed() if target < one <= (now or 0)]
        stale = [name for name, number in state.labels.items() if name != label and number in withdrawn]
        return {"kind": "labels", "labels": {label: target}, "withdrawn": withdrawn, "removed": stale}

    registry.commit(build)
    write_config(data)
    return Pushed(model, target, label, registry.state.versions[target].candidate)


def reconcile(registry: Registry) -> list[str]:
    """Clear up after pushers that died, and write the configuration where it lags behind. Return what it did."""
    done = []
    for number in registry.state.staged():

        def build(state: RegistryState, number: int = number) -> Delta | None:
            if state.versions[number].state != "staged":
                return None
            return {"kind": "abandoned", "model_version": number}

        if registry.commit(build) is not None:
            _remove(registry.folder(number))
            done.append(f"version {number} was never finished: given up")
    if isinstance(registry.base, LocalStore) and os.path.isdir(registry.base.root):
        for name in sorted(os.listdir(registry.base.root)):
            if name.startswith(_STAGING):
                _remove(registry.base.child(name))
                done.append(f"{name} removed")
    if write_config(registry.data):
        done.append(f"{CONFIG_NAME} written")
    for line in done:
        _LOG.warning("model %s: %s", registry.model, line)
    return done


def _remove(folder: Store) -> None:
    if isinstance(folder, LocalStore):
        place = Path(folder.root)
        if place.is_symlink():
            place.unlink()
        elif place.is_dir():
            shutil.rmtree(place)
        return
    # The file that makes it a model goes first.
    for path in sorted(folder.list(), key=lambda one: (one != LAST_FILE, one)):
        folder.delete(path)


def verify_versions(data: Store, model: str) -> dict[int, str]:
    """Compare the folders of a model with its registry.

    Returns:
      For each version that was pushed or lies there: "" where all is as it was recorded, else what is wrong.
    """
    registry = Registry(data, model)
    state = registry.state
    found: dict[int, str] = {}
    for number in sorted({*state.pushed(), *list_versions(registry.base)}):
        folder = registry.folder(number)
        try:
            if number not in state.pushed():
                raise IntegrityError(f"{folder.root} was not pushed by ciml: it is never served; move it away")
            check_digests(folder.root, file_digests(folder), state.files(number))
            found[number] = ""
        except (CimlError, OSError) as error:
            found[number] = str(error) or type(error).__name__
    return found
