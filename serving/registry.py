"""The registry of a model: its candidates, the gate's decisions, the pushed versions, and the labels.

It is a manifest log at ``DATA/registry/<model>``: all readers see one history, and two writers cannot take the same
version. It records the digests of a version's files, so that alterations are detected. The version that ``stable``
names is the champion. The model server's configuration is derived from the registry.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError, IntegrityError, UnknownModelError
from ciml.events.fields import check_line
from ciml.manifest.log import Delta, ManifestLog, catch_up, commit
from ciml.serving.model_files import ModelEntry, check_digests, check_model_name, file_digests, model_digest
from ciml.storage import LocalStore, Store, open_store

VersionState = Literal["staged", "pushed", "abandoned"]
#: The file that every model has in its assets, and the form of a candidate's fact ``refresh``.
_DEFINITION = "definition.json"
_KEY = re.compile(r"[0-9a-f]{8,64}")
STABLE = "stable"
CANARY = "canary"
SHADOW = "shadow"


@dataclass(frozen=True)
class Decision:
    """The gate's decision on a candidate.

    Attributes:
      blessed: whether it may be pushed and served.
      reasons: against the candidate, a line each; for a blessed one, those in favour.
      metrics: the figures behind the decision.
    """

    blessed: bool
    reasons: Sequence[str] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"reasons": list(self.reasons)}


@dataclass(frozen=True)
class Candidate:
    """A trained model. Its id is derived from its content: the same files are the same candidate.

    Attributes:
      id: the first 16 characters of ``digest``.
      digest: of all files (`ciml.serving.model_files.model_digest`).
      files: hex sha256 by relative path.
      folder: its folder when it was recorded.
      facts: its data set, experiment, snapshot, …
    """

    id: str
    digest: str
    files: Mapping[str, str]
    folder: str
    facts: Mapping[str, Any]
    time_us: int


@dataclass(frozen=True)
class CandidateNotice:
    """Marks an answer of a model that is not served: the last candidate, and the gate's decision on it.

    Attributes:
      id: of the candidate in the registry.
      blessed: whether the gate blessed it; False also without a decision.
      reasons: the gate's, a line each: against it, or for a blessed one in favour.
    """

    id: str
    blessed: bool
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        decision = "blessed by the gate" if self.blessed else "rejected by the gate, not served"
        return f"candidate {self.id}, {decision}"

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON."""
        return {"id": self.id, "blessed": self.blessed, "reasons": list(self.reasons)}


@dataclass(frozen=True)
class Version:
    """A version number and its state. Numbers are never reused.

    ``staged``: a push is in progress, or died. ``pushed``: may be served. ``abandoned``: the push failed.
    ``withdrawn``: rolled back from; served again only after an explicit rollback to it.
    """

    number: int
    candidate: str
    state: VersionState
    time_us: int
    withdrawn: bool = False


@dataclass(frozen=True)
class Signature:
    """Who changed something, and why.

    Attributes:
      author: a person, or a command of ciml.
      reason: one line.
    """

    author: str
    reason: str

    def check(self) -> Signature:
        """Return the signature. Raises `CimlError` if a part is empty, or no printable line."""
        for name, value in vars(self).items():
            check_line(name, value)
        return self


@dataclass(frozen=True)
class Hold(Signature):
    """Who holds a version in service, and why.

    Attributes:
      version: the version that is held.
    """

    version: int


@dataclass(frozen=True)
class Lease:
    """Which trainer may write: see `ciml.serving.lease`.

    Attributes:
      id: random; another one for each time that a lease is taken.
      host: name of the holder's machine.
      pid: of its process.
      started: when that process started, epoch seconds.
      until_us: when another trainer may take the lease, epoch microseconds.
    """

    id: str
    host: str
    pid: int
    started: float
    until_us: int

    def is_valid(self, now_us: int) -> bool:
        """Return whether no other trainer may take it yet."""
        return self.until_us > now_us


class LostLeaseError(EngineError):
    """Another trainer has taken the lease of the model, since this one did not renew it in time."""


@dataclass(eq=False)
class RegistryState:
    """The state of a registry after its deltas.

    Attributes:
      version: of the registry: the number of its deltas.
      candidates: all candidates, by id.
      decisions: the last decision on each candidate, by its id.
      versions: all model versions, by number.
      labels: the version number of each label.
      last_candidate: the id of the last recorded candidate; "" before the first.
      hold: who holds the version that ``stable`` names, so that no push replaces it; None without a hold.
      lease: of the trainer that writes; None if none does.
    """

    version: int = 0
    candidates: dict[str, Candidate] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)
    versions: dict[int, Version] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    last_candidate: str = ""
    hold: Hold | None = None
    lease: Lease | None = None

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta. Raises `IntegrityError` if it contradicts the earlier ones."""
        apply_kind = _APPLY_KIND.get(delta["kind"])
        if apply_kind is None:
            raise IntegrityError(f"registry: version {version} has the unknown kind {delta['kind']!r}; upgrade ciml")
        apply_kind(self, delta)

    def _add_candidate(self, delta: Delta) -> None:
        candidate = Candidate(**delta["candidate"], time_us=delta["time_us"])
        self.candidates[candidate.id] = candidate
        self.last_candidate = candidate.id

    def _decide(self, delta: Delta) -> None:
        self.decisions[delta["candidate"]] = Decision(delta["blessed"], tuple(delta["reasons"]), delta["metrics"])

    def _stage(self, delta: Delta) -> None:
        number = delta["model_version"]
        if number in self.versions:
            raise IntegrityError(f"registry: model version {number} is staged twice")
        self.versions[number] = Version(number, delta["candidate"], "staged", delta["time_us"])

    def _end_push(self, delta: Delta) -> None:
        number = delta["model_version"]
        state = delta["kind"]
        if number not in self.in_state("staged"):
            raise IntegrityError(f"registry: model version {number} is {state} but was never staged")
        self.versions[number] = replace(self.versions[number], state=state, time_us=delta["time_us"])
        self._label(delta.get("labels", {}))

    def _change_labels(self, delta: Delta) -> None:
        for number in delta.get("withdrawn", ()):
            self.versions[number] = replace(self.versions[number], withdrawn=True)
        if self.hold is not None and self.versions[self.hold.version].withdrawn:
            self.hold = None
        self._label(delta["labels"])
        for label in delta.get("removed", ()):
            self.labels.pop(label, None)

    def _hold(self, delta: Delta) -> None:
        is_held = delta["kind"] == "hold"
        self.hold = Hold(delta["author"], delta["reason"], delta["model_version"]) if is_held else None

    def _take_lease(self, delta: Delta) -> None:
        self.lease = None if delta["lease"] is None else Lease(**delta["lease"])

    def _label(self, labels: Mapping[str, int]) -> None:
        for label, number in labels.items():
            if number not in self.pushed():
                raise IntegrityError(f"registry: label {label} names version {number}, which was not pushed")
            self.versions[number] = replace(self.versions[number], withdrawn=False)
            self.labels[label] = number

    @property
    def champion(self) -> int | None:
        """The version labelled `stable`, or None."""
        return self.labels.get(STABLE)

    def files(self, number: int) -> Mapping[str, str]:
        """Return the digests of a pushed version by path. Raises `CimlError` if it was not pushed."""
        if number not in self.pushed():
            raise UnknownModelError(f"version {number} was never pushed; pushed versions: {self.pushed() or 'none'}")
        return self.candidates[self.versions[number].candidate].files

    def in_state(self, state: VersionState) -> list[int]:
        """Return the versions in a state, ascending."""
        return sorted(number for number, version in self.versions.items() if version.state == state)

    def pushed(self) -> list[int]:
        """Return the pushed versions, ascending."""
        return self.in_state("pushed")

    @property
    def withdrawn(self) -> frozenset[int]:
        """The versions that were withdrawn."""
        return frozenset(number for number, version in self.versions.items() if version.withdrawn)

    def predecessor(self, number: int, without: Collection[int] = ()) -> int | None:
        """Return the rollback target of ``number``: the highest lower version that was not withdrawn.

        Args:
          number: of a version.
          without: versions that are about to be withdrawn.
        """
        lower = {earlier for earlier in self.pushed() if earlier < number}
        return max(lower - self.withdrawn - set(without), default=None)

    def served(self) -> list[int]:
        """Return the versions that the server loads: the labelled ones, and the champion's predecessor.

        The predecessor makes a rollback immediate, and replaces a damaged champion when the server restarts.
        """
        numbers = set(self.labels.values())
        if self.champion is not None and (before := self.predecessor(self.champion)) is not None:
            numbers.add(before)
        return sorted(numbers)

    def pending(self) -> Candidate | None:
        """Return the last candidate if it is blessed but was never pushed because a pusher died, else None."""
        is_pending = self.is_blessed(self.last_candidate) and self.version_of(self.last_candidate) is None
        return self.candidates[self.last_candidate] if is_pending else None

    def is_blessed(self, candidate: str) -> bool:
        """Return whether the last decision on a candidate blessed it."""
        return candidate in self.decisions and self.decisions[candidate].blessed

    def version_of(self, candidate: str) -> int | None:
        """Return the last pushed version of a candidate, or None."""
        return max((number for number in self.pushed() if self.versions[number].candidate == candidate), default=None)


#: Applies a delta, by its stored kind. The gate's decision is stored as ``verdict``.
_APPLY_KIND: Mapping[str, Callable[[RegistryState, Delta], None]] = {
    "candidate": RegistryState._add_candidate,
    "verdict": RegistryState._decide,
    "staged": RegistryState._stage,
    "pushed": RegistryState._end_push,
    "abandoned": RegistryState._end_push,
    "labels": RegistryState._change_labels,
    "hold": RegistryState._hold,
    "release": RegistryState._hold,
    "lease": RegistryState._take_lease,
}


class Registry:
    """The registry of one model in a data root.

    Args:
      data: the data root.
      model: the model's name.
      now_us: clock of the recorded times, epoch microseconds.

    Attributes:
      lease: id of the lease that each write needs; "" for none, as of people.
    """

    def __init__(self, data: DataRoot, model: str, now_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self.lease = ""
        self.data = data
        self.model = check_model_name(model)
        self.base = data.models.child(model)
        self._log = ManifestLog(data.registry.child(model))
        self._state = RegistryState()
        self.now_us = now_us

    @property
    def state(self) -> RegistryState:
        """The current state: each access reads new deltas from the store, and updates the same object.

        Only deltas may change it, so callers read it alone.
        """
        return catch_up(self._log, self._state)

    def deltas(self) -> Iterator[Delta]:
        """Yield all deltas, in order: what the registry has ever recorded."""
        return (delta for _, delta in self._log.since(0))

    def commit(self, build: Callable[[RegistryState], Delta | None]) -> int | None:
        """Append the delta that ``build`` derives from the current state; see `ciml.manifest.log.commit`.

        Raises:
          LostLeaseError: the write needs a lease that another trainer has taken.
        """

        def stamped() -> Delta | None:
            present = self._state.lease
            if self.lease and (present is None or present.id != self.lease):
                raise LostLeaseError(
                    f"model {self.model}: another trainer has taken over, since this one did not answer for too long; "
                    "nothing more of it is recorded"
                )
            delta = build(self._state)
            return None if delta is None else {**delta, "time_us": self.now_us()}

        return commit(self._log, self._state, stamped)

    def record_candidate(self, folder: Store, facts: Mapping[str, Any] | None = None) -> Candidate:
        """Record a trained model with the digests of its files. Idempotent for the same files.

        Raises:
          CimlError: if there is no model at ``folder``; `IntegrityError` if it holds forbidden files.
        """
        try:
            # A model beyond the limits of size is recorded, too: the push rejects it, and the decision is recorded.
            files = file_digests(folder, limited=False)
        except FileNotFoundError:
            raise CimlError(f"no model at {folder.root}") from None
        digest = model_digest(files)
        name = digest[:16]
        candidate = {"id": name, "digest": digest, "files": files, "folder": folder.root, "facts": dict(facts or {})}
        delta = {"kind": "candidate", "candidate": candidate}
        self.commit(lambda state: None if state.last_candidate == name else delta)
        return self.state.candidates[name]

    def record_decision(self, candidate: str, decision: Decision) -> None:
        """Record the gate's decision on a candidate; the last decision counts."""
        delta = {"kind": "verdict", "candidate": candidate, **decision.to_json()}

        def build(state: RegistryState) -> Delta | None:
            if candidate not in state.candidates:
                raise CimlError(f"model {self.model}: unknown candidate {candidate}")
            return None if state.decisions.get(candidate) == decision else delta

        self.commit(build)

    def folder(self, number: int) -> Store:
        """Return the folder of version ``number``."""
        return self.base.child(str(number))

    def labelled(self, label: str) -> int:
        """Return the version that a label names. Raises `CimlError` if there is none."""
        labels = self.state.labels
        if label not in labels:
            choices = ", ".join(sorted(labels)) or "none; push a version by ciml refresh"
            raise UnknownModelError(f"model {self.model}: no version has the label {label!r}; labels: {choices}")
        return labels[label]

    def last_candidate(self) -> tuple[Candidate, CandidateNotice]:
        """Return the last recorded candidate, and what its answers carry. Raises `UnknownModelError` without one."""
        state = self.state
        candidate = state.candidates.get(state.last_candidate)
        if candidate is None:
            raise UnknownModelError(f"model {self.model} has no candidate: train one by ciml refresh")
        decision = state.decisions.get(candidate.id, Decision(False, ("the gate has recorded no decision",)))
        return candidate, CandidateNotice(candidate.id, decision.blessed, tuple(decision.reasons))

    def candidate_folder(self, candidate: Candidate) -> Store:
        """Return a folder with the files of a candidate: the trainer's, or that of its version. They are not verified.

        Raises:
          CimlError: they are on another machine, or removed.
        """
        folders = [open_store(candidate.folder)]
        trainer = self.data.trainer(self.model)
        key = candidate.facts.get("refresh")
        if isinstance(trainer, LocalStore) and isinstance(key, str) and _KEY.fullmatch(key):
            folders.append(trainer.child(f"work/{key}/model"))  # of a data root that was moved
        version = self.state.version_of(candidate.id)
        if version is not None:
            folders.append(self.folder(version))
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                folder.read(f"assets/{_DEFINITION}")
                return folder
        raise CimlError(
            f"model {self.model}: the files of candidate {candidate.id} are not at {candidate.folder}. A trainer keeps "
            "its last five candidates on its own machine; predict there, or train again by ciml refresh"
        )

    def read_asset(self, number: int, name: str) -> bytes:
        """Return the file ``assets/<name>`` of a pushed version, checked against its digest.

        Raises:
          CimlError: if that version or file does not exist; `IntegrityError` if it was altered.
        """
        files = self.state.files(number)
        if f"assets/{name}" not in files:
            raise CimlError(f"model {self.model}: version {number} has no assets/{name}")
        return read_asset(self.folder(number), files, name)

    def entry(self) -> ModelEntry | None:
        """Return this model's part of the server's configuration; None without a labelled version."""
        state = self.state
        if not state.labels:
            return None
        return ModelEntry(self.model, self.base.root, "specific", tuple(state.served()), labels=dict(state.labels))


def read_asset(folder: Store, files: Mapping[str, str], name: str) -> bytes:
    """Return the file ``assets/<name>`` of a model's folder, checked against its digest in ``files``.

    Raises:
      IntegrityError: it is missing, or was altered.
    """
    path = f"assets/{name}"
    try:
        data = folder.read(path)
    except FileNotFoundError:
        raise IntegrityError(f"{folder.url(path)} is missing") from None
    check_digests(folder.root, {path: hashlib.sha256(data).hexdigest()}, {path: files[path]})
    return data
