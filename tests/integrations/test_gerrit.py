"""Gerrit: reviews and merges are facts of another system's runs, found by change and patch set."""

from __future__ import annotations

from typing import Any

import pytest

from ciml.events.reviews import PARTLY_APPROVED
from ciml.integrations.gerrit import adapter
from tests.integrations import samples
from tests.integrations.deliveries import event_of
from tests.integrations.reading import updates_of
from tests.integrations.samples import PARENT, SHA, account, delivery, ref_update, vote

CHANGE = "change:demo%2Fapp/7"
PATCHSET, BEFORE = f"{CHANGE}/2", f"{CHANGE}/1"
MERGED = f"merged:demo%2Fapp/main/{SHA}"


def read(kind: str, **fields: Any) -> Any:
    """Return the facts of the event's patch set, or the rule by which it is ignored."""
    event = event_of("gerrit", delivery(samples.gerrit(kind, **fields)))
    assert event.run_facts == ()
    return event.ignored or updates_of("gerrit", delivery(samples.gerrit(kind, **fields)))


def review(value: str) -> dict[str, str]:
    """Return the facts of a review for the branch main."""
    return {"review": value, "target": "main"}


def comment(*votes: dict[str, str], by: str = "cleo", **fields: Any) -> Any:
    return read("comment-added", author=account(by), approvals=list(votes), comment="Patch Set 2:", **fields)


WHOLE = samples.gerrit("")
ENDED = {**WHOLE["change"], "status": "MERGED"}
APPROVAL = [vote("Code-Review", "2", "0")]


@pytest.mark.parametrize(
    ("voter", "author", "same"),
    [
        ({"username": "eve"}, {"username": "eve", "email": "eve@example.org"}, True),
        ({"username": "eve", "email": "Eve@example.org"}, {"username": "", "email": "eve@example.org"}, True),
        ({"username": "eve2", "email": "eve@example.org"}, {"username": "eve", "email": "eve@example.org"}, True),
        ({"username": "eve", "name": "Eve"}, {"name": "Eve", "email": "eve@home.example"}, True),
        ({"username": "cleo", "name": "J. Smith"}, {"username": "eve", "name": "J. Smith"}, False),
        ({"name": "Eve Smith"}, {"name": "eve smith"}, True),
        ({"username": "cleo"}, {}, False),
    ],
)
def test_an_author_is_known_by_user_name_address_or_name(
    voter: dict[str, str], author: dict[str, str], same: bool
) -> None:
    patchset = {**WHOLE["patchSet"], "author": author}
    found = read("comment-added", author=voter, approvals=[vote("Code-Review", "2", "0")], patchSet=patchset)
    assert (found == adapter.OWN_VOTE) == same


def submitted(**patchset: Any) -> Any:
    """Return the facts of a merge whose patch set Gerrit made when cleo submitted the change."""
    made = {"kind": "TRIVIAL_REBASE", "uploader": account("cleo"), "createdOn": 1795521600, "author": account("ada")}
    return read("change-merged", patchSet=WHOLE["patchSet"] | made | patchset, submitter=account("cleo"))


@pytest.mark.parametrize(
    "kind", ["NO_CHANGE", "NO_CODE_CHANGE", "TRIVIAL_REBASE", "TRIVIAL_REBASE_WITH_MESSAGE_UPDATE"]
)
def test_a_merge_is_also_of_the_patch_set_before_where_gerrit_made_the_last_one(kind: str) -> None:
    assert submitted(kind=kind) == {
        PATCHSET: review("merged"),
        BEFORE: review(PARTLY_APPROVED),
        MERGED: {"review": "merged"},
    }
    assert list(submitted(kind=kind, number="2")) == [PATCHSET, BEFORE, MERGED]


@pytest.mark.parametrize(
    "patchset",
    [
        {"kind": "REWORK"},
        {"kind": None},
        {"kind": "MERGE_FIRST_PARENT_UPDATE"},
        {"uploader": account("bob")},
        {"uploader": None},
        {"createdOn": 1795521589},
        {"createdOn": 1795521601},
        {"createdOn": None},
        {"createdOn": "1795521600"},
    ],
)
def test_a_merge_says_nothing_of_the_patch_set_before_where_a_person_may_have_made_the_last(
    patchset: dict[str, Any],
) -> None:
    assert submitted(**patchset) == {PATCHSET: review("merged"), MERGED: {"review": "merged"}}


@pytest.mark.parametrize(
    ("owner", "facts"),
    [
        (account("ada"), {"owner": "ada"}),
        ({"email": "a@example.org", "name": "Ada"}, {"owner": "a@example.org"}),
        ({"name": "Ada L."}, {"owner": "Ada L."}),
        (None, {}),
    ],
)
def test_a_patch_set_has_the_change_s_owner(owner: dict[str, str] | None, facts: dict[str, str]) -> None:
    change = {**WHOLE["change"], "owner": owner}
    assert read("patchset-created", change=change) == {PATCHSET: {**facts, "parents": PARENT}}


@pytest.mark.parametrize(
    "fields",
    [
        {"change": {"branch": "main", "project": "demo/app", "number": "7"}},
        {"change": {"branch": "main", "number": 7}, "project": "demo/app"},
        {"change": {"branch": "main", "number": 7}, "project": {"name": "demo/app"}},
        {"change": {"branch": "refs/heads/main", "number": 7, "project": {"name": "demo/app"}}, "project": None},
    ],
)
def test_every_form_of_project_and_number(fields: dict[str, Any]) -> None:
    assert list(read("change-merged", **fields)) == [PATCHSET, MERGED]


def test_the_same_event_has_the_same_id_and_its_own_time() -> None:
    first, second = (event_of("gerrit", delivery(samples.gerrit("change-merged"))) for _ in range(2))
    assert (first.key, first.type, first.time_us) == (second.key, "change-merged", 1795521600000000)
    assert event_of("gerrit", delivery(samples.gerrit("topic-changed"), delivery_id="d1")).id == "d1"


@pytest.mark.parametrize("value", ["100", "two"])
def test_a_strange_vote_of_a_label_that_does_not_count_is_ignored(value: str) -> None:
    votes = (vote("Quality", value, "0"), vote("Code-Review", "2", "0"))
    assert comment(*votes) == {PATCHSET: review(PARTLY_APPROVED)}


def _id(kind: str, **fields: Any) -> str:
    return event_of("gerrit", delivery(samples.gerrit(kind, **fields))).id


def test_an_event_has_the_same_id_over_every_way() -> None:
    """The stream, the webhooks plugin and the REST API write the same event with different fields."""
    change = WHOLE["change"]
    for kind in ("patchset-created", "change-merged"):
        assert _id(kind) == _id(kind, eventCreatedOn=1795521601, change={**change, "subject": "another"}, refName="x")
        assert _id(kind) != _id(kind, patchSet={"number": 1})
        assert _id(kind) != _id(kind, change={**change, "project": "other"})
        assert _id(kind) != _id(kind, change={**change, "number": 8})
    assert _id("patchset-created") != _id("change-merged")


def test_a_vote_that_is_given_again_is_another_event() -> None:
    first = {"author": account("cleo"), "approvals": [vote("Code-Review", "2", "0")], "eventCreatedOn": 1795657180}
    change = {**WHOLE["change"], "subject": "another"}
    assert _id("comment-added", **first) == _id("comment-added", **first, change=change)
    for other in (
        {"eventCreatedOn": 1795657181}, {"author": account("eve")}, {"approvals": [vote("Code-Review", "1", "0")]},
        {"comment": "Patch Set 2: Code-Review+2"},
    ):  # fmt: skip
        assert _id("comment-added", **first) != _id("comment-added", **{**first, **other})


def test_a_first_patch_set_has_none_before() -> None:
    assert list(submitted(number=1)) == [BEFORE, MERGED]


def test_a_merge_and_a_branch_s_update_name_the_commits_of_the_branch() -> None:
    tip = "c" * 40
    assert list(read("change-merged", newRev=tip)) == [PATCHSET, MERGED, f"merged:demo%2Fapp/main/{tip}"]
    before = f"merged:demo%2Fapp/stable%2F1/{PARENT}"
    assert read("ref-updated", refUpdate=ref_update("refs/heads/stable/1", tip)) == {
        before: {"review": "merged"},
        f"merged:demo%2Fapp/stable%2F1/{tip}": {"review": "merged"},
    }
    created = ref_update("refs/heads/stable/1", tip, "0" * 40)
    assert list(read("ref-updated", refUpdate=created)) == [f"merged:demo%2Fapp/stable%2F1/{tip}"]
