"""What a call of the API leaves of the caller's process."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def settings_kept() -> Iterator[None]:
    """Restore settings of this process that imports of libraries change: environment, random state, log handlers."""
    environment = dict(os.environ)
    state = random.getstate()
    handlers = logging.root.handlers[:]
    try:
        yield
    finally:
        random.setstate(state)
        logging.root.handlers[:] = handlers
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
