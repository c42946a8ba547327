"""Logging of ciml's programs, with limits: a client of a listener cannot fill the disk with lines.

Within a window of time, the lines of a template are limited, and all lines of a logger. Each line is limited in size.
The handler counts and reports suppressed lines. An error that a client's bytes cause has no traceback.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, TextIO

#: Lines of one template, and all lines of a logger, in a window.
_TEMPLATE_LINES = 60
_LOGGER_LINES = 300
_WINDOW_S = 60.0
#: Kinds of lines that are counted; one more ends the window.
_MAX_KINDS = 1024
#: Characters of a line without its traceback, and of a traceback, whose end is kept.
_LINE_CHARACTERS = 8192
_TRACEBACK_CHARACTERS = 8192
_FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"
#: Loggers of listeners, and the modules of errors that the bytes of a client cause in them.
_LISTENERS = ("asyncio", "grpc", "ciml.serving.server", "ciml.integrations.webhooks", "ciml.http")
_CLIENT_MODULES = frozenset({"h11", "h2", "ssl", "starlette", "grpc"})


def configure_logging(verbose: int = 0, debug: bool = False) -> None:
    """Set up logging to standard error, once per program.

    Args:
      verbose: how often ``--verbose`` was given. By default only warnings are logged.
      debug: whether ``--debug`` was given.
    """
    level = logging.INFO if verbose or debug else logging.WARNING
    if debug and verbose > 1:
        level = logging.DEBUG
    logging.basicConfig(level=level, handlers=[BoundedHandler(sys.stderr)])
    # TensorFlow's C++ code has a log of its own, which is verbose at import.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1" if verbose else "2")
    if not verbose:
        for chatty in ("apache_beam", "absl", "tensorflow", "botocore", "urllib3", "httpx"):
            logging.getLogger(chatty).setLevel(logging.ERROR)


class _Kind(NamedTuple):
    """A kind of line that is limited: of a template, or, with the template "", of a logger."""

    logger: str
    template: str


class BoundedHandler(logging.StreamHandler):
    """A stream handler with limits on the lines of each template and each logger.

    Args:
      stream: where the lines go.
      clock: monotonic seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self.setFormatter(BoundedFormatter(_FORMAT))
        self._clock = clock
        self._window_start_s = clock()
        self._lines: Counter[_Kind] = Counter()
        self._suppressed: Counter[_Kind] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        now_s = self._clock()
        if now_s - self._window_start_s >= _WINDOW_S or len(self._lines) >= _MAX_KINDS:
            self._window_start_s = now_s
            self._end_window()
        # An information line is limited only where a client causes it: other such lines are asked for by an option.
        if record.levelno >= logging.WARNING or record.name.startswith(_LISTENERS):
            limits = {
                _Kind(record.name, ""): _LOGGER_LINES,
                _Kind(record.name, str(record.msg)[:_LINE_CHARACTERS]): _TEMPLATE_LINES,
            }
            for kind, limit in limits.items():
                if self._lines[kind] >= limit:
                    self._suppressed[kind] += 1
                    return
            self._lines.update(limits.keys())
        super().emit(record)

    def close(self) -> None:
        """Print how many lines were suppressed, and close."""
        self._end_window()
        super().close()

    def _end_window(self) -> None:
        """Print a line for each kind of line that was suppressed, and start to count again."""
        for kind, number in self._suppressed.items():
            lines = f"lines like {kind.template[:80]!r}" if kind.template else "lines"
            message = f"{number} more {lines} were not logged"
            super().emit(logging.LogRecord(kind.logger, logging.WARNING, "", 0, message, None, None))
        self._lines.clear()
        self._suppressed.clear()


class BoundedFormatter(logging.Formatter):
    """A formatter with limits on the size of a line and its traceback; client errors have no traceback."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        message = _cut(record.getMessage())
        bounded = logging.makeLogRecord(record.__dict__)
        bounded.args = None
        if error is not None and is_client_error(record.name, error):
            first_line = message.splitlines()[0] if message else ""
            message = _cut(f"{first_line}: {type(error).__name__}: {error!s:.200}")
            bounded.exc_info = None
            bounded.exc_text = None
        bounded.msg = message
        if bounded.stack_info:
            bounded.stack_info = bounded.stack_info[-_TRACEBACK_CHARACTERS:]
        return super().format(bounded)

    def formatException(self, ei: object) -> str:  # noqa: N802 - the name of the library
        text = super().formatException(ei)  # type: ignore[arg-type]  # typeshed has no public type for it
        return text if len(text) <= _TRACEBACK_CHARACTERS else f"…{text[-_TRACEBACK_CHARACTERS:]}"


def is_client_error(logger: str, error: BaseException) -> bool:
    """Return whether an error that a listener logs comes from the bytes or the end of a client's connection."""
    if not logger.startswith(_LISTENERS):
        return False
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, (ConnectionError, TimeoutError, EOFError)) or module in _CLIENT_MODULES


def _cut(text: str) -> str:
    return text if len(text) <= _LINE_CHARACTERS else f"{text[:_LINE_CHARACTERS]}… ({len(text)} characters)"
