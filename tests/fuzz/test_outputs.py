"""Whatever a job prints, its output is stored without secrets or rejected, and no step on it fails."""

from __future__ import annotations

import gzip
import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from ciml.errors import RejectedInput
from ciml.events.redaction import redact_text
from ciml.runs.outputs import KeptOutput, PreparedOutput, decompressed
from ciml.transforms.logs.failed_tests import failed_tests
from ciml.transforms.logs.features import reason_of
from ciml.transforms.logs.prepare import prepare_output
from ciml.transforms.logs.profile import differences_of, printed_templates, profile_of
from ciml.transforms.logs.ranking import excerpt, scan
from ciml.verdicts.evidence.output import is_quoted, quote
from tests.ciml.events.test_redaction import TOKENS, token
from tests.fuzz.frame import fuzz

#: Texts with secrets, and the secrets in them, of the shapes that are found in a line of their own.
_MADE = [token(template, random.Random(template)) for template in TOKENS if "\n" not in template]
SECRETS = [
    (text, values)
    for text, values in _MADE
    if all(len(value) >= 12 for value in values)
    and not any(value in redact_text(f"used {text} now") for value in values)
]
_WORDS = st.sampled_from(
    "FAILED ERROR error: fatal: Traceback not_ok ok 3 failed 0 0x7f /usr/lib/x.py:12 E ##[error] ##[group]Run "
    "##[endgroup] [gw3] | \x1b[31m \x1b[0m \x1b]8;;x\x07 ^[[1m \r \t \0 \ufeff \u202e \u2028 é <!-- @all https://h/?a=b".split(
        " "
    )
)
_PIECES = st.one_of(
    _WORDS,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(SECRETS).map(lambda made: made[0]),
    st.builds(lambda character, number: character * number, st.sampled_from("x. \x1b["), st.integers(1, 40_000)),
)
_LINES = st.lists(_PIECES, max_size=6).map(" ".join)
_TEXTS = st.lists(st.one_of(_LINES.map(str.encode), st.binary(max_size=30)), max_size=30).map(b"\n".join)


def packed(data: bytes, layers: int, cut: int) -> bytes:
    """Return an output as it is sent: in layers of gzip, and cut short."""
    for _ in range(layers):
        data = gzip.compress(data, mtime=0)
    return data[: len(data) - cut]


def text_of(prepared: PreparedOutput) -> bytes:
    return b"".join(decompressed(prepared.text, "the output"))


@fuzz
@given(_TEXTS, st.integers(0, 3), st.sampled_from([0, 0, 1, 9]), st.lists(st.integers(1, 5000), min_size=1, max_size=4))
def test_an_output_is_stored_without_secrets_and_every_step_takes_it(
    data: bytes, layers: int, cut: int, sizes: Sequence[int]
) -> None:
    # A plain output that is cut inside of a secret has a part of it, which no shape recognises.
    sent = packed(data, layers, cut if layers else 0)
    try:
        prepared = prepare_output(sent[start : start + sizes[0]] for start in range(0, len(sent), sizes[0]))
    except RejectedInput as rejected:
        if rejected.reason not in {"corrupt_gzip", "log_too_large"}:
            raise
        return
    text = text_of(prepared)
    templates = b"".join(decompressed(prepared.templates, "the templates"))
    for _, values in SECRETS:
        for value in values:
            assert value.encode() not in text
            assert value.encode() not in templates
    check_steps(text)


def check_steps(text: bytes) -> None:
    """Run every step on a text; what people see of it is bounded and visible."""
    output = scan(text)
    printed = printed_templates(output)
    profile = profile_of([printed_templates(scan(b"collecting\n9 passed"))])
    shown = excerpt(output, 500, profile)
    assert sum(len(line.text) + 1 for line in shown) <= 500 or len(shown) == len(output.codes)
    assert all(test.name for test in failed_tests(output))
    assert reason_of(output, profile)
    differences_of(printed, profile)
    kept = KeptOutput(text, text.count(b"\n") + 1)
    quoted = quote(kept, output, profile, "job-output.txt")
    sentence = "" if quoted is None else quoted.sentence
    assert not sentence or (sentence.isprintable() and len(sentence) < 400 and is_quoted(sentence, kept))


def test_there_are_secrets_of_many_shapes() -> None:
    assert len(SECRETS) > 50
