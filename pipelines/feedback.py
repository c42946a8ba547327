"""Feedback as a topic processor: predictions become verdicts on changes, which are committed with their offsets.

A prediction is first *judged* by itself: there is a verdict to send (an `Item`), or a reason for silence. At the commit
the history of its model decides whether the verdict is sent.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ciml.data_root import DataRoot
from ciml.errors import EngineError, RejectedInput
from ciml.events.fields import parse_json
from ciml.events.records import Message, OffsetRange
from ciml.kafka import ReadOptions
from ciml.manifest.checkpoints import Limits
from ciml.manifest.coverage import NewCoverage
from ciml.manifest.log import Delta, ManifestLog
from ciml.manifest.replica import LogReplica
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.reader import read_range
from ciml.pipelines.processor import Processor, ProcessorConfig
from ciml.verdict_rules import UNKNOWN
from ciml.verdicts.feedback.config import Feedback, Policy
from ciml.verdicts.feedback.judgement import Compare, IsNoted, Item, Judgement, Silence, decide_feedback
from ciml.verdicts.feedback.outbox import SETTLE_S
from ciml.verdicts.feedback.standing import Standings
from ciml.verdicts.feedback.state import FEEDBACK, FeedbackState
from ciml.verdicts.feedback.truths import Truths

_log = logging.getLogger(__name__)

#: A commit has 500 messages at most: their verdicts take at most 16 MB.
_READ = ReadOptions(batch_messages=500)
#: Settled verdicts of a commit, each about 100 bytes.
_MOST_SETTLED = 5000
_UNUSABLE = Judgement(None, Silence("bad_record"))


@dataclass(frozen=True)
class FeedbackConfig(ProcessorConfig):
    """Configuration of feedback.

    Attributes:
      data: the data root.
      feedback: policy and systems.
      topic: of the predictions.
      settle_s: see `ciml.verdicts.feedback.outbox.Outbox`.
    """

    data: DataRoot
    feedback: Feedback
    topic: str = "predictions"
    settle_s: float = SETTLE_S


def feedback_replica(
    data: DataRoot, clock: Callable[[], float] = time.time, limits: Limits | None = None
) -> LogReplica[FeedbackState]:
    """Return a replica of the manifest of feedback below a data root."""
    return LogReplica(ManifestLog(data.feedback, clock=clock), FEEDBACK, limits)


@dataclass(frozen=True)
class Judge:
    """Judges the messages of the topic.

    Attributes:
      feedback: the configuration.
      compare: see `ciml.verdicts.feedback.judgement.Compare`.
      is_noted: see `ciml.verdicts.feedback.judgement.IsNoted`.
      is_trusted: whether a run is trusted.
      is_known: whether the cause of a run is known already; see `Judgement.with_run`.
    """

    feedback: Feedback
    compare: Compare = lambda record: None
    is_noted: IsNoted = lambda run_id: False
    is_trusted: Callable[[str], bool] = lambda run_id: False
    is_known: Callable[[str], bool] = lambda run_id: False

    def judge(self, message: Message, muted: Iterable[str], now_us: int) -> Judgement:
        """Judge a message. One that cannot be read, or makes it fail, affects only itself.

        Raises:
          EngineError: the store of the evidence does not answer.
        """
        try:
            record = parse_json(message.value or b"")
            if not isinstance(record, dict):
                return _UNUSABLE
            judgement = decide_feedback(record, self.feedback, muted, now_us, self.compare, self.is_noted)
        except RejectedInput:
            return _UNUSABLE
        except EngineError:
            raise
        except Exception:  # noqa: BLE001  # an unexpected one affects only this message
            _log.exception("the prediction at offset %d cannot be used", message.offset)
            return _UNUSABLE
        if judgement.verdict is None:
            return judgement
        run_id = judgement.verdict.run_id
        return judgement.with_run(is_trusted=self.is_trusted(run_id), is_known=self.is_known(run_id))


class Judged(NamedTuple):
    """Judgements of the messages of a range, by offset."""

    covers: OffsetRange
    judgements: Sequence[tuple[int, Judgement]] = ()


class FeedbackProcessor(Processor[FeedbackConfig, FeedbackState, Judged]):
    """The topic processor of feedback: it commits the verdicts to be sent.

    It writes no topic: threads of the service send the committed verdicts.

    Args:
      config: of feedback.
      judge: judges the messages.
      committing: the manifest; by default a new replica.
    """

    name = "feedback"

    def __init__(
        self, config: FeedbackConfig, judge: Judge, committing: LogReplica[FeedbackState] | None = None
    ) -> None:
        super().__init__(config)
        self.judge = judge
        self._replica = committing or feedback_replica(config.data)

    @property
    def topic(self) -> str:
        return self.config.topic

    def replica(self) -> LogReplica[FeedbackState]:
        return self._replica

    def read(self, covers: OffsetRange, messages: Iterable[Message], now_us: int) -> Judged:
        """Judge messages. Raises `EngineError` if a store does not answer."""
        with self._replica.state() as state:
            muted = sorted(state.muted)
        return Judged(covers, [(message.offset, self.judge.judge(message, muted, now_us)) for message in messages])

    def read_all(self, read: PartitionRead) -> Iterator[Judged]:
        """Yield the results of a bounded read, in parts. Raises as `ciml.pipelines.kafka.reader.read_range`."""
        end = read.end or read.start
        for part in read_range(self.config.kafka, read, read.start, lambda: end, _READ):
            covers = OffsetRange(read.topic, read.topic_id, read.partition, part.start, min(part.end, end))
            messages = [message for message in part.messages if message.offset < end]
            yield self.read(covers, messages, int(time.time() * 1e6))

    def empty_result(self, covers: OffsetRange) -> Judged:
        return Judged(covers)

    def reconcile(self, state: FeedbackState, results: Sequence[Judged], now_us: int) -> Delta | None:
        return delta_of_judgements(state, results, self.judge.feedback.policy, now_us)


def delta_of_judgements(state: FeedbackState, results: Iterable[Judged], policy: Policy, now_us: int) -> Delta | None:
    """Return the delta that covers messages and holds the verdicts to be sent; None if all messages are covered.

    Args:
      state: its history decides whether the verdicts of a model are sent.
      results: the judgements of the messages.
      policy: the conditions.
      now_us: the present, epoch microseconds.
    """
    offsets = NewCoverage(state)
    standings = Standings(state.history, policy, now_us)
    items = []
    silent = Counter[str]()
    recorded = []
    for covers, judgements in results:
        fresh = offsets.add(covers)
        for judgement in (judgement for offset, judgement in judgements if offset in fresh):
            item, silence = judge_by_history(judgement, standings)
            if item is not None:
                items.append(item.to_json())
            elif silence is not None:
                silent[silence.reason] += 1
            if judgement.verdict is not None and judgement.is_recorded:
                recorded.append(judgement.verdict.to_json())
    covered = offsets.to_json()
    if not covered:
        return None
    return {
        "time_us": now_us,
        "offsets": covered,
        "verdicts": items,
        "silent": dict(sorted(silent.items())),
        "recorded": recorded,
    }


def judge_by_history(judgement: Judgement, standings: Standings) -> tuple[Item | None, Silence | None]:
    """Return the verdict to send, with the record of its model; or the reason for silence.

    An operator's note is sent if the model may say any cause: in shadow mode, nothing is sent.
    """
    item = judgement.item
    verdict = judgement.verdict
    if item is None or verdict is None:
        return None, judgement.silence
    if item.cause == UNKNOWN:
        causes = [standings.of(verdict.model, verdict.project, cause) for cause in standings.policy.causes]
        if any(standing.mode == "active" for standing in causes):
            return item, None
        return None, Silence(causes[0].mode, causes[0].detail) if causes else Silence("unknown")
    standing = standings.of(verdict.model, verdict.project, verdict.cause)
    if standing.mode != "active":
        return None, Silence(standing.mode, standing.detail)
    precision = standing.precision
    reruns = standing.reruns
    item = item.replace(right=precision.right, settled=precision.runs, passed=reruns.right, reruns=reruns.runs)
    return item, None


def delta_of_truths(state: FeedbackState, truths: Truths, now_us: int) -> Delta | None:
    """Return the delta that settles recorded verdicts by the present truths; None if nothing has changed."""
    changes = []
    for verdict in state.history:
        truth = truths.of(verdict.run_id)
        is_settled = bool(truth.cause or verdict.settled)
        if is_settled and (truth.cause, truth.by) != (verdict.settled, verdict.by):
            trusted = truths.is_trusted(verdict.run_id)
            changes.append({"id": verdict.id, "cause": truth.cause, "by": truth.by, "trusted": trusted})
    return {"time_us": now_us, "settled": changes[:_MOST_SETTLED]} if changes else None
