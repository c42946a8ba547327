"""The ledger of a model: what people decide about its versions, with author and reason, and the history of all of it.

Each decision is a delta of the model's registry, which is never edited. `history` reads back every candidate, decision
of the gate, push, rollback, promotion, withdrawal, hold and release.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError, UnknownModelError
from ciml.manifest.log import Delta
from ciml.serving.model_files import check_label
from ciml.serving.push import Pushed, WithdrawnError, check_not_held, check_version_files, write_config
from ciml.serving.registry import STABLE, Registry, RegistryState, Signature

_UNSIGNED = Signature("", "")
_LOG = logging.getLogger(__name__)


def hold(registry: Registry, signed: Signature) -> None:
    """Keep the version that ``stable`` names in service: no push, promotion or rollback replaces it until `release`."""
    signed.check()

    def build(state: RegistryState) -> Delta:
        if state.champion is None:
            raise UnknownModelError(f"model {registry.model}: no version has the label {STABLE}; nothing to hold")
        if state.hold is not None:
            raise CimlError(f"model {registry.model} is held already by {state.hold.author}: {state.hold.reason}")
        return {"kind": "hold", "model_version": state.champion, **asdict(signed)}

    registry.commit(build)


def release(registry: Registry, signed: Signature) -> None:
    """End a hold. The next refresh pushes a candidate that was blessed meanwhile, if it is the last one."""
    signed.check()

    def build(state: RegistryState) -> Delta:
        if state.hold is None:
            raise CimlError(f"model {registry.model} is not held")
        return {"kind": "release", **asdict(signed)}

    registry.commit(build)


def promote(registry: Registry, version: int, signed: Signature, *, label: str = STABLE) -> Pushed:
    """Give a pushed version a label, such as ``stable`` to a version that has proved itself as ``canary``.

    Raises:
      UnknownModelError: there is no such version.
      WithdrawnError: only a rollback restores it.
      HeldError: a person holds the model.
      IntegrityError: its files were altered.
    """
    signed.check()
    check_label(label)
    check_version_files(registry, version)

    def build(state: RegistryState) -> Delta | None:
        check_not_held(registry.model, state.hold, label)
        if state.versions[version].withdrawn:
            raise WithdrawnError(
                f"model {registry.model}: version {version} was withdrawn; a rollback to it restores it"
            )
        if state.labels.get(label) == version:
            return None
        return {"kind": "labels", "action": "promote", "labels": {label: version}, **asdict(signed)}

    registry.commit(build)
    return _labelled(registry, label, version)


def unlabel(registry: Registry, label: str, signed: Signature) -> int:
    """Remove a label, such as ``canary`` from a version that need not prove itself any more. The version stays pushed.

    Returns:
      The version that the label named.

    Raises:
      CimlError: the label is `STABLE`, without which nothing would serve.
      UnknownModelError: no version has the label.
    """
    signed.check()
    if label == STABLE:
        raise CimlError(f"the label {STABLE} is not removed; withdraw the version, or promote another one")
    named = 0

    def build(state: RegistryState) -> Delta:
        nonlocal named
        if label not in state.labels:
            raise UnknownModelError(f"model {registry.model}: no version has the label {label}")
        named = state.labels[label]
        changes = {"model_version": named, "labels": {}, "removed": [label]}
        return {"kind": "labels", "action": "unlabel", **changes, **asdict(signed)}

    registry.commit(build)
    write_config(registry.data)
    return named


def withdraw(registry: Registry, versions: list[int], signed: Signature) -> dict[str, int | None]:
    """Take versions out of service permanently: no rollback without their numbers, and no refresh, restores them.

    A label that names one of them moves to the highest lower version that is neither withdrawn nor altered. Without
    one, the label is removed, and the model has no such version any more. A hold ends, if it held one of them.

    Returns:
      By label that moved, the version that it names now; None for a label that was removed.

    Raises:
      UnknownModelError: a version was never pushed.
    """
    signed.check()
    moved: dict[str, int | None] = {}

    def build(state: RegistryState) -> Delta | None:
        moved.clear()
        unknown = [number for number in versions if number not in state.pushed()]
        if unknown:
            raise UnknownModelError(f"model {registry.model}: version {unknown[0]} was never pushed")
        new = [number for number in versions if not state.versions[number].withdrawn]
        for label, number in state.labels.items():
            if number in new:
                moved[label] = _intact_predecessor(registry, state, number, new)
        labels = {label: number for label, number in moved.items() if number is not None}
        removed = [label for label, number in moved.items() if number is None]
        changes = {"labels": labels, "withdrawn": new, "removed": removed}
        return {"kind": "labels", "action": "withdraw", **changes, **asdict(signed)} if new else None

    registry.commit(build)
    write_config(registry.data)
    return moved


def rollback(
    data: DataRoot, model: str, version: int | None = None, *, label: str = STABLE, signed: Signature = _UNSIGNED
) -> Pushed:
    """Move a label to an earlier version (or any pushed one).

    The versions above the target, up to the one that the label named, are withdrawn and lose their labels. The version
    of `STABLE` is withdrawn only by a rollback of `STABLE`.

    Args:
      data: the data root.
      model: its name.
      version: the target; None means the predecessor of the version that the label names.
      label: the label to move.
      signed: who rolls back, and why.

    Raises:
      CimlError: if there is no such version.
      HeldError: a person holds the model.
      IntegrityError: its files were altered.
    """
    registry = Registry(data, model)
    labelled = registry.state.labels.get(label)
    if labelled is None:
        raise UnknownModelError(f"model {model}: no version has the label {label}")
    check_label(label)

    def build(state: RegistryState) -> Delta | None:
        check_not_held(registry.model, state.hold, label)
        present = state.labels.get(label, 0)
        if version is None and present != labelled:
            return None  # another person has moved the label meanwhile
        target = state.predecessor(labelled) if version is None else version
        if target is None:
            raise CimlError(f"model {model}: version {labelled} has no predecessor; nothing to roll back to")
        check_version_files(registry, target)
        if present == target:
            return None
        stable = None if label == STABLE else state.labels.get(STABLE)
        withdrawn = [number for number in state.pushed() if target < number <= present and number != stable]
        removed = [name for name, number in state.labels.items() if name != label and number in withdrawn]
        changes = {"labels": {label: target}, "withdrawn": withdrawn, "removed": removed}
        return {"kind": "labels", "action": "rollback", **changes, **asdict(signed)}

    registry.commit(build)
    return _labelled(registry, label, registry.state.labels[label])


def _intact_predecessor(registry: Registry, state: RegistryState, number: int, without: Collection[int]) -> int | None:
    """Return the highest lower version that is not withdrawn, not in ``without``, and whose files were not altered."""
    passed_over = set(without)
    while (lower := state.predecessor(number, without=passed_over)) is not None:
        try:
            check_version_files(registry, lower)
        except IntegrityError as error:
            _LOG.warning("model %s: version %d cannot replace version %d: %s", registry.model, lower, number, error)
            passed_over.add(lower)
        else:
            return lower
    return None


def _labelled(registry: Registry, label: str, version: int) -> Pushed:
    write_config(registry.data)
    return Pushed(registry.model, version, label, registry.state.versions[version].candidate)


@dataclass(frozen=True)
class Entry:
    """An entry of a model's ledger.

    Attributes:
      number: of the delta, from 1.
      time_us: epoch microseconds.
      action: ``train``, ``bless``, ``reject``, ``push``, ``abandon``, ``rollback``, ``promote``, ``unlabel``,
        ``withdraw``, ``hold`` or ``release``.
      candidate: its id; "" if the entry names a version alone.
      version: of the model; None before a push.
      labels: the versions that labels name by this entry.
      withdrawn: versions that this entry took out of service.
      removed: labels that name no version any more.
      author: who did it; "" for what ciml does by itself, and for entries of older versions.
      reasons: a person's reason, those of the gate, or of a training why the trainer refreshed.
    """

    number: int
    time_us: int
    action: str
    candidate: str = ""
    version: int | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    withdrawn: tuple[int, ...] = ()
    removed: tuple[str, ...] = ()
    author: str = ""
    reasons: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON."""
        return asdict(self)


#: The action of a delta, by its stored kind. The steps of a push before its end are left out.
_ACTIONS = {"candidate": "train", "pushed": "push", "abandoned": "abandon", "hold": "hold", "release": "release"}


def history(registry: Registry) -> Iterator[Entry]:
    """Yield the ledger of a model, from its first candidate on."""
    staged: dict[int, str] = {}
    for number, delta in enumerate(registry.deltas(), 1):
        kind = delta["kind"]
        action = _ACTIONS.get(kind, "")
        reasons = tuple(delta.get("reasons", ())) or tuple(filter(None, (delta.get("reason", ""),)))
        if kind == "verdict":
            action = "bless" if delta["blessed"] else "reject"
        elif kind == "labels":
            action = delta.get("action", "rollback" if delta.get("withdrawn") else "promote")
        candidate = delta.get("candidate", "")
        if kind == "staged":
            staged[delta["model_version"]] = candidate
        if not action:
            continue
        if action in ("push", "abandon"):
            candidate = staged.get(delta["model_version"], "")
        if isinstance(candidate, Mapping):
            reasons = tuple(filter(None, (candidate["facts"].get("reason"),)))
        yield Entry(
            number,
            delta["time_us"],
            action,
            candidate["id"] if isinstance(candidate, Mapping) else candidate,
            delta.get("model_version"),
            delta.get("labels", {}),
            tuple(delta.get("withdrawn", ())),
            tuple(delta.get("removed", ())),
            delta.get("author", ""),
            reasons,
        )


def facts_of_version(registry: Registry, version: int) -> dict[str, Any]:
    """Return all that is recorded of a version: state, candidate, digest, facts, and the gate's decision with figures.

    Raises:
      UnknownModelError: no version has this number.
    """
    state = registry.state
    entry = state.versions.get(version)
    if entry is None:
        raise UnknownModelError(
            f"model {registry.model}: no version {version}; versions: {sorted(state.versions) or 'none'}"
        )
    candidate = state.candidates[entry.candidate]
    decision = state.decisions.get(entry.candidate)
    return {
        "version": version,
        "state": "withdrawn" if entry.withdrawn else entry.state,
        "labels": sorted(label for label, number in state.labels.items() if number == version),
        "time_us": entry.time_us,
        "candidate": candidate.id,
        "digest": candidate.digest,
        "trained_us": candidate.time_us,
        **candidate.facts,
        "decision": decision.to_json() if decision else None,
    }
