"""Gerrit: reviews and merges are facts of another system's runs, found by change and patch set."""

from __future__ import annotations

from typing import Any

import pytest

from adapters import gerrit
from ciml.errors import RejectedInput
from tests.adapters import samples
from tests.adapters.deliveries import event_of
from tests.adapters.reading import runs_of, updates_of
from tests.adapters.samples import SHA, account, delivery, vote, zuul_build, zuul_message

PATCHSET = "change:demo%2Fapp/7/2"


def read(kind: str, **fields: Any) -> Any:
    """Return the facts of the event's patch set, or the rule by which it is ignored."""
    event = event_of("gerrit", delivery(samples.gerrit(kind, **fields)))
    assert event.run_facts == ()
    return event.ignored or updates_of("gerrit", delivery(samples.gerrit(kind, **fields)))


def comment(*votes: dict[str, str], by: str = "cleo", **fields: Any) -> Any:
    return read("comment-added", author=account(by), approvals=list(votes), comment="Patch Set 2:", **fields)


def test_an_approval_reaches_the_runs_of_the_patch_set() -> None:
    build = zuul_build(change={"project": "demo/app", "change": 7, "patchset": "2"})
    (run,) = runs_of("zuul", delivery(zuul_message(build))).values()
    (subject,) = comment(vote("Code-Review", "2", "1"))
    assert subject == PATCHSET
    assert subject in run.subjects


@pytest.mark.parametrize(
    ("votes", "review"),
    [
        ([vote("Code-Review", "2", "0")], "approved"),
        ([vote("Code-Review", "+2", "1"), vote("Verified", "0")], "approved"),
        ([vote("Code-Review", "1", "0"), vote("Workflow", "1", "0")], "approved"),
        ([vote("Code-Review", "1", "2")], "dismissed"),
        ([vote("Workflow", "-1", "1"), vote("Code-Review", "2")], "dismissed"),
        ([vote("Code-Review", "-2", "2")], "changes_requested"),
        ([vote("Code-Review", "-2", "0"), vote("Workflow", "1", "0")], "changes_requested"),
    ],
)
def test_the_votes_of_a_reviewer(votes: list[dict[str, str]], review: str) -> None:
    assert comment(*votes) == {PATCHSET: {"review": review}}


@pytest.mark.parametrize(
    "votes",
    [
        [],
        [vote("Code-Review", "1", "0")],
        [vote("Code-Review", "-1", "0"), vote("Workflow", "-1", "0")],
        [vote("Verified", "2", "0")],  # by the CI system
        [vote("Verified", "-2", "2")],
        [vote("Anything", "2", "0")],
        [vote("Code-Review", "2"), vote("Workflow", "1")],  # given before: perhaps on another patch set, and copied
    ],
)
def test_other_votes_say_nothing_of_the_review(votes: list[dict[str, str]]) -> None:
    assert comment(*votes) == gerrit.NO_VOTE


@pytest.mark.parametrize("who", ["ada", "bob"])
def test_owner_and_uploader_do_not_review_themselves(who: str) -> None:
    assert comment(vote("Code-Review", "2", "0"), by=who) == gerrit.OWN_VOTE
    assert comment(vote("Code-Review", "0", "2"), by=who) == {PATCHSET: {"review": "dismissed"}}


def test_a_vote_of_an_unknown_person_is_no_review() -> None:
    assert read("comment-added", approvals=[vote("Code-Review", "2", "0")]) == gerrit.UNKNOWN_VOTER
    assert read("comment-added", author={}, approvals=[vote("Code-Review", "2", "0")]) == gerrit.UNKNOWN_VOTER


@pytest.mark.parametrize("status", ["MERGED", "ABANDONED"])
def test_a_vote_after_the_end_of_a_change_takes_nothing_back(status: str) -> None:
    change = {**samples.gerrit("")["change"], "status": status}
    assert comment(vote("Code-Review", "2", "0"), change=change) == gerrit.CLOSED


def test_a_deleted_vote_is_dismissed() -> None:
    found = read(
        "vote-deleted", reviewer=account("cleo"), remover=account("eve"), approvals=[vote("Workflow", "0", "1")]
    )
    assert found == {PATCHSET: {"review": "dismissed"}}


@pytest.mark.parametrize(
    ("kind", "number", "subjects"),
    [
        ("REWORK", 2, [PATCHSET]),
        ("NO_CODE_CHANGE", 2, [PATCHSET, "change:demo%2Fapp/7/1"]),
        ("TRIVIAL_REBASE", "2", [PATCHSET, "change:demo%2Fapp/7/1"]),
        ("TRIVIAL_REBASE", 1, ["change:demo%2Fapp/7/1"]),
        (None, 2, [PATCHSET]),
    ],
)
def test_a_merge_is_of_the_patch_set_and_of_the_same_code_before(kind: Any, number: Any, subjects: list[str]) -> None:
    found = read("change-merged", patchSet={"number": number, "kind": kind, "revision": SHA}, newRev=SHA)
    assert found == {key: {"review": "merged"} for key in subjects}


def test_an_approval_is_of_the_patch_set_that_was_read_alone() -> None:
    rebased = {"number": 2, "kind": "TRIVIAL_REBASE", "uploader": account("bob")}
    assert comment(vote("Code-Review", "2", "0"), patchSet=rebased) == {PATCHSET: {"review": "approved"}}


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (account("ada"), "ada"),
        ({"email": "a@example.org", "name": "Ada"}, "a@example.org"),
        ({"name": "Ada L."}, "Ada L."),
    ],
)
def test_a_patch_set_has_the_change_s_owner(owner: dict[str, str], name: str) -> None:
    change = {**samples.gerrit("")["change"], "owner": owner}
    assert read("patchset-created", change=change, uploader=account("bob")) == {PATCHSET: {"owner": name}}


def test_a_patch_set_without_an_owner_is_ignored() -> None:
    change = {**samples.gerrit("")["change"], "owner": None}
    assert read("patchset-created", change=change) == gerrit.NO_OWNER


@pytest.mark.parametrize(
    "fields",
    [
        {"change": {"project": "demo/app", "number": "7"}},
        {"change": {"number": 7}, "project": "demo/app"},
        {"change": {"number": 7}, "project": {"name": "demo/app"}},
        {"change": {"number": 7, "project": {"name": "demo/app"}}, "project": None},
    ],
)
def test_every_form_of_project_and_number(fields: dict[str, Any]) -> None:
    assert list(read("change-merged", **fields)) == [PATCHSET]


def test_a_project_with_a_slash_is_never_another_s_change() -> None:
    ours = read("change-merged", change={"project": "nova/7", "number": 3})
    theirs = read("change-merged", change={"project": "nova", "number": 7}, patchSet={"number": 3})
    assert not {*ours} & {*theirs, "change:nova/7", "change:nova/7/3"}


@pytest.mark.parametrize(
    "kind", ["ref-updated", "change-abandoned", "project-created", "topic-changed", "dropped-output"]
)
def test_other_types_are_ignored(kind: str) -> None:
    assert read(kind) == gerrit.NO_FACT


def test_the_same_event_has_the_same_id_and_its_own_time() -> None:
    first, second = (event_of("gerrit", delivery(samples.gerrit("change-merged"))) for _ in range(2))
    assert (first.key, first.type, first.time_us) == (second.key, "change-merged", 1795521600000000)
    assert event_of("gerrit", delivery(samples.gerrit("ref-updated"), delivery_id="d1")).id == "d1"


@pytest.mark.parametrize(
    ("fields", "reason", "where"),
    [
        ({"type": None}, "missing_field", "type"),
        ({"change": None}, "missing_field", "change.number"),
        ({"change": []}, "bad_field", "change"),
        ({"change": {"number": 7}, "project": {}}, "missing_field", "change.project"),
        ({"change": {"number": "7/2", "project": "p"}}, "bad_field", "change.number"),
        ({"change": {"number": -7, "project": "p"}}, "bad_field", "change.number"),
        ({"patchSet": None}, "missing_field", "patchSet.number"),
        ({"patchSet": {"number": 2.5}}, "bad_field", "patchSet.number"),
        ({"eventCreatedOn": "yesterday"}, "bad_time", "eventCreatedOn"),
    ],
)
def test_what_cannot_be_joined_is_rejected(fields: dict[str, Any], reason: str, where: str) -> None:
    with pytest.raises(RejectedInput) as caught:
        event_of("gerrit", delivery({**samples.gerrit("change-merged"), **fields}))
    assert (caught.value.reason, caught.value.detail.partition(":")[0]) == (reason, where)


@pytest.mark.parametrize("approvals", [{}, [7], [{"type": "Code-Review", "value": "two"}], [{"type": []}], [{}] * 101])
def test_strange_votes_are_rejected(approvals: Any) -> None:
    with pytest.raises(RejectedInput, match=r"approvals|type"):
        read("comment-added", author=account("cleo"), approvals=approvals)


def _id(kind: str, **fields: Any) -> str:
    return event_of("gerrit", delivery(samples.gerrit(kind, **fields))).id


def test_an_event_has_the_same_id_over_every_way() -> None:
    """The stream, the webhooks plugin and the REST API write the same event with different fields."""
    change = samples.gerrit("")["change"]
    for kind in ("patchset-created", "change-merged"):
        assert _id(kind) == _id(kind, eventCreatedOn=1795521601, change={**change, "subject": "another"}, refName="x")
        assert _id(kind) != _id(kind, patchSet={"number": 1})
        assert _id(kind) != _id(kind, change={**change, "project": "other"})
        assert _id(kind) != _id(kind, change={**change, "number": 8})
    assert _id("patchset-created") != _id("change-merged")


def test_a_vote_that_is_given_again_is_another_event() -> None:
    first = {"author": account("cleo"), "approvals": [vote("Code-Review", "2", "0")], "eventCreatedOn": 1795657180}
    change = {**samples.gerrit("")["change"], "subject": "another"}
    assert _id("comment-added", **first) == _id("comment-added", **first, change=change)
    for other in (
        {"eventCreatedOn": 1795657181}, {"author": account("eve")}, {"approvals": [vote("Code-Review", "1", "0")]},
        {"comment": "Patch Set 2: Code-Review+2"},
    ):  # fmt: skip
        assert _id("comment-added", **first) != _id("comment-added", **{**first, **other})
