"""A manifest, a review system in memory and a clock: what tests of the outbox are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ciml.data_root import DataRoot
from ciml.errors import EngineError
from ciml.events.records import Message, OffsetRange
from ciml.kafka import KafkaOptions
from ciml.manifest.checkpoints import Limits
from ciml.manifest.replica import LogReplica
from ciml.pipelines.feedback import FeedbackConfig, FeedbackProcessor, Judge, feedback_replica
from ciml.verdicts.feedback.config import Feedback
from ciml.verdicts.feedback.judgement import Item
from ciml.verdicts.feedback.outbox import Outbox
from ciml.verdicts.feedback.state import Entry, FeedbackState
from ciml.verdicts.feedback.text import Finding
from ciml.verdicts.signatures.notes import Note
from tests.durable import Died
from tests.verdicts.feedback.reviews import NOW_S, Review

_LIMITS = Limits(deltas=100, records=500)


def take(
    committing: LogReplica[FeedbackState], covers: OffsetRange, messages: Iterable[Message], judge: Judge, now_us: int
) -> None:
    """Judge messages at a time, and commit them, as the service does."""
    config = FeedbackConfig(DataRoot.open("unused"), judge.feedback, kafka=KafkaOptions("unused:1"))
    processor = FeedbackProcessor(config, judge, committing)
    judged = processor.read(covers, messages, now_us)
    committing.append(lambda state: processor.reconcile(state, [judged], now_us))


@dataclass
class World:
    """A manifest, a review system, and a clock that only the test moves. `restart` is a new process."""

    folder: Path
    config: Feedback
    review: Review = field(default_factory=Review)
    now_s: float = NOW_S
    offset: int = 0
    shown: list[str] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    evidence: tuple[str, ...] = ("From minute 3 steal was 41 %.",)
    note: Note | None = None
    away: bool = False

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.committing = feedback_replica(DataRoot.open(self.folder), lambda: self.now_s, _LIMITS)
        policy = self.config.policy
        self.outbox = Outbox(
            "review", self.committing, policy, self._evidence, None if policy.dry_run else self.review,
            self.config.systems[0].gap_s, lambda entry, message: self.shown.append(message.body),
            clock=lambda: self.now_s, sleep=self._sleep,
        )  # fmt: skip

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    def _evidence(self, item: Item) -> Finding:
        if self.away:
            raise EngineError("the store does not answer")
        return Finding(item, self.evidence, note=self.note)

    def take(self, *records: dict[str, Any]) -> None:
        """Read predictions from the topic."""
        covers = OffsetRange("predictions", "", 0, self.offset, self.offset + len(records))
        messages = [Message(self.offset + number, orjson.dumps(one)) for number, one in enumerate(records)]
        self.offset += len(records)
        judge = Judge(self.config, is_noted=lambda run_id: self.note is not None)
        take(self.committing, covers, messages, judge, int(self.now_s * 1e6))

    def mute(self, project: str) -> None:
        self.committing.append(lambda state: {"time_us": int(self.now_s * 1e6), "muted": [project]})

    def work(self) -> None:
        """Say what is due until the system asks to wait."""
        for key in self.outbox.due():
            if not self.outbox.answer(key):
                return

    def say(self, *records: dict[str, Any]) -> None:
        """Read predictions, and say what is due."""
        self.take(*records)
        self.work()

    def settle(self, most: int = 40) -> None:
        """Work until nothing is left, restarted after each kill."""
        for _ in range(most):
            try:
                self.work()
            except Died:
                self.restart()
            with self.committing.state() as state:
                if not state.opened:
                    return
            self.now_s += 20.0
        raise AssertionError(f"not settled: {self.review.calls[-10:]}")

    @property
    def bodies(self) -> list[str]:
        return [each.texts[-1] for each in self.review.messages]

    @property
    def outcomes(self) -> dict[str, int]:
        with self.committing.state() as state:
            return {outcome: number for (_, outcome), number in sorted(state.messages.items())}

    def entries(self) -> list[Entry]:
        with self.committing.state() as state:
            return list(state.entries.values())
