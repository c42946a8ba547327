"""Fixtures of the tests of fetch: a log server that behaves badly, and the servers of a CI system with its store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ciml.http.addresses import Address
from ciml.transforms.fetch import fetch as fetch_module
from ciml.transforms.fetch import schedule
from ciml.transforms.fetch.fetch import Fetcher
from tests.transforms.fetch.fetching import Slow
from tests.transforms.fetch.github import Systems, systems
from tests.transforms.fetch.log_server import LogServer, serving


@pytest.fixture
def server() -> Iterator[LogServer]:
    with serving() as running:
        yield running


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Systems]:
    with systems(tmp_path) as running:
        yield running


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    slow = Slow()
    read = Fetcher.read

    def read_or_time_out(self: Fetcher, address: Address, *more: Any) -> bytes:
        if address.path.startswith("/drip/"):
            slow.time_out(address, self.policy)
        return read(self, address, *more)

    monkeypatch.setattr(Fetcher, "read", read_or_time_out)
    monkeypatch.setattr(fetch_module, "time", slow)
    monkeypatch.setattr(schedule, "time", slow)
    return slow
