"""docs/load.md lists the names of columns, the empty texts and the reasons that the code knows."""

from __future__ import annotations

import re
from pathlib import Path

from ciml.pipelines.backfill.load_report import MISSING
from ciml.transforms.results.columns import SYNONYMS
from ciml.transforms.results.convert import REASONS
from ciml.transforms.results.values import NO_VALUE

TEXT = (Path(__file__).parents[3] / "docs" / "load.md").read_text()


def section(title: str) -> str:
    return re.split(r"^##+ ", TEXT.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_every_name_of_a_column_is_listed() -> None:
    words = set(re.findall(r"\w+", section("Columns")))
    assert [name for names in SYNONYMS.values() for name in names if name not in words] == []


def test_every_reason_is_explained() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", section("Bad rows"), re.MULTILINE)) == {*REASONS, *MISSING}


def test_every_empty_text_is_listed() -> None:
    assert set(re.findall(r"`([^`]+)`", section("The table").partition("The texts ")[2].partition(" of a CSV")[0])) == (
        NO_VALUE - {""}
    )
