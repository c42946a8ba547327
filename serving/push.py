"""Push and repair: how a blessed candidate becomes a served version.

A push has five steps, and may die after each:

1. take a version number in the registry;
2. stage the files next to the versions, in a folder that no server loads, and check them;
3. rename the folder to its number. S3 has no rename: the files are copied to a number that no configuration names yet,
   ``saved_model.pb`` last;
4. commit version and label in the registry;
5. replace the server's configuration, which is derived from the registry.

If a pusher dies, the old version stays served. The next push, or `reconcile`, cleans up.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
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
    ModelEntry,
    check_digests,
    check_label,
    file_digests,
    list_versions,
    parse_config,
    read_files,
    render_config,
)
from ciml.serving.registries import registered_models
from ciml.serving.registry import STABLE, Candidate, Decision, Hold, LostLeaseError, Registry, RegistryState
from ciml.storage import LocalStore, Store, open_store
from ciml.storage.local import sync_folder

_LOG = logging.getLogger(__name__)
_STAGING = "staging-"
#: For a candidate that was not compared with a champion.
ANY_CHAMPION = -1


class NotBlessedError(CimlError):
    """The candidate to push is not blessed by the gate."""


class WithdrawnError(CimlError):
    """The version is withdrawn: only a person's rollback restores it."""


class HeldError(CimlError):
    """A person holds the served version of the model."""


class ChampionChangedError(CimlError):
    """The candidate was compared with a champion that does not serve any more."""


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
    registry: Registry,
    candidate_id: str,
    *,
    label: str = STABLE,
    check: bool = True,
    lineage: Lineage = OFF,
    champion: int | None = ANY_CHAMPION,
) -> Pushed:
    """Push a recorded and blessed candidate. Idempotent: a repeated push adds no version. See `push`.

    Args:
      registry: the model's registry.
      candidate_id: names the candidate.
      label: of the new version.
      check: see `push`.
      lineage: see `push`.
      champion: the version that the gate compared the candidate with, None for none; it must still serve.

    Raises:
      ChampionChangedError: another version serves now.
      NotBlessedError, HeldError, WithdrawnError, IntegrityError: see `push`.
    """
    check_label(label)
    state = registry.state
    candidate = state.candidates.get(candidate_id)
    decision = state.decisions.get(candidate_id)
    if candidate is None or decision is None or not decision.blessed:
        reason = "; ".join(decision.reasons) if decision else "no decision of the gate is recorded"
        raise NotBlessedError(f"model {registry.model}: candidate {candidate_id} is not blessed: {reason}")
    with lineage.step(f"push.{registry.model}", lambda: _describe_inputs(registry, candidate)) as step:
        pushed = _push(registry, candidate, label, check, champion)
        step.describe(lambda: _describe_version(registry, candidate, pushed.version, label))
    return pushed


def _push(registry: Registry, candidate: Candidate, label: str, check: bool, champion: int | None) -> Pushed:
    reconcile(registry)

    def check_state(state: RegistryState) -> None:
        check_not_held(registry.model, state.hold, label)
        if champion not in (ANY_CHAMPION, state.champion):
            former, present = (f"version {number}" if number else "no version" for number in (champion, state.champion))
            raise ChampionChangedError(
                f"model {registry.model}: it was compared with {former}, and {present} serves now; refresh again"
            )

    check_state(registry.state)
    if check:
        from ciml.serving.contract import check_candidate

        check_candidate(open_store(candidate.folder))
    number = registry.state.version_of(candidate.id)
    if number is None:
        number = _take_number(registry, candidate.id)
        try:
            _write_version(registry, number, candidate)
        except (CimlError, OSError) as error:
            if number in registry.state.in_state("abandoned"):
                raise _abandoned(registry, number) from error
            raise
    elif number in registry.state.in_state("pushed"):
        check_version_files(registry, number)
    _commit(registry, number, label, check_state)
    write_config(registry.data)
    return Pushed(registry.model, number, label, candidate.id)


def _take_number(registry: Registry, candidate_id: str) -> int:
    """Take the next version number, above all taken numbers and all folders in the base path."""
    number = 0
    # Otherwise two concurrent pushers would write equal deltas, and each would mistake the other's for its own.
    pusher = secrets.token_hex(8)

    def build(state: RegistryState) -> Delta:
        nonlocal number  # built again after each lost race; the last one is committed
        number = max([0, *state.versions, *list_versions(registry.base, real=False)]) + 1
        return {"kind": "staged", "candidate": candidate_id, "model_version": number, "pusher": pusher}

    registry.commit(build)
    return number


def _write_version(registry: Registry, number: int, candidate: Candidate) -> None:
    """Copy a candidate to the folder of its version, which no server loads before all files are checked."""
    folder = registry.folder(number)
    if isinstance(registry.base, LocalStore):
        staged = registry.base.child(f"{_STAGING}{number}-{secrets.token_hex(4)}")
        _copy(candidate, staged)
        _rename(staged, folder)
    else:  # no configuration names the number yet
        _copy(candidate, folder)


def _copy(candidate: Candidate, target: Store) -> None:
    """Copy a candidate to a folder, with `LAST_FILE` last, and check the copy."""
    last: dict[str, bytes] = {}
    for path, content in read_files(open_store(candidate.folder)):
        if path == LAST_FILE:
            last[path] = content
        else:
            _create(target, path, content)
    for path, content in last.items():
        _create(target, path, content)
    check_digests(target.root, file_digests(target), candidate.files)


def _create(target: Store, path: str, content: bytes) -> None:
    # An existing object is read back: after a retried write, the writer finds its own object.
    if not target.create(path, content) and target.read(path) != content:
        raise IntegrityError(f"{target.url(path)} exists already: another process writes to this folder")


def _rename(staged: Store, folder: Store) -> None:
    try:
        os.rename(staged.root, folder.root)  # fails if the target exists
        sync_folder(Path(folder.root).parent)
    except OSError as error:
        raise EngineError(f"cannot rename {staged.root} to {folder.root}: {error.strerror or error}") from error


def _commit(registry: Registry, number: int, label: str, check_state: Callable[[RegistryState], None]) -> None:
    """Record a staged version as pushed with its label; for a pushed version, record the label."""

    def build(state: RegistryState) -> Delta | None:
        check_state(state)
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


def check_not_held(model: str, hold: Hold | None, label: str) -> None:
    """Raise `HeldError` if a person holds the stable version of a model, and the label to move is ``stable``."""
    if hold is not None and label == STABLE:
        raise HeldError(f"model {model} is held by {hold.author}: {hold.reason}; ciml models release ends that")


def check_version_files(registry: Registry, version: int) -> None:
    """Compare the files of a pushed version with the registry. Raises `IntegrityError` if they were altered."""
    files = registry.state.files(version)
    folder = registry.folder(version)
    try:
        check_digests(folder.root, file_digests(folder), files)
    except FileNotFoundError:
        raise IntegrityError(f"{folder.root} is missing") from None


def _abandoned(registry: Registry, number: int) -> CimlError:
    if registry.lease:
        return LostLeaseError(f"model {registry.model}: another trainer has taken over, and abandoned version {number}")
    who = "another push, or ciml models reconcile,"
    return CimlError(f"model {registry.model}: {who} abandoned version {number} meanwhile; push again")


def write_config(data: DataRoot) -> bool:
    """Write the server's configuration from the registries; return whether it changed.

    A model whose registry is damaged keeps its present entry, so that the others can still be changed.

    Safe for concurrent pushers: each reads the registries again after its write, so the last writer has seen the last
    commit.
    """
    models = data.models
    changed = False
    while True:
        try:
            current: bytes | None = models.read(CONFIG_NAME)
        except FileNotFoundError:
            current = None
        entries = list(_entries(data, current))
        text = render_config(entries).encode()
        if text == current or (current is None and not entries):
            return changed
        models.replace(CONFIG_NAME, text)
        changed = True


def _entries(data: DataRoot, current: bytes | None) -> Iterator[ModelEntry]:
    """Yield the entries of all served models, given the present configuration."""
    for name in registered_models(data):
        try:
            entry = Registry(data, name).entry()
        except IntegrityError as error:
            _LOG.warning("model %s keeps its entry in %s: %s", name, CONFIG_NAME, error)
            present = parse_config(current.decode()) if current else ()
            entry = next((entry for entry in present if entry.name == name), None)
        if entry is not None:
            yield entry


def reconcile(registry: Registry) -> list[str]:
    """Clean up after pushers that died, and update the configuration. Return a line for each action.

    The push of another trainer with a valid lease is left alone.
    """
    actions: list[str] = []
    if not _is_leased_to_another(registry):
        actions += _abandon_versions(registry)
    actions += _remove_abandoned_folders(registry)
    actions += _remove_staging_folders(registry)
    if write_config(registry.data):
        actions.append(f"{CONFIG_NAME} written")
    for line in actions:
        _LOG.warning("model %s: %s", registry.model, line)
    return actions


def _is_leased_to_another(registry: Registry) -> bool:
    lease = registry.state.lease
    return not registry.lease and lease is not None and lease.is_valid(registry.now_us())


def _abandon_versions(registry: Registry) -> Iterator[str]:
    for number in registry.state.in_state("staged"):
        if registry.commit(partial(_abandon_staged, number)) is not None:
            yield f"version {number} was never completed: abandoned"


def _abandon_staged(number: int, state: RegistryState) -> Delta | None:
    """Build the delta that abandons a version; None if a pusher has completed or abandoned the version."""
    if state.versions[number].state != "staged":
        return None
    return {"kind": "abandoned", "model_version": number}


def _remove_abandoned_folders(registry: Registry) -> Iterator[str]:
    """Remove the folders of abandoned versions, also folders that an earlier call or a renaming pusher left."""
    abandoned = registry.state.in_state("abandoned")
    if not abandoned:
        return
    for number in list_versions(registry.base, real=False):
        if number in abandoned:
            _remove(registry.folder(number))
            yield f"version {number} was abandoned: its folder removed"


def _remove_staging_folders(registry: Registry) -> Iterator[str]:
    """Remove the staging folders of versions that are no longer staged."""
    base = registry.base
    if not isinstance(base, LocalStore) or not os.path.isdir(base.root):
        return
    names = sorted(name for name in os.listdir(base.root) if name.startswith(_STAGING))
    # Read after the listing, since a number is taken before its folder is created.
    staged = tuple(f"{_STAGING}{number}-" for number in registry.state.in_state("staged"))
    for name in names:
        if not name.startswith(staged):
            _remove(base.child(name))
            yield f"{name} removed"


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


def _describe_inputs(registry: Registry, candidate: Candidate) -> Description:
    """Describe the candidate that is pushed. The version of this data is the key of the refresh that trained it."""
    facts = {"candidate": candidate.id, "digest": candidate.digest}
    version = str(candidate.facts.get("refresh", candidate.id))
    return Description((Data(registry.data.candidates(registry.model), version, facts=facts),))


def _describe_version(registry: Registry, candidate: Candidate, number: int, label: str) -> Description:
    """Describe a pushed version, its label and the digest of its files."""
    facts = {"label": label, "candidate": candidate.id, "digest": candidate.digest}
    output = Data(registry.base.url(), str(number), facts=facts)
    return Description(_describe_inputs(registry, candidate).inputs, (output,))
