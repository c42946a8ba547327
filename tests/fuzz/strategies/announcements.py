"""Messages of the topic `runs`: whole announcements, and ones that are wrong in one field, in several, or wholly."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

DIGEST = "0123456789abcdef" * 4
FACTS = {
    "run_id": "zuul~a~1",
    "build_uuid": "a",
    "build_name": "job",
    "phase": "finished",
    "outcome": "failure",
    "change": "1,2",
    "start_us": 1_772_000_000_000_000,
    "url": "https://ci.example.org/build/a",
    "labels": {"nodes": "2"},
    "subjects": ["change:1"],
}
GOOD = {
    "run_id": "zuul~a~1",
    "build_name": "job",
    "path": f"runs/job=job/date=2026-03-04/zuul~a~1.{DIGEST[:16]}.parquet",
    "digest": DIGEST,
    "raw_version": 1,
    "facts": FACTS,
}
_TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="./~%\\\x00\ud800\u202eaF0=", max_size=40),
    st.sampled_from(["", ".", "..", "/", "runs", "../" * 20, "x" * 300, "x" * 5000, "\ud800", "\u202e", "a/./b", "~"]),
)
_VALUES: st.SearchStrategy[Any] = st.one_of(
    _TEXTS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.lists(_TEXTS, max_size=2),
    st.dictionaries(_TEXTS, _TEXTS, max_size=2),
)


@st.composite
def _bent(draw: st.DrawFn, text: str) -> str:
    """A text with some of it replaced."""
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(start + 9, len(text))))
    return text[:start] + draw(_TEXTS) + text[end:]


@st.composite
def announcements(draw: st.DrawFn) -> dict[str, Any]:
    """The object of an announcement, near a good one."""
    made: dict[str, Any] = dict(GOOD)
    for name in draw(st.lists(st.sampled_from(list(GOOD)), max_size=3)):
        if draw(st.integers(0, 9)) == 0:
            made.pop(name, None)
        elif isinstance(made.get(name), str):
            made[name] = draw(_bent(made[name]) | _VALUES)
        elif name == "facts":
            changed = draw(st.sampled_from([*FACTS, "end_us", "log_url", "owner", "fork", "unknown"]))
            made[name] = draw(_VALUES | _VALUES.map(lambda value, at=changed: {**FACTS, at: value}))
    return made


def messages() -> st.SearchStrategy[bytes]:
    """Values of messages."""
    return st.one_of(
        announcements().map(lambda one: json.dumps(one).encode()),
        announcements().map(lambda one: json.dumps(one, ensure_ascii=False).encode(errors="surrogatepass")),
        st.binary(max_size=60),
        _VALUES.map(lambda one: json.dumps(one).encode()),
        st.integers(1, 100_000).map(lambda depth: b'{"a":' * depth),
    )
