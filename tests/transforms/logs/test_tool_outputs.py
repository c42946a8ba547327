"""The reasons that outputs of many tools name, by families of failures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ciml.transforms.logs.features import reason_of
from ciml.transforms.logs.ranking import scan

OUTPUTS = Path(__file__).with_name("tool_outputs.txt")
HEAD = re.compile(r"^## (.+) \| (.+) \| (\w+)\n", re.MULTILINE)


def outputs() -> Iterator[tuple[str, str, str]]:
    """Yield name, reason and text of each output."""
    _, *parts = HEAD.split(OUTPUTS.read_text())
    for number in range(0, len(parts), 4):
        tool, family, reason, text = parts[number : number + 4]
        yield f"{tool}: {family} {number // 4}", reason, text.partition("\n# part")[0]


@pytest.mark.parametrize(("reason", "text"), [pytest.param(*rest, id=name) for name, *rest in outputs()])
def test_an_output_names_the_reason_of_its_family(reason: str, text: str) -> None:
    assert reason_of(scan(text.encode())) == reason
