"""Alert rules with shorter durations, so that a test need not wait for a day."""

from __future__ import annotations

import copy
import re
from typing import Any

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(?P<before>\[|offset )(?P<number>\d+)(?P<unit>[smhd])")
#: The age of a time, in rules that compare it with `time()`, s.
_AGE = re.compile(r"> (?P<age>\d{2,})\b")


def shortened(rules: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a rules file in which all durations are shorter, and nothing else differs.

    A day, an hour or half an hour become a minute or less; what is shorter stays in the same order. Durations are those
    of ``for``, of ranges and offsets, and the ages that a rule compares with ``time() - …``.
    """
    found = copy.deepcopy(rules)
    for group in found["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = f"{_between(3, _seconds(rule['for']) / 240, 15)}s"
            rule["expr"] = _DURATION.sub(_range, rule["expr"])
            if "time()" in rule["expr"]:
                rule["expr"] = _AGE.sub(_age, rule["expr"])
    return found


def _range(found: re.Match[str]) -> str:
    return f"{found['before']}{_between(10, _seconds(found['number'] + found['unit']) / 40, 90)}s"


def _age(found: re.Match[str]) -> str:
    return f"> {_between(8, int(found['age']) / 120, 30)}"


def _seconds(text: str) -> int:
    return int(text[:-1]) * _UNITS_S[text[-1]]


def _between(least: float, value: float, most: float) -> int:
    return round(min(max(value, least), most))
