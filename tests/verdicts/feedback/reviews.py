"""A review system in memory that fails as real ones do, and predictions to speak of."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ciml.errors import EngineError
from ciml.integrations.http import UNAUTHORIZED, Busy, Refused, Unsettled
from ciml.integrations.review import ChangeRef, Format, Head, Posted, Reactions, Rendered
from ciml.integrations.systems import System
from ciml.verdicts.feedback.config import Feedback, Policy
from tests.durable import Died

NOW_S = 1_790_000_000.0


_FAULTS: Mapping[str, Callable[[], BaseException]] = {
    "busy": lambda: Busy("429 Too Many Requests", 7.0),
    "refused": lambda: Refused("invalid", "422"),
    "unauthorized": lambda: Refused(UNAUTHORIZED, "401"),
    "away": lambda: EngineError("not reached"),
    "vanished": lambda: Unsettled("timeout"),
    "broken": lambda: KeyError("a field is missing"),
    "killed": Died,
}


@dataclass
class Message:
    """One message on a change, and all texts that it ever had."""

    number: int
    project: str
    change: str
    texts: list[str]


@dataclass
class Review:
    """A review system. Each call may fail, by chance or as ``script`` says: a list of faults, the next one first.

    Faults: those of ``_FAULTS`` (nothing was done, or it is not known), ``lost`` (done, and no answer), ``killed
    after`` it was done.
    """

    format: Format = "github"
    can_edit: bool = True
    can_react: bool = True
    most_bytes: int = 60_000
    heads: dict[tuple[str, str], Head] = field(default_factory=dict)
    by_commit: dict[str, str] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    reacted: dict[str, Reactions] = field(default_factory=dict)
    script: list[str] = field(default_factory=list)
    chance: random.Random | None = None
    rate: float = 0.0
    calls: list[str] = field(default_factory=list)

    def _fault(self, call: str) -> str:
        self.calls.append(call)
        if self.script:
            return self.script.pop(0)
        if self.chance is None or self.chance.random() >= self.rate:
            return ""
        writes = ["lost", "vanished", "killed after"] if call in ("post", "edit") else []
        return self.chance.choice(["busy", "away", "killed", *writes])

    def _before(self, call: str) -> str:
        fault = self._fault(call)
        if fault in _FAULTS:
            raise _FAULTS[fault]()
        return fault

    def _after(self, fault: str) -> None:
        if fault == "lost":
            raise Unsettled("timeout")
        if fault == "killed after":
            raise Died

    def head(self, change: ChangeRef) -> Head:
        self._before("head")
        number = change.change or self.by_commit.get(change.head, "")
        found = self.heads.get((change.project, number))
        return found or Head("open", number, change.patchset, change.head) if number else Head("missing")

    def find(self, change: ChangeRef, marker: str) -> Posted | None:
        self._before("find")
        mine = [
            each for each in self.messages
            if (each.project, each.change) == (change.project, change.change) and marker in each.texts[-1]
        ]  # fmt: skip
        return Posted(change, str(mine[-1].number), body=mine[-1].texts[-1]) if mine else None

    def post(self, change: ChangeRef, message: Rendered) -> Posted:
        fault = self._before("post")
        made = Message(len(self.messages) + 1, change.project, change.change, [message.body])
        self.messages.append(made)
        self._after(fault)
        return Posted(change, str(made.number), f"https://review.example.org/{made.number}", message.body)

    def edit(self, posted: Posted, message: Rendered) -> Posted:
        if not self.can_edit:
            raise AssertionError("an outbox edits only where that is possible")
        fault = self._before("edit")
        (found,) = [each for each in self.messages if str(each.number) == posted.id]
        found.texts.append(message.body)
        self._after(fault)
        return Posted(posted.change, posted.id, posted.url, message.body)

    def reactions(self, posted: Posted) -> Reactions:
        self._before("reactions")
        return self.reacted.get(posted.id, Reactions())

    def close(self) -> None: ...


class ReviewSystem(System, frozen=True, kw_only=True):
    """A system whose client the test provides."""

    kind = "memory"

    def client(self, where: str, folder: Path) -> Review:
        raise NotImplementedError


def feedback(*systems: System, **policy: Any) -> Feedback:
    """A configuration that says everything at once, whatever the history of the model."""
    given = {"dry_run": False, "settle_s": 0.0, "settle_most_s": 0.0, "active_models": ("*",), **policy}
    return Feedback(
        Path("feedback.toml"), Policy(**given), systems or (ReviewSystem(name="review", sources=("zuul",), gap_s=0.0),)
    )


def prediction(number: int = 1, *, verdict: Mapping[str, Any] | None = None, **run: Any) -> dict[str, Any]:
    """The prediction of a failed run, as on the topic; ``run`` changes its facts."""
    said = {
        "cause": "machine", "probability": 0.91, "probabilities": {"code": 0.09, "machine": 0.91}, "set": ["machine"],
        "coverage": 0.9, "group": "unit", "runs": 214, "base_rate": {"code": 0.63, "machine": 0.37}, "retry": "yes",
    }  # fmt: skip
    run_id = f"zuul~{number}~1"
    facts = {
        "run_id": run_id, "build_uuid": str(number), "build_name": "unit", "phase": "finished", "outcome": "failure",
        "result": "FAILURE", "source": "zuul", "project": "org/project", "branch": "main", "pipeline": "check",
        "change": "12", "patchset": "3", "head": "a1" * 20, "provider": "cloud-a",
        "start_us": int((NOW_S - 600) * 1e6), "end_us": int((NOW_S - 60) * 1e6),
    }  # fmt: skip
    return {
        "id": f"{number:032x}", "run_id": run_id, "model": "cause", "version": 1, "class": "machine",
        "time_us": int((NOW_S - 30) * 1e6), "run": {**facts, **run}, "verdict": {**said, **(verdict or {})},
    }  # fmt: skip
