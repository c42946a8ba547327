"""Sessions: an error of one source is its own, and an end waits for none without limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ciml.integrations import sessions
from ciml.integrations.config import Receivers
from ciml.integrations.sessions import Inbox, Session
from ciml.kafka import KafkaOptions
from ciml.services.receivers import SessionReceiver
from tests.integrations.receivers.kept import running, wait


class Faulty(Session):
    """Raises what no session may raise, then serves.

    Attributes:
      problems: what it had reported when it connected, by the number of the connection.
    """

    problems: tuple[str, ...] = ()

    def serve(self, inbox: Inbox, stop: threading.Event) -> None:
        self.problems = (*self.problems, self.problem)
        if len(self.problems) < 3:
            raise KeyError("\x1b[2J of a sender")
        self.problem = ""
        stop.wait()


class Stuck(Session):
    """Does not end."""

    def serve(self, inbox: Inbox, stop: threading.Event) -> None:
        time.sleep(60)


def test_an_unexpected_error_is_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_PAUSES_S", (0.2, 0.2))
    session = Faulty("zuul", "mqtt://x")
    with running(session):
        wait(lambda: len(session.problems) == 3 and not session.problem, session.problem)
    for problem in session.problems[1:]:
        assert problem.startswith("mqtt://x: KeyError: ")
        assert problem.isprintable()


def test_an_end_waits_for_no_source_without_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ciml.services.receivers._END_S", 0.2)

    class Receiver(SessionReceiver):
        receiver = "mqtt"

        def connections(self) -> Sequence[tuple[Session, int]]:
            return [(Stuck("zuul", "x"), 1)]

    receiver = Receiver(Receivers(Path("receivers.toml"), ()), KafkaOptions("127.0.0.1:1"), "events")
    receiver.open()
    began = time.monotonic()
    receiver.close()
    assert time.monotonic() - began < 20
    assert "source zuul does not end within 0 s" in caplog.text
