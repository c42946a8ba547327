"""Numbers, times and ranges as people read them: their units, and no digit that a reader would not use."""

from __future__ import annotations

from ciml.transforms.profiles.series import Unit
from ciml.transforms.profiles.windows import MINUTE_S, SHORT_RUN_S

_HOUR_S = 3600
#: The least seconds that are said in hours.
_HOURS_FROM_S = 2 * _HOUR_S
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (0.0, "kB"))
_SIZES = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}


def span(seconds: float) -> str:
    """Return a length of time.

    Example:
      >>> span(75.2), span(840), span(9000)
      ('75 s', '14 min', '2.5 h')
    """
    scale, unit = _time_unit(seconds)
    return f"{number(seconds / scale)} {unit}"


def span_range(low: float, high: float) -> str:
    """Return a range of lengths, in one unit."""
    scale, unit = _time_unit(high)
    return f"{_range(number(low / scale), number(high / scale))} {unit}"


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds < SHORT_RUN_S:
        return 1, "s"
    return (_HOUR_S, "h") if seconds >= _HOURS_FROM_S else (MINUTE_S, "min")


def moment(seconds: float, length: float) -> str:
    """Return a moment of a run of this length: ``second 12``, or ``minute 3`` from three minutes on."""
    return f"second {int(seconds)}" if length < SHORT_RUN_S else f"minute {int(seconds // MINUTE_S)}"


def quantity(value: float, unit: Unit) -> str:
    """Return a value with its unit.

    Example:
      >>> quantity(41.3, "%"), quantity(12_340_000_000, "B"), quantity(9.41, "")
      ('41 %', '12 GB', '9.4')
    """
    scale, name = _unit(value, unit)
    return f"{_digits(value / scale, unit)}{name}"


def quantity_range(low: float, high: float, unit: Unit) -> str:
    """Return a range of values, in one unit."""
    scale, name = _unit(max(abs(low), abs(high)), unit)
    return f"{_range(_digits(low / scale, unit), _digits(high / scale, unit))}{name}"


def number(value: float) -> str:
    """Return a number with one decimal below 10, none from there on."""
    rounded = round(value, 1) if abs(round(value, 1)) < 10 else float(round(value))
    return f"{rounded + 0.0:.1f}".removesuffix(".0")  # 0.0 is added to minus zero


def _digits(value: float, unit: Unit) -> str:
    return number(value) if unit != "%" else number(round(value))


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _unit(value: float, unit: Unit) -> tuple[float, str]:
    if unit not in ("B", "B/s"):
        return 1.0, {"%": " %", "": "", "/s": "/s"}[unit]
    name = next(name for least, name in _BYTES if abs(value) >= least)
    return _SIZES[name], f" {name}{unit[1:]}"
