"""Profiles of outputs: exact whatever the order, bounded, and what departs from them."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ciml.transforms.logs import profile as module
from ciml.transforms.logs.profile import Printed, Usual, differences_of, printed_templates, profile_of
from ciml.transforms.logs.ranking import excerpt, scan

RUN = st.dictionaries(
    st.sampled_from([f"line {letter}" for letter in "abcdefghij"]),
    st.builds(Printed, st.integers(1, 9), st.integers(0, 8).map(lambda eighths: eighths / 8)),
    max_size=8,
)


def printed(data: str) -> dict[str, Printed]:
    return printed_templates(scan(data.encode()))


def test_what_a_run_printed_has_counts_and_places() -> None:
    assert printed("start\ntest 1\ntest 2\n\nend") == {
        "start": Printed(1, 0.0),
        "test <*>": Printed(2, 0.25),
        "end": Printed(1, 1.0),
    }


ONE = Printed(1, 0.5)


@given(st.lists(RUN, max_size=8), st.integers(0, 8), st.randoms(use_true_random=False), st.integers(1, 12))
@example([{"line b": ONE, "line h": ONE, "line j": ONE}, {"line d": ONE}], 0, Random(0), 2)  # by their digests
def test_order_and_parts_change_nothing(runs: list[dict[str, Printed]], cut: int, random: object, most: int) -> None:
    """Also where the profile is a sample; and the sample is exact: that of all runs is a part of the whole profile."""
    whole = profile_of(runs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_OUTPUT_PROFILE_TEMPLATES", most)
        sampled = profile_of(runs)
        shuffled = list(runs)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        first, second = profile_of(shuffled[:cut]), profile_of(shuffled[cut:])
        first.merge(second)
    assert first == sampled
    assert len(sampled.templates) <= most
    assert {name: whole.templates[name] for name in sampled.templates} == sampled.templates
    for name in whole.templates:
        assert (name in sampled.templates) == sampled.judges(name)


def test_only_a_template_that_the_profile_judges_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTPUT_PROFILE_TEMPLATES", 50)
    profile = profile_of([printed("\n".join(f"word{'y' * n}" for n in range(200)))])
    assert len(profile.templates) == 50
    others = [f"other{'y' * n}" for n in range(200)]
    new = [name for name in others if profile.is_new(name)]
    assert 20 < len(new) < 80
    assert [name in profile for name in others] == [name not in new for name in others]


def passing(number: int) -> dict[str, Printed]:
    tests = [f"tests/test_{n}.py ." for n in range(20 + number % 3)]
    return printed("\n".join(["collecting", *tests, "writing the report", "uploading", f"{number} passed"]))


def shown(run: Mapping[str, Printed], runs: int = 8) -> tuple[list[str], list[tuple[str, int]]]:
    found = differences_of(run, profile_of(passing(number) for number in range(1, runs + 1)))
    return [one.template for one in found.missing], [(one.template, one.lines) for one in found.unusual]


def test_a_run_that_ends_early_lacks_the_usual_lines_in_their_order() -> None:
    tests = [f"tests/test_{n}.py ." for n in range(21)]
    assert shown(printed("\n".join(["collecting", *tests]))) == (["writing the report", "uploading", "<*> passed"], [])


def test_a_number_of_lines_outside_of_that_of_all_runs_is_unusual() -> None:
    end = ["writing the report", "uploading", "8 passed"]
    assert shown(printed("\n".join(["collecting", *["tests/test_1.py ."] * 9, *end]))) == ([], [("tests/<*> .", 9)])
    retried = ["collecting", *["tests/test_1.py ."] * 40, *["uploading"] * 5, *end]
    assert shown(printed("\n".join(retried))) == ([], [("uploading", 6), ("tests/<*> .", 40)])


@pytest.mark.parametrize(
    ("usual", "lines", "unusual"),
    [
        (2, 4, False),
        (2, 5, True),
        (20, 30, False),
        (20, 31, True),
        (4, 2, False),
        (4, 1, True),
        (20, 14, False),
        (20, 13, True),
    ],
)
def test_it_is_unusual_by_a_half_and_by_more_than_two_lines(usual: int, lines: int, unusual: bool) -> None:
    profile = profile_of([{"line": Printed(usual, 0.5)}] * 5)
    assert bool(differences_of({"line": Printed(lines, 0.5)}, profile).unusual) is unusual


@pytest.mark.parametrize(("runs", "missing"), [(9, ["line"]), (8, [])])
def test_a_line_of_nine_of_ten_runs_is_missed(runs: int, missing: list[str]) -> None:
    profile = profile_of([{"line": Printed(1, 0.5)}] * runs + [{}] * (10 - runs))
    assert [one.template for one in differences_of({}, profile).missing] == missing


def test_few_runs_show_nothing() -> None:
    assert shown(printed("nothing usual"), runs=4) == ([], [])
    assert shown(printed("nothing usual"), runs=5)[0]


def test_a_profile_stands_for_the_known_templates_of_a_ranking() -> None:
    profile = profile_of([printed("WARNING: error in the cache\nok\n")])
    output = scan(b"WARNING: error in the cache\nerror: no cache\nok\n")
    assert [line.text for line in excerpt(output, 17, profile)] == ["error: no cache"]


def test_usual_templates_add_up() -> None:
    assert Usual(2, 1, 3, 500_000) + Usual(1, 2, 7, 250_000) == Usual(3, 1, 7, 750_000)
    assert Usual(2, 1, 3, 500_000).place == 0.25
