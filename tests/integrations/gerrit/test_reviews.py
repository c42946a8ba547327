"""What the REST API says of a change becomes the events that the stream would have had."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.errors import RejectedInput
from ciml.events.reviews import PARTLY_APPROVED
from ciml.integrations.adapter import Delivery
from ciml.integrations.gerrit.adapter import ADAPTER
from ciml.integrations.gerrit.approvals import events_of, seconds
from ciml.integrations.gerrit.stream import Lines
from tests.integrations.gerrit.samples import ADA, CLEO, COMMIT, PARENT, at, change, event, message, person, vote
from tests.integrations.gerrit.test_executed import rules
from tests.integrations.hostile import Path, changed, paths
from tests.integrations.samples import ref_update

T = 1_795_657_180


def rows_of(made: dict[str, Any], after: float = 0.0) -> list[tuple[Any, ...]]:
    """Type, time, patch set, votes and state of each event."""
    return [
        (
            each["type"], each["eventCreatedOn"] - T, each["patchSet"]["number"], each["change"]["status"],
            [(one["type"], one["value"], one["oldValue"]) for one in each.get("approvals", [])],
        )
        for each in events_of(made, after)
    ]  # fmt: skip


def test_the_events_of_a_change() -> None:
    made = change(
        7, T, status="MERGED", submitted=at(T + 30), submitter=CLEO,
        labels={"Code-Review": {"all": [vote(CLEO, 2, T + 20), {**ADA, "value": 0}, {**ADA}]}},
        messages=[message(CLEO, "Patch Set 2: Code-Review+2", T + 20, 2)],
        current_revision="b" * 40,
        revisions={
            "a" * 40: {"_number": 1, "created": at(T), "uploader": ADA, "kind": "REWORK"},
            "b" * 40: {"_number": 2, "created": at(T + 10), "uploader": CLEO, "kind": "TRIVIAL_REBASE"},
        },
    )  # fmt: skip
    assert rows_of(made) == [
        ("patchset-created", 0, 1, "NEW", []),
        ("patchset-created", 10, 2, "NEW", []),
        ("comment-added", 20, 2, "NEW", [("Code-Review", "2", "0")]),
        ("change-merged", 30, 2, "MERGED", []),
    ]
    *_, voted, merged = events_of(made, 0)
    assert voted["author"] == person(CLEO)
    assert merged["patchSet"]["kind"] == "TRIVIAL_REBASE"


def test_a_recent_event_comes_with_its_patch_set_and_the_one_before() -> None:
    """A review counts by the parents of its patch set, which the stream may have shown before anyone listened."""
    made = change(7, T, labels={"Code-Review": {"all": [vote(CLEO, 2, T + 40)]}}, **PATCH_SETS)
    made["messages"] = [message(CLEO, "Patch Set 3: Code-Review+2", T + 40, 3)]
    made["revisions"]["c" * 40] = {**made["revisions"]["b" * 40], "_number": 3, "created": at(T + 30)}
    assert [(kind, when, number) for kind, when, number, _, _ in rows_of(made, T + 40)] == [
        ("patchset-created", 20, 2),
        ("patchset-created", 30, 3),
        ("comment-added", 40, 3),
    ]
    assert rows_of(made, T + 41) == []


def test_a_patch_set_has_its_own_parents_author_and_message() -> None:
    second = {**COMMIT, "parents": [{"commit": "b" * 40}, {"commit": "c" * 40}], "message": "Another message"}
    revisions = {
        "1" * 40: {"_number": 1, "created": at(T), "commit": COMMIT},
        "2" * 40: {"_number": 2, "created": at(T + 1), "commit": second},
        "3" * 40: {"_number": 3, "created": at(T + 2)},
    }
    found = events_of(change(7, T, revisions=revisions), 0)
    assert [(each["patchSet"]["parents"], each["change"].get("commitMessage")) for each in found] == [
        ([PARENT], COMMIT["message"]),
        (["b" * 40, "c" * 40], "Another message"),
        ([], None),
    ]
    assert found[0]["patchSet"]["author"] == {"name": "Ada", "email": "ada@example.org"}


PATCH_SETS = {
    "current_revision": "b" * 40,
    "revisions": {
        "a" * 40: {"_number": 1, "created": at(T), "uploader": ADA, "kind": "REWORK", "commit": COMMIT},
        "b" * 40: {"_number": 2, "created": at(T + 20), "uploader": ADA, "kind": "REWORK", "commit": COMMIT},
    },
}


def voted_on(*messages: dict[str, Any], when: int) -> list[int]:
    """The patch sets for which a change's only vote counts."""
    labels = {"Code-Review": {"all": [vote(CLEO, 2, when)]}}
    made = change(7, T, labels=labels, messages=list(messages), **PATCH_SETS)
    return [number for kind, _, number, _, _ in rows_of(made) if kind == "comment-added"]


def test_a_vote_is_of_the_patch_set_on_which_it_was_given() -> None:
    first, second = (message(CLEO, f"Patch Set {n}: Code-Review+2", T + 10, n) for n in (1, 2))
    assert voted_on(first, when=T + 10) == [1]
    assert voted_on(second, when=T + 10) == [2]
    assert voted_on(second, first, when=T + 10) == [1]  # both within a second: the earlier one
    assert voted_on(first, when=T + 20) == []  # Gerrit copied it to the next patch set
    assert voted_on(message(ADA, "Patch Set 2:", T + 20, 2), when=T + 20) == []  # who uploaded that patch set
    commented = message(CLEO, "Patch Set 2:\n\nCode-Review+2", T + 20, 2)
    assert voted_on(first, commented, when=T + 20) == []  # a comment within the second of the copy
    assert voted_on(message(CLEO, "Patch Set 2: Code-Review+1", T + 20, 2), when=T + 20) == []
    assert voted_on(message(CLEO, "Patch Set 9: Code-Review+2", T + 10, 9), when=T + 10) == []


def test_a_vote_that_was_taken_back() -> None:
    made = change(
        7, T,
        messages=[
            message(CLEO, "Patch Set 1: Code-Review+2 Workflow+1\n\nfine", T + 10),
            message(CLEO, "Patch Set 1: -Code-Review\n\n(1 comment)", T + 20),
            message(ADA, "Removed Workflow+1 by Cleo <cleo@example.org>\n", T + 30),
            message(ADA, "Patch Set 1: -Verified", T + 40),  # of an unknown vote
        ],
    )  # fmt: skip
    assert rows_of(made)[1:] == [
        ("comment-added", 20, 1, "NEW", [("Code-Review", "0", "2")]),
        ("vote-deleted", 30, 1, "NEW", [("Workflow", "0", "1")]),
    ]


def test_the_text_of_a_message_approves_nothing() -> None:
    texts = ("Patch Set 1: Code-Review+2", "Code-Review+2", "x\nPatch Set 1: Code-Review+2", "Removed nothing")
    made = change(7, T, messages=[message(CLEO, text, T + 10) for text in texts])
    assert rows_of(made)[1:] == []


@pytest.mark.parametrize("made", [{}, {"_number": "7"}, {"_number": 7}, {"_number": 7, "project": ["x"]}])
def test_what_is_no_change_is_rejected(made: dict[str, Any]) -> None:
    with pytest.raises(RejectedInput):
        events_of(made, 0.0)


_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5)  # fmt: skip # noqa: E501


_WHOLE = change(
    7, T, status="MERGED", submitted=at(T + 30), submitter=CLEO,
    labels={"Code-Review": {"all": [vote(CLEO, 2, T + 20)]}},
    messages=[message(CLEO, "Patch Set 1: Code-Review+2", T), message(CLEO, "Patch Set 1: -Code-Review", T)],
)  # fmt: skip


@given(st.sampled_from(list(paths(_WHOLE))), _JSON)
def test_any_field_may_be_anything(path: Path, value: Any) -> None:
    try:
        events = events_of(changed(_WHOLE, path, value), 0.0)
    except RejectedInput:
        return
    assert all(each["eventCreatedOn"] >= 0 for each in events)


def test_times() -> None:
    assert seconds(at(T)) == T
    assert [seconds(text) for text in ("", "2026", "2026-99-99 00:00:00", "x" * 100)] == [None] * 4


@given(st.lists(st.binary(max_size=8)), st.integers(1, 6))
def test_lines_do_not_depend_on_chunks(parts: list[bytes], most: int) -> None:
    lines = Lines(most)
    found = [each for part in [*parts, b"\n"] for each in lines.feed(part)]
    whole = (b"".join(parts) + b"\n").split(b"\n")[:-1]
    assert found == [each for line in whole if (each := line.strip() if len(line) <= most else None) != b""]


def test_the_adapter_reads_events_of_the_api() -> None:
    made = change(7, T, labels={"Code-Review": {"all": [vote(CLEO, 2, T + 20)]}})
    readings = [ADAPTER.read(Delivery(json.dumps(each).encode(), {}, "")) for each in events_of(made, 0)]
    assert [(each.type, [update.facts for update in each.updates]) for each in readings] == [  # type: ignore[union-attr]
        ("patchset-created", [{"owner": "ada", "parents": PARENT}]),
        ("comment-added", [{"review": PARTLY_APPROVED, "target": "main"}]),
    ]  # fmt: skip


def test_a_vote_raises_the_trust_of_its_own_patch_set_alone() -> None:
    """Whether the stream shows it, or the API after a restart; Gerrit has copied it to the second patch set."""
    given = event("comment-added", 7, T + 10, author=person(CLEO), comment="Patch Set 1: Code-Review+2",
                  approvals=[{"type": "Code-Review", "value": "2", "oldValue": "0"}])  # fmt: skip
    seen = {**given, "eventCreatedOn": T + 30, "comment": "Patch Set 2:", "patchSet": {"number": 2},
            "approvals": [{"type": "Code-Review", "value": "2"}]}  # fmt: skip
    said = [message(CLEO, "Patch Set 1: Code-Review+2", T + 10), message(CLEO, "Patch Set 2:", T + 30, 2)]
    listed = events_of(
        change(7, T, labels={"Code-Review": {"all": [vote(CLEO, 2, T + 20)]}}, messages=said, **PATCH_SETS), 0
    )
    tip = event("ref-updated", 0, T, refUpdate=ref_update("refs/heads/main", PARENT, "0" * 40))
    assert rules([tip, given, seen, *listed], "demo/app~7", 2) == ["reviewed", "no rule"]
    assert rules([tip, *listed], "demo/app~7", 2) == ["no rule", "no rule"]
    assert rules([tip, given], "demo/app~7", 1) == ["no rule"]  # on an unknown parent
    again = {**seen, "approvals": [{"type": "Code-Review", "value": "2", "oldValue": "1"}]}
    assert rules([tip, given, again, *listed], "demo/app~7", 2)[1] == "reviewed"
