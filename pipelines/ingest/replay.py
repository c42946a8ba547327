"""Replay: retries open dead letters; the commit of the results closes those that succeed.

A dead letter that fails again remains open. A replay may be killed, repeated, or run concurrently: the first commit
closes a dead letter, and other results for it are dropped.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from ciml.errors import IntegrityError, RejectedInput
from ciml.events.payloads import read_payload
from ciml.events.records import Batch, Origin, records_of
from ciml.integrations.registry import read_event
from ciml.manifest.log import Delta
from ciml.pipelines.ingest.committer import SettleConfig, committer
from ciml.runs.dead_letters import Choice, DeadLetter, open_dead_letters, open_keys
from ciml.runs.known_ids import DeadLetterKey
from ciml.storage import Store
from ciml.transforms.guard import attempt
from ciml.transforms.ingest.decode import read_again
from ciml.transforms.ingest.run_stages import settle
from ciml.trust import evaluate


@dataclass(frozen=True)
class ReplayConfig(SettleConfig):
    """Configuration of a replay.

    Attributes:
      choice: filter of the open dead letters.
      limit: largest number, oldest first; None for all.
      names: (CloudEvent source, the run ids' source) pairs, as for ingest.
      logs: present root of the listings' logs; "" if unchanged.
      together: dead letters committed together.
    """

    choice: Choice = field(default_factory=Choice)
    limit: int | None = None
    names: tuple[tuple[str, str], ...] = ()
    logs: str = ""
    together: int = 200


@dataclass
class Replayed:
    """The result of a replay.

    Attributes:
      total: number of dead letters to try at most.
      tried: number tried so far.
      closed: number closed by this replay.
      became: outcomes of the closed ones by (kind, reason). A message may have several.
      still: number that remain open, by the present reason.
      details: for each reason of ``still``, the detail of the first.
      elsewhere: number closed meanwhile by another process.
      complete: whether all were tried.
    """

    total: int = 0
    tried: int = 0
    closed: int = 0
    became: Counter[tuple[str, str]] = field(default_factory=Counter)
    still: Counter[str] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)
    elsewhere: int = 0
    complete: bool = False

    def count_open(self, reason: str, detail: str) -> None:
        """Count a dead letter that remains open."""
        self.still[reason] += 1
        self.details.setdefault(reason, detail)


def replay(
    config: ReplayConfig,
    *,
    stop: threading.Event | None = None,
    report: Callable[[Replayed], None] | None = None,
) -> Replayed:
    """Retry open dead letters.

    Args:
      config: of the replay.
      stop: when set, ends the replay after the work in progress is committed.
      report: called with the progress after each commit.

    Raises:
      EngineError: if a store does not answer. Earlier commits are not undone.
      IntegrityError: see `ciml.runs.accounting.reconcile`.
    """
    stop = stop or threading.Event()
    committing = committer(config.raw)
    with committing.state() as state:
        keys = sorted(open_keys(state, config.choice), key=lambda entry: entry[1])
    result = Replayed(total=min(len(keys), config.limit or len(keys)))
    dead_letters = islice(open_dead_letters(committing.log, keys, config.choice), config.limit)
    while part := list(islice(dead_letters, config.together)):
        if stop.is_set():
            return result
        _replay_part(config, part, result)
        committing.maintain()
        if report is not None:
            report(result)
    result.complete = True
    return result


def _replay_part(config: ReplayConfig, dead_letters: list[DeadLetter], result: Replayed) -> None:
    """Retry dead letters, commit the results together, and count the outcomes."""
    read: list[tuple[DeadLetter, Batch]] = []
    for dead_letter in dead_letters:
        batch = _read(config, dead_letter)
        if isinstance(batch, RejectedInput):
            result.count_open(batch.reason, batch.detail)
        else:
            read.append((dead_letter, batch))
    settled = settle([batch for _, batch in read], config.trust, config.fetch, config.raw, outages=False)
    committing = committer(config.raw)
    version = committing.commit(settled, partial(evaluate, config.trust.current()))
    closed: set[DeadLetterKey] = set()
    if version is not None:
        delta = committing.log.read(version)
        closed = _closed_keys(delta) & {dead_letter.key for dead_letter, _ in read}
        result.became.update(_outcomes_of(delta, closed))
    with committing.state() as state:
        for (dead_letter, _), batch in zip(read, settled, strict=True):  # `settle` keeps the order
            if dead_letter.key in closed:
                result.closed += 1
            elif state.index.dead_letter(dead_letter.key) is None:
                result.elsewhere += 1
            else:
                failure = next((outcome for outcome in batch.settled if outcome.kind == "dead_letter"), None)
                result.count_open(failure.reason if failure else "unknown", failure.detail if failure else "")
    result.tried += len(dead_letters)


def _read(config: ReplayConfig, dead_letter: DeadLetter) -> Batch | RejectedInput:
    """Read the input of a dead letter again."""
    outcome = dead_letter.outcome
    try:
        payload = read_payload(config.raw, outcome.payload) if outcome.payload else None
    except IntegrityError as error:  # of the object of this one: others are tried
        return RejectedInput("not_held", str(error))
    names = dict(config.names)
    return attempt("replay", read_again, outcome, payload, config.selection, names, config.logs, read_event)


def _closed_keys(delta: Delta) -> set[DeadLetterKey]:
    """Return the keys of the dead letters that a delta closes."""
    return {(Origin.from_json(origin), run_id) for origin, run_id in delta["closes"]}


def _outcomes_of(delta: Delta, closed: set[DeadLetterKey]) -> Iterator[tuple[str, str]]:
    """Yield (kind, reason) of each outcome of closed dead letters. One without a run id has the runs of a message."""
    for kind, record in records_of(delta):
        origin = Origin.from_json(record["origin"])
        run_id = record.get("mention", {}).get("run_id", "")
        if (origin, run_id) in closed or (origin, "") in closed:
            yield kind, record.get("reason", "")


@dataclass
class Preview:
    """The dead letters that a replay would try.

    Attributes:
      total: their number.
      reasons: number by reason.
      untried: number that cannot be retried, by cause.
    """

    total: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    untried: Counter[str] = field(default_factory=Counter)


def preview(config: ReplayConfig) -> Preview:
    """Count the dead letters of a choice without fetching or committing."""
    result = Preview()
    for dead_letter in islice(find_open(config.raw, config.choice), config.limit):
        result.total += 1
        result.reasons[dead_letter.outcome.reason] += 1
        batch = _read(config, dead_letter)
        if isinstance(batch, RejectedInput):
            result.untried[batch.reason] += 1
    return result


def find_open(raw: Store, choice: Choice) -> Iterator[DeadLetter]:
    """Yield the open dead letters of a choice, oldest first."""
    committing = committer(raw)
    with committing.state() as state:
        keys = open_keys(state, choice)
    yield from open_dead_letters(committing.log, keys, choice)
