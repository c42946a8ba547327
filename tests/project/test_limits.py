"""docs/limits.md lists every limit of ciml/limits.py, with its value."""

import re
from pathlib import Path

from ciml import limits

_DOCUMENT = Path(__file__).parents[2] / "docs" / "limits.md"
_ROW = re.compile(r"\| `([A-Z0-9_]+)` \| ([^|]+) \|")
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _value(text: str) -> float:
    number, _, unit = text.strip().partition(" ")
    return float(number.replace(",", "")) * _UNITS.get(unit, 1)


def test_the_document_lists_every_limit_once_with_its_value() -> None:
    rows = _ROW.findall(_DOCUMENT.read_text())
    listed = {name: _value(text) for name, text in rows}
    assert len(rows) == len(listed)
    defined = {name: value for name, value in vars(limits).items() if name.isupper() and name != "MIB"}
    assert listed == defined
