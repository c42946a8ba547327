"""Logging of the programs, bounded: a client of a listener cannot fill the disk with lines.

Equal lines are limited by logger and template, all lines of a logger too, and each line is limited in size. What was
suppressed is counted. An error of a client's bytes has no traceback.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TextIO

#: Lines of one template and level, and all lines of a logger, in a window.
_TEMPLATE_LINES = 60
_LOGGER_LINES = 300
_WINDOW_S = 60.0
#: Templates, and loggers, that are counted; one more ends the window of the oldest.
_MOST_WINDOWS = 1024
#: Characters of a line without its traceback, and of a traceback, whose end is kept.
_LINE_CHARACTERS = 8192
_TRACEBACK_CHARACTERS = 8192
_FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"
#: Loggers of listeners, and the modules of errors that the bytes of a client cause in them.
_LISTENERS = ("asyncio", "grpc", "ciml.serving.server", "ciml.integrations.webhooks", "ciml.http")
_CLIENT_MODULES = frozenset({"h11", "h2", "ssl", "starlette", "grpc"})


@dataclass
class _Window:
    began_s: float
    level: int
    limit: int
    lines: int = 0
    suppressed: int = 0


_Windows = OrderedDict[tuple[str, str], _Window]  # by logger and template, the oldest first


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
        self._templates: _Windows = OrderedDict()
        self._loggers: _Windows = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        now_s = self._clock()
        self._end_windows(now_s - _WINDOW_S)
        # An information line is limited only where a client causes it: other such lines are asked for by an option.
        if record.levelno >= logging.WARNING or record.name.startswith(_LISTENERS):
            windows = (
                _window(self._loggers, record, "", _LOGGER_LINES, now_s),
                _window(self._templates, record, str(record.msg)[:_LINE_CHARACTERS], _TEMPLATE_LINES, now_s),
            )
            for window in windows:
                if window.lines >= window.limit:
                    window.suppressed += 1
                    return
            for window in windows:
                window.lines += 1
        super().emit(record)

    def close(self) -> None:
        """Print how many lines were suppressed, and close."""
        self._end_windows(float("inf"))
        super().close()

    def _end_windows(self, before_s: float) -> None:
        """End the windows that began before a time. Print a line for each that suppressed lines."""
        for windows in (self._templates, self._loggers):
            for (logger, template), window in _ended(windows, before_s):
                lines = f"lines like {template[:80]!r}" if template else "lines"
                message = f"{window.suppressed} more {lines} were not logged"
                if window.suppressed:
                    super().emit(logging.LogRecord(logger, window.level, "", 0, message, None, None))


def _window(windows: _Windows, record: logging.LogRecord, template: str, limit: int, now_s: float) -> _Window:
    key = (record.name, template)
    window = windows.get(key)
    if window is None:
        window = windows[key] = _Window(now_s, record.levelno, limit)
    return window


def _ended(windows: _Windows, before_s: float) -> Iterator[tuple[tuple[str, str], _Window]]:
    while windows:
        key = next(iter(windows))
        if windows[key].began_s > before_s and len(windows) <= _MOST_WINDOWS:
            break
        yield key, windows.pop(key)


class BoundedFormatter(logging.Formatter):
    """A formatter with limits on the size of a line and its traceback; client errors have no traceback."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        shown = logging.makeLogRecord(record.__dict__)
        shown.msg = _cut(record.getMessage())
        shown.args = None
        if error is not None and is_client_error(record.name, error):
            shown.msg = _cut(
                f"{shown.msg.splitlines()[0] if shown.msg else ''}: {type(error).__name__}: {error!s:.200}"
            )
            shown.exc_info = shown.exc_text = None
        if shown.stack_info:
            shown.stack_info = shown.stack_info[-_TRACEBACK_CHARACTERS:]
        return super().format(shown)

    def formatException(self, ei: object) -> str:  # noqa: N802 - the name of the library
        text = super().formatException(ei)  # type: ignore[arg-type]
        return text if len(text) <= _TRACEBACK_CHARACTERS else f"…{text[-_TRACEBACK_CHARACTERS:]}"


def is_client_error(logger: str, error: BaseException) -> bool:
    """Return whether an error that a listener logs comes from the bytes or the end of a client's connection."""
    if not logger.startswith(_LISTENERS):
        return False
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, (ConnectionError, TimeoutError, EOFError)) or module in _CLIENT_MODULES


def _cut(text: str) -> str:
    return text if len(text) <= _LINE_CHARACTERS else f"{text[:_LINE_CHARACTERS]}… ({len(text)} characters)"


def configure_logging(verbose: int = 0, debug: bool = False) -> None:
    """Set up logging to standard error, once per program: warnings only, unless ``verbose`` or ``debug``."""
    level = logging.DEBUG if debug and verbose > 1 else logging.INFO if verbose or debug else logging.WARNING
    logging.basicConfig(level=level, handlers=[BoundedHandler(sys.stderr)])
    # TensorFlow's C++ code has a log of its own, which is verbose at import.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1" if verbose else "2")
    if not verbose:
        for chatty in ("apache_beam", "absl", "tensorflow", "botocore", "urllib3", "httpx"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
