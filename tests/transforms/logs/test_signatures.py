"""Signatures: append-only, bounded, and judged by how far they spread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.transforms.logs import signatures as module
from ciml.transforms.logs.failure_keys import Key
from ciml.transforms.logs.signatures import WITHIN_US, Failure, Signatures

KEYS = [Key(f"error: {letter} is down", "") for letter in "abcdef"]
FAILURE = st.builds(
    Failure,
    st.integers(0, 30).map(lambda number: f"run {number}"),
    st.sampled_from(["unit", "docs", "lint"]),
    st.integers(0, 6).map(lambda number: f"change {number}"),
    st.integers(0, 10).map(lambda hours: hours * 3_600_000_000),
    st.lists(st.sampled_from(KEYS), max_size=3, unique=True).map(tuple),
    st.sampled_from(["", "node-1", "node-2"]),
    st.sampled_from(["", "east"]),
    st.booleans(),
)


def added(*failures: Failure) -> Signatures:
    signatures = Signatures()
    for failure in failures:
        signatures.add(failure)
    return signatures


def failure(number: int, change: str, key: Key = KEYS[0], time_us: int = 0, trusted: bool = True) -> Failure:
    return Failure(f"run {number}", "unit", change, time_us, (key,), trusted=trusted)


def judgement(*failures: Failure) -> str:
    (signature,) = added(*failures).all()
    return signature.judgement


def test_a_run_joins_the_first_of_its_keys_that_founded_a_signature() -> None:
    signatures = Signatures()
    first = signatures.add(Failure("1", "unit", "a", 5, (KEYS[0], KEYS[1])))
    assert signatures.add(Failure("2", "docs", "b", 9, (KEYS[2], KEYS[0]), "node-1", "east")) is first
    other = signatures.add(Failure("3", "unit", "b", 2, (KEYS[1], KEYS[2])))  # neither has founded one
    assert signatures.add(Failure("4", "unit", "c", 3, ())) is None
    assert other is not first
    assert first is not None
    assert (first.founder, first.first_us, first.last_us, first.latest) == ("1", 5, 9, ["1", "2"])
    assert (first.jobs, first.nodes, first.providers) == ({"unit": 1, "docs": 1}, {"node-1": 1}, {"east": 1})
    assert signatures.all() == [first, other]
    assert [signatures.of_run(run) for run in "1234"] == [first, first, other, None]


@given(st.lists(FAILURE, max_size=40), st.integers(0, 40), st.integers(1, 4))
def test_a_state_continues_where_it_was_stored_and_is_bounded(failures: list[Failure], cut: int, most: int) -> None:
    """The signatures of a prefix, stored and restored, and the remaining runs give those of all runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_SIGNATURES", most)
        patch.setattr(module, "MAX_SIGNATURE_CHANGES", most)
        patch.setattr(module, "MAX_SIGNATURE_PLACES", 1)
        patch.setattr(module, "MAX_SIGNATURE_RUNS", 2)
        patch.setattr(module, "MAX_SIGNED_RUNS", 10)
        continued = Signatures()
        continued.restore(added(*failures[:cut]).encode())
        for one in failures[cut:]:
            continued.add(one)
        whole = added(*failures)
    assert continued.encode() == whole.encode()
    assert len(whole.all()) <= most
    for signature in whole.all():
        assert len(signature.by_change) <= most
        assert max(map(len, (signature.jobs, signature.nodes, signature.providers))) <= 1
        assert len(signature.latest) <= 2


def test_the_latest_changes_and_runs_and_the_first_places_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGNATURE_CHANGES", "SIGNATURE_PLACES", "SIGNATURE_RUNS", "SIGNED_RUNS"):
        monkeypatch.setattr(module, f"MAX_{name}", 3)
    signatures = Signatures()
    for number, change in enumerate("abcad"):
        signatures.add(Failure(str(number), f"job {number}", change, number, (KEYS[0],)))
    (signature,) = signatures.all()
    assert list(signature.by_change) == ["c", "a", "d"]  # a has failed again
    assert list(signature.jobs) == ["job 0", "job 1", "job 2"]
    assert signature.latest == ["2", "3", "4"]
    assert [signatures.of_run(str(number)) is not None for number in range(5)] == [False, False, True, True, True]


@given(st.lists(FAILURE, max_size=40))
def test_a_signature_only_gains_runs(failures: list[Failure]) -> None:
    signatures = Signatures()
    counted: dict[str, tuple[int, int, int]] = {}
    founders: dict[str, str] = {}
    for one in failures:
        signatures.add(one)
        for signature in signatures.all():
            figures = (signature.runs, signature.changes, signature.spread)
            before = counted.get(signature.id, (0, 0, 0))
            assert all(now >= then for now, then in zip(figures, before, strict=True))
            assert founders.setdefault(signature.id, signature.founder) == signature.founder
            counted[signature.id] = figures
    runs = {one.run_id for one in failures if one.keys}
    assert sum(signature.runs for signature in signatures.all()) <= len(runs)


def test_several_changes_within_hours_indicate_the_machine() -> None:
    assert judgement(failure(1, "a"), failure(2, "b")) == ""
    assert judgement(failure(1, "a"), failure(2, "b"), failure(3, "b"), failure(4, "c")) == "machine"
    days = [failure(number, f"change {number}", time_us=number * WITHIN_US) for number in range(9)]
    assert judgement(*days) == ""


def test_the_machine_stays_indicated_when_a_later_run_is_alone() -> None:
    changes = [failure(number, f"change {number}") for number in range(3)]
    assert judgement(*changes, failure(9, "later", time_us=10 * WITHIN_US)) == "machine"


def test_one_change_and_its_reruns_indicate_the_code() -> None:
    assert judgement(failure(1, "a")) == ""
    assert judgement(failure(1, "a"), failure(2, "a")) == "code"
    assert judgement(failure(1, "a"), failure(2, "a"), failure(3, "b")) == ""


def test_untrusted_runs_alone_never_indicate_the_machine() -> None:
    untrusted = [failure(number, f"change {number}", trusted=False) for number in range(5)]
    assert judgement(*untrusted) == ""
    assert judgement(*untrusted, failure(9, "reviewed")) == "machine"


def test_signatures_of_untrusted_runs_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SIGNATURES", 2)
    flood = [failure(number, "x", Key(f"error {number}", ""), time_us=number, trusted=False) for number in range(9)]
    kept = added(failure(100, "a"), *flood).all()
    assert [signature.founder for signature in kept] == ["run 8", "run 100"]
