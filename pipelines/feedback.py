"""Reads the topic `predictions` and commits what is to be said of it, with its offsets."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ciml.errors import EngineError, RejectedInput
from ciml.events.fields import parse_json
from ciml.events.records import Message, OffsetRange
from ciml.kafka.options import KafkaOptions, ReadOptions
from ciml.manifest.coverage import NewCoverage
from ciml.manifest.log import Delta
from ciml.manifest.replica import LogReplica
from ciml.pipelines.kafka.plan import PartitionRead, read_range
from ciml.verdicts.feedback.config import Feedback, Policy
from ciml.verdicts.feedback.policy import Compare, Item, Judgement, Silence, judge
from ciml.verdicts.feedback.standing import Standings
from ciml.verdicts.feedback.state import FeedbackState
from ciml.verdicts.feedback.truths import Truths

_log = logging.getLogger(__name__)

#: A commit has 500 messages at most: their verdicts take at most 16 MB.
_READ = ReadOptions(batch_messages=500)
#: Settled verdicts of a commit, each about 100 bytes.
_MOST_SETTLED = 5000


def batches(kafka: KafkaOptions, read: PartitionRead) -> Iterator[tuple[OffsetRange, list[Message]]]:
    """Yield the messages of a bounded read in parts, each with the offsets that it covers. Raises as `read_range`."""
    end = read.end or read.start
    for part in read_range(kafka, read, read.start, lambda: end, _READ):
        covers = OffsetRange(read.topic, read.topic_id, read.partition, part.start, min(part.end, end))
        yield covers, [message for message in part.messages if message.offset < end]


@dataclass(frozen=True)
class Judge:
    """Judges the messages of the topic.

    Attributes:
      feedback: the configuration.
      compare: see `ciml.verdicts.feedback.policy.Compare`.
      is_trusted: whether a run is trusted.
      is_known: whether the cause of a run is known already. A verdict on such a run shows nothing of its model, which
        may have learned from the run: the history does not record it.
    """

    feedback: Feedback
    compare: Compare = lambda record: None
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
                return _BAD
            judgement = judge(record, self.feedback, muted, now_us, self.compare)
        except RejectedInput:
            return _BAD
        except EngineError:
            raise
        except Exception:  # noqa: BLE001
            _log.exception("the prediction at offset %d cannot be used", message.offset)
            return _BAD
        verdict = judgement.verdict
        if verdict is None:
            return judgement
        is_recorded = not self.is_known(verdict.run_id)
        return judgement._replace(
            verdict=verdict.replace(trusted=self.is_trusted(verdict.run_id)), is_recorded=is_recorded
        )


_BAD = Judgement(None, Silence("bad_record"))


def take(
    committing: LogReplica[FeedbackState], covers: OffsetRange, messages: Iterable[Message], judge: Judge, now_us: int
) -> None:
    """Judge messages, and commit what is to be said with the offsets that they cover; nothing if all are covered.

    Raises:
      EngineError: a store does not answer.
    """
    with committing.state() as state:
        muted = sorted(state.muted)
    judged = [(message.offset, judge.judge(message, muted, now_us)) for message in messages]
    committing.append(lambda state: taken(state, covers, judged, judge.feedback.policy, now_us))


def taken(
    state: FeedbackState, covers: OffsetRange, judged: Iterable[tuple[int, Judgement]], policy: Policy, now_us: int
) -> Delta | None:
    """Return the delta that covers messages, and holds the verdicts that are to be said; None if all are covered.

    Args:
      state: its history decides whether a model may speak.
      covers: the offsets of the messages.
      judged: offsets and judgements of the messages.
      policy: the conditions.
      now_us: the present, epoch microseconds.
    """
    offsets = NewCoverage(state)
    fresh = offsets.add(covers)
    if not fresh:
        return None
    standings = Standings(state.history, policy, now_us)
    items = []
    silent = Counter[str]()
    recorded = []
    for offset, judgement in judged:
        if offset not in fresh:
            continue
        item, silence = heard(judgement, standings)
        if item is not None:
            items.append(item.to_json())
        elif silence is not None:
            silent[silence.reason] += 1
        if judgement.verdict is not None and judgement.is_recorded:
            recorded.append(judgement.verdict.to_json())
    return {
        "time_us": now_us,
        "offsets": offsets.to_json(),
        "verdicts": items,
        "silent": dict(sorted(silent.items())),
        "recorded": recorded,
    }


def heard(judgement: Judgement, standings: Standings) -> tuple[Item | None, Silence | None]:
    """Return what is to be said of a judged prediction, with the history of its verdict; or the reason for silence."""
    item = judgement.item
    verdict = judgement.verdict
    if item is None or verdict is None:
        return None, judgement.silence
    standing = standings.of(verdict.model, verdict.project, verdict.cause)
    if standing.mode != "active":
        return None, Silence(standing.mode, standing.detail)
    precision = standing.precision
    reruns = standing.reruns
    told = item.replace(right=precision.right, settled=precision.runs, passed=reruns.right, reruns=reruns.runs)
    return told, None


def settled(state: FeedbackState, truths: Truths, now_us: int) -> Delta | None:
    """Return the delta with what settles recorded verdicts now; None if nothing has changed."""
    changes = []
    for verdict in state.history:
        truth = truths.of(verdict.run_id)
        if (truth.cause, truth.by) != (verdict.settled, verdict.by) and (truth.cause or verdict.settled):
            trusted = truths.is_trusted(verdict.run_id)
            changes.append({"id": verdict.id, "cause": truth.cause, "by": truth.by, "trusted": trusted})
    return {"time_us": now_us, "settled": changes[:_MOST_SETTLED]} if changes else None
