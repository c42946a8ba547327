"""The feedback service: verdicts of the topic `predictions` become messages on changes in review systems.

`try_messages` shows the messages without sending them. `feedback_families` are the metrics of the service's manifest.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from ciml.data_root import DataRoot
from ciml.integrations.review import Format, Rendered, ReviewClient
from ciml.integrations.systems import System
from ciml.metrics import Family, manifest_families, metric
from ciml.pipelines.feedback import (
    FeedbackConfig,
    FeedbackProcessor,
    Judge,
    delta_of_truths,
    feedback_replica,
    judge_by_history,
)
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.services.decide import ServiceProgress
from ciml.services.service import TopicService
from ciml.verdicts.feedback.config import Feedback
from ciml.verdicts.feedback.evidence import compare_run, find_evidence, is_noted
from ciml.verdicts.feedback.judgement import Item, Silence, decide_feedback
from ciml.verdicts.feedback.outbox import Outbox, write_message
from ciml.verdicts.feedback.reactions import Reader
from ciml.verdicts.feedback.standing import Standings
from ciml.verdicts.feedback.state import REACTIONS as KINDS
from ciml.verdicts.feedback.state import SECONDS, Entry, FeedbackState, entry_key
from ciml.verdicts.feedback.text import Style
from ciml.verdicts.feedback.truths import Truths, add_corrections
from ciml.verdicts.signatures.stored import shared_signatures

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

_log = logging.getLogger(__name__)

VERDICTS = metric("ciml_feedback_verdicts_total")
MESSAGES = metric("ciml_feedback_messages_total")
RECORDED = metric("ciml_feedback_recorded_verdicts")
WAITING = metric("ciml_feedback_waiting")
UNSETTLED = metric("ciml_feedback_unsettled")
OLDEST = metric("ciml_feedback_oldest_timestamp_seconds")
PAUSED = metric("ciml_feedback_paused_until_timestamp_seconds")
REACTIONS = metric("ciml_feedback_reactions_total")
DELAY = metric("ciml_feedback_seconds", SECONDS)
CALLS = metric("ciml_feedback_call_seconds")

#: Time that one work item spends on the messages of a system; the next one reads new verdicts first.
_BUDGET_S = 10.0
#: Time between two readings of the raw manifest and the corrections.
_TRUTHS_EVERY_S = 10.0
#: Time that one such reading spends on the outputs of new runs, for failure signatures; the next one continues.
_SIGNATURES_S = 1.0


class _Work(NamedTuple):
    """A work item.

    Attributes:
      reads: of the topic.
      systems: the names of the review systems with a message or a reading of reactions that is due.
      settles: whether new facts may settle recorded verdicts.
    """

    reads: Sequence[PartitionRead] = ()
    systems: Sequence[str] = ()
    settles: bool = False


@dataclass(frozen=True)
class _Connection:
    """The objects by which one thread calls its review system. The client is None for a dry run."""

    outbox: Outbox
    reader: Reader
    client: ReviewClient | None


class FeedbackService(TopicService[FeedbackState]):
    """Publishes verdicts on changes. Each review system has a thread, which makes one call at a time.

    Args:
      config: of the pipeline.
      show: called with (entry, message) in a dry run; by default they are logged.
    """

    poll_s = 0.5
    retry_s = (0.5, 10.0)
    creates_topic = True

    def __init__(self, config: FeedbackConfig, show: Callable[[Entry, Rendered], object] | None = None) -> None:
        policy = config.feedback.policy
        self._truths = Truths(config.data, settle_untrusted=policy.settle_untrusted)
        compare = partial(compare_run, config.data, policy)
        noted = partial(is_noted, config.data)
        judge = Judge(config.feedback, compare, noted, self._truths.is_trusted, self._truths.is_known)
        super().__init__("ciml-feedback", FeedbackProcessor(config, judge))
        self.processor: FeedbackProcessor
        self._show = show or _log_message
        self._connections: dict[str, _Connection] = {}
        self._next_truths_s = 0.0
        self._calls = CALLS.histogram()

    def timings(self) -> Sequence[Collector]:
        return (self._calls,)

    def check(self) -> None:
        feedback = self.processor.config.feedback
        if not feedback.policy.dry_run:
            for system in feedback.systems:
                self._client(system).close()  # its creation has read the secret

    def open(self) -> None:
        """Create the clients, whose secrets are read here, and the topic."""
        config = self.processor.config
        policy = config.feedback.policy
        correct = partial(add_corrections, config.data)
        for system in config.feedback.systems:
            client = None if policy.dry_run else self._client(system)
            outbox = Outbox(
                system.name,
                self.committing,
                policy,
                partial(find_evidence, config.data, policy=policy),
                client,
                gap_s=system.gap_s,
                show=self._show,
                timed=partial(self._observe_call, system.name),
                settle_s=config.settle_s,
                markup=_markup_of(system),
            )
            reader = Reader(system.name, self.committing, client, policy.reviewers, correct)
            self._connections[system.name] = _Connection(outbox, reader, client)
        super().open()

    def _client(self, system: System) -> ReviewClient:
        feedback = self.processor.config.feedback
        return system.client(feedback.where(system), feedback.file.parent)

    def _observe_call(self, system: str, call: str, seconds: float) -> None:
        self._calls.labels(system, call).observe(seconds)

    def plan(self, ends: Mapping[int, int] | None = None, *, bounded: bool = True) -> _Work | None:
        with self.committing.state() as state:
            reads = self.reads(state, ends)
        systems = [
            name for name, connection in self._connections.items() if connection.outbox.due() or connection.reader.due()
        ]
        settles = self._read_truths()
        return _Work(reads, systems, settles) if reads or systems or settles else None

    def _read_truths(self) -> bool:
        """Read the results of reruns and the corrections of reviewers, if that is due. Return whether any is new.

        The failure signatures are read on, too.
        """
        now_s = time.monotonic()
        if now_s < self._next_truths_s:
            return False
        self._next_truths_s = now_s + _TRUTHS_EVERY_S
        with shared_signatures(self.processor.config.data).read(_SIGNATURES_S):
            pass  # a message reads what is left
        return self._truths.read()

    def run(self, work: _Work) -> None:
        if work.reads:
            self._truths.read()
        for read in work.reads:
            for judged in self.processor.read_all(read):
                self.processor.commit([judged])
        if work.reads or work.settles:
            self._settle()
        # All systems: reading and settling may have made more of them due.
        if self._connections:
            with ThreadPoolExecutor(len(self._connections), "feedback") as pool:
                for future in [pool.submit(_send_and_read, connection) for connection in self._connections.values()]:
                    future.result()

    def _settle(self) -> None:
        """Commit the facts that settle recorded verdicts, in several deltas if a delta cannot hold all."""
        time_us = int(time.time() * 1e6)
        while self.committing.append(lambda state: delta_of_truths(state, self._truths, time_us)) is not None:
            pass

    def counts(self, state: FeedbackState) -> dict[str, int]:
        counts = {kind: number for kind, number in sorted(state.verdicts.items()) if kind != "no_verdict"}
        for (_, outcome), number in sorted(state.messages.items()):
            name = f"messages {outcome}"
            counts[name] = counts.get(name, 0) + number
        return counts

    def progress(self, state: FeedbackState) -> ServiceProgress:
        return replace(super().progress(state), waiting=bool(state.opened))

    def families(self, state: FeedbackState) -> Iterable[Family]:
        return feedback_families(state, [system.name for system in self.processor.config.feedback.systems])

    def close(self) -> None:
        super().close()
        for connection in self._connections.values():
            if connection.client is not None:
                connection.client.close()


def _send_and_read(connection: _Connection) -> None:
    """Send the messages that are due, then read reactions, until the budget is spent or the system asks to wait."""
    until_s = time.monotonic() + _BUDGET_S
    for key in connection.outbox.due():
        if not connection.outbox.answer(key):
            return
        if time.monotonic() > until_s:
            return
    for key in connection.reader.due():
        if not connection.reader.read(key) or time.monotonic() > until_s:
            return


def _log_message(entry: Entry, message: Rendered) -> None:
    change = entry.change
    where = (change.project, change.change or change.head)  # hostile texts
    _log.warning("dry run: on %s, %r %r:\n%s", entry.system, *where, message.body)


def _markup_of(system: System) -> Format:
    """Return the markup of a system's messages. A kind is named like its markup."""
    return next((markup for markup in get_args(Format) if markup == system.kind), "github")


@dataclass(frozen=True)
class Trial:
    """A message that would be sent, or the reason for silence.

    Attributes:
      runs: run ids.
      reason: one of `ciml.verdicts.feedback.judgement.SILENT`; "" for a message.
      detail: of the reason, for people.
      system, project, change: of the message.
      message: its text; with the reason ``shadow`` or ``precision`` the one that is not sent; None else.
    """

    runs: tuple[str, ...]
    reason: str = ""
    detail: str = ""
    system: str = ""
    project: str = ""
    change: str = ""
    message: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}


def try_messages(data: DataRoot, feedback: Feedback, records: Iterable[Mapping[str, Any]]) -> Iterator[Trial]:
    """Yield the silent predictions in order, then one message for each patch set. Old predictions count as new.

    Args:
      data: with the runs, for their evidence, the history of verdicts, and the projects that were muted.
      feedback: the configuration.
      records: predictions as on the topic; of several of a job the last counts.

    Raises:
      EngineError: the store does not answer.
    """
    policy = feedback.policy
    with feedback_replica(data).state() as state:
        muted = sorted(state.muted)
        standings = Standings(list(state.history), policy, int(time.time() * 1e6))
    compare = partial(compare_run, data, policy)
    entries: dict[str, Entry] = {}
    for record in records:
        judgement = decide_feedback(record, feedback, muted, 0, compare, partial(is_noted, data))
        item, silence = judge_by_history(judgement, standings)
        if item is not None:
            entry = _entry_of(item)
            entries.setdefault(entry.key, entry).items[item.job] = item
            continue
        reason, detail = silence or Silence("bad_record")
        if judgement.item is None:
            yield Trial((str(record.get("run_id", "?"))[:200],), reason, detail)
        else:
            withheld = _render(data, feedback, _entry_of(judgement.item))
            yield replace(withheld, reason=reason, detail=detail)
    for entry in entries.values():
        yield _render(data, feedback, entry)


def _entry_of(item: Item) -> Entry:
    """Return the entry of a patch set with a single verdict."""
    entry = Entry(entry_key(item.system, item.ref), item.system, item.ref)
    entry.items[item.job] = item
    return entry


def _render(data: DataRoot, feedback: Feedback, entry: Entry) -> Trial:
    system = next(system for system in feedback.systems if system.name == entry.system)
    evidence = partial(find_evidence, data, policy=feedback.policy)
    run_ids = tuple(item.run_id for item in entry.items.values())
    change = entry.change.change or entry.change.head
    message = write_message(entry, evidence, Style.of_dry_run(_markup_of(system), feedback.policy))
    text = None if message is None else message.body
    return Trial(run_ids, "" if text else "unknown", "", system.name, entry.change.project, change, text)


def feedback_families(state: FeedbackState, systems: Iterable[str]) -> Iterator[Family]:
    """Yield the metric families of a state. Systems are those of the configuration, and those the manifest knows.

    Reactions begin at 0: Prometheus does not count the first value of a new series as an increase.
    """
    systems = tuple(systems)
    reacted = {(system, kind): 0 for system in systems for kind in KINDS}
    waiting: Counter[tuple[str]] = Counter({(system,): 0 for system in systems})
    unsettled = Counter(waiting)
    oldest = dict[tuple[str], float]()
    for key in state.opened:
        entry = state.entries[key]
        labels = (entry.system,)
        waiting[labels] += 1
        unsettled[labels] += entry.intent is not None
        oldest[labels] = min(oldest.get(labels, float("inf")), entry.since_us / 1e6)
    yield VERDICTS.of({(outcome,): number for outcome, number in state.verdicts.items()})
    yield RECORDED.of(_claims(state))
    yield MESSAGES.of(state.messages)
    yield WAITING.of(waiting)
    yield UNSETTLED.of(unsettled)
    yield OLDEST.of(oldest)
    yield PAUSED.of({(system,): until_us / 1e6 for system, until_us in state.paused.items()})
    yield REACTIONS.of(reacted | state.reacted)
    buckets = range(len(SECONDS) + 1)
    yield DELAY.distribution(
        {
            (system,): ([state.seconds[system, bucket] for bucket in buckets], total_us / 1e6)
            for system, total_us in state.seconds_us.items()
        }
    )
    yield from manifest_families("feedback", state.version, state.time_us, state.restored)


def _claims(state: FeedbackState) -> Counter[tuple[str, str, str]]:
    """Return the number of claims by model, cause, and whether they were right, wrong, or are still open."""
    counts = Counter[tuple[str, str, str]]()
    for verdict in state.history:
        if verdict.claim:
            outcome = "right" if verdict.settled == verdict.cause else "wrong"
            counts[verdict.model, verdict.cause, outcome if verdict.settled else "open"] += 1
    return counts
