"""Convert cells of a table to values of a listing: times, results, paths, texts and labels."""

from __future__ import annotations

import difflib
import math
import posixpath
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from functools import lru_cache
from typing import Any
from urllib.parse import unquote
from zoneinfo import ZoneInfo, available_timezones

from ciml.errors import CimlError, RejectedInput
from ciml.events.fields import is_clean, kind_of
from ciml.events.outcomes import normal_word, outcome_of
from ciml.events.records import OutcomeWord
from ciml.events.redaction import shown
from ciml.limits import EARLIEST_US, LATEST_US

#: Cells of CSV that are not a value: most of those that are missing values for `pandas.read_csv`.
NO_VALUE = frozenset({"", "NA", "N/A", "NaN", "nan", "NaT", "NULL", "null", "None", "<NA>"})

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
#: Factors to µs of epoch seconds, milliseconds and microseconds. The instants of 2000 to 2099 have another number of
#: digits in each unit, so a number has one meaning.
_UNITS = (1_000_000, 1_000, 1)
_NUMBER = re.compile(r"-?\d{1,19}(?:\.\d{1,19})?")
_WHOLE_FLOAT = re.compile(r"(\d{1,19})\.0")  # of a column of whole numbers and missing values, written by pandas
_BLANK_BEFORE_OFFSET = re.compile(r" (?=[+-]\d\d)")
_UTC_NAME = re.compile(r" ?(?:UTC|GMT)$")
_LOG_NAME = re.compile(r"\.(?:csv|log|txt|dstat|dool)(?:\.gz)?$", re.IGNORECASE)
_MAX_EXIT_CODE = 255

#: Further words of results, beside those of `ciml.events.outcomes`.
_MORE_WORDS: dict[str, OutcomeWord] = {"PASS": "success", "OK": "success", "FAIL": "failure", "UNSTABLE": "failure"}
#: Names of columns, in snake case, whose 1 means that the run passed; elsewhere numbers are exit codes.
_PASSED = frozenset({"success", "succeeded", "passed", "pass", "ok", "is_success"})
#: Names of columns whose true means that the run failed.
_FAILED = frozenset({"failed", "failure", "fail", "is_failure"})


def is_missing(cell: Any) -> bool:
    """Return whether a cell has no value: null, an empty text, or not a number."""
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


@lru_cache(maxsize=16)
def zone_of(name: str) -> tzinfo:
    """Return a time zone by its IANA name.

    Raises:
      CimlError: if there is no such zone.
    """
    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        similar = difflib.get_close_matches(name[:100], available_timezones(), n=1, cutoff=0.5)
        hint = f"did you mean {similar[0]}?" if similar else "give an IANA name, such as UTC or Europe/Berlin"
        raise CimlError(f"unknown time zone {name!r:.80}; {hint}") from None


def parse_time(cell: Any, zone: str | None) -> int:
    """Convert a cell to epoch microseconds.

    Args:
      cell: a text in ISO 8601, a `datetime`, a `date`, or an epoch number (or its text) in seconds, milliseconds,
        microseconds or nanoseconds, distinguished by the range 2000 to 2099.
      zone: IANA name of the zone of times without one, or None. A time in an hour that the zone has twice is in the
        first.

    Raises:
      RejectedInput: ``no_zone``, or ``bad_time``.
    """
    if isinstance(cell, str):
        cell = _from_text(cell.strip())
    if isinstance(cell, Decimal):
        cell = _plain_number(cell)
    if type(cell) in (int, float):
        return _epoch_us(cell)
    if not isinstance(cell, date):
        raise RejectedInput("bad_time", f"want a time, not {kind_of(cell)}")
    moment = cell if isinstance(cell, datetime) else datetime.combine(cell, time())
    if not 1999 <= moment.year <= 2100:  # beyond, calendars may overflow
        raise RejectedInput("bad_time", f"{moment.isoformat()} is not within 2000 to 2099")
    micros = ((moment if moment.tzinfo else _in_zone(moment, zone)) - _EPOCH) // _MICROSECOND
    if not EARLIEST_US <= micros < LATEST_US:
        raise RejectedInput("bad_time", f"{moment.isoformat()} is not within 2000 to 2099")
    return micros


def _from_text(text: str) -> datetime | int | float:
    if _NUMBER.fullmatch(text):
        return float(text) if "." in text else int(text)
    iso = _UTC_NAME.sub("+00:00", _BLANK_BEFORE_OFFSET.sub("", text)) if len(text) < 64 else text
    try:
        return datetime.fromisoformat(iso)
    except ValueError:
        raise RejectedInput("bad_time", f"{shown(text)} is neither ISO 8601 nor an epoch number") from None


def _epoch_us(number: int | float) -> int:
    for unit in _UNITS:
        if EARLIEST_US <= number * unit < LATEST_US:
            return round(number * unit)
    if EARLIEST_US <= number / 1000 < LATEST_US:  # nanoseconds
        return int(number // 1000)
    raise RejectedInput("bad_time", f"{number!s:.40} is not an epoch time from 2000 to 2099")


def _in_zone(moment: datetime, name: str | None) -> datetime:
    if name is None:
        raise RejectedInput("no_zone", f"{moment.isoformat(' ')} has no time zone")
    zone = zone_of(name)
    aware = moment.replace(tzinfo=zone)
    if aware.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != moment:
        raise RejectedInput("bad_time", f"{moment.isoformat(' ')} does not exist in {name}, where clocks skip it")
    return aware


def text_of(cell: Any) -> str:
    """Convert a cell to a text without outer spaces. A whole number becomes its digits, even if it is a float.

    Raises:
      RejectedInput: ``bad_field``, for another type, or an unprintable character.
    """
    if isinstance(cell, str):
        text = cell.strip()
        if not is_clean(text):
            is_undecoded = any("\udc80" <= character <= "\udcff" for character in text)  # of `surrogateescape`
            raise RejectedInput("bad_field", "is not UTF-8" if is_undecoded else "holds an unprintable character")
        return text
    number = _plain_number(cell)
    if isinstance(number, bool):
        return "true" if number else "false"
    if number is not None and abs(number) < 1 << 63:
        return str(number)
    if isinstance(cell, date):
        return cell.isoformat()
    raise RejectedInput("bad_field", f"want a text, not {kind_of(cell)}")


def _plain_number(cell: Any) -> int | float | None:
    """Return a finite number, a whole one as an int; None for anything else."""
    if isinstance(cell, int):
        return cell
    if not isinstance(cell, float | Decimal) or not math.isfinite(cell):
        return None
    return int(cell) if cell == int(cell) else float(cell)


def number_text(cell: Any) -> str:
    """Convert a cell as `text_of`, but ``12.0`` to ``12``: pandas writes so in columns with missing values."""
    text = text_of(cell)
    match = _WHOLE_FLOAT.fullmatch(text)
    return match[1] if match else text


def parse_attempt(cell: Any) -> int:
    """Convert a cell to the number of an attempt, from 1.

    Raises:
      RejectedInput: ``bad_run_id``.
    """
    text = number_text(cell)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise RejectedInput("bad_run_id", f"{shown(text)} is not a whole number from 1")
    return int(text)


def parse_result(cell: Any, column: str) -> tuple[str, OutcomeWord]:
    """Convert a cell to a result as the table has it, and its outcome.

    A word is one of `ciml.events.outcomes`, or pass, ok, fail, unstable. A number is an exit code: 0 is a success,
    others from -255 to 255 are failures; true is a success. Where the column's name says that the run passed
    (``passed``, ``success``, …), 1 is the success; where it says that it failed (``failed``, …), true is the failure.

    Args:
      cell: the cell.
      column: the column's name in snake case.

    Raises:
      RejectedInput: ``bad_result``.
    """
    text = number_text(cell)
    word = normal_word(text)
    outcome = outcome_of(text) or _MORE_WORDS.get(word)
    if outcome is not None:
        return text, outcome
    if word in ("TRUE", "FALSE"):
        return text, "success" if (word == "TRUE") != (column in _FAILED) else "failure"
    if _NUMBER.fullmatch(text) and "." not in text:
        number = int(text)
        is_flag = column in _PASSED or column in _FAILED
        if is_flag and number in (0, 1):
            return text, "success" if (number == 1) == (column in _PASSED) else "failure"
        if not is_flag and abs(number) <= _MAX_EXIT_CODE:
            return text, "failure" if number else "success"
    raise RejectedInput("bad_result", f"{shown(text)} is not a known result")


def is_result_word(cell: Any) -> bool:
    """Return whether a cell is a word that names a result."""
    return isinstance(cell, str) and (outcome_of(cell) is not None or normal_word(cell) in _MORE_WORDS)


def is_log_path(cell: Any) -> bool:
    """Return whether a cell ends as the name of a log does."""
    return isinstance(cell, str) and _LOG_NAME.search(cell[-64:]) is not None


def parse_path(cell: Any, roots: Sequence[str]) -> str:
    """Convert a cell to the path of a log in the folder of logs.

    Args:
      cell: a relative path, or a path or address below one of the roots.
      roots: the folder or ``s3://`` prefix of the logs, in each of its spellings.

    Raises:
      RejectedInput: ``bad_path``, for a path that leads elsewhere.
    """
    path = text_of(cell)
    if path.startswith("file://"):
        path = unquote(path.removeprefix("file://"))
    for root in roots:
        prefix = f"{root.rstrip('/')}/"
        if path.startswith(prefix):
            path = path.removeprefix(prefix).lstrip("/")
            break
    if "://" not in path:
        path = posixpath.normpath(path)
    if "://" in path or path.startswith("/") or path == "." or path.split("/")[0] == "..":
        raise RejectedInput("bad_path", f"{shown(path)} is not below {roots[0]}")
    return path


def parse_label(cell: Any) -> str | int | float | bool | None:
    """Convert a cell to the value of a label; None for a list, an object or bytes, which a listing leaves out, too."""
    if isinstance(cell, float) and not math.isfinite(cell):
        return None
    if isinstance(cell, str | int | float | bool):
        return cell
    if isinstance(cell, Decimal):
        return _plain_number(cell)
    return text_of(cell) if isinstance(cell, date) else None
