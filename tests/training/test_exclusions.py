"""Which runs an exclusion matches: held against a plain reading of its fields; and which exclusions are invalid."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.errors import CimlError
from ciml.events.records import RunFacts
from ciml.training.exclusions import Exclusion, Exclusions, read_lines
from tests.training.records import excluding

TIMES = st.none() | st.integers(0, 12)
FACTS = st.builds(
    RunFacts,
    run_id=st.sampled_from(["zuul~a~1", "zuul~b~1", "github~a~1"]),
    build_uuid=st.just("a"),
    build_name=st.sampled_from(["unit", "unit-py3", "lint", ""]),
    source=st.sampled_from(["", "zuul", "jenkins"]),
    start_us=TIMES,
    end_us=TIMES,
)
BY_RULE = st.builds(
    Exclusion,
    reason=st.sampled_from(["first", "second", "third"]),
    job=st.sampled_from(["", "unit", "unit*", "*"]),
    source=st.sampled_from(["", "zuul", "github"]),
    since_us=st.none() | st.integers(0, 8),
    until_us=st.none(),
).flatmap(
    lambda one: (
        st.just(one)
        if one.since_us is None
        else st.builds(
            lambda length: one.replace(until_us=length and one.since_us + length), st.none() | st.integers(1, 5)
        )
    )
)
BY_RUN = st.builds(
    Exclusion, reason=st.sampled_from(["a leak", "this run"]), run_id=st.sampled_from(["zuul~a~1", "github~a~1"])
)


def instants(facts: RunFacts) -> set[int]:
    """The whole microseconds at which a run is known to have run."""
    times = [each for each in (facts.start_us, facts.end_us) if each is not None]
    return set(range(min(times), max(times) + 1)) if times else set()


def plainly(one: Exclusion, facts: RunFacts) -> bool:
    if one.run_id:
        return one.run_id == facts.run_id
    within = {at for at in instants(facts) if one.until_us is None or at < one.until_us}
    return all(
        [
            fnmatchcase(facts.build_name, one.job or "*"),
            not one.source or (facts.source or facts.run_id.split("~")[0]) == one.source,
            one.since_us is None or any(at >= one.since_us for at in within),
        ]
    )


@given(BY_RULE | BY_RUN, FACTS.filter(lambda one: None in (one.start_us, one.end_us) or one.start_us <= one.end_us))
def test_an_exclusion_matches_what_its_fields_say(one: Exclusion, facts: RunFacts) -> None:
    assert one.matches(facts) == plainly(one, facts)


@given(st.lists(BY_RULE | BY_RUN, max_size=6), FACTS)
def test_the_first_match_gives_the_reason_that_of_a_single_run_before_others(
    several: list[Exclusion], facts: RunFacts
) -> None:
    matching = [one for one in several if one.matches(facts)]
    matching.sort(key=lambda one: not one.run_id)  # stable
    assert Exclusions(tuple(several)).reason(facts) == (matching[0].reason if matching else None)
    assert bool(Exclusions(tuple(several))) == bool(several)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"run_id": "zuul~a~1", "reason": " "}, "reason: is empty"),
        ({}, "names no runs; give a run, a job, a source, or a time since when"),
        ({"run_id": "zuul~a~1", "job": "unit"}, "run: cannot be combined with job, source or since"),
        ({"run_id": "zuul~a~1", "since_us": 0}, "run: cannot be combined with job, source or since"),
        ({"job": "unit", "until_us": 5}, "until: want a time after since"),
        ({"since_us": 5, "until_us": 5}, "until: want a time after since"),
        ({"job": "a\nb"}, r"job: 'a\\nb' is not one printable line"),
        ({"job": "a" * 1025}, "of at most 1024 characters"),
    ],
)
def test_an_invalid_exclusion_is_one_line(fields: dict, line: str) -> None:
    with pytest.raises(CimlError, match=line):
        Exclusion(**{"reason": "why", **fields}).check()


def test_valid_ones_are_described() -> None:
    since, until = 1_767_225_600_000_000, 1_767_225_600_500_000
    described = {
        Exclusion("why", "zuul~a~1").check().describe(),
        Exclusion("why", job="unit*", source="zuul").check().describe(),
        Exclusion("why", since_us=since, until_us=until).check().describe(),
    }
    assert described == {
        "run zuul~a~1",
        "job unit*, source zuul",
        "since 2026-01-01T00:00:00Z, until 2026-01-01T00:00:00.500000Z",
    }


def test_a_file_holds_a_run_a_line(tmp_path: Path) -> None:
    path = tmp_path / "excluded"
    path.write_text("# purged\nzuul~a~1 a leak\n\n  zuul~b~1\n")
    assert read_lines(str(path)) == (Exclusion("a leak", "zuul~a~1"), Exclusion("excluded", "zuul~b~1"))
    assert read_lines(None) == ()
    path.write_text("zuul~a~1\nzuul~b~1 a\x1bb\n")
    with pytest.raises(CimlError, match=f"--exclude {path}, line 2: exclusion: reason: "):
        read_lines(str(path))
    path.write_bytes(b"\xff")
    with pytest.raises(CimlError, match=f"--exclude {path}: cannot be read"):
        read_lines(str(path))


def test_json_of_single_runs_is_as_before() -> None:
    assert Exclusions().to_json() == {}
    assert excluding({"zuul~a~1": "a leak"}).to_json() == {"zuul~a~1": "a leak"}
    assert Exclusions((Exclusion("why", job="unit"),)).to_json() == [{"reason": "why", "job": "unit"}]
