"""Logging of the programs."""

from __future__ import annotations

import logging
import os
import sys


def configure_logging(verbose: int = 0, debug: bool = False) -> None:
    """Set up logging to standard error, once per program: warnings only, unless ``verbose`` or ``debug``."""
    level = logging.DEBUG if debug and verbose > 1 else logging.INFO if verbose or debug else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    # TensorFlow's C++ code has a log of its own, which is verbose at import.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1" if verbose else "2")
    if not verbose:
        for chatty in ("apache_beam", "absl", "tensorflow", "botocore", "urllib3", "httpx"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
