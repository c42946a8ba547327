"""Progress callbacks as arguments, in their present and their former forms."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeGuard

from ciml.progress import Progress, no_progress

#: Forms of a progress callback before `ciml.Progress`: (done, total) and (step).
OldProgress = Callable[[int, int], None] | Callable[[str], None]


def present_progress(progress: Progress | OldProgress | None) -> Progress:
    """Return a progress callback in its present form."""
    if progress is None:
        return no_progress
    if _has_present_form(progress):
        return progress
    warnings.warn("a progress callback takes (step, done, total): see ciml.Progress", DeprecationWarning, stacklevel=3)
    former: Any = progress
    if len(inspect.signature(former).parameters) == 1:
        return lambda step, done, total: former(step)
    return lambda step, done, total: former(done, total)


def _has_present_form(progress: Progress | OldProgress) -> TypeGuard[Progress]:
    try:
        inspect.signature(progress).bind("", 0, 0)
    except ValueError:  # a builtin without a signature
        return True
    except TypeError:
        return False
    return True
