"""Failure signatures: failed runs that share a key of their outputs, and how far these runs spread.

Failed runs are added in the order of the raw manifest. A run joins the signature of the first of its keys that founded
one, else its best key founds one. So a signature only gains runs, and the signatures of the first n runs are the state
after n runs.

A signature that hits several changes within hours indicates the machine or what jobs download. One that stays with a
single change and its reruns indicates the code of that change. Anybody can send runs that fail, so the first needs a
trusted run, and signatures without one are the first to be forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import msgspec

from ciml.events.outcomes import CODE, MACHINE
from ciml.limits import MAX_SIGNATURE_CHANGES, MAX_SIGNATURE_PLACES, MAX_SIGNATURE_RUNS, MAX_SIGNATURES, MAX_SIGNED_RUNS
from ciml.transforms.logs.failure_keys import Key

#: Changes within `WITHIN_US`, microseconds, that indicate the machine.
MACHINE_CHANGES = 3
WITHIN_US = 6 * 3_600_000_000
#: Runs of a single change that indicate its code.
CODE_RUNS = 2
#: Names the format and the limits of `Signatures.encode`: states of the same runs are equal if this is.
SIGNATURES_KIND = (
    f"signatures 1, {MACHINE_CHANGES} changes in {WITHIN_US} us, {MAX_SIGNATURES} signatures of "
    f"{MAX_SIGNATURE_CHANGES} changes, {MAX_SIGNATURE_PLACES} places and {MAX_SIGNATURE_RUNS} runs, "
    f"{MAX_SIGNED_RUNS} runs"
)


class Failure(NamedTuple):
    """A failed run.

    Attributes:
      run_id: encoded.
      job: its kind.
      change: what it tested; runs with an equal one are reruns. The run id where no change is known.
      time_us: its end, epoch microseconds.
      keys: of its output, the best first.
      node, provider: where it ran; "" if unknown.
      trusted: whether it was when it was stored.
    """

    run_id: str
    job: str
    change: str
    time_us: int
    keys: tuple[Key, ...]
    node: str = ""
    provider: str = ""
    trusted: bool = True


class ChangeRuns(msgspec.Struct, array_like=True):
    """The runs of a change in a signature: their number, of these the trusted ones, and the time of the last."""

    runs: int = 0
    trusted: int = 0
    last_us: int = 0


class Line(msgspec.Struct, array_like=True, frozen=True):
    """The line by which a signature is recognised: its number in the output of a run, counted from 1, and its text."""

    run_id: str
    number: int
    text: str


class Signature(msgspec.Struct):
    """Failed runs that share a key.

    Attributes:
      key: the one that founded it.
      founder: the first run.
      first_us, last_us: of its runs.
      runs: their number.
      trusted: of these, the trusted ones.
      changes: their number. One that returns after `MAX_SIGNATURE_CHANGES` others counts again.
      spread: the greatest number of changes, trusted ones among them, within `WITHIN_US`.
      by_change: the latest changes.
      jobs, nodes, providers: the number of runs of each; the first `MAX_SIGNATURE_PLACES`.
      latest: the ids of the latest runs.
      line: as the first run printed it; None until it is set.
    """

    key: Key
    founder: str
    first_us: int
    last_us: int
    runs: int = 0
    trusted: int = 0
    changes: int = 0
    spread: int = 0
    by_change: dict[str, ChangeRuns] = msgspec.field(default_factory=dict)
    jobs: dict[str, int] = msgspec.field(default_factory=dict)
    nodes: dict[str, int] = msgspec.field(default_factory=dict)
    providers: dict[str, int] = msgspec.field(default_factory=dict)
    latest: list[str] = msgspec.field(default_factory=list)
    line: Line | None = None

    @property
    def id(self) -> str:
        """The id of its key. A signature that was forgotten and returns has it again."""
        return self.key.id

    @property
    def judgement(self) -> str:
        """What its spread indicates: ``machine``, ``code``, or "" for neither."""
        if self.spread >= MACHINE_CHANGES:
            return MACHINE
        return CODE if self.changes == 1 and self.runs >= CODE_RUNS else ""

    def add(self, failure: Failure) -> None:
        """Add a run."""
        self.first_us = min(self.first_us, failure.time_us)
        self.last_us = max(self.last_us, failure.time_us)
        self.runs += 1
        self.trusted += failure.trusted
        self._add_change(failure)
        for counts, name in (
            (self.jobs, failure.job),
            (self.nodes, failure.node),
            (self.providers, failure.provider),
        ):
            _count(counts, name)
        self.latest = [*self.latest, failure.run_id][-MAX_SIGNATURE_RUNS:]

    def _add_change(self, failure: Failure) -> None:
        change = self.by_change.pop(failure.change, None)
        if change is None:
            change = ChangeRuns()
            self.changes += 1
        change.runs += 1
        change.trusted += failure.trusted
        change.last_us = max(change.last_us, failure.time_us)
        self.by_change[failure.change] = change
        if len(self.by_change) > MAX_SIGNATURE_CHANGES:
            del self.by_change[next(iter(self.by_change))]
        self.spread = max(self.spread, self.near(failure.time_us))

    def near(self, time_us: int) -> int:
        """Return the number of changes within `WITHIN_US` of a time; 0 if there is no trusted run among them."""
        recent = [failure for failure in self.by_change.values() if abs(failure.last_us - time_us) < WITHIN_US]
        return len(recent) if any(failure.trusted for failure in recent) else 0


def _count(counts: dict[str, int], name: str) -> None:
    if name and (name in counts or len(counts) < MAX_SIGNATURE_PLACES):
        counts[name] = counts.get(name, 0) + 1


class Signatures:
    """The signatures of the failed runs that were added.

    Example:
      >>> signatures = Signatures()
      >>> key = Key("OSError: [Errno <*>] No space left on device", "")
      >>> for number in range(3):
      ...     found = signatures.add(Failure(f"run {number}", "unit", f"change {number}", number, (key,)))
      >>> found.runs, found.judgement
      (3, 'machine')
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Signature] = {}
        self._by_run: OrderedDict[str, str] = OrderedDict()  # ids of signatures

    def add(self, failure: Failure) -> Signature | None:
        """Add a failed run; return its signature, or None if it has no key. A run that was added counts once."""
        if not failure.keys or failure.run_id in self._by_run:
            return self.of_run(failure.run_id)
        ids = [key.id for key in failure.keys]
        signature = next((self._by_id[number] for number in ids if number in self._by_id), None)
        if signature is None:
            signature = Signature(failure.keys[0], failure.run_id, failure.time_us, failure.time_us)
            self._by_id[ids[0]] = signature
        signature.add(failure)
        self._by_run[failure.run_id] = signature.id
        if len(self._by_run) > MAX_SIGNED_RUNS:
            self._by_run.popitem(last=False)
        self._forget(signature)
        return signature

    def _forget(self, added: Signature) -> None:
        """Keep `MAX_SIGNATURES`: those with trusted runs, then the latest."""
        if len(self._by_id) > MAX_SIGNATURES:
            candidates = (signature for signature in self._by_id.values() if signature is not added)
            oldest = min(candidates, key=lambda one: (one.trusted > 0, one.last_us, one.key))
            del self._by_id[oldest.id]

    def of_run(self, run_id: str) -> Signature | None:
        """Return the signature of a run; None if it has none, or is older than the `MAX_SIGNED_RUNS` latest."""
        return self._by_id.get(self._by_run.get(run_id, ""))

    def get(self, signature_id: str) -> Signature | None:
        """Return a signature; None for an id that is unknown or was forgotten."""
        return self._by_id.get(signature_id)

    def all(self) -> list[Signature]:
        """Return the signatures, the one with the latest run first."""
        return sorted(self._by_id.values(), key=lambda one: (-one.last_us, one.key))

    def encode(self) -> bytes:
        """Return the state, for `restore`."""
        return msgspec.msgpack.encode((list(self._by_id.values()), list(self._by_run.items())))

    def restore(self, state: bytes) -> None:
        """Continue after the runs that were added before `encode`. Raises `msgspec.DecodeError` for other bytes."""
        signatures, runs = msgspec.msgpack.decode(state, type=_State)
        self._by_id = {signature.id: signature for signature in signatures}
        self._by_run = OrderedDict(runs)


_State = tuple[list[Signature], list[tuple[str, str]]]
