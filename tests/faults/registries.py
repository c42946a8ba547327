"""The judge of registries: what a model server would serve now, and whether the ledger is a story that can be true.

Deltas are read as plain JSON and added up here, without ciml's registry; files are compared with their digests. Only
the choice of what is served is the server's own code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.serving.model_files import CONFIG_NAME, ModelEntry, file_digests, parse_config
from ciml.serving.registries import RegistryVerifier
from ciml.storage import open_store
from tests.faults.oracle import Objects, open_objects
from tests.faults.results import Verdict

MODEL, STABLE = "m", "stable"
#: A lease is taken and renewed by its trainer, whose other entries need it.
_OF_TRAINERS = ("candidate", "verdict", "staged", "pushed")


@dataclass
class Account:
    """A registry, added up.

    Attributes:
      deltas: all of them.
      pushed: candidate by pushed version.
      blessed: ids of candidates whose last decision blessed them.
      withdrawn: versions out of service.
      labels: version by label.
      files: digests by path, by candidate.
      faults: what cannot be true.
    """

    deltas: list[dict[str, Any]] = field(default_factory=list)
    pushed: dict[int, str] = field(default_factory=dict)
    blessed: set[str] = field(default_factory=set)
    withdrawn: set[int] = field(default_factory=set)
    labels: dict[str, int] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    _staged: dict[int, str] = field(default_factory=dict)
    _holder: int | None = None

    @property
    def last(self) -> dict[str, Any]:
        """The last candidate."""
        found: dict[str, Any] = next(delta for delta in reversed(self.deltas) if delta["kind"] == "candidate")
        return found["candidate"]  # type: ignore[no-any-return]

    def add(self, delta: dict[str, Any]) -> None:
        self.deltas.append(delta)
        number: Any = delta.get("model_version")
        kind = delta["kind"]
        if kind in _OF_TRAINERS:
            self._check_holder(delta)
        if kind == "lease":
            self._holder = delta["lease"] and delta["lease"]["pid"]
        elif kind == "candidate":
            self.files[delta["candidate"]["id"]] = delta["candidate"]["files"]
        elif kind == "verdict":
            (self.blessed.add if delta["blessed"] else self.blessed.discard)(delta["candidate"])
        elif kind == "staged":
            if number in self._staged:
                self.faults.append(f"story: version {number} is staged twice")
            if delta["candidate"] not in self.blessed:
                self.faults.append(f"I5: version {number} is of a candidate that is not blessed")
            self._staged[number] = delta["candidate"]
        elif kind == "pushed":
            if number in self.pushed or number not in self._staged:
                self.faults.append(f"story: version {number} is pushed, and was not staged")
            self.pushed[number] = self._staged.get(number, "")
            self._label(delta["labels"])
        elif kind == "labels":
            self.withdrawn |= set(delta.get("withdrawn", ()))
            self._label(delta["labels"])
            for label in delta.get("removed", ()):
                self.labels.pop(label, None)

    def _label(self, labels: dict[str, int]) -> None:
        unknown = set(labels.values()) - set(self.pushed)
        self.faults += [f"story: a label names version {number}, which was not pushed" for number in unknown]
        self.labels |= labels
        self.withdrawn -= set(labels.values())

    def _check_holder(self, delta: dict[str, Any]) -> None:
        """Whose pid is in the entry of a trainer has to be the holder of the lease."""
        writer = delta["candidate"]["facts"].get("pid") if delta["kind"] == "candidate" else None
        if delta["kind"] == "staged" and "-" in delta["pusher"]:
            writer = int(delta["pusher"].partition("-")[0])
        if writer is not None and writer != self._holder:
            self.faults.append(f"lease: {delta['kind']} of process {writer}, and the holder is {self._holder}")


class Reader:
    """Reads a registry; what was read before is read again only by `whole`."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._read: list[dict[str, Any]] = []

    def account(self) -> Account:
        """Return the present account."""
        while (delta := self._delta(len(self._read) + 1)) is not None:
            self._read.append(delta)
        account = Account()
        for delta in self._read:
            account.add(delta)
        return account

    def whole(self) -> list[str]:
        """Return what is wrong with entries that were read before."""
        numbers = range(1, len(self._read) + 1)
        changed = [number for number in numbers if self._delta(number) != self._read[number - 1]]
        return [f"story: entry {number} of the ledger was changed" for number in changed]

    def _delta(self, number: int) -> dict[str, Any] | None:
        data = self.objects.read(f"registry/{MODEL}/_manifest/{number:012d}.json")
        return None if data is None else json.loads(data)


def served(root: DataRoot, verifier: RegistryVerifier) -> tuple[ModelEntry | None, dict[int, str]]:
    """Return what a server would serve of the model: its entry, and each version with why it is refused."""
    try:
        text = root.models.read(CONFIG_NAME).decode()
    except FileNotFoundError:
        return None, {}
    entries = [entry for entry in parse_config(text) if entry.name == MODEL]
    current = verifier.current(entries[0]) if entries else None
    versions = {}
    for number in current.versions if current is not None else ():
        versions[number] = ""
        try:
            verifier(MODEL, number, file_digests(root.models.child(f"{MODEL}/{number}")))
        except (CimlError, OSError) as error:
            versions[number] = str(error) or type(error).__name__
    return current, versions


def probe(root: DataRoot, reader: Reader, verifier: RegistryVerifier) -> list[str]:
    """Check I5 at any time: what is served is whole, blessed and not withdrawn, and ``stable`` answers."""
    before = reader.account()
    entry, versions = served(root, verifier)
    after = reader.account()
    wrong = list(after.faults)
    for number in (number for number, refusal in versions.items() if not refusal):
        why = _against(reader.objects, number, before, after)
        wrong += [f"I5: version {number} is served and {text}" for text in why]
    target = before.labels.get(STABLE)
    if target is not None and after.labels.get(STABLE) == target and entry is not None:
        answers = entry.labels.get(STABLE)
        if answers is None or versions.get(answers, "not configured"):
            wrong.append(f"I5: {STABLE} does not answer: version {answers}: {versions.get(answers or 0)}")
    return wrong


def _against(objects: Objects, number: int, before: Account, after: Account) -> Iterator[str]:
    """Yield why a version must not be served, before the probe and after it."""
    if number not in after.pushed:
        yield "was never pushed"
        return
    if not {after.pushed[number]} & (before.blessed | after.blessed):
        yield "is not blessed"
    if number in before.withdrawn & after.withdrawn:
        yield "is withdrawn"
    folder = f"models/{MODEL}/{number}"
    files = {name.removeprefix(f"{folder}/"): objects.read(name) or b"" for name in objects.names(folder)}
    if {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} != after.files[after.pushed[number]]:
        yield "is not what was blessed"


class Watch:
    """Reads as a server does, again and again in a thread, and now by `look`.

    Args:
      url: of the data root.
      verdict: gets what is wrong.
    """

    def __init__(self, url: str, verdict: Verdict) -> None:
        self.root, self.reader = DataRoot.open(url), Reader(open_objects(url))
        self._verdict = verdict
        self._verifier = RegistryVerifier(self.root.registry.root)
        self._stop, self._lock = threading.Event(), threading.Lock()

    def look(self, when: str = "meanwhile") -> Account:
        """Probe once; return the account after it."""
        with self._lock:
            self._verdict.fail(*(f"{line} ({when})" for line in probe(self.root, self.reader, self._verifier)))
            self._verdict.count("polls")
            return self.reader.account()

    @contextlib.contextmanager
    def watching(self, every_s: float = 0.03) -> Iterator[None]:
        thread = threading.Thread(target=self._run, args=(every_s,))
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self, every_s: float) -> None:
        while not self._stop.wait(every_s) and len(self._verdict.failures) < 20:
            self.look()

    def tidy(self) -> list[str]:
        """Return what is left over where nobody works: folders that no version has, and a stale configuration."""
        account = self.reader.account()
        names = {name.split("/")[2] for name in self.reader.objects.names(f"models/{MODEL}")}
        left = names - {str(number) for number in account.pushed}
        wrong = [f"left: {name} below models/{MODEL}" for name in sorted(left)]
        text = (open_store(self.root.url).read(f"models/{CONFIG_NAME}")).decode()
        stale = {number for entry in parse_config(text) for number in entry.versions} & account.withdrawn
        return wrong + [f"I5: version {number} is withdrawn and configured" for number in stale]
