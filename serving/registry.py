"""The registry of a model: its candidates, their verdicts, the versions that were pushed, and the labels.

It is a manifest log at ``DATA/registry/<model>``: whoever reads it sees one history, and two writers cannot both have
the same version. The files of a version are recorded with their digests, so that an altered one is seen. What
``stable`` names is the champion. The model server's configuration is derived from here and holds nothing of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ciml.errors import CimlError, IntegrityError
from ciml.manifest.log import Delta, ManifestLog, catch_up, commit
from ciml.storage.open import Store, open_store
from serving.model_config import ModelEntry, check_model_name
from serving.model_files import check_digests, file_digests, model_digest

STABLE = "stable"
CANARY = "canary"


@dataclass(frozen=True)
class Candidate:
    """A model that was trained. Its id is of its content: the same files are the same candidate.

    Attributes:
      id: the first 16 letters of ``digest``.
      digest: of all files (`serving.model_files.model_digest`).
      files: hex sha256 by relative path.
      folder: where it was when it was recorded.
      facts: what it was made of: data set, experiment, snapshot, …
    """

    id: str
    digest: str
    files: Mapping[str, str]
    folder: str
    facts: Mapping[str, Any]
    time_us: int


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a candidate.

    Attributes:
      blessed: whether it may be served.
      reasons: why not, one line each; or what spoke for it.
      metrics: the figures that decided.
    """

    blessed: bool
    reasons: Sequence[str] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """A version number and what became of it. Numbers are never used again.

    ``staged``: a push is under way, or died. ``pushed``: it may be served. ``abandoned``: the push came to nothing.
    ``withdrawn`` is a pushed version that was rolled back from; it is served again only when someone says so.
    """

    number: int
    candidate: str
    state: Literal["staged", "pushed", "abandoned"]
    time_us: int
    withdrawn: bool = False


class RegistryState:
    """What the deltas of a registry add up to."""

    def __init__(self) -> None:
        self.version = 0
        self.candidates: dict[str, Candidate] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.versions: dict[int, Version] = {}
        self.labels: dict[str, int] = {}
        self.last_candidate: str = ""

    def apply(self, version: int, delta: Delta) -> None:
        """Take in the delta that follows. Raises `IntegrityError` where it contradicts what came before."""
        if version != self.version + 1:
            raise IntegrityError(f"registry: version {version} after {self.version}")
        kind, time_us = delta["kind"], delta["time_us"]
        if kind == "candidate":
            one = delta["candidate"]
            self.candidates[one["id"]] = Candidate(**one, time_us=time_us)
            self.last_candidate = one["id"]
        elif kind == "verdict":
            self.verdicts[delta["candidate"]] = Verdict(delta["blessed"], tuple(delta["reasons"]), delta["metrics"])
        elif kind == "staged":
            number = delta["model_version"]
            if number in self.versions:
                raise IntegrityError(f"registry: model version {number} is staged twice")
            self.versions[number] = Version(number, delta["candidate"], "staged", time_us)
        elif kind in ("pushed", "abandoned"):
            number = delta["model_version"]
            if number not in self.versions or self.versions[number].state != "staged":
                raise IntegrityError(f"registry: model version {number} is {kind} without having been staged")
            self.versions[number] = Version(number, self.versions[number].candidate, kind, time_us)
            self._label(delta.get("labels", {}))
        elif kind == "labels":
            for number in delta.get("withdrawn", ()):
                before = self.versions[number]
                self.versions[number] = Version(number, before.candidate, before.state, before.time_us, withdrawn=True)
            self._label(delta["labels"])
            for label in delta.get("removed", ()):
                self.labels.pop(label, None)
        else:
            raise IntegrityError(f"registry: version {version} is a {kind!r}, which this ciml does not know")
        self.version = version

    def _label(self, labels: Mapping[str, int]) -> None:
        for label, number in labels.items():
            before = self.versions.get(number)
            if before is None or before.state != "pushed":
                raise IntegrityError(f"registry: label {label} names version {number}, which was not pushed")
            self.versions[number] = Version(number, before.candidate, before.state, before.time_us)
            self.labels[label] = number

    @property
    def champion(self) -> int | None:
        """The version that `stable` names."""
        return self.labels.get(STABLE)

    def files(self, number: int) -> Mapping[str, str]:
        """Digests by path of a pushed version. Raises `CimlError` where there is none."""
        version = self.versions.get(number)
        if version is None or version.state != "pushed":
            raise CimlError(f"version {number} was never pushed: there are {self.pushed() or 'none'}")
        return self.candidates[version.candidate].files

    def pushed(self) -> list[int]:
        """Return the versions that may be served, ascending."""
        return sorted(number for number, one in self.versions.items() if one.state == "pushed")

    def staged(self) -> list[int]:
        """Return the versions whose push is under way, or died."""
        return sorted(number for number, one in self.versions.items() if one.state == "staged")

    def predecessor(self, number: int) -> int | None:
        """Return the version to go back to from ``number``: the highest below it that was not withdrawn."""
        return max((one for one in self.pushed() if one < number and not self.versions[one].withdrawn), default=None)

    def served(self) -> list[int]:
        """Return the versions that the server is to hold: those with a label, and the champion's predecessor.

        The predecessor makes a rollback immediate, and stands in when a restarted server finds the champion damaged.
        """
        wanted = set(self.labels.values())
        if self.champion is not None and (before := self.predecessor(self.champion)) is not None:
            wanted.add(before)
        return sorted(wanted)

    def pending(self) -> Candidate | None:
        """Return the last candidate, where it was blessed and its push came to nothing: a pusher died."""
        verdict = self.verdicts.get(self.last_candidate)
        pushed = {one.candidate for one in self.versions.values() if one.state == "pushed"}
        if verdict is None or not verdict.blessed or self.last_candidate in pushed:
            return None
        return self.candidates[self.last_candidate]


class Registry:
    """The registry of one model below a data root.

    Args:
      data: the data root.
      model: the model's name.
      now_us: epoch microseconds, for what is recorded.
    """

    def __init__(self, data: Store, model: str, now_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self.data = data
        self.model = check_model_name(model)
        self.base = data.child("models").child(model)
        self._log = ManifestLog(data.child("registry").child(model))
        self._state = RegistryState()
        self._now_us = now_us

    @property
    def state(self) -> RegistryState:
        """The present state, read anew. Not to be changed by the caller."""
        catch_up(self._log, self._state)
        return self._state

    def commit(self, build: Callable[[RegistryState], Delta | None]) -> int | None:
        """Append what ``build`` makes of the present state; see `ciml.manifest.log.commit`."""

        def stamped() -> Delta | None:
            delta = build(self._state)
            return None if delta is None else {**delta, "time_us": self._now_us()}

        return commit(self._log, self._state, stamped)

    def record_candidate(self, folder: Store, facts: Mapping[str, Any] | None = None) -> Candidate:
        """Record a trained model with the digests of its files. The same files again are the same candidate.

        Raises:
          CimlError: where there is no model at ``folder``; `IntegrityError` where it holds what it must not.
        """
        try:
            files = file_digests(folder)
        except FileNotFoundError:
            raise CimlError(f"there is no model at {folder.root}") from None
        digest = model_digest(files)
        one = {"id": digest[:16], "digest": digest, "files": files, "folder": folder.root, "facts": dict(facts or {})}
        self.commit(
            lambda state: None if state.last_candidate == one["id"] else {"kind": "candidate", "candidate": one}
        )
        return self.state.candidates[digest[:16]]

    def record_verdict(self, candidate: str, verdict: Verdict) -> None:
        """Record what the gate said of a candidate; the last verdict counts."""
        delta = {
            "kind": "verdict",
            "candidate": candidate,
            "blessed": verdict.blessed,
            "reasons": list(verdict.reasons),
            "metrics": dict(verdict.metrics),
        }

        def build(state: RegistryState) -> Delta | None:
            if candidate not in state.candidates:
                raise CimlError(f"model {self.model}: there is no candidate {candidate}")
            return None if state.verdicts.get(candidate) == verdict else delta

        self.commit(build)

    def folder(self, number: int) -> Store:
        """Where version ``number`` lies."""
        return self.base.child(str(number))

    def read_asset(self, number: int, name: str) -> bytes:
        """Return the file ``assets/<name>`` of a pushed version, checked against its digest.

        Raises:
          CimlError: where that version or file does not exist; `IntegrityError` where it was altered.
        """
        path = f"assets/{name}"
        files = self.state.files(number)
        if path not in files:
            raise CimlError(f"model {self.model}: version {number} has no {path}")
        try:
            data = self.folder(number).read(path)
        except FileNotFoundError:
            raise IntegrityError(f"{self.folder(number).url(path)} is missing") from None
        import hashlib

        found = hashlib.sha256(data).hexdigest()
        check_digests(self.folder(number).root, {path: found}, {path: files[path]})
        return data

    def entry(self) -> ModelEntry | None:
        """This model's part of the server's configuration; None where no version has a label."""
        state = self.state
        if not state.labels:
            return None
        return ModelEntry(self.model, self.base.root, "specific", tuple(state.served()), labels=dict(state.labels))


def registered_models(data: Store) -> list[str]:
    """Return the models that have a registry below a data root."""
    return sorted({path.split("/")[1] for path in data.list("registry") if path.count("/") >= 2})


class RegistryVerifier:
    """Says for the model server whether a version's files are those that were pushed with a blessing.

    Args:
      root: the folder of all registries, local or ``s3://``.
    """

    def __init__(self, root: str) -> None:
        self._root = open_store(root)

    def __call__(self, model: str, version: int, digests: Mapping[str, str]) -> None:
        """Raise `IntegrityError` unless ``version`` was pushed and its files are as they were recorded."""
        state = RegistryState()
        catch_up(ManifestLog(self._root.child(check_model_name(model))), state)
        try:
            files = state.files(version)
        except CimlError as error:
            raise IntegrityError(f"model {model}: {error}") from None
        if not state.verdicts.get(state.versions[version].candidate, Verdict(False)).blessed:
            raise IntegrityError(f"model {model}: version {version} has no blessing")
        check_digests(f"{model}/{version}", digests, files)
