"""No run is trusted unless everything that it executed was reviewed: scenarios of all adapters, in several orders."""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import pytest

from ciml.events.cloudevents import Event
from ciml.events.records import Batch, Message, OffsetRange, Outcome, PendingRun, RawFile, RunFacts
from ciml.integrations.adapter import Delivery
from ciml.integrations.registry import delivered, find_adapter, read_event
from ciml.runs.accounting import reconcile
from ciml.runs.state import RawState
from ciml.transforms.ingest.decode import decode
from ciml.trust import TrustPolicy, evaluate, evaluate_batch
from tests.integrations import executed
from tests.integrations.executed import Scenario, Sent, Source
from tests.tier import part

POLICIES = Path(__file__).parents[2]
SCENARIOS = [
    pytest.param(scenario, name, id=f"{module.name}: {name}")
    for module in pkgutil.iter_modules(executed.__path__)
    for name, scenario in importlib.import_module(f"tests.integrations.executed.{module.name}").SCENARIOS.items()
]


@cache
def policy_of(text_or_file: str) -> TrustPolicy:
    return TrustPolicy.parse(text_or_file) if "\n" in text_or_file else TrustPolicy.load(POLICIES / text_or_file)


def message(source: Source, sent: Delivery | Sent, offset: int) -> Message:
    sent = sent if isinstance(sent, Sent) else Sent(sent)
    delivery = sent.delivery
    adapter = find_adapter(sent.adapter or source.adapter)
    auth = source.auth if sent.auth is None else sent.auth
    value, headers = delivered(adapter, source.name, delivery.body, delivery.headers, auth, f"{delivery.id}-{offset}")
    return Message(offset, value, tuple(headers))


def stored(pending: PendingRun) -> Outcome:
    digest = pending.mention.run_id
    file = RawFile(f"runs/{digest}", digest, 1, 1)
    return Outcome("run", pending.origin, pending.event_key, pending.mention, trust=pending.trust, file=file)


@lru_cache(maxsize=100)
def event_of(value: bytes, headers: tuple[tuple[str, bytes], ...]) -> Event:
    """Decode a delivery once for all orders, in which it has other offsets."""
    return read_event(Message(0, value, headers))


def ingest(messages: Sequence[Message], policy: TrustPolicy, at_once: int) -> tuple[RawState, dict[str, RunFacts]]:
    """Return the state of the manifest after all messages, and the runs' own facts."""
    state, runs = RawState(), dict[str, RunFacts]()
    for start in range(0, len(messages), at_once):
        batch = Batch(OffsetRange("t", "T", 0, start, start + at_once))
        for place, one in enumerate(messages[start : start + at_once]):
            covers = OffsetRange("t", "T", 0, start + place, start + place + 1)
            decoded = decode(
                Batch(covers, [one._replace(offset=start + place)]),
                read_event=lambda each, _: event_of(each.value, each.headers),
            )
            batch.pending_runs += decoded.pending_runs
            batch.settled += decoded.settled
        batch = evaluate_batch(batch, policy)
        runs |= {pending.mention.run_id: pending.mention for pending in batch.pending_runs}
        batch.settled += [stored(pending) for pending in batch.pending_runs]
        delta = reconcile(state, [Batch(batch.covers, settled=batch.settled)], 1, lambda facts: evaluate(policy, facts))
        assert delta is not None
        state.apply(state.version + 1, delta)
    return state, runs


def orders(scenario: Scenario, seed: str) -> list[tuple[str, list[Message]]]:
    """Return the messages as they were sent, in reverse, repeated, and shuffled. Times and ids stay the same."""
    messages = [message(scenario.source, sent, offset) for offset, sent in enumerate(scenario.sent)]
    shuffled = messages * 2
    random.Random(seed).shuffle(shuffled)
    return [("as sent", messages), ("reversed", messages[::-1]), ("repeated and shuffled", shuffled)]


@pytest.mark.parametrize(("scenario", "name"), SCENARIOS)
def test_only_what_was_reviewed_is_trusted(scenario: Scenario, name: str) -> None:
    policy = policy_of(scenario.source.policy)
    ways = [(order, messages, size) for order, messages in orders(scenario, name) for size in (1, len(messages))]
    for order, messages, at_once in part(ways, len(name), 3):
        state, runs = ingest(messages, policy, at_once)
        (run_id,) = runs
        stored_run = state.index.run(run_id)
        assert stored_run is not None
        # As the snapshot of a training decides: examples hold no fork, proof, owner and subjects.
        facts = runs[run_id].replace(fork="", auth="", owner="", subjects=())
        (joined,) = state.index.subjects.join_all({run_id: facts}).values()
        decision = evaluate(policy, joined)
        where = (order, at_once, decision.rule, joined)
        assert (stored_run.trusted, decision.trusted) == (scenario.trusted, scenario.trusted), where
