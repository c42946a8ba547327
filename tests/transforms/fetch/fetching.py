"""What the tests of fetch share: candidates, and one fetch of some addresses."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from ciml.errors import LogUnavailableError
from ciml.events.cloudevents import finished_event
from ciml.events.records import Batch, Message, Origin, Outcome, PendingRun, RunFacts, Trust
from ciml.http.addresses import Address
from ciml.transforms.fetch.fetch import Fetcher
from ciml.transforms.fetch.policy import FetchPolicy
from tests.transforms.fetch.log_server import LogServer

NOW = 1795521600_000000
FACTS = RunFacts("zuul~a~1", "a", "job", outcome="success", source="zuul", end_us=NOW)
TRUST = Trust(True, "gated", "d")
MIB = 1 << 20


def pending(url: str, attempts: int = 1, number: int = 0, **more: Any) -> PendingRun:
    facts = FACTS.replace(log_url=url, run_id=f"zuul~{number}~1")
    message = Message(number, finished_event(facts)[0]) if attempts == 1 else None
    return PendingRun(Origin("ci-events", 0, number), "zuul e", facts, message, TRUST, attempts, **more)


def run(
    policy: FetchPolicy, *urls: str, resolve: Any = None, attempts: int = 1
) -> tuple[list[bytes | None], list[Outcome]]:
    return fetched(policy, [pending(url, attempts, number) for number, url in enumerate(urls)], resolve)


def fetched(
    policy: FetchPolicy, runs: list[PendingRun], resolve: Any = None
) -> tuple[list[bytes | None], list[Outcome]]:
    """The logs that one fetch gets, and the outcomes of the other runs."""
    with closing(Fetcher(policy, resolve) if resolve else Fetcher(policy)) as fetcher:
        batch = fetcher.fetch(Batch(None, [], runs), NOW)
    return [item.log for item in batch.pending_runs], batch.settled


def allow(*servers: LogServer, **options: Any) -> FetchPolicy:
    return FetchPolicy(hosts=tuple(server.url for server in servers), **options)


def only(outcomes: list[Outcome]) -> tuple[str, str]:
    (outcome,) = outcomes
    return outcome.kind, outcome.reason


class Slow:
    """Lets each log of /drip/ time out after ``total_s`` of a clock that only they move."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.asked: list[str] = []

    def monotonic(self) -> float:
        return self.now_s

    def time_out(self, address: Address, policy: FetchPolicy) -> None:
        self.asked.append(address.path)
        self.now_s += policy.total_s
        raise LogUnavailableError("log_timeout", "")
