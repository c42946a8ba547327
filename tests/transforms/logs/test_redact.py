"""Many lines are redacted as each of them alone."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ciml.events.redaction import redact_text
from ciml.transforms.logs.redact import redact_lines
from ciml.transforms.logs.text_arrays import strings
from tests.ciml.events.test_redaction import TOKENS, token

#: Tokens of many issuers, with random letters.
_TOKENS = [token(template, random.Random(template))[0] for template in TOKENS if "\n" not in template]
_NAMES = "password Token apiKey user-pass pass PWD2 sid code session_id --password --api-key x_auth data_base64".split()
_SIGNS = r"""bearer Basic = : " ' \ // @ https:// u:p :8080/ ? & ; # %3D &amp; &#61; &equals \u003d \x3a""".split()
_SPACES = (" ", ": ", " = ", "\0", "\xa0", "\u2003", "é", "\u017f", "\u212a")
_BEGINS = "hf_ glpat- AKIA ghp_ xoxb- eyJ _live_ -----BEGIN.RSA.PRIVATE.KEY slack.com/services/ 9Q~ AIza s. .".split()
_WORDS = (
    "0123456789abcdef0123456789abcdef tH4wQ9zLm2Xc TaskRunResultLargerThan A1B2C3D4E5F6A7B8C9D0E1F2 /usr/lib/x".split()
)
_PARTS = (*_NAMES, *_SIGNS, *_SPACES, *_BEGINS, *_WORDS)
_LINES = st.lists(
    st.one_of(
        st.sampled_from((*_PARTS, *_TOKENS)),
        st.text(string.ascii_letters + string.digits + "_-.~+/= ", max_size=40),
        st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=4),
    ),
    max_size=8,
).map(lambda parts: "".join(parts).replace("\n", ""))


@given(st.lists(_LINES, max_size=20))
@example(["pa\u017f\u017fword=x", "to\u212aen=x"])
@example(["x" * 600 + "=a b", "--toKen x y", f"{'y' * 513}: z"])
@example(["tH4wQ9zLm2Xc7Rp5Kb8V2026-01-01T00:00:00.1Z x"])  # random up to the year, which is no part of a stamp here
@example(["git clone https://a-token@host.org/x", f"to{7 * chr(92)}ken=abcdefgh"])  # more layers than are removed here
def test_lines_are_redacted_as_texts(lines: list[str]) -> None:
    """By the oracle: `redact_text` of each line."""
    assert redact_lines(strings(lines)).to_pylist() == [redact_text(line) for line in lines]


@pytest.mark.parametrize(
    "around", ["{}", "2026-01-01T00:00:00.1234567Z cloning with {} failed", '"a": "{}"', "https://h/a?x={}"]
)
def test_tokens_of_many_issuers_are_found(around: str) -> None:
    lines = [around.format(text) for text in _TOKENS]
    redacted = redact_lines(strings(lines)).to_pylist()
    assert redacted == [redact_text(line) for line in lines]
    assert sum(line != before for line, before in zip(redacted, lines, strict=True)) > 0.9 * len(lines)


def test_lines_of_a_slice_are_those_of_the_slice() -> None:
    lines = strings(["a", "password=x", "b", "token: y"])[1:]
    assert redact_lines(lines).to_pylist() == ["password=REDACTED", "b", "token: REDACTED"]
