"""A function of a stage that fails for one input, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def fail_for(
    patch: pytest.MonkeyPatch, where: Any, name: str, is_poison: Callable[..., bool], error: Exception | None = None
) -> None:
    """Make a function fail for arguments that are poison."""
    inner = getattr(where, name)

    def fails(*arguments: Any, **named: Any) -> Any:
        if is_poison(*arguments, **named):
            raise error or IndexError(f"{name} at https://u:hunter2@host/")
        return inner(*arguments, **named)

    patch.setattr(where, name, fails)


def check_detail(detail: str, start: str) -> None:
    """Check the detail of an `internal_error`: stage, error and place, without secrets, within a limit."""
    assert detail.startswith(start)
    assert detail.endswith(" fails]")
    assert "poison.py:" in detail
    assert "hunter2" not in detail
    assert len(detail) < 1500
