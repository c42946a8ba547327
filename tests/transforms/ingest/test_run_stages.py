"""Logs of listings: transient failures are retried twice, and an outage settles nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ciml.errors import EngineError
from ciml.events.records import Batch, Origin, PendingRun, RunFacts
from ciml.storage import LocalStore
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.run_stages import settle
from ciml.trust import TrustPolicy


@pytest.fixture
def closed() -> Iterator[str]:
    """An address at which nothing listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("logs", [9, 10])
@pytest.mark.parametrize("outages", [True, False])
def test_ten_logs_that_cannot_be_read_in_three_rounds_are_an_outage(
    logs: int, outages: bool, closed: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    facts = [RunFacts(f"zuul~{n}~1", str(n), "unit", source="zuul", log_url=f"{closed}/{n}") for n in range(logs)]
    batch = Batch(None, pending_runs=[PendingRun(Origin("t", 0, n), "", run) for n, run in enumerate(facts)])
    raw = LocalStore(tmp_path_factory.mktemp("raw"))
    pauses: list[float] = []

    def settled() -> list[Batch]:
        return settle([batch], TrustPolicy.load(), FetchPolicy((closed,)), raw, outages=outages, sleep=pauses.append)

    if logs == 10 and outages:
        with pytest.raises(EngineError, match="none of 10 logs can be read: log_unavailable"):
            settled()
    else:
        (found,) = settled()
        assert [(each.kind, each.reason) for each in found.settled] == [("dead_letter", "log_unavailable")] * logs
    assert pauses == [0.5, 2.0]
