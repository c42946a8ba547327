"""Events, lines of listings and samples: whole ones, ones that are wrong somewhere, and bytes of any kind."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from ciml.events.payloads import UNREADABLE_HEADERS
from ciml.events.records import Message
from ciml.limits import MAX_MESSAGE_HEADERS
from tests.fuzz.strategies.hostile_events import CANARY, TEXTS, URLS, VALUES, binary, envelope, hostile_event, run


def _plain(most: int) -> st.SearchStrategy[str]:
    """Texts, but for the canary, which hypothesis draws as it draws any constant of the code: it has to stand beside a
    word that says that it is secret."""
    return st.text(max_size=most).filter(lambda text: CANARY not in text)


VALUE: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _plain(30) | st.sampled_from([*TEXTS, *VALUES, *URLS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
RUN_FIELDS = st.sampled_from([*run(0), "attempt", "outcome", "start_time", "event", "labels", "project", "token"])
LINE: dict[str, Any] = {
    "build_uuid": "r", "build_name": "job", "result": "FAILURE", "end_time": "2026-11-24T12:00:00Z",
    "log_path": "a/b.gz",
}  # fmt: skip
SAMPLES: dict[str, Any] = {
    "run_id": "zuul~r~1", "recorder_us": 1732456789000000, "first_us": 1732456789123456, "columns": ["cpu:usr"],
    "samples": [[0, 1732456789123456, True, [1.5]]],
}  # fmt: skip
_HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["content-type", "ce_id", "ce_type", "token", "", "\u202e"]) | _plain(9),
        st.none() | st.binary(max_size=40),
    ),
    max_size=4,
)


@st.composite
def spoiled(draw: st.DrawFn, text: bytes, *, end_only: bool = False) -> bytes:
    """Bytes as they are, cut, or with some replaced; with ``end_only`` all from some place on, so that the name of a
    secret stays before it. An address whose ``@`` is cut off does not say that its user is secret: such bytes stay."""
    if draw(st.booleans()):
        return text
    start = draw(st.integers(0, len(text)))
    end = len(text) if end_only else draw(st.integers(start, len(text)))
    spoilt, user = text[:start] + draw(st.binary(max_size=6)) + text[end:], f"{CANARY}@".encode()
    return text if CANARY.encode() in spoilt and spoilt.count(user) < text.count(user) else spoilt


@st.composite
def changed(draw: st.DrawFn, fields: dict[str, Any], names: st.SearchStrategy[str]) -> bytes:
    """A JSON object of which some fields hold something else."""
    value = {**fields, **draw(st.dictionaries(names, VALUE, max_size=3))}
    return draw(spoiled(json.dumps(value).encode()))


@st.composite
def events(draw: st.DrawFn) -> Message:
    """A message of the topic of events, in any of its three modes, or one of `hostile_event`."""
    mode = draw(st.sampled_from(["bare", "structured", "binary", "hostile", "noise"]))
    key = draw(st.none() | st.just(f"token={CANARY}".encode()))
    if mode == "hostile":
        value, sent, stamp = hostile_event(draw(st.integers(0, 100_000)))
        names = [name for name, _ in sent if isinstance(name, bytes)]
        headers = tuple((str(name), content) for name, content in sent)[: MAX_MESSAGE_HEADERS + 1]
        return Message(7, value, UNREADABLE_HEADERS if names else headers, key, stamp)
    if mode == "noise":
        return Message(7, draw(st.binary(max_size=60)), tuple(draw(_HEADERS)), key)
    one = {**run(1), **draw(st.dictionaries(RUN_FIELDS, VALUE, max_size=3))}
    data = {"runs": [one, run(2)]} if draw(st.booleans()) else one
    whole = (
        data
        if mode == "binary"
        else {**envelope(data, 1), **draw(st.dictionaries(st.sampled_from(["id", "time", "x"]), VALUE, max_size=1))}
    )
    first = (
        binary(1) if mode == "binary" else [("content-type", b"application/cloudevents+json")] * (mode == "structured")
    )
    headers = (*((str(name), content) for name, content in first), *draw(_HEADERS))
    return Message(7, draw(spoiled(json.dumps(whole).encode(), end_only=True)), headers, key)


def lines() -> st.SearchStrategy[bytes]:
    """A line of a listing."""
    return changed(LINE, st.sampled_from([*LINE, "attempt", "labels", "size", "token", "node_provider"]))


def samples() -> st.SearchStrategy[bytes]:
    """A value of the topic of samples."""
    return changed(SAMPLES, st.sampled_from([*SAMPLES, "end", "x"])) | st.binary(max_size=60)
