"""Recorded verdicts, said or not, in memories of bounded size. Trusted runs and others have memories of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ciml.events.records import Record
from ciml.limits import MAX_FEEDBACK_VERDICTS

#: What settles a verdict.
RERUNS, REVIEWER = "reruns", "reviewer"


class RecordedVerdict(Record, frozen=True, omit_defaults=True, gc=False):
    """A verdict on a failed run, and what settled it. All texts but ``settled`` and ``by`` are hostile.

    Attributes:
      id: of the prediction.
      run_id: of the run.
      model, version: that gave it.
      project, change, job: of the run.
      cause: the verdict, ``unknown`` included.
      claim: whether all conditions of a message hold but those on the model's history and on the change.
      probability: of the cause.
      seconds: duration of the run; None where it is unknown.
      time_us: when it was recorded, epoch microseconds.
      trusted: whether the run is trusted.
      settled: the cause by reruns or a reviewer; "" while it is open.
      by: what settled it: `RERUNS` or `REVIEWER`.
      settled_us: when it was settled, epoch microseconds.
    """

    id: str
    run_id: str
    model: str
    version: int
    project: str
    change: str
    job: str
    cause: str
    claim: bool
    probability: float
    seconds: float | None = None
    time_us: int = 0
    trusted: bool = False
    settled: str = ""
    by: str = ""
    settled_us: int = 0

    @property
    def subject(self) -> tuple[str, str]:
        """What runs that are alike share: their change; of a run without a change, the run."""
        return self.project, self.change or self.run_id

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RecordedVerdict:
        return cls(**value)


class Records:
    """The recorded verdicts by prediction id: settled ones, open ones of trusted runs, and open ones of other runs.

    Each of the three has at most `MAX_FEEDBACK_VERDICTS`, and forgets the oldest: untrusted runs displace no others.
    """

    def __init__(self, verdicts: Iterable[RecordedVerdict] = ()) -> None:
        self.settled: dict[str, RecordedVerdict] = {}
        self._open: dict[bool, dict[str, RecordedVerdict]] = {True: {}, False: {}}
        for verdict in verdicts:
            self.put(verdict)

    def put(self, verdict: RecordedVerdict) -> None:
        """Add a verdict, or replace the one with its id."""
        for memory in (self.settled, *self._open.values()):
            memory.pop(verdict.id, None)
        memory = self.settled if verdict.settled else self._open[verdict.trusted]
        memory[verdict.id] = verdict
        if len(memory) > MAX_FEEDBACK_VERDICTS:
            del memory[next(iter(memory))]

    def find(self, identity: str) -> RecordedVerdict | None:
        """Return the verdict of a prediction."""
        memories = (self.settled, *self._open.values())
        return next((memory[identity] for memory in memories if identity in memory), None)

    def __iter__(self) -> Iterator[RecordedVerdict]:
        """Yield all verdicts, the settled ones first."""
        yield from self.settled.values()
        for memory in self._open.values():
            yield from memory.values()

    def __len__(self) -> int:
        return sum(len(memory) for memory in (self.settled, *self._open.values()))
