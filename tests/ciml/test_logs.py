"""The log is bounded: equal lines, lines of a logger, and the size of a line; client errors have no traceback."""

from __future__ import annotations

import io
import logging
import ssl
import sys
from collections.abc import Iterator

import h11
import pytest

from ciml.logs import BoundedHandler


class Log:
    """A logger with a bounded handler, and a clock that the test sets."""

    def __init__(self, name: str) -> None:
        self.now_s, self.stream = 0.0, io.StringIO()
        self.handler = BoundedHandler(self.stream, lambda: self.now_s)
        self.logger = logging.Logger(name)
        self.logger.addHandler(self.handler)

    def lines(self) -> list[str]:
        """The messages of the lines."""
        return [line.split(": ", 1)[-1] for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log("ciml.integrations.webhooks.app")
    yield log
    log.handler.close()


LAST = "1 more lines like 'a window later' were not logged"


def test_lines_of_one_template_are_limited_and_the_rest_is_counted(log: Log) -> None:
    for number in range(1000):
        log.logger.warning("rejected %d", number)
    assert log.lines() == [f"rejected {number}" for number in range(60)]
    log.logger.warning("something else")
    assert log.lines()[-1] == "something else"
    other = logging.Logger("ciml.integrations.mqtt")
    other.addHandler(log.handler)
    other.warning("rejected %d", 0)
    assert log.lines()[-1] == "rejected 0"  # each logger has its own limit
    log.now_s = 61.0
    log.logger.warning("rejected %d", 1000)
    assert log.lines()[-2:] == ["940 more lines like 'rejected %d' were not logged", "rejected 1000"]
    log.now_s = 122.0
    for _ in range(61):
        log.logger.warning("a window later")
    log.handler.close()  # what was reported is not counted again
    assert log.lines()[-62:] == ["rejected 1000", *["a window later"] * 60, LAST]


def test_texts_that_all_differ_are_limited_by_their_logger(log: Log) -> None:
    for number in range(5000):
        log.logger.warning(f"rejected {number}")
    assert log.lines() == [f"rejected {number}" for number in range(300)]
    log.now_s = 61.0
    log.logger.warning("later")
    assert "4700 more lines were not logged" in log.lines()


def test_the_memory_of_templates_is_bounded(log: Log) -> None:
    for number in range(5000):
        log.handler.handle(log.logger.makeRecord(f"logger {number}", 30, "", 0, f"{number}", (), None))
        assert len(log.handler._lines) <= 1024 + 1


@pytest.mark.parametrize(("name", "lines"), [("ciml.training.refresh", 1000), ("ciml.http.server", 60)])
def test_information_is_limited_where_a_client_causes_it(name: str, lines: int) -> None:
    log = Log(name)
    for number in range(1000):
        log.logger.info("step %d", number)
    assert len(log.lines()) == lines


@pytest.mark.parametrize(
    "error",
    [
        h11.RemoteProtocolError("illegal chunk header"),
        h11.LocalProtocolError("can't handle event type Response when role=SERVER and state=MUST_CLOSE"),
        ConnectionResetError(104, "Connection reset by peer"),
        BrokenPipeError(32, "Broken pipe"),
        TimeoutError("timed out"),
        ssl.SSLError(1, "wrong version number"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    "name", ["asyncio", "ciml.http.server", "ciml.serving.server.rest", "ciml.integrations.webhooks.app"]
)
def test_a_client_error_is_one_line(name: str, error: Exception) -> None:
    log = Log(name)
    other = logging.StreamHandler(io.StringIO())  # it stores the traceback in the record
    log.logger.handlers.insert(0, other)
    log.logger.error("Fatal error: protocol.data_received() call failed.\nprotocol: <X>", exc_info=error)
    (line,) = log.lines()
    assert line.startswith(f"Fatal error: protocol.data_received() call failed.: {type(error).__name__}: ")
    assert type(error).__name__ in other.stream.getvalue()


def test_a_traceback_and_a_message_are_bounded(log: Log) -> None:
    def deep(turns: int) -> None:
        if turns:
            return deep(turns - 1)
        raise KeyError("x" * 50_000)

    try:
        deep(200)
    except KeyError:
        log.logger.exception("failed")
    text = log.stream.getvalue()
    assert "Traceback" not in text.splitlines()[0]
    assert len(text) < 9000
    log.logger.warning("%s", "x" * 1_000_000)
    assert log.lines()[-1].endswith("… (1000000 characters)")
    assert len(log.lines()[-1]) < 9000


def test_the_programs_log_through_the_bounded_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    from ciml.logs import configure_logging

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    configure_logging()
    (handler,) = root.handlers
    assert isinstance(handler, BoundedHandler)
    assert handler.stream is sys.stderr
