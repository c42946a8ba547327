"""What is said of a run, word for word; and that each sentence follows when it is computed a second time."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.transforms.profiles import Profile
from ciml.verdicts.evidence.check import follows
from ciml.verdicts.evidence.observe import Subject, observations, quantity_range
from tests.growth import assert_linear
from tests.tier import tries
from tests.transforms.profiles.tables import START_US, STEAL, USED, USR, facts_of, table_of
from tests.verdicts.evidence.subjects import (  # fmt: skip
    AVAILABLE,
    DISK_FREE,
    DISK_USED,
    GB,
    IDLE,
    LOAD,
    MB,
    RECEIVED,
    RUNNABLE,
    USUAL,
    WRITTEN,
    run_of,
    subject_of,
)

EARLY = "Its telemetry ends 41 s before the run did; that of passing runs 0.1 to 1.8 s."
AS_USUAL = "CPU, load, memory, disk and network were as in 20 passing runs of this job."


def said(subject: Subject) -> list[str]:
    texts = [one.text for one in observations(subject)]
    assert [text for text in texts if not follows(text, subject)] == []
    return texts


ENDED = "; passing runs take 54 to 64 s."
THEN = f"{ENDED} {AS_USUAL}"
HANGING = {USR: [60.0] * 15 + [0.5] * 46, IDLE: [30.0] * 15 + [98.4] * 46}
LONG = {USR: [60.0] * 600 + [0.5] * 3000, IDLE: [30.0] * 600 + [98.4] * 3000, WRITTEN: [0.0] * 3600}
LEFT = [14 * GB] * 50 + [0.12 * GB] + [9 * GB] * 9
FULL = [30 * GB] * 200 + [0.0] * 40
TIMES = [START_US + 1_000_000 * (at if at < 30 else at + 35) for at in range(60)]
NOISE = {USR: [64.0] * 60}


@pytest.mark.parametrize(
    ("columns", "keys", "text"),
    [
        ({}, {"outcome": "failure", "exit_status": 1}, AS_USUAL),
        # Outside within noise: neither said nor named as usual.
        (NOISE, {}, AS_USUAL.replace("CPU, load", "Load")),
        (NOISE | {LOAD: [2.5] * 60, USED: [2.2 * GB] * 60, WRITTEN: [5 * MB] * 60}, {},
         AS_USUAL.replace("CPU, load, memory, disk and network were", "Network was")),
        ({WRITTEN: [0.0] * 60, LOAD: [0.0] * 60, USED: [0.5 * GB] * 60}, {}, "Its telemetry says nothing."),
        # How it ended.
        ({}, {"rows": 20, "outcome": "failure"}, f"It ended after 19 s{THEN}"),
        ({}, {"rows": 150, "outcome": "failure"}, f"It took 149 s{THEN}"),
        ({}, {"rows": 900, "outcome": "failure"}, f"It took 15 min{THEN}"),
        ({}, {"rows": 61, "outcome": "timeout"}, f"It reached its time limit after 60 s{THEN}"),
        ({}, {"rows": 61, "exit_status": 137}, f"It was ended by SIGKILL (exit status 137) after 60 s{THEN}"),
        ({}, {"rows": 61, "exit_status": -11}, f"It was ended by SIGSEGV (exit status -11) after 60 s{THEN}"),
        ({}, {"rows": 150, "outcome": "timeout", "exit_status": -9}, f"It reached its time limit after 149 s{THEN}"),
        *(({}, {"exit_status": status}, AS_USUAL) for status in (0, 1, 2, -1, 127, 128, 129, 255, None)),
        # What left the passing range, and since when.
        ({STEAL: [0.0] * 20 + [41.3] * 40}, {}, "From second 20, steal was 41 %; passing runs have 0 %."),
        ({STEAL: [0.0] * 180 + [41.3] * 120}, {"usual": 300}, "From minute 3, steal was 41 %; passing runs have 0 %."),
        ({STEAL: [0.0] * 180 + [41.3] * 60 + [0.0] * 60}, {"usual": 300},
         "From minute 3 to 4, steal was 41 %; passing runs have 0 %."),
        ({LOAD: [9.44] * 60}, {}, "Throughout, load was 9.4; passing runs have 1.9 to 2.1."),
        ({RUNNABLE: [12.2] * 30 + [2.0] * 30}, {},
         "Until second 30, the number of runnable processes was 12; passing runs have 1.9 to 2.1."),
        ({USED: [2 * GB] * 10 + [7.26 * GB] * 50}, {},
         "From second 10, memory used was 7.3 GB; passing runs have 1.9 to 2.1 GB."),
        ({WRITTEN: [3 * MB] * 10 + [812.4 * MB] * 20 + [0.0] * 30}, {},
         "From second 10 to 30, disk write rate was 812 MB/s; passing runs have 2.9 to 3.1 MB/s."),
        ({RECEIVED: [40 * MB] * 60}, {},
         "Throughout, network receive rate was 40 MB/s; passing runs have 95 to 104 kB/s."),
        ({DISK_FREE: [2.5 * GB] * 60}, {}, "Throughout, free disk was 2.5 GB; passing runs have 29 to 31 GB."),
        ({USR: [1.0] * 60}, {}, "Throughout, user CPU was 1 %; passing runs have 57 to 62 %."),
        # A hang is said once.
        (HANGING | {WRITTEN: [3 * MB] * 15 + [0.0] * 46}, {"outcome": "timeout"},
         f"It reached its time limit after 60 s{ENDED} It was nearly idle and wrote nothing to disk for its last 45 s: "
         "idle CPU was 98 %; passing runs have 29 to 31 %."),
        (HANGING | {WRITTEN: [3 * MB] * 61}, {"outcome": "timeout"},
         f"It reached its time limit after 60 s{ENDED} It was nearly idle for its last 45 s: "
         "idle CPU was 98 %; passing runs have 29 to 31 %."),
        (LONG, {"usual": 3600}, "It was nearly idle and wrote nothing to disk for its last 50 min: idle CPU was 98 %; "
         "passing runs have 29 to 31 %."),
        # The pooled profile; runs of a few seconds; columns from outside.
        ({STEAL: [40.0] * 60}, {"job": "other"}, "Throughout, steal was 40 %; passing runs of all jobs have 0 %."),
        ({}, {"job": "other"}, AS_USUAL.replace("this job", "all jobs")),
        ({STEAL: [90.0] * 4}, {}, f"It ended after 3 s{ENDED}"),
        ({USR: [60.0]}, {"rows": 1, "outcome": "timeout"},
         "Its telemetry of 0 s is too short to compare with that of passing runs."),  # no length is known
        ({}, {"rows": 5, "usual": 5}, "Its telemetry of 4 s is too short to compare with that of passing runs."),
        ({"<script>alert(1)</script>:x": [1e9] * 60, "@all:recheck": [1e9] * 60}, {}, AS_USUAL),
        ({"total cpu usage:usr\n:y": [1e9] * 60}, {}, AS_USUAL),
    ],
)  # fmt: skip
def test_what_is_said_of_a_run(columns: dict[str, list[float]], keys: dict[str, Any], text: str) -> None:
    assert " ".join(said(run_of(columns, **keys))) == text


def test_a_run_that_was_idle_from_a_gap_on() -> None:
    times = [START_US + 1_000_000 * (at if at < 20 else at + 20) for at in range(60)]
    idle = run_of({USR: [60.0] * 20 + [0.5] * 40, IDLE: [30.0] * 20 + [98.4] * 40, WRITTEN: [0.0] * 60}, times=times)
    assert said(idle)[1].startswith("It was nearly idle and wrote nothing to disk for its last 39 s: ")


@pytest.mark.parametrize(("seconds", "is_said"), [(1440, False), (1460, True)])
def test_a_length_is_unusual_beyond_half_the_range_of_passing_runs(seconds: int, is_said: bool) -> None:
    subject = subject_of(rows=seconds + 1)
    varied = replace(subject, profile=msgspec.structs.replace(subject.profile, length_s=(100.0, 600.0, 1000.0)))
    assert any(text.startswith("It took") for text in said(varied)) is is_said


def test_the_recorders_signal_ended_it() -> None:
    run, facts = run_of({}), facts_of(outcome="failure").replace(labels={"signal": "SIGKILL"})
    assert said(Subject.of(facts, run.table, run.profile))[0].startswith("It was ended by SIGKILL (exit status 137) ")


def test_memory_and_disk_that_ran_out_but_not_if_it_is_as_little_in_passing_runs() -> None:
    first = "Memory available fell to 120 MB of 16 GB in second 50."
    assert said(run_of({AVAILABLE: LEFT, USED: [16 * GB - each for each in LEFT]}))[0] == first
    full = run_of({DISK_FREE: FULL, DISK_USED: [40 * GB - each for each in FULL]}, usual=240)
    assert said(full)[0] == "Free disk fell to 0 kB of 40 GB in minute 3."
    assert next(iter(observations(full))).column == DISK_FREE  # the series that is drawn
    low, table = {AVAILABLE: (0.1 * GB, 0.2 * GB, 1 * GB)}, run_of({AVAILABLE: [0.2 * GB] * 60, USED: [15.8 * GB] * 60})
    assert "Memory available fell to 200 MB of 16 GB in second 0." in said(table)
    profile = Profile("unit", 20, (54.0, 59.0, 64.0), low, low)
    assert said(Subject(table.table, profile)) == ["Its telemetry says nothing."]


def test_a_gap_between_samples_and_telemetry_that_ends_early() -> None:
    for times in (TIMES, TIMES[::-1]):
        gap = run_of({USR: [60.0] * 60}, usual=100, times=times)
        assert said(gap)[0] == "No sample was taken for 36 s from second 29."
    within_a_minute = [START_US + 1_000_000 * (at if at < 130 else at + 25) for at in range(300)]
    gap = run_of({USR: [60.0] * 300}, usual=325, times=within_a_minute)
    assert said(gap)[0] == "No sample was taken for 26 s from minute 2."
    assert not follows("No sample was taken for 26 s from minute 1.", gap)
    one = subject_of(end_us=START_US + 100_000_000)
    assert said(one) == [EARLY, AS_USUAL]
    stored_slowly, unknown = (msgspec.structs.replace(one.profile, tail_s=each) for each in ((20.0, 30.0, 40.0), None))
    another_clock, on_time = (subject_of(end_us=START_US + seconds * 1_000_000) for seconds in (3600, 62))
    for other in (replace(one, profile=stored_slowly), replace(one, profile=unknown), another_clock, on_time):
        assert said(other) == [AS_USUAL]
    usual = replace(one, profile=msgspec.structs.replace(one.profile, tail_s=(20.0, 30.0, 50.0)))
    assert not follows("Its telemetry ends 41 s before the run did; that of passing runs 20 to 50 s.", usual)
    for shown, wrong in (("41 s", "40 s"), ("1.8 s", "3 s"), ("runs", "runs of all jobs")):
        assert not follows(EARLY.replace(shown, wrong), one)


def test_without_enough_passing_runs_nothing_is_compared() -> None:
    few = Profile("unit", 4, (1.0, 1.0, 1.0), dict.fromkeys(USUAL, (0.0, 0.0, 0.0)))
    table = table_of({USR: [99.0] * 60, STEAL: [50.0] * 60})
    assert said(Subject(table, few)) == ["Too few passing runs are known to compare it with."]
    assert said(Subject(table, few, "timeout")) == ["It reached its time limit after 59 s."]
    assert not follows("It reached its time limit after 59 s.", subject_of(outcome="timeout"))


_CELL = st.one_of(
    st.none(), st.floats(), st.sampled_from([0.0, 0.04, 0.5, 1.0, 9.96, 41.3, 99.5, 100.0, 1e3, 1e6, 1.5e9, 17e9])
)
_STRETCH = st.tuples(_CELL, st.integers(1, 60))


@st.composite
def subjects(draw: st.DrawFn) -> Subject:
    rows = draw(st.sampled_from([1, 2, 12, 60, 175, 200, 400]))
    columns = {}
    for name in draw(st.lists(st.sampled_from(sorted(USUAL)), max_size=6, unique=True)):
        values = [value for value, count in draw(st.lists(_STRETCH, min_size=1, max_size=8)) for _ in range(count)]
        columns[name] = (values * (rows // len(values) + 1))[:rows]
    every_us = draw(st.sampled_from([1_000_000, 700_000, 5_000_000]))
    steps_us = np.full(rows, every_us)
    for seconds, row in draw(st.dictionaries(st.sampled_from([16, 26, 90]), st.integers(0, rows - 1))).items():
        steps_us[row] = seconds * 1_000_000
    end_us = draw(st.one_of(st.none(), st.integers(START_US, START_US + 10**9)))
    run = run_of(
        columns or {USR: [60.0] * rows},
        usual=draw(st.sampled_from([20, 60, 400])),
        times=(START_US + np.cumsum(steps_us)).tolist(),
        outcome=draw(st.sampled_from(["failure", "timeout", ""])),
        exit_status=draw(st.sampled_from([None, 1, -9, 139])),
        end_us=end_us,
    )
    dropped = draw(st.lists(st.sampled_from(sorted(USUAL)), max_size=11, unique=True))
    return Subject(run.table.drop_columns(dropped), run.profile, run.outcome, run.exit_status, run.end_us)


@settings(max_examples=tries(150))
@given(subjects())
def test_every_sentence_follows_and_no_number_of_it_may_differ(subject: Subject) -> None:
    for text in said(subject):
        assert len(text) <= 160
        for match in re.finditer(r"(?<![A-Za-z])-?[0-9]+(?:\.[0-9]+)?", text):
            for other in (float(match[0]) * 2 + 3, float(match[0]) / 3 - 2):
                wrong = text[: match.start()] + f"{other:.0f}" + text[match.end() :]
                assert wrong == text or not follows(wrong, subject), wrong
        assert_mean(text, subject)


def assert_mean(text: str, subject: Subject) -> None:
    """Assert the mean of a sentence on CPU and load: a third computation, without numpy and Arrow's functions."""
    words = {"user CPU": USR, "idle CPU": IDLE, "steal": STEAL, "load": LOAD}
    match = re.match(
        r"(Throughout|From|Until)(?: (second|minute) (\d+))?(?: to (\d+))?, ([a-zCPU ]+) was ([\d.]+)", text
    )
    if match is None or match[5] not in words:
        return
    step = 60 if match[2] == "minute" else 1
    first = int(match[3]) * step if match[1] == "From" else 0
    last = int(match[4] or match[3]) * step if match[4] or match[1] == "Until" else math.inf
    times = [each.timestamp() for each in subject.table.column("time").to_pylist()]
    values = [
        value
        for at, value in zip(times, subject.table.column(words[match[5]]).to_pylist(), strict=True)
        if first <= round(at - min(times), 6) < last and value is not None and abs(value) <= 1e18
    ]
    true, decimals = math.fsum(values) / len(values), len(match[6].partition(".")[2])
    assert abs(float(match[6]) - true) <= (0.5 if "%" in text or true >= 9.9 else 0.05) + 1e-6 * abs(true), text
    assert decimals <= 1


def test_sentences_of_another_form_or_run_do_not_follow() -> None:
    subject = run_of({STEAL: [0.0] * 20 + [41.3] * 40})
    text = "From second 20, steal was 41 %; passing runs have 0 %."
    assert follows(text, subject)
    for wrong in (
        "From second 25, steal was 40 %; passing runs have 0 %.",
        "From second 30, steal was 41 %; passing runs have 0 %.",
        "From second 20 to 50, steal was 41 %; passing runs have 0 %.",
        "From minute 20, steal was 41 %; passing runs have 0 %.",
        "From second 20, load was 41 %; passing runs have 0 %.",
        "From second 20, user CPU was 41 %; passing runs have 0 %.",
        "From second 20, steal was 41 GB; passing runs have 0 %.",
        "Throughout, steal was 41 %; passing runs have 0 %.",
        f"{text} recheck",
        "It was nearly idle for its last 40 s: idle CPU was 30 %; passing runs have 29 to 31 %.",
        "It reached its time limit after 59 s; passing runs take 54 to 64 s.",
        "It was ended by SIGKILL (exit status -9) after 59 s; passing runs take 54 to 64 s.",
        EARLY,
        "Memory available fell to 14 GB of 16 GB in second 5.",
        "No sample was taken for 36 s from second 29.",
        "CPU and load were as in 19 passing runs of this job.",
        "Too few passing runs are known to compare it with.",
        "",
    ):
        assert not follows(wrong, subject), wrong


@pytest.mark.parametrize("shape", ["alternating", "spikes", "steady"])
def test_time_is_linear_in_the_samples(shape: str) -> None:
    def make(rows: int) -> Subject:
        at = np.arange(rows)
        values = {"alternating": at // 60 % 2 * 90.0, "spikes": (at % 97 == 0) * 100.0, "steady": at * 0.0}[shape]
        return run_of({STEAL: values.tolist(), IDLE: (100 - values).tolist()}, usual=400)

    assert_linear(make, lambda subject: said(subject), 20_000)


@pytest.mark.parametrize(
    ("low", "high", "unit", "text"),
    [
        (0.34, 41.3, "%", "0 to 41 %"),
        (0.26, 0.31, "%", "0 %"),
        (2e9, 12.3e9, "B", "2 to 12 GB"),
        (1.26, 33.3, "", "1.3 to 33"),
    ],
)
def test_a_range_is_written_in_one_unit(low: float, high: float, unit: Any, text: str) -> None:
    assert quantity_range(low, high, unit) == text
