"""What a call of the API leaves of the caller's process."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def settings_kept() -> Iterator[None]:
    """Restore settings of this process that libraries change: environment, random state, log handlers.

    While it lasts, TensorFlow logs errors only.
    """
    tensorflow = logging.getLogger("tensorflow")
    tensorflow.addFilter(_is_error)
    environment = dict(os.environ)
    state = random.getstate()
    handlers = logging.root.handlers[:]
    try:
        yield
    finally:
        tensorflow.removeFilter(_is_error)
        random.setstate(state)
        logging.root.handlers[:] = handlers
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
