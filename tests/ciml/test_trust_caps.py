"""Caps of a trust policy: no author, project or source provides more than its share of what is left."""

from __future__ import annotations

import time
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.errors import CimlError
from ciml.events.records import RunFacts
from ciml.trust import CAPS, TrustPolicy, beyond_caps

RULE = '[[rule]]\nname = "zuul"\ntrusted = true\nsource = "zuul"\n'
VALUES = st.sampled_from(["", "a", "b", "c", "d"])
SHARES = st.sampled_from([0.01, 0.2, 0.29, 0.33, 0.34, 0.5, 0.6, 0.75, 0.99, 1.0])


def runs_of(owners: list[str], projects: list[str] | None = None) -> list[RunFacts]:
    projects = projects or [""] * len(owners)
    return [
        RunFacts(f"zuul~{index}~1", "", "job", source="zuul", owner=owner, project=project)
        for index, (owner, project) in enumerate(zip(owners, projects, strict=True))
    ]


def is_within(share: float, values: list[str]) -> bool:
    """Return whether no value provides more than a share, by whole percents."""
    return all(100 * size <= round(100 * share) * len(values) for value, size in Counter(values).items() if value)


@given(SHARES, st.lists(VALUES, max_size=9))
def test_one_cap_leaves_out_as_few_runs_as_any_choice_could(share: float, owners: list[str]):
    beyond = beyond_caps((("author", share),), runs_of(owners))
    left = [owner for index, owner in enumerate(owners) if index not in beyond]
    choices = (choice for size in range(len(owners), -1, -1) for choice in combinations(owners, size))
    best = next(choice for choice in choices if is_within(share, list(choice)))
    assert is_within(share, left)
    assert len(left) == len(best)
    assert set(beyond.values()) <= {"author"}


@given(SHARES, SHARES, st.lists(st.tuples(VALUES, VALUES), max_size=60))
def test_several_caps_hold_together_in_what_is_left(author: float, project: float, pairs: list[tuple[str, str]]):
    owners, projects = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    beyond = beyond_caps((("author", author), ("project", project)), runs_of(owners, projects))
    left = [index for index in range(len(pairs)) if index not in beyond]
    assert is_within(author, [owners[index] for index in left])
    assert is_within(project, [projects[index] for index in left])
    unlimited = {index for index, pair in enumerate(pairs) if pair == ("", "")}
    assert unlimited <= set(left)
    assert all(pairs[index][list(CAPS).index(cap)] for index, cap in beyond.items())


def test_the_first_runs_of_a_value_stay_and_a_decimal_share_is_exact():
    owners = ["ann"] * 60 + [""] * 71
    assert beyond_caps((("author", 0.29),), runs_of(owners)) == dict.fromkeys(range(29, 60), "author")


def test_too_few_authors_leave_no_run_of_an_author():
    runs = runs_of(["ann", "bob"] * 5)
    assert len(beyond_caps((("author", 0.33),), runs)) == 10
    assert beyond_caps((("author", 0.5),), runs) == {}


def test_caps_cost_linear_time():
    owners = [f"{index % 997}" if index % 3 else "ann" for index in range(100_000)]
    projects = [f"{index % 7}" for index in range(100_000)]
    started = time.process_time()
    beyond_caps((("author", 0.01), ("project", 0.2)), runs_of(owners, projects))
    assert time.process_time() - started < 10


def test_caps_are_read_and_change_the_digest_of_the_policy():
    plain = TrustPolicy.parse(RULE)
    capped = TrustPolicy.parse("[caps]\nsource = 1\nauthor = 0.33\n" + RULE)
    assert (plain.caps, capped.caps) == ((), (("author", 0.33), ("source", 1.0)))
    others = {TrustPolicy.parse(f"{head}[caps]\nauthor = {share}\n" + RULE).digest for head, share in DIGESTS}
    assert len({plain.digest, capped.digest, *others}) == 5
    assert TrustPolicy.parse("[caps]\n" + RULE).digest == plain.digest


DIGESTS = (("", 0.33), ("globs = 2\n", 0.33), ("", 0.34))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("caps = 0.3\n", r"p\.toml: write caps as a table: \[caps\]"),
        ("[caps]\nowner = 0.3\n", r"p\.toml: caps: unknown key 'owner'; choose from author, project, source"),
        ("[caps]\nauthor = 0\n", r"p\.toml: caps: author must be a share above 0 and at most 1, not 0"),
        ("[caps]\nauthor = 1.1\n", "author must be a share"),
        ("[caps]\nproject = true\n", "project must be a share"),
        ('[caps]\nsource = "0.3"\n', "source must be a share"),
        ("[caps]\nsource = nan\n", "source must be a share"),
    ],
)
def test_invalid_caps_are_rejected(text: str, error: str):
    with pytest.raises(CimlError, match=error):
        TrustPolicy.parse(text + RULE, "p.toml")
