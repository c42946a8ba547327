"""The error channel: errors for people, kept beside a runner that would turn them into its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ciml.errors import CimlError, EngineError

_MOST_KEPT = 100
_kept: list[CimlError] = []
_times_cleared = 0


@contextmanager
def keep_error() -> Iterator[None]:
    """Keep an error for people, which on its way through a runner would become one about Beam: see `kept_error`.

    One of a call that began before all were forgotten is of an earlier job, and is not kept.
    """
    began = _times_cleared
    try:
        yield
    except CimlError as error:
        if began == _times_cleared and len(_kept) < _MOST_KEPT:
            _kept.append(error)
        raise


def kept_error(*, clear: bool = False) -> CimlError | None:
    """Return the error for people that a stage raised in this process, or None.

    It is the first error that no further try can fix, if there is one.

    Args:
      clear: whether to forget all of them.
    """
    global _times_cleared
    found = next((error for error in _kept if not isinstance(error, EngineError)), _kept[0] if _kept else None)
    if clear:
        _times_cleared += 1
        _kept.clear()
    return found
