"""The service `gerrit`."""

from __future__ import annotations

from collections.abc import Sequence

from ciml.services.gerrit.session import GerritSession
from ciml.services.receivers.config import GerritSource
from ciml.services.receivers.sessions import Session, SessionReceiver


class GerritService(SessionReceiver):
    """Receives Gerrit's events."""

    receiver = GerritSource.receiver

    def connections(self) -> Sequence[tuple[Session, int]]:
        sources = self.receivers.of(GerritSource)
        return [(GerritSession(self.receivers, each), each.in_flight) for each in sources]
