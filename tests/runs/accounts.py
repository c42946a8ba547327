"""Outcomes of events about few runs, and their accounting."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ciml.digest import canonical_json
from ciml.events.records import UNJUDGED, Batch, OffsetRange, Origin, Outcome, RawFile, RunFacts, Trust
from ciml.manifest.log import Delta
from ciml.runs.accounting import reconcile
from ciml.runs.known_ids import KnownRun
from ciml.runs.state import RawState

TOPIC = "ci-events"
TRUSTED, UNTRUSTED = Trust(True, "gated", "p"), Trust(False, "no rule", "p")
_NO_FACTS: Mapping[str, Any] = MappingProxyType({})


def outcome(
    offset: int,
    kind: Any = "run",
    run: str = "a",
    event: str = "e1",
    word: Any = "success",
    digest: str = "d1",
    reason: str = "",
    partition: int = 0,
    trusted: bool = True,
    facts: Mapping[str, Any] = _NO_FACTS,
    **more: Any,
) -> Outcome:
    """Return the outcome of an event about a run; without ``run`` it names none."""
    origin = Origin(TOPIC, partition, offset)
    key = event and f"zuul {event}"
    if not run:
        return Outcome(kind, origin, key, None, reason, trust=UNJUDGED, **more)
    mention = RunFacts(f"zuul~{run}~1", run, "job", outcome=word, **facts)
    file = RawFile(f"runs/{run}.{digest}", digest, 3, 99) if kind == "run" else None
    return Outcome(kind, origin, key, mention, reason, trust=TRUSTED if trusted else UNTRUSTED, file=file, **more)


def batch(start: int, end: int, *settled: Outcome, partition: int = 0, topic_id: str = "T") -> Batch:
    return Batch(OffsetRange(TOPIC, topic_id, partition, start, end), settled=list(settled))


def retry(*outcomes: Outcome) -> Batch:
    """Return a batch that covers no offsets."""
    return Batch(None, settled=list(outcomes))


def step(state: RawState, *settled: Batch | Outcome, judge: Callable[[RunFacts], Trust] | None = None) -> Delta | None:
    """Commit as the manifest does: the delta is encoded as JSON and decoded. An outcome is a batch of its own."""
    batches = [
        one if isinstance(one, Batch) else batch(one.origin.offset, one.origin.offset + 1, one) for one in settled
    ]
    delta = reconcile(state, batches, 1000 + state.version, judge)
    if delta is not None:
        delta = json.loads(canonical_json(delta))
        state.apply(state.version + 1, delta)
    return delta


def settle(state: RawState, *settled: Batch | Outcome, judge: Callable[[RunFacts], Trust] | None = None) -> Delta:
    """Do a `step` that changes the state."""
    delta = step(state, *settled, judge=judge)
    assert delta is not None
    return delta


def known(state: RawState) -> KnownRun:
    """Return what the state knows of run a."""
    run = state.index.run("zuul~a~1")
    assert run is not None
    return run
