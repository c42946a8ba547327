"""How much is tried: all by default and in ``make test``, a part with ``CIML_TESTS=quick``, as in ``make check``."""

from __future__ import annotations

import os

QUICK = os.environ.get("CIML_TESTS") == "quick"


def tries(full: int) -> int:
    """Return how many inputs of a generator to try: ``full``, or a quarter of it in ``make check``."""
    return max(1, full // 4) if QUICK else full
