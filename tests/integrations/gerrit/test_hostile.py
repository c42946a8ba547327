"""A hostile or broken Gerrit costs its own source alone, and no more memory, time or log than a good one."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ciml.integrations.gerrit import approvals as rest_module
from ciml.integrations.gerrit import session as module
from ciml.integrations.gerrit.stream import Lines, StoredEvents
from ciml.limits import MAX_STREAM_LINE_BYTES, MIB
from tests.integrations.gerrit.samples import CLEO, change, event, numbers, person
from tests.integrations.gerrit.server import FakeGerrit
from tests.integrations.receivers.kept import allocating, connected, running, wait

pytestmark = pytest.mark.timeout(120)


def body(*parts: bytes, **headers: str) -> tuple[int, dict[str, str], Any]:
    return 200, headers, parts


def test_an_event_may_hold_anything(gerrit: FakeGerrit) -> None:
    strange: list[dict[str, Any]] = [
        {"eventCreatedOn": 10**400},
        {"eventCreatedOn": True},
        {"approvals": 7},
        {"change": None},
        {"type": ["x"]},
    ]
    with running(gerrit.session()) as kept:
        gerrit.wait_for_stream()
        for number, fields in enumerate(strange, 1):
            gerrit.write({**event("change-merged", 1, 5), **fields})
            wait(lambda number=number: kept.outcomes.get("accepted") == number, f"{fields} is missing")
        gerrit.write(event("change-merged", 2, 6))
        wait(lambda: len(kept.values) == len(strange) + 1, "an event is missing")
        assert len(gerrit.commands) == 1  # on the same connection


def test_standard_error_does_not_stop_the_stream(gerrit: FakeGerrit) -> None:
    gerrit.errors = b"a warning\n" * (MIB // 2)
    with running(gerrit.session()) as kept:
        gerrit.wait_for_stream()
        gerrit.write(event("change-merged", 1, 5))
        wait(lambda: kept.values, "the stream stands still")


def test_the_servers_last_words_are_quoted(gerrit: FakeGerrit) -> None:
    gerrit.errors = b"x" * 5000 + b"\x1b[2J\x1b]0;all is well\x07"
    session = gerrit.session()
    with running(session):
        gerrit.wait_for_stream()
        gerrit.end_streams()
        wait(lambda: "ended the stream" in session.problem, "nothing is said")
        assert session.problem.isprintable()
        assert len(session.problem) < 500


def test_a_line_without_end_takes_no_memory() -> None:
    lines = Lines(MAX_STREAM_LINE_BYTES)
    with allocating(4 * MIB):
        for _ in range(4000):
            assert lines.feed(b"x" * (1 << 14)) == []
    assert lines.feed(b'\n{"a": 1}\n') == [None, b'{"a": 1}']


def test_a_flood_of_events_waits_for_kafka(gerrit: FakeGerrit) -> None:
    with allocating(24 * MIB), running(gerrit.session(), acknowledges=False) as kept:
        gerrit.wait_for_stream()
        gerrit.write(*[{**event("change-merged", 1, 5), "more": "x" * 10_000}] * 1000)
        wait(lambda: len(kept.values) >= 64, "events are missing")
        time.sleep(0.3)
        assert len(kept.values) == 64
        kept.acknowledge()
        wait(lambda: len(kept.values) == 1000, "events are missing")


def test_a_long_name_is_remembered_by_a_digest() -> None:
    had = StoredEvents()
    with allocating(8 * MIB):
        for number in range(100):
            made = event("comment-added", number, 5, author=person(CLEO), approvals=[{"type": "V", "value": "1"}])
            made["change"]["project"] = "p" * 500_000
            had.add(made)
    assert made in had
    made["change"]["project"] += "q"
    assert made not in had


def test_dropped_output_is_logged_once_until_it_was_looked_for(
    gerrit: FakeGerrit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(gerrit.session()) as kept, caplog.at_level(logging.WARNING):
        gerrit.wait_for_stream()
        gerrit.position("at")  # the API was asked after the connection
        monkeypatch.setattr(module, "_SETTLE_S", 60.0)
        gerrit.write(*[{"type": "dropped-output"}] * 1000, event("change-merged", 1, 5))
        wait(lambda: kept.values, "the stream stands still")
    assert caplog.text.count("has dropped events") == 1


def test_a_server_that_does_not_answer_an_end_is_left(gerrit: FakeGerrit) -> None:
    with running(gerrit.session()):
        gerrit.wait_for_stream()
        gerrit.freeze()
        began = time.monotonic()
    assert time.monotonic() - began < 10
    gerrit.thaw()


def bomb() -> Any:
    return body(gzip.compress(b" " * 128 * MIB, 1), **{"Content-Encoding": "gzip"})


def gigabyte() -> tuple[int, dict[str, str], Iterator[bytes]]:
    return 200, {}, itertools.repeat(b"x" * MIB, 1000)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((302, {"Location": "http://127.0.0.1:1/changes/", "Content-Length": "0"}, []), "answers 302, a redirect"),
        (body(b"[" * 1_000_000), "is no REST API of Gerrit"),
        (body(b'[{"a":' + b"9" * 5000 + b"}]"), "is no REST API of Gerrit"),
        (body(b"[{}," + b"{}," * 200 + b"{}]"), "answers 202 changes, though 100 were asked for"),
        (bomb, "is no REST API of Gerrit"),
        (body(b"[" + b"[]," * 1_000_000 + b"[]]"), "more than 10 changes are too large"),
        (body(b"[]", Date="Thu, 01 Jan 9999 00:00:00 GMT"), "its clock is wrong: 'Thu, 01 Jan 9999 00:00:00 GMT'"),
    ],
    ids=["redirect", "deep", "digits", "many", "gzip", "values", "far ahead"],
)
def test_a_hostile_answer_is_reported_and_the_stream_goes_on(gerrit: FakeGerrit, answer: Any, said: str) -> None:
    answer = answer() if callable(answer) else answer  # made here: each process that tests collects all tests
    gerrit.answer = lambda path: answer if path.endswith("/changes/") else None
    session = gerrit.session({"after": time.time() - 1000})
    with allocating(64 * MIB), running(session) as kept:
        wait(lambda: said in session.problem, f"it says {session.problem!r}")
        gerrit.wait_for_stream()
        gerrit.write(event("change-merged", 1, 5))
        wait(lambda: kept.values, "the stream stands still")
        assert len(gerrit.commands) == 1
    assert "at" not in json.loads((gerrit.folder.parent / "state" / "gerrit-zuul.json").read_text())


def test_half_a_character_affects_its_own_change_alone(gerrit: FakeGerrit) -> None:
    now_s = int(time.time())
    gerrit.changes = [{**change(1, now_s), "subject": "\ud800"}, change(2, now_s)]
    with running(gerrit.session({"after": time.time() - 1000})) as kept:
        wait(lambda: kept.outcomes == {"rejected": 1, "accepted": 1}, f"{kept.outcomes}")
        assert numbers(kept.values) == [2]


def test_a_gigabyte_and_a_bomb_of_values_are_left_and_counted(gerrit: FakeGerrit) -> None:
    # 100, 25, 6 and 1 changes are asked for.
    answers = iter([gigabyte, gigabyte, gigabyte, gigabyte, lambda: body(b"[" + b"[]," * 8_000_000 + b"[]]")])
    gerrit.answer = lambda path: next(answers, lambda: None)() if path.endswith("/changes/") else None
    gerrit.changes = [change(number, int(time.time())) for number in (1, 2, 3)]
    with allocating(200 * MIB), running(gerrit.session({"after": time.time() - 1000})) as kept:
        wait(lambda: kept.outcomes == {"too_large": 2, "accepted": 1}, f"{kept.outcomes}", 60)
        assert numbers(kept.values) == [3]


def test_an_answer_that_drips_ends(gerrit: FakeGerrit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_module.Changes, "call_s", 0.5)

    def drip() -> Iterator[bytes]:
        for _ in range(200):
            time.sleep(0.1)
            yield b" "

    gerrit.answer = lambda path: (200, {}, drip())
    session = gerrit.session()
    with running(session):
        wait(lambda: "does not answer in time" in session.problem, "it waits on")


def test_a_list_without_end_ends(gerrit: FakeGerrit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_module, "MAX_REVIEWED_CHANGES", 5)
    page = json.dumps([{**change(1, 5), "_more_changes": True}]).encode()
    gerrit.answer = lambda path: body(page) if path.endswith("/changes/") else None
    session = gerrit.session({"after": time.time() - 1000})
    with running(session) as kept:
        wait(lambda: "lists more than 5 changes" in session.problem, f"it says {session.problem!r}")
        assert kept.values == []


@pytest.mark.parametrize("jump_s", [-86_400, 86_400, 86_400 * 365])
def test_a_clock_that_jumps_makes_no_hole(gerrit: FakeGerrit, jump_s: float) -> None:
    """The server's clock was wrong at the last comparison, and is right again."""
    now = int(time.time())
    gerrit.changes = [change(1, now - 100)]  # while the receiver was away
    state = {"after": now - 300 + jump_s, "at": now - 300}
    with running(gerrit.session(state)) as kept:
        wait(lambda: kept.values, f"the change is missed: {gerrit.asked}")
    assert numbers(kept.values) == [1]


@pytest.mark.parametrize("state", [{"after": 1e300}, {"after": -1}, {"after": "x"}, {"after": 5, "at": []}, {}])
def test_a_strange_position_is_no_position(gerrit: FakeGerrit, state: Any) -> None:
    with connected(gerrit.session(state)):
        gerrit.position("at")


def test_answers_of_plain_http_prove_nothing(gerrit: FakeGerrit, monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(time.time())
    gerrit.changes = [change(1, now)]
    for local, auth in ((module._LOCAL, b"ssh"), (frozenset(), None)):
        monkeypatch.setattr(module, "_LOCAL", local)
        with running(gerrit.session({"after": now - 100})) as kept:
            wait(lambda kept=kept: kept.values, "the change is missed")
            gerrit.wait_for_stream()
            gerrit.write(event("change-merged", 2, 5))
            wait(lambda kept=kept: len(kept.values) == 2, "the event is missed")
        assert [each.get("ciml_auth") for each in kept.headers] == [auth, b"ssh"]
