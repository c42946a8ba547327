"""Types of option values, and ``--data-path`` of a command, of ``ciml``, or of the environment."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any

import click

MINUTE = 60.0
HOUR = 3600.0
DAY = 86_400.0
_UNITS_S = {"ms": 0.001, "s": 1.0, "min": MINUTE, "m": MINUTE, "h": HOUR, "d": DAY}


class Duration(click.ParamType):
    """A time such as ``500ms``, ``10s``, ``5min`` or ``2h``, as seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|min|m|h|d)?", value)
        if match is None:
            self.fail(f"invalid time {value!r}; give a number with ms, s, min, h or d, such as 10s", param, ctx)
        return float(match[1]) * _UNITS_S[match[2] or "s"]

    @staticmethod
    def text(seconds: float) -> str:
        """Return the shortest text of a time."""
        unit = next((unit for unit in ("d", "h", "min") if seconds and seconds % _UNITS_S[unit] == 0), "s")
        return f"{seconds / _UNITS_S[unit]:g}{unit}"


class Instant(click.ParamType):
    """A time in ISO 8601, such as ``2026-11-01`` or ``2026-11-01T08:30+01:00``, UTC without a zone; as epoch µs."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"invalid time {value!r}; give ISO 8601, such as 2026-11-01 or 2026-11-01T08:30Z", param, ctx)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
        return round(moment.timestamp() * 1_000_000)


class Windows(click.ParamType):
    """A number of windows, or ``auto``."""

    name = "windows"

    def convert(self, value: int | str, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if isinstance(value, int) or value == "auto":
            return value
        if not re.fullmatch(r"[1-9][0-9]{0,8}", value):
            self.fail(f"invalid number of windows {value!r}; give a whole number, or auto", param, ctx)
        return int(value)


_GROUPS_VALUE = "ciml.data_path"


class DataPathOption(click.Option):
    """A command's ``--data-path``; its defaults are the value of `group_data_path`, then the environment."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        return ctx.meta.get(_GROUPS_VALUE) or super().resolve_envvar_value(ctx)


def group_data_path(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Store the group's ``--data-path`` for the command (a click callback)."""
    ctx.meta[_GROUPS_VALUE] = value
