"""Updates of facts: the facts of a run depend on the set of updates, not on their order, and proof is kept."""

from __future__ import annotations

import random
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.errors import RejectedInput
from ciml.events.records import FactUpdate, RunFacts
from ciml.events.updates import UPDATABLE, Said, fact_update, joined, merged, said_by

RUN = RunFacts("github~7~1", "7", source="github", subjects=("sha:p/1",))
PROVED = RUN.replace(auth="hmac-sha256")

updates = st.builds(
    lambda name, value, auth, when, key: (FactUpdate("github", "sha:p/1", {name: value}, auth, when), f"github {key}"),
    st.sampled_from(["review", "fork", "branch"]),
    st.sampled_from(["approved", "merged", "yes", "no", "main"]),
    st.sampled_from(["", "hmac-sha256"]),
    st.sampled_from([None, 1, 2, 3]),
    st.integers(0, 5),
)


def said(*found: tuple[FactUpdate, str]) -> dict[str, Said]:
    return reduce(merged, (said_by(update, key) for update, key in found), {})


def update(when: int | None = 1, key: str = "a", auth: str = "hmac-sha256", **facts: str) -> tuple[FactUpdate, str]:
    return FactUpdate("github", "sha:p/1", facts, auth, when), key


@given(st.lists(updates, max_size=8), st.randoms(use_true_random=False))
def test_order_and_repetition_change_nothing(found: list[tuple[FactUpdate, str]], rng: random.Random) -> None:
    again = found + rng.choices(found, k=3) if found else []
    rng.shuffle(again)
    assert said(*found) == said(*again)
    half = len(again) // 2
    assert merged(said(*again[:half]), said(*again[half:])) == said(*found)  # two indexes, joined later


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
        assert joined(PROVED, [said(*order)]).review == review


def test_what_is_said_of_an_earlier_subject_counts_first() -> None:
    of_run, of_commit = said(update(1, branch="fix")), said(update(2, branch="main", owner="mallory"))
    assert joined(PROVED, [of_run, of_commit]) == PROVED.replace(branch="fix", owner="mallory")
    assert joined(PROVED, [of_commit, of_run]) == PROVED.replace(branch="main", owner="mallory")
    forged = said(update(9, auth="", branch="other"))
    assert joined(PROVED, [forged, of_run]).branch == "fix"
    for lasting in ({"fork": "yes"}, {"review": "merged"}):
        earlier = said(update(9, fork="no", review="dismissed"))
        assert joined(PROVED, [earlier, said(update(1, **lasting))]) == PROVED.replace(
            **{"fork": "no", "review": "dismissed", **lasting}
        )


def test_an_update_without_proof_changes_no_proved_run() -> None:
    forged = said(update(auth="", review="merged", fork="no"))
    assert joined(PROVED, [forged]) is PROVED
    assert joined(RUN, [forged]) == RUN.replace(review="merged", fork="no")


def test_a_fork_stays_a_fork() -> None:
    own = PROVED.replace(fork="yes", review="merged")
    assert joined(own, [said(update(fork="no", review="approved"))]) is own
    assert joined(PROVED.replace(fork="no"), [said(update(fork="yes"))]).fork == "yes"
    assert joined(PROVED, [said(update(1, fork="yes"), update(2, fork="no"))]).fork == "yes"


def test_only_updatable_facts_change() -> None:
    facts = dict.fromkeys(UPDATABLE, "no")
    changed = joined(PROVED, [said(update(**facts))])
    assert changed == PROVED.replace(**facts)
    assert (changed.run_id, changed.source, changed.auth, changed.outcome) == (
        RUN.run_id,
        "github",
        "hmac-sha256",
        None,
    )


@pytest.mark.parametrize(
    ("subject", "facts", "detail"),
    [
        ("", {"fork": "yes"}, "subject"),
        ("s", {}, "facts"),
        ("s", {"auth": "hmac-sha256"}, "auth: not a fact of"),
        ("s", {"run_id": "../x"}, "run_id: not a fact of"),
        ("s", {"fork": "maybe"}, "fork: want yes or no"),
        ("s", {"review": " "}, "review"),
    ],
)
def test_an_invalid_update_is_rejected(subject: str, facts: dict[str, str], detail: str) -> None:
    with pytest.raises(RejectedInput) as caught:
        fact_update("github", subject, facts)
    assert detail in caught.value.detail
