"""The reasons that outputs of many tools name, by families of failures."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ciml.transforms.logs.features import VOCABULARY, reason_of
from ciml.transforms.logs.ranking import rank, scan

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


def test_the_vocabulary_has_another_digest_where_outputs_are_read_otherwise() -> None:
    digest = hashlib.blake2b(digest_size=8)
    for _, _, text in outputs():
        output = scan(text.encode())
        digest.update(f"{reason_of(output)} {[round(worth, 6) for worth in rank(output).tolist()]}".encode())
    # If the first is new, put both here. If only the second is new, first raise `_CODE` of
    # ciml.transforms.logs.features: models would else get features that they have not learned.
    assert (VOCABULARY, digest.hexdigest()) == ("529b418f78fcacfc", "7c44ef17aa5ad0c9")
