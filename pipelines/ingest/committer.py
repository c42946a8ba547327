"""The ingest as a topic processor: settled batches of events are committed to the raw manifest, then published.

A batch is *settled* when each of its events has an outcome. The stages of `ciml.pipelines.ingest.pipeline` settle
batches, and *seal* them as bytes for the stage that commits. This module does not import Beam, since supervisors use
it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from ciml.digest import canonical_json
from ciml.errors import IntegrityError, RejectedInput
from ciml.events.payloads import offload_payloads
from ciml.events.records import Batch, OffsetRange, Outcome, RunFacts, Trust, facts_of_row, rows_of
from ciml.kafka import KafkaOptions
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import Delta, ManifestLog
from ciml.manifest.replica import LogReplica
from ciml.messages import ClosedDeadLetter, OpenDeadLetter, RunAnnouncement
from ciml.pipelines.kafka.broker import list_topic
from ciml.pipelines.kafka.plan import lost_offsets
from ciml.pipelines.kafka.publish import Announcement
from ciml.pipelines.processor import Output, PipelineConfig, PipelineProcessor, shared_replica
from ciml.runs.accounting import reconcile
from ciml.runs.dead_letters import described
from ciml.runs.run_log import Judge
from ciml.runs.state import RAW, RawState
from ciml.storage import Store
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.guard import attempt, bisect
from ciml.transforms.ingest.decode import ALL_JOBS
from ciml.trust import PolicySource, TrustPolicy, evaluate


@dataclass(frozen=True)
class SettleConfig:
    """Configuration of everything that settles runs: an ingest, a backfill, or a replay.

    Attributes:
      raw: the raw store.
      selection: globs of the jobs to take.
      trust: names the trust policy, at each use.
      fetch: allowed log sources and limits.
    """

    raw: Store
    selection: tuple[str, ...] = field(default=ALL_JOBS, kw_only=True)
    trust: PolicySource = field(default_factory=TrustPolicy.load, kw_only=True)
    fetch: FetchPolicy = field(default_factory=FetchPolicy, kw_only=True)


@dataclass(frozen=True)
class IngestConfig(PipelineConfig, SettleConfig):
    """Configuration of an ingest.

    Attributes:
      topic: topic of the events.
      runs_topic: topic for announcements of committed runs; "" for none.
      dead_letters_topic: topic for opened and closed dead letters; "" for none.
      names: (CloudEvent source, the run ids' source) pairs.
    """

    topic: str = "ci-events"
    runs_topic: str = "runs"
    names: tuple[tuple[str, str], ...] = ()
    dead_letters_topic: str = ""


class IngestProcessor(PipelineProcessor[IngestConfig, RawState, Batch]):
    """The topic processor of an ingest. Its results are settled batches, which the pipeline's stages make."""

    name = "raw"

    @property
    def topic(self) -> str:
        return self.config.topic

    def replica(self) -> Committer:
        return committer(self.config.raw)

    def empty_result(self, covers: OffsetRange) -> Batch:
        return Batch(covers)

    def reconcile(self, state: RawState, results: Sequence[Batch], now_us: int) -> Delta | None:
        return self.replica().delta(state, results, partial(evaluate, self.config.trust.current()))

    def outputs(self) -> Sequence[Output]:
        config = self.config
        return Output(config.runs_topic, render_runs), Output(config.dead_letters_topic, render_dead_letters)

    def encode(self, result: Batch) -> bytes:
        return seal_guarded(result)

    def decode(self, data: bytes) -> Batch:
        return unseal(data)


class Committer(LogReplica[RawState]):
    """A replica of a raw manifest that commits to it. Thread-safe.

    Args:
      raw: the raw store.
      clock: epoch seconds.
      limits: when to write a checkpoint.
    """

    def __init__(self, raw: Store, clock: Callable[[], float] = time.time, limits: Limits | None = None) -> None:
        super().__init__(ManifestLog(raw, clock=clock), RAW, limits)

    def commit(self, batches: Iterable[Batch], judge: Judge | None = None) -> int | None:
        """Commit the unsettled part of ``batches``. Return the version, or None if nothing was left.

        Args:
          batches: settled batches.
          judge: decides on the trust of runs that updates concern; see `ciml.runs.accounting.reconcile`.

        Raises:
          EngineError: if the store does not answer. The outcome is unknown; retrying is safe.
          IntegrityError: see `ciml.runs.accounting.reconcile`; nothing is committed.
        """
        settled = list(batches)
        return self.append(lambda state: self.delta(state, settled, judge))

    def delta(self, state: RawState, batches: Iterable[Batch], judge: Judge | None = None) -> Delta | None:
        """Return the delta of settled batches; None if nothing is left. Long payloads become objects of their own."""
        delta = reconcile(state, batches, int(self.log.clock() * 1e6), judge)
        return delta and offload_payloads(self.log.store, delta)


def committer(raw: Store) -> Committer:
    """Return the process's committer for a raw store."""
    return shared_replica(raw.root, "raw", lambda: Committer(raw))


def accept_losses(raw: Store, kafka: KafkaOptions, topic: str, *, dry_run: bool = False) -> list[OffsetRange]:
    """Commit lost, never read offsets of a topic as covered without messages.

    Args:
      raw: the raw store.
      kafka: connection to the broker.
      topic: the topic.
      dry_run: return them without a commit.

    Returns:
      The lost offsets by partition; empty without losses.

    Raises:
      IntegrityError: if the topic was recreated, which is not a loss but another topic.
      EngineError: if the broker or the store does not answer.
    """
    committing = committer(raw)
    listing = list_topic(kafka, topic)
    with committing.state() as state:
        lost = lost_offsets(state, listing)
    if lost and not dry_run:
        committing.commit([Batch(offsets) for offsets in lost])
    return lost


def seal(batch: Batch) -> bytes:
    """Serialise a settled batch as JSON for the committer.

    Raises:
      IntegrityError: for an unsettled batch.
    """
    if batch.messages or batch.pending_runs:
        raise IntegrityError(f"{batch.covers}: unsettled batch cannot be committed")
    covers = batch.covers
    offsets = [covers.topic, covers.topic_id, covers.partition, covers.start, covers.end] if covers else None
    # Dead letters of the runs of one message share its payload, which may have a MiB: it is written once.
    payloads = {id(outcome.payload): outcome.payload for outcome in batch.settled if outcome.payload is not None}
    places = {identity: place for place, identity in enumerate(payloads)}
    settled = [
        outcome.to_json() if outcome.payload is None else {**outcome.to_json(), "payload": places[id(outcome.payload)]}
        for outcome in batch.settled
    ]
    return canonical_json({"covers": offsets, "settled": settled, "payloads": list(payloads.values())})


def seal_guarded(batch: Batch) -> bytes:
    """Seal a batch; an outcome that cannot be serialised becomes a dead letter of its origin and its run."""
    sealed = attempt("seal", seal, batch)
    if not isinstance(sealed, RejectedInput):
        return sealed
    settled: list[Outcome] = []
    for part, sealed_part in bisect("seal", batch.settled, lambda part: seal(Batch(batch.covers, settled=list(part)))):
        settled += [_unsealed(part[0], sealed_part)] if isinstance(sealed_part, RejectedInput) else part
    return seal(Batch(batch.covers, settled=settled))


def _unsealed(outcome: Outcome, rejected: RejectedInput) -> Outcome:
    """Return the dead letter of an outcome that cannot be serialised. Its origin is valid; its run id may be."""
    dead_letter = Outcome("dead_letter", outcome.origin, reason=rejected.reason, detail=rejected.detail)
    if not outcome.run_id:
        return dead_letter
    of_run = dead_letter.replace(
        mention=RunFacts(outcome.run_id, build_uuid=""), trust=Trust(False, rejected.reason, "")
    )
    return dead_letter if isinstance(attempt("seal", seal, Batch(None, settled=[of_run])), RejectedInput) else of_run


def unseal(data: bytes) -> Batch:
    """Return the inverse of `seal`."""
    value = json.loads(data)
    covers = OffsetRange(*value["covers"]) if value["covers"] else None
    for record in value["settled"]:
        place = record.get("payload")
        if type(place) is int:  # a job of an older version has the payload itself
            record["payload"] = value["payloads"][place]
    return Batch(covers, settled=[Outcome.from_json(record) for record in value["settled"]])


def render_runs(delta: Delta) -> Iterable[Announcement]:
    """Yield the announcements of a raw delta: a reference to each new row, reclaims included, and its run's facts."""
    for record in rows_of(delta):
        facts = facts_of_row(record)
        file = record["file"]
        value: RunAnnouncement = {
            "run_id": facts.run_id,
            "build_name": facts.build_name,
            "path": file["path"],
            "digest": file["digest"],
            "raw_version": delta["version"],
            "facts": facts.to_json(),
        }
        if "output" in record:
            value["output"] = record["output"]
        if record["kind"] == "reclaim":
            value["reclaim"] = True
        yield facts.run_id.encode(), canonical_json(value), ()


def render_dead_letters(delta: Delta) -> Iterable[Announcement]:
    """Yield the dead letters that a raw delta closes, then those that it opens, without their payloads."""
    for origin, run_id in delta.get("closed_letters", ()):
        closed: ClosedDeadLetter = {
            "state": "closed",
            "origin": origin,
            "run_id": run_id,
            "raw_version": delta["version"],
        }
        yield _dead_letter_key(origin, run_id), canonical_json(closed), ()
    for record in delta["dead_letters"]:
        opened = cast(
            OpenDeadLetter,
            {"state": "open", **described(record), "time_us": delta["time_us"], "raw_version": delta["version"]},
        )
        yield _dead_letter_key(record["origin"], opened["run_id"]), canonical_json(opened), ()


def _dead_letter_key(origin: Sequence[Any], run_id: str) -> bytes:
    """Return the key of a dead letter's messages."""
    return canonical_json([*origin, run_id])
