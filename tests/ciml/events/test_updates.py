"""Updates of facts: the facts of a run depend on the set of updates, not on their order, and proof is kept."""

from __future__ import annotations

import itertools
import random
from functools import reduce
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.errors import RejectedInput
from ciml.events import reviews as reviews_module
from ciml.events.records import FactUpdate, RunFacts
from ciml.events.reviews import Statement, merged_subject
from ciml.events.updates import UPDATABLE, fact_update, join_facts, merge_statements, statements_of, valid_statements
from ciml.limits import MAX_REVIEWERS

RUN = RunFacts("github~7~1", "7", source="github", subjects=("change:1",))
PROVED = RUN.replace(auth="hmac-sha256")

updates = st.builds(
    lambda name, value, auth, when, key: (FactUpdate("github", "change:1", {name: value}, auth, when), f"github {key}"),
    st.sampled_from(["review", "fork", "branch"]),
    st.sampled_from(["approved", "merged", "yes", "no", "main"]),
    st.sampled_from(["", "hmac-sha256"]),
    st.sampled_from([None, 1, 2, 3]),
    st.integers(0, 5),
)


def said(*found: tuple[FactUpdate, str]) -> dict[str, Statement]:
    return reduce(merge_statements, (statements_of(update, key) for update, key in found), {})


def update(when: int | None = 1, key: str = "a", auth: str = "hmac-sha256", **facts: str) -> tuple[FactUpdate, str]:
    return FactUpdate("github", "change:1", facts, auth, when), key


@given(st.lists(updates, max_size=8), st.randoms(use_true_random=False))
def test_order_and_repetition_change_nothing(found: list[tuple[FactUpdate, str]], rng: random.Random) -> None:
    again = found + rng.choices(found, k=3) if found else []
    rng.shuffle(again)
    assert said(*found) == said(*again)
    half = len(again) // 2
    assert merge_statements(said(*again[:half]), said(*again[half:])) == said(*found)  # two indexes, join_facts later


@pytest.mark.parametrize(
    ("found", "review"),
    [
        ([update(1, review="approved"), update(2, review="dismissed")], "dismissed"),
        ([update(2, review="approved"), update(1, review="dismissed")], "approved"),
        ([update(1, "a", review="approved"), update(1, "b", review="dismissed")], "dismissed"),
        ([update(None, review="approved"), update(1, review="dismissed")], "dismissed"),
        ([update(1, review="merged"), update(2, review="approved")], "merged"),
        ([update(1, review="dismissed"), update(9, auth="", review="merged")], "dismissed"),
    ],
)
def test_the_later_counts_and_what_was_merged_stays_merged(found: list[tuple[FactUpdate, str]], review: str) -> None:
    for order in (found, found[::-1]):
        assert join_facts(PROVED, [said(*order)]).review == review


#: For each of three subjects, a review that a later one replaces, and a lasting one.
REVIEWS = (("approved", "merged"), ("dismissed", "vetoed"), ("changes_requested", "own"))


@pytest.mark.parametrize("run", [RUN, PROVED])
def test_the_first_subject_counts_unless_another_is_proved_or_lasting(run: RunFacts) -> None:
    for kinds in itertools.product(itertools.product([False, True], repeat=2), repeat=3):
        found = [(proved, lasting, REVIEWS[at][lasting]) for at, (proved, lasting) in enumerate(kinds)]
        counted = [review for review in found if review[0] or not run.auth]
        _, _, expected = max(counted, key=lambda review: review[:2], default=(False, False, ""))
        subjects = [said(update(auth="ssh" if proved else "", review=value)) for proved, _, value in found]
        assert join_facts(run, subjects).review == expected, found


EXECUTED = RUN.replace(project="p", branch="main")


@pytest.mark.parametrize(
    ("auth", "review", "target", "parents", "merged", "expected"),
    [
        # A value that ends in "!" comes without a proof.
        ("ssh", "partly_approved", "main", "a", ["a"], "approved"),
        ("ssh", "partly_approved", "main", "a b", ["a", "b"], "approved"),
        ("ssh", "partly_approved", "main", "a b", ["a"], "partly_approved"),
        ("ssh", "partly_approved", "main", "a", ["a!"], "partly_approved"),
        ("ssh", "partly_approved", "main", "a", [], "partly_approved"),
        ("ssh", "partly_approved", "main", "", ["a"], "partly_approved"),
        ("ssh", "partly_approved", "", "a", ["a"], "approved"),
        ("ssh", "partly_approved", "stable", "a", ["a"], "partly_approved"),
        ("", "partly_approved", "main!", "a", ["a"], "partly_approved"),
        ("", "partly_approved", "main", "a!", ["a"], "partly_approved"),
        ("", "partly_approved!", "main!", "a!", ["a!"], "approved"),
        ("ssh", "merged", "main", "a", [], "merged"),
        ("ssh", "merged", "", "", [], "merged"),
        ("ssh", "merged", "stable", "a", ["a"], "partly_approved"),
        ("", "merged", "main!", "", [], "partly_approved"),
        ("ssh", "vetoed", "stable", "a", ["a"], "vetoed"),
    ],
)
def test_a_review_covers_what_is_merged_and_each_part_is_as_proved(
    auth: str, review: str, target: str, parents: str, merged: list[str], expected: str
) -> None:
    texts = {"review": review, "target": target, "parents": parents}
    found = [
        update(auth="" if text.endswith("!") else "ssh", **{name: text.removesuffix("!")})
        for name, text in texts.items()
        if text
    ]
    merges = {
        merged_subject("p", "main", commit.removesuffix("!")): said(
            update(auth="" if commit.endswith("!") else "ssh", review="merged")
        )
        for commit in merged
    }
    run = EXECUTED.replace(auth=auth)
    assert join_facts(run, [said(*found)], lambda subject: merges.get(subject, {})).review == expected


def test_each_fact_comes_from_the_first_subject_that_reports_it() -> None:
    of_run, of_commit = said(update(1, branch="fix")), said(update(2, branch="main", owner="mallory"))
    assert join_facts(PROVED, [of_run, of_commit]) == PROVED.replace(branch="fix", owner="mallory")
    assert join_facts(PROVED, [of_commit, of_run]) == PROVED.replace(branch="main", owner="mallory")
    facts = dict.fromkeys(UPDATABLE, "no")
    assert join_facts(PROVED, [said(update(**facts))]) == PROVED.replace(**facts)
    assert not {"run_id", "source", "auth", "outcome"} & set(UPDATABLE)


def test_an_update_without_proof_changes_no_proved_run() -> None:
    forged = said(update(auth="", review="merged", fork="no"))
    assert join_facts(PROVED, [forged]) is PROVED
    assert join_facts(RUN, [forged]) == RUN.replace(review="merged", fork="no")


def test_a_fork_stays_a_fork() -> None:
    own = PROVED.replace(fork="yes", review="merged")
    assert join_facts(own, [said(update(fork="no", review="approved"))]) is own
    assert join_facts(PROVED.replace(fork="no"), [said(update(fork="yes"))]).fork == "yes"
    assert join_facts(PROVED, [said(update(1, fork="yes"), update(2, fork="no"))]).fork == "yes"


COMMIT = PROVED.replace(subjects=("sha:p/1",), change="42", branch="main", owner="ada")


def review(
    value: str = "", change: str = "42", branch: str = "main", by: str = "", when: int = 1, auth: str = "hmac-sha256"
) -> tuple[FactUpdate, str]:
    only = {"change": change, "branch": branch} if change else {}
    facts = {"review": value} if value else {}
    return FactUpdate("github", "sha:p/1", facts, auth, when, only, by), f"github {value} {by} {when}"


conditional = st.builds(
    review,
    st.sampled_from(["", "approved", "changes_requested", "dismissed", "merged", "own"]),
    st.sampled_from(["", "42", "66", "67"]),
    st.sampled_from(["main", "mine"]),
    st.sampled_from(["", "ada", "grace", "linus", "mallory"]),
    st.integers(1, 3),
    st.sampled_from(["", "hmac-sha256"]),
)


@given(st.lists(conditional, max_size=12), st.randoms(use_true_random=False))
def test_order_and_repetition_change_no_bounded_reviews(
    found: list[tuple[FactUpdate, str]], rng: random.Random
) -> None:
    with patch.object(reviews_module, "MAX_REVIEWERS", 2):
        again = found + rng.choices(found, k=3) if found else []
        rng.shuffle(again)
        half = rng.randint(0, len(again))
        assert said(*found) == said(*again) == merge_statements(said(*again[half:]), said(*again[:half]))
        assert len(said(*found)) <= 3 * (2 * 2 + 2) + 3


@given(st.lists(conditional, max_size=6))
def test_a_review_counts_for_its_own_pull_request_and_base_alone(found: list[tuple[FactUpdate, str]]) -> None:
    proved = [update for update, _ in found if update.auth]
    conditions = [dict(update.only) for update in proved if update.only]
    joined_review = join_facts(COMMIT, [said(*found)]).review
    if any(only != {"change": "42", "branch": "main"} for only in conditions):
        assert joined_review in ("", "own", "dismissed", "changes_requested")
    if joined_review == "approved":
        approvers = {update.by for update in proved if update.only and update.facts.get("review") == "approved"}
        pushers = {update.by for update in proved if update.facts.get("review") == "own"}
        assert approvers - pushers - {"ada"}


FORGED = [review("approved", by=f"member{number}", auth="") for number in range(99)]
PUSHERS = [review("own", change="", by=f"pusher{number}") for number in range(99)]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([review("approved", by="grace")], "approved"),
        ([review("approved", by="ADA")], ""),
        ([review("approved", by="grace"), review("own", by="grace")], ""),
        ([review("approved", by="grace"), review("own", change="", by="grace")], ""),
        ([review("approved", by="grace"), review()], "approved"),
        ([review("approved", by="grace"), review(change="66")], ""),
        ([review("approved", by="grace"), review(branch="mine")], ""),
        ([review("approved", by="grace"), review(branch="mine", auth="")], "approved"),
        ([review("approved", change="66", by="grace")], ""),
        ([review("approved", branch="mine", by="grace")], ""),
        ([review("approved", change="", by="")], ""),
        ([review("merged", change="")], ""),
        ([review("merged"), review("changes_requested", by="grace", when=9)], "merged"),
        ([review("approved", by="grace", when=9), review("changes_requested", by="linus")], "changes_requested"),
        ([review("approved", by="grace", when=1), review("dismissed", when=2)], "dismissed"),
        ([review("approved", by="grace", when=3), review("dismissed", when=2)], "approved"),
        ([review("approved", by="grace"), review("dismissed", by="linus", when=2)], "approved"),
        ([review("approved", by=f"member{number}") for number in range(MAX_REVIEWERS)], "approved"),
        ([review("approved", by=f"member{number}") for number in range(MAX_REVIEWERS + 1)], ""),
        ([*FORGED, review("approved", by="g")], "approved"),
        ([*PUSHERS, review("approved", by="g")], ""),
    ],
)
def test_reviews_of_a_commit(found: list[tuple[FactUpdate, str]], expected: str) -> None:
    for order in (found, found[::-1]):
        assert join_facts(COMMIT, [said(*order)]).review == expected


def test_conditions_of_all_subjects_must_be_met() -> None:
    only = {"change": "66", "branch": "mine"}
    of_run = said((FactUpdate("github", "workflow_run:1", {}, "hmac-sha256", 1, only), "w"))
    of_commit = said(review("approved", by="grace"))
    assert join_facts(COMMIT, [{}, of_commit]).review == "approved"
    assert join_facts(COMMIT, [of_run, of_commit]).review == ""


def test_a_review_by_an_account_is_joined_with_the_facts_of_other_updates() -> None:
    of_run = said((FactUpdate("github", "workflow_run:1", {"pipeline": "tests"}, "hmac-sha256", 1), "w"))
    joined = join_facts(COMMIT, [of_run, said(review("approved", by="grace"))])
    assert joined == COMMIT.replace(pipeline="tests", review="approved")


def test_what_older_versions_stored_of_a_commit_counts_where_it_lowers_trust() -> None:
    def statements(**facts: str) -> dict[str, Statement]:
        return {name: Statement(True, name == "fork", 1, "github 1", value) for name, value in facts.items()}

    stored, lowering = statements(review="approved", branch="main"), statements(review="dismissed", fork="yes")
    assert valid_statements("sha:p/1", stored) == {}
    assert valid_statements("sha:p/1", lowering) == lowering
    assert valid_statements("change:p/1", stored) == stored


@pytest.mark.parametrize(
    ("facts", "more", "detail"),
    [
        ({}, {}, "facts"),
        ({"fork": "yes"}, {"subject": ""}, "subject"),
        ({"auth": "hmac-sha256"}, {}, "auth: not a fact of"),
        ({"run_id": "../x"}, {}, "run_id: not a fact of"),
        ({"fork": "maybe"}, {}, "fork: want yes or no"),
        ({"review": " "}, {}, "review"),
        ({"branch": "main"}, {"only": {"change": "1"}}, "branch: only a review has a condition or a reviewer"),
        ({"branch": "main"}, {"by": "ada"}, "branch: only a review has a condition or a reviewer"),
        ({"review": "own"}, {"only": {"owner": "ada"}}, "only.owner: not a fact of"),
        ({"review": "own"}, {"only": {"change": ""}}, "only.change"),
        ({"review": "own"}, {"by": " "}, "by"),
    ],
)
def test_an_invalid_update_is_rejected(facts: dict[str, str], more: dict[str, Any], detail: str) -> None:
    with pytest.raises(RejectedInput) as caught:
        fact_update("github", **{"subject": "sha:p/1", "facts": facts, **more})
    assert detail in caught.value.detail


def test_a_valid_update_is_stored_as_it_was_given() -> None:
    only = {"change": "42", "branch": "main"}
    stored = fact_update("github", "sha:p/1", {"review": "approved"}, "token", 5, only, "ada")
    assert stored == FactUpdate("github", "sha:p/1", {"review": "approved"}, "token", 5, only, "ada")
