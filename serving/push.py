"""Push and repair: how a blessed candidate becomes a served version.

A push has five steps, and may die after each of them:

1. take a version number in the registry;
2. stage the files next to the versions, under a name that no server loads, and check them;
3. rename the folder to its number. S3 has no rename: the files are copied under a number that nothing names yet,
   ``saved_model.pb`` last;
4. commit version and label in the registry;
5. replace the server's configuration, which is derived from the registry.

If a pusher dies, the old version is served as before; the next push, or `reconcile`, cleans up.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.lineage import OFF, Data, Description, Lineage
from ciml.manifest.log import Delta
from ciml.serving.model_files import (
    CONFIG_NAME,
    LAST_FILE,
    check_digests,
    file_digests,
    list_versions,
    read_files,
    render_config,
)
from ciml.serving.registries import registered_models
from ciml.serving.registry import STABLE, Candidate, Decision, LostLeaseError, Registry, RegistryState
from ciml.storage import LocalStore, Store, open_store
from ciml.storage.local import sync_folder

_LOG = logging.getLogger(__name__)
_STAGING = "staging-"


class NotBlessedError(CimlError):
    """The candidate to push is not blessed by the gate."""


class WithdrawnError(CimlError):
    """The version is withdrawn: only a person's rollback restores it."""


class HeldError(CimlError):
    """A person holds the served version of the model."""


@dataclass(frozen=True)
class Pushed:
    """A pushed version and its label."""

    model: str
    version: int
    label: str
    candidate: str


def push(
    data: DataRoot,
    model: str,
    candidate_folder: Store,
    decision: Decision,
    *,
    label: str = STABLE,
    facts: Mapping[str, Any] | None = None,
    check: bool = True,
    lineage: Lineage = OFF,
) -> Pushed:
    """Record a candidate and the gate's decision, and push it if it is blessed.

    Args:
      data: the data root.
      model: the model's name.
      candidate_folder: the exported SavedModel.
      decision: the gate's decision.
      label: the label of the new version; ``stable`` makes it the champion.
      facts: the candidate's data set, experiment, snapshot, …, recorded with it.
      check: load and query the candidate first (`ciml.serving.contract.check_candidate`).
      lineage: reports the step ``push.<model>`` of a blessed candidate.

    Raises:
      NotBlessedError: with the decision's reasons. Candidate and decision are recorded nevertheless.
      HeldError: a person holds the model, and the label is ``stable``. Candidate and decision are recorded, too.
      WithdrawnError: the candidate was pushed before, and its version is withdrawn.
      IntegrityError: if the candidate fails its checks, or its files changed meanwhile.
    """
    registry = Registry(data, model)
    candidate = registry.record_candidate(candidate_folder, facts)
    registry.record_decision(candidate.id, decision)
    return push_candidate(registry, candidate.id, label=label, check=check, lineage=lineage)


def push_candidate(
    registry: Registry, candidate_id: str, *, label: str = STABLE, check: bool = True, lineage: Lineage = OFF
) -> Pushed:
    """Push a recorded and blessed candidate. Idempotent: a repeated push adds no version. See `push`."""
    state = registry.state
    candidate = state.candidates.get(candidate_id)
    decision = state.decisions.get(candidate_id)
    if candidate is None or decision is None or not decision.blessed:
        reason = "; ".join(decision.reasons) if decision else "no decision of the gate is recorded"
        raise NotBlessedError(f"model {registry.model}: candidate {candidate_id} is not blessed: {reason}")
    with lineage.step(f"push.{registry.model}", lambda: _describe_inputs(registry, candidate)) as step:
        pushed = _push(registry, candidate, label, check)
        step.describe(lambda: _describe_version(registry, candidate, pushed.version, label))
    return pushed


def _push(registry: Registry, candidate: Candidate, label: str, check: bool) -> Pushed:
    reconcile(registry)
    check_not_held(registry, label)
    if check:
        from ciml.serving.contract import check_candidate

        check_candidate(open_store(candidate.folder))
    number = registry.state.version_of(candidate.id)
    if number is None:
        number = _take_number(registry, candidate.id)
        try:
            staged = _stage(registry, number, candidate)
            check_digests(staged.root, file_digests(staged), candidate.files)  # read back
            _rename(registry, number, staged)
        except (CimlError, OSError) as error:
            if number in registry.state.in_state("abandoned"):
                raise _abandoned(registry, number) from error
            raise
    _commit(registry, number, label)
    write_config(registry.data)
    return Pushed(registry.model, number, label, candidate.id)


def _take_number(registry: Registry, candidate_id: str) -> int:
    """Take the next version number, above all taken numbers and all folders in the base path."""
    number = 0
    # The delta of a concurrent pusher must differ, so that neither takes the other's for its own.
    pusher = secrets.token_hex(8)

    def build(state: RegistryState) -> Delta:
        nonlocal number  # a lost commit is built again
        number = max([0, *state.versions, *list_versions(registry.base, real=False)]) + 1
        return {"kind": "staged", "candidate": candidate_id, "model_version": number, "pusher": pusher}

    registry.commit(build)
    return number


def _stage(registry: Registry, number: int, candidate: Candidate) -> Store:
    """Copy the candidate to a new folder and return it. On S3, its name is the version number already."""
    base = registry.base
    is_local = isinstance(base, LocalStore)
    target = base.child(f"{_STAGING}{number}-{secrets.token_hex(4)}" if is_local else str(number))
    files = dict(read_files(open_store(candidate.folder)))
    for path in sorted(files, key=lambda path: (path == LAST_FILE, path)):
        # An existing object is read back: after a retried write, the writer finds its own object.
        if not target.create(path, files[path]) and target.read(path) != files[path]:
            raise IntegrityError(f"{target.url(path)} exists already: another process writes to {base.root}")
    return target


def _rename(registry: Registry, number: int, staged: Store) -> None:
    """Rename the staged folder to its number. On S3 it has that name already."""
    if not isinstance(staged, LocalStore):
        return
    target = registry.folder(number).root
    try:
        os.rename(staged.root, target)  # fails if the target exists
        sync_folder(Path(registry.base.root))
    except OSError as error:
        raise EngineError(f"cannot rename {staged.root} to {target}: {error.strerror or error}") from error


def _commit(registry: Registry, number: int, label: str) -> None:
    """Record a staged version as pushed with its label; for a pushed version, record the label."""

    def build(state: RegistryState) -> Delta | None:
        check_not_held(registry, label)
        version_state = state.versions[number].state
        if version_state == "staged":
            return {"kind": "pushed", "model_version": number, "labels": {label: number}}
        if state.versions[number].withdrawn:
            raise WithdrawnError(
                f"model {registry.model}: version {number} was withdrawn; a rollback to it restores it"
            )
        if version_state == "pushed":
            return None if state.labels.get(label) == number else {"kind": "labels", "labels": {label: number}}
        raise _abandoned(registry, number)

    registry.commit(build)


def check_not_held(registry: Registry, label: str) -> None:
    """Raise `HeldError` if a person holds the version that ``stable`` names, and the label is that one."""
    hold = registry.known.hold
    if hold is not None and label == STABLE:
        raise HeldError(
            f"model {registry.model} is held by {hold.author}: {hold.reason}; ciml models release ends that"
        )


def _abandoned(registry: Registry, number: int) -> CimlError:
    if registry.lease:
        return LostLeaseError(f"model {registry.model}: another trainer has taken over, and abandoned version {number}")
    who = "another push, or ciml models reconcile,"
    return CimlError(f"model {registry.model}: {who} abandoned version {number} meanwhile; push again")


def write_config(data: DataRoot) -> bool:
    """Write the server's configuration from the registries; return whether it changed.

    Safe for concurrent pushers: each reads the registries again after it wrote, so the last writer has seen the last
    commit.
    """
    models = data.models
    changed = False
    while True:
        entries = [Registry(data, name).entry() for name in registered_models(data)]
        text = render_config([entry for entry in entries if entry is not None]).encode()
        try:
            current: bytes | None = models.read(CONFIG_NAME)
        except FileNotFoundError:
            current = None
        if text == current or (current is None and not any(entries)):
            return changed
        models.replace(CONFIG_NAME, text)
        changed = True


def _is_pushing(registry: Registry) -> bool:
    """Return whether another trainer may be staging a version now."""
    lease = registry.state.lease
    return not registry.lease and lease is not None and lease.is_valid(registry.now_us())


def reconcile(registry: Registry) -> list[str]:
    """Clean up after pushers that died, and update the configuration. Return a line for each action."""
    actions = []
    for number in () if _is_pushing(registry) else registry.state.in_state("staged"):
        if registry.commit(partial(_abandon_staged, number)) is not None:
            actions.append(f"version {number} was never completed: abandoned")
    # Also the folders of earlier calls that died before the removal, and of pushers that were renaming meanwhile.
    abandoned = registry.state.in_state("abandoned")
    for number in list_versions(registry.base, real=False) if abandoned else ():
        if number in abandoned:
            _remove(registry.folder(number))
            actions.append(f"version {number} was abandoned: its folder removed")
    if isinstance(registry.base, LocalStore) and os.path.isdir(registry.base.root):
        for name in sorted(os.listdir(registry.base.root)):
            if name.startswith(_STAGING):
                _remove(registry.base.child(name))
                actions.append(f"{name} removed")
    if write_config(registry.data):
        actions.append(f"{CONFIG_NAME} written")
    for line in actions:
        _LOG.warning("model %s: %s", registry.model, line)
    return actions


def _abandon_staged(number: int, state: RegistryState) -> Delta | None:
    """Build the delta that abandons a version; None if its pusher has completed or abandoned it."""
    if state.versions[number].state != "staged":
        return None
    return {"kind": "abandoned", "model_version": number}


def _remove(folder: Store) -> None:
    if isinstance(folder, LocalStore):
        path = Path(folder.root)
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        return
    # Without this file the folder no longer counts as a model.
    for name in sorted(folder.list(), key=lambda name: (name != LAST_FILE, name)):
        folder.delete(name)


def verify_versions(data: DataRoot, model: str) -> dict[int, str]:
    """Compare the folders of a model with its registry.

    Returns:
      "" for each version whose files match the registry, else the defect; includes folders that were never pushed.
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


def _describe_inputs(registry: Registry, candidate: Candidate) -> Description:
    """Describe the candidate that is pushed; its version is that of the training."""
    facts = {"candidate": candidate.id, "digest": candidate.digest}
    version = str(candidate.facts.get("refresh", candidate.id))
    return Description((Data(registry.data.candidates(registry.model), version, facts=facts),))


def _describe_version(registry: Registry, candidate: Candidate, number: int, label: str) -> Description:
    """Describe a pushed version, its label and the digest of its files."""
    facts = {"label": label, "candidate": candidate.id, "digest": candidate.digest}
    output = Data(registry.base.url(), str(number), facts=facts)
    return Description(_describe_inputs(registry, candidate).inputs, (output,))
