"""Live windows equal the batch result, whatever comes late, twice or out of order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.datasets.definition import DatasetDefinition, resolve
from ciml.errors import RejectedInput
from ciml.events.records import RunFacts
from ciml.events.samples import End, Samples
from ciml.telemetry import telemetry_columns
from ciml.transforms.examples.downsample import downsample
from ciml.transforms.live.messages import example_message, pane_message
from ciml.transforms.live.samples import LivePolicy, Part, SortedSamples, join_parts, pack, part_of, unpack
from ciml.transforms.live.windows import ExampleSoFar, LiveDataset, LiveRun, Pane
from ciml.transforms.parse.logs import Log, parse_logs
from tests.golden import make_logs
from tests.tier import tries
from tests.transforms.live.live_scenes import CALM, SECOND, Disorder, arrivals, feed, recorded, some
from tests.transforms.samples import LOAD, PROJECTS, USR, corpus, make_examples, make_facts, resolved, table

POLICY = LivePolicy()
RUN = "zuul~1~1"
RUNS = tries(80)  # of the corpus
MIDNIGHT = make_logs.instant("2026-11-24T00:00:00Z")


@dataclass
class Consumer:
    """Keeps the published windows and examples of a run: the last revision of each."""

    windows: dict[tuple[str, int], Pane] = field(default_factory=dict)
    panes: list[Pane] = field(default_factory=list)
    examples: list[ExampleSoFar] = field(default_factory=list)

    def take(self, run: LiveRun, over: bool = False) -> None:
        for pane in run.take_due_panes(over=over):
            self.panes.append(pane)
            key = (pane.dataset.name, pane.start_us)
            before = self.windows.get(key)
            assert before is None or (before.day_us, -before.samples) >= (pane.day_us, -pane.samples)
            self.windows[key] = pane
        if over or run.are_examples_due():
            self.examples.extend(run.take_examples(over=over))

    def values(self, name: str) -> np.ndarray:
        found = sorted((start, pane.values) for (dataset, start), pane in self.windows.items() if dataset == name)
        return np.array([values for _, values in found], np.float32)


def live(
    run_id: str, datasets: Sequence[LiveDataset], arriving: Any, together: int = 1, policy: Any = POLICY
) -> Consumer:
    run, consumer = LiveRun(run_id, datasets, policy), Consumer()
    for each in feed(run, arriving, together):
        consumer.take(each)
    assert run.complete
    consumer.take(run, over=True)
    return consumer


def assert_equals_batch(consumer: Consumer, run: RunFacts, stored: pa.Table, datasets: Sequence[LiveDataset]) -> int:
    """The last panes are the batch's windows, and the last examples its examples; returns how many examples."""
    there = 0
    last = {example.dataset.name: example for example in consumer.examples}
    assert last.keys() == {dataset.name for dataset in datasets}
    for dataset in datasets:
        windows = downsample([stored], dataset.resolved)
        if not dataset.resolved.definition.aggregation_functions:
            ours = consumer.values(dataset.name)[: dataset.resolved.windows].reshape(-1, len(dataset.resolved.columns))
            assert ours.tobytes() == windows.values.tobytes()
        made = make_examples([run], [stored], dataset.resolved)
        example = last[dataset.name]
        if made.excluded:
            assert example.rejected is not None
            assert (example.rejected.reason, example.values) == (made.excluded[0].reason, None)
            continue
        there += 1
        assert [example.digest] == made.table.column("digest").to_pylist()
        assert example.values is not None
        assert [len(example.values)] == made.table.column("n_windows").to_pylist()
        assert all(pane.kind != "early" for pane in consumer.windows.values())
    return there


def definitions() -> list[LiveDataset]:
    """Of the corpus: each statistic, an interval that divides no day, aggregations, a first sample that counts not."""
    runs, tables, _ = corpus(RUNS)
    columns = [telemetry_columns(each.column_names) for each in tables]
    keys: list[dict[str, Any]] = [
        {"sample_interval": "1s", "features_regex": "(usr|1min)"},
        {"sample_interval": "10s", "sample_statistic": "std", "count_first_sample": False},
        {"sample_interval": "7s", "sample_statistic": "last", "features_regex": "(usr|1min)"},
        {"sample_interval": "1min", "sample_statistic": "max", "aggregation_functions": ["mean", "std", "median"]},
    ]
    out = []
    for each in keys:
        definition = DatasetDefinition.from_json({"name": "x", "class_label": "project", "classes": PROJECTS, **each})
        out.append(LiveDataset(each["sample_interval"], resolve(definition, columns, runs)))
    return out


def test_runs_of_the_corpus_equal_the_batch_result() -> None:
    datasets, rng, there = definitions(), np.random.default_rng(11), 0
    policy = LivePolicy(example_growth=1.0)  # examples in between are made by the same call
    runs, tables, _ = corpus(RUNS)
    for number, (run, stored) in enumerate(zip(runs, tables, strict=True)):
        ours = [datasets[number % 4], datasets[(number + 1) % 4]]
        arriving = arrivals(recorded(run.run_id, stored), rng, Disorder(), tick_s=5.0)
        consumer = live(run.run_id, ours, arriving, int(rng.integers(1, 8)), policy)
        there += assert_equals_batch(consumer, run, stored, ours)
    assert there >= 2 * RUNS - 10


GOLDEN = {make().name: make for make in make_logs.SMALL} | {
    make.__name__: partial(make, "utc") for make in make_logs.LARGE
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.whole if name == "long_run" else ()) for name in GOLDEN]
)
def test_golden_logs_equal_the_batch_result(name: str) -> None:
    """Midnights, gaps, cells without a value, restarts with other columns, clocks set back; in and out of order."""
    golden = GOLDEN[name]()
    stored = parse_logs([Log(golden.data, golden.start_us, golden.end_us)])[0]
    assert isinstance(stored, pa.Table)
    names = telemetry_columns(stored.column_names)
    columns = (USR, LOAD) if {USR, LOAD} <= set(names) else names[:2]
    datasets = [
        LiveDataset(f"{interval} {statistic} {first}", resolved(
            columns, sample_interval=interval, sample_statistic=statistic, count_first_sample=first
        ))
        for interval, statistic, first in [
            ("7s", "mean", True), ("7s", "std", False), ("1s", "last", True), ("10min", "min", False),
            ("1min", "max", True),
        ]
    ]  # fmt: skip
    run, messages = make_facts(1), recorded(RUN, stored)
    for seed, disorder in enumerate((CALM, Disorder(late=0.05))):
        arriving = arrivals(messages, np.random.default_rng(seed), disorder)
        together = seed + 1 + len(arriving) // 300  # of a long log many at once
        assert_equals_batch(live(RUN, datasets, arriving, together), run, stored, datasets)


def one(interval: str = "10s", **keys: Any) -> LiveDataset:
    return LiveDataset("one", resolved((USR, LOAD), sample_interval=interval, **keys))


def at(*rows: tuple[float, float | None]) -> pa.Table:
    """A table of (s from midnight, usr), whose load is 1."""
    times = [MIDNIGHT + round(second * SECOND) for second, _ in rows]
    return table(times, usr=[value for _, value in rows], load=[1.0] * len(rows))


def test_a_window_is_early_then_final_then_late() -> None:
    """By the run's own clock: a minute after its end."""
    stored = at((0, 1.0), (5, 3.0), (12, 7.0), (69.9, 0.0), (70, 0.0), (9, 8.0))
    (message,) = recorded(RUN, stored)
    run, published = LiveRun(RUN, [one()], POLICY), []
    for row in range(6):
        run.add(part_of([(row, some(message, np.array([row])))], run.columns))
        published.append([(pane.number, pane.samples, pane.kind, pane.values[0]) for pane in run.take_due_panes()])
    assert published == [
        [(0, 1, "early", 1.0)],
        [(0, 2, "early", 2.0)],
        [(1, 1, "early", 7.0)],
        [(6, 1, "early", 0.0)],
        [(0, 2, "final", 2.0), (7, 1, "early", 0.0)],
        [(0, 3, "late", 4.0)],
    ]
    assert [(pane.number, pane.kind) for pane in run.take_due_panes(over=True)] == [
        (1, "final"),
        (6, "final"),
        (7, "final"),
    ]
    assert run.take_due_panes(over=True) == []


def test_a_window_without_a_value_is_published_when_it_has_one() -> None:
    stored = at((0, None), (11, 5.0), (1, 2.0))
    (message,) = recorded(RUN, stored)
    run, published = LiveRun(RUN, [one()], POLICY), []
    for row in range(3):
        run.add(part_of([(row, some(message, np.array([row])))], run.columns))
        published.append([(pane.number, pane.samples, pane.values[0]) for pane in run.take_due_panes()])
    assert published == [[], [(1, 1, 5.0)], [(0, 2, 2.0)]]


def test_a_long_window_is_published_ever_less_often() -> None:
    stored = at(*((second, float(second)) for second in range(3000)))
    consumer = live(RUN, [one("1h")], arrivals(recorded(RUN, stored), np.random.default_rng(1), tick_s=1.0))
    counts = [pane.samples for pane in consumer.panes]
    assert counts[:18] == [*range(1, 18), 19]
    assert len(counts) < 120
    assert (counts[-1], consumer.panes[-1].kind) == (3000, "final")
    assert sum(counts) < 20 * 3000
    assert len(consumer.examples) < 170


def test_a_revision_always_has_the_same_values() -> None:
    """Other batches of the same messages: other revisions may be published, and each has the same bytes."""
    runs, tables, _ = corpus(6)
    datasets = definitions()
    for run, stored in zip(runs, tables, strict=True):
        arriving = arrivals(recorded(run.run_id, stored), np.random.default_rng(3), Disorder(late=0.1, again=0.1))
        windows: dict[tuple[str, int, int, int], bytes] = {}
        examples: dict[tuple[str, int], bytes] = {}
        for together in (1, 3, 7, 1000):
            consumer = live(run.run_id, datasets, arriving, together)
            for pane in consumer.panes:
                key = (pane.dataset.name, pane.day_us, pane.number, pane.samples)
                assert windows.setdefault(key, pane.values.tobytes()) == pane.values.tobytes()
            for example in consumer.examples:
                found = b"" if example.values is None else example.values.tobytes()
                assert examples.setdefault((example.dataset.name, example.samples), found) == found


def test_windows_count_from_the_first_day_that_is_known() -> None:
    """7 s divide no day: when the sample before midnight comes at last, all windows are published again."""
    day = 86_400
    stored = at((day - 3, 1.0), (day + 1, 2.0), (day + 8, 3.0))
    (message,) = recorded(RUN, stored)
    knows, knows_not = message, some(message, np.array([1, 2]))
    for first_us, wanted in ((message.first_us, []), (int(message.time_us[1]), [(0, 0), (1, 7)])):
        run = LiveRun(RUN, [one("7s")], POLICY)
        early = Samples(RUN, knows.recorder_us, first_us, *(getattr(knows_not, name) for name in (
            "columns", "sequence", "time_us", "boot", "values"
        )))  # fmt: skip
        run.add(part_of([(0, early)], run.columns))
        before = [(pane.number, (pane.start_us - MIDNIGHT) // SECOND - day) for pane in run.take_due_panes()]
        run.add(part_of([(1, some(knows, np.array([0]))), (2, End(RUN, knows.recorder_us, 3))], run.columns))
        consumer = Consumer()
        consumer.take(run, over=True)
        assert_equals_batch(consumer, make_facts(1), stored, [one("7s")])
        # 86,400 = 7 × 12,342 + 6: the window over midnight begins six seconds before it
        later = [(12_342, -6), (12_343, 1), (12_344, 8)]
        assert [(pane.number, (pane.start_us - MIDNIGHT) // SECOND - day) for pane in consumer.panes] == later
        assert before == (wanted or later[1:])


def test_a_window_of_an_earlier_day_is_final_and_not_late_when_it_is_first_published() -> None:
    day = 86_400
    (message,) = recorded(RUN, at((5, 1.0), (day + 5, 2.0), (day + 100, 3.0)))
    run = LiveRun(RUN, [one()], POLICY)
    published = []
    for rows in ([1, 2], [0]):
        samples = replace(some(message, np.array(rows)), first_us=int(message.time_us[rows[0]]))
        run.add(part_of([(rows[0], samples)], run.columns))
        published.append([(pane.number, pane.kind) for pane in run.take_due_panes()])
    assert published == [[(0, "final"), (10, "early")], [(0, "final"), (8640, "final"), (8650, "early")]]


def test_what_is_missing_is_counted() -> None:
    (message,) = recorded(RUN, at(*((second, 1.0) for second in range(10))))
    run = LiveRun(RUN, [one()], POLICY)

    def add(*rows: int, end: int | None = None) -> tuple[int, bool]:
        found = [(0, some(message, np.array(rows)))] if rows else []
        ends = [] if end is None else [(1, End(RUN, message.recorder_us, end))]
        run.add(part_of([*found, *ends], run.columns))
        return run.missing, run.complete

    assert add(1, 3, 4) == (2, False)
    assert add(0, 3) == (1, False)
    assert add(end=8) == (4, False)
    assert add(7, 5) == (2, False)
    assert add(2, 6, 7) == (0, True)
    assert add(end=8) == (0, True)
    assert run.add(part_of([(9, some(message, np.array([2, 2, 5])))], run.columns)) is None
    other = LiveRun(RUN, [one()], POLICY)
    other.add(part_of([(0, message), (1, End(RUN, message.recorder_us + 1, 0))], other.columns))
    assert (other.ended, other.missing, other.complete) == (True, 0, False)  # the first start's end is not known


@pytest.mark.parametrize("ends", [(7, 10), (10, 7), (10, 10)])
@pytest.mark.parametrize("together", [1, 3])
def test_the_largest_end_of_a_start_counts_in_any_order_and_batch(ends: tuple[int, int], together: int) -> None:
    (message,) = recorded(RUN, at(*((second, 1.0) for second in range(5))))
    run = LiveRun(RUN, [one()], POLICY)
    messages = [message, *(End(RUN, message.recorder_us, samples) for samples in ends)]
    for begin in range(0, len(messages), together):
        run.add(part_of(list(enumerate(messages))[begin : begin + together], run.columns))
    assert (run.ends, run.missing, run.complete) == ({message.recorder_us: 10}, 5, False)


def test_the_first_of_two_that_say_different_things_counts() -> None:
    (message,) = recorded(RUN, at((0, 1.0), (1, 2.0)))
    again = Samples(**{name: getattr(message, name) for name in (field.name for field in fields(Samples))} | {
        "time_us": message.time_us + 5 * SECOND, "values": message.values * 100
    })  # fmt: skip
    run = LiveRun(RUN, [one()], POLICY)
    run.add(part_of([(0, message)], run.columns))
    assert run.add(part_of([(1, again)], run.columns)) is None
    assert [pane.values[0] for pane in run.take_due_panes()] == [1.5]


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (at((0, 1.0)).drop_columns([LOAD]), "missing_column"),
        (at((0, None), (11, None)), "empty"),
        (at((0, 1e300), (11, 1.0)), "out_of_range"),
    ],
)
def test_a_run_that_is_refused_says_why(stored: pa.Table, reason: str) -> None:
    consumer = live(RUN, [one()], arrivals(recorded(RUN, stored), np.random.default_rng(1)))
    (example,) = consumer.examples[-1:]
    assert example.rejected is not None
    assert (example.rejected.reason, example.values, example.digest) == (reason, None, "")
    assert all(np.isfinite(pane.values).all() for pane in consumer.panes)
    assert json.loads(example_message(RUN, example, "ended"))["excluded"]["reason"] == reason


def test_a_run_has_bounds() -> None:
    stored = at(*((second, 1.0) for second in range(20)))
    (message,) = recorded(RUN, stored)
    run = LiveRun(RUN, [one()], LivePolicy(most_samples=19))
    with pytest.raises(RejectedInput, match="run_too_long"):
        run.add(part_of([(0, message)], run.columns))
    assert run.size == 0
    run.add(part_of([(0, some(message, np.arange(19)))], run.columns))
    assert run.size == 19
    # The start of these samples counts, and that of each end: at most 1,000, whatever message has them.
    starts = [(n, End(RUN, message.recorder_us + n, 0)) for n in range(1001)]
    run.add(part_of(starts[:600], run.columns))
    with pytest.raises(RejectedInput, match="too_many_restarts"):
        run.add(part_of(starts[600:], run.columns))
    assert run.add(part_of(starts[600:1000], run.columns)) is not None
    assert len(run.ends) == 1000


@settings(max_examples=tries(30))
@given(st.data())
def test_a_run_kept_as_bytes_goes_on_as_the_same(data: st.DataObject) -> None:
    """After any message: the parts that were taken, packed and unpacked, make a run with the same output."""
    n = data.draw(st.integers(1, 60))
    stored = at(*((data.draw(st.integers(0, 200)), float(second)) for second in range(n)))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    arriving = arrivals(recorded(RUN, stored), rng, Disorder(again=0.2))
    cut = data.draw(st.integers(0, len(arriving)))
    datasets = [one("7s"), LiveDataset("std", one("1min", sample_statistic="std").resolved)]
    run, kept = LiveRun(RUN, datasets, POLICY), []
    for number, (_, message) in enumerate(arriving[:cut]):
        taken = run.add(part_of([(number, message)], run.columns))
        kept += [pack(taken)] if taken is not None else []
        run.take_due_panes()
    joined = [pack(join_parts([unpack(each) for each in kept]))] if kept and cut % 2 else kept
    again = LiveRun.rebuild(RUN, [unpack(each) for each in joined], datasets, POLICY)
    for number, (_, message) in enumerate(arriving[cut:], cut):
        for each in (run, again):
            each.add(part_of([(number, message)], each.columns))
        ours, theirs = ({pane_message(RUN, pane) for pane in each.take_due_panes()} for each in (run, again))
        assert {one for one in ours if b'"early"' not in one} == {one for one in theirs if b'"early"' not in one}
    assert again.complete
    finals = [[pane_message(RUN, pane) for pane in each.take_due_panes(over=True)] for each in (run, again)]
    assert finals[0] == finals[1]
    for mine, other in zip(run.take_examples(over=True), again.take_examples(over=True), strict=True):
        assert example_message(RUN, mine, "ended") == example_message(RUN, other, "ended")


def test_the_form_of_published_messages() -> None:
    stored = at((0, 1.0), (5, 2.5))
    consumer = live(RUN, [one()], arrivals(recorded(RUN, stored), np.random.default_rng(1)))
    dataset = consumer.panes[-1].dataset
    assert json.loads(pane_message(RUN, consumer.panes[-1])) == {
        "run_id": RUN, "dataset": "one", "version": 1, "definition": dataset.digest, "day": "2026-11-24", "number": 0,
        "start": "2026-11-24T00:00:00Z", "samples": 2, "revision": 2, "pane": "final", "values": [1.75, 1.0],
    }  # fmt: skip
    example = consumer.examples[-1]
    common = {
        "run_id": RUN, "dataset": "one", "version": 1, "definition": dataset.digest, "samples": 2, "revision": 2,
        "missing": 0, "n_windows": 1, "features": ["usr", "1m"], "values": [[1.75, 1.0]],
    }  # fmt: skip
    running = {"standing": "running", "ended": False}
    assert json.loads(example_message(RUN, example, "running")) == {**common, **running}
    over = {"standing": "silent", "ended": False, "digest": example.digest}
    assert json.loads(example_message(RUN, example, "silent")) == {**common, **over}


def test_late_samples_of_a_long_window_are_published_ever_less_often() -> None:
    """Each late sample of a small window is published; a long one is not computed once for each of them."""
    (message,) = recorded(RUN, at(*((second, float(second)) for second in (7200, *range(3000)))))
    run = LiveRun(RUN, [one("1h")], POLICY)
    panes = []
    for row in range(3001):
        run.add(part_of([(row, some(message, np.array([row])))], run.columns))
        panes += run.take_due_panes()
    late = [pane.samples for pane in panes if pane.number == 0]
    assert late[:1000] == list(range(1, 1001))
    assert len(late) < 1020
    again = LiveRun.rebuild(RUN, [part_of([(0, message)], run.columns)], [one("1h")], POLICY)
    for end in (run, again):  # of the second it is not known what was published
        assert end.take_due_panes() == []
        assert [(pane.number, pane.samples, pane.kind) for pane in end.take_due_panes(over=True)] == [
            (0, 3000, "late"),
            (2, 1, "final"),
        ]
        assert end.take_due_panes(over=True) == []


def test_a_sender_cannot_have_all_windows_published_again_for_each_sample() -> None:
    (message,) = recorded(RUN, at(*((-86_400 * day, 1.0) for day in range(20))))
    run = LiveRun(RUN, [one()], POLICY)
    parts = [
        part_of([(row, replace(some(message, np.array([row])), first_us=int(message.time_us[row])))], run.columns)
        for row in range(20)
    ]
    published = 0
    for part in parts[:17]:
        run.add(part)
        published += len(run.take_due_panes())
    assert published == sum(range(1, 18))
    with pytest.raises(RejectedInput, match="too_many_days"):
        run.add(parts[17])
    assert run.size == 17


def test_samples_in_any_order_are_sorted_without_a_look_at_all_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties of times, starts and numbers included; what is sorted are the new samples alone."""
    sorted_rows = []
    argsort = np.argsort
    monkeypatch.setattr(np, "argsort", lambda keys: sorted_rows.append(len(keys)) or argsort(keys))
    monkeypatch.setattr(np, "lexsort", Mock(side_effect=AssertionError))
    rng = np.random.default_rng(4)
    fields = [rng.choice([0, 1, 255, 256, 65_536, MIDNIGHT], 600) for _ in range(3)]
    keys = np.unique(np.column_stack(fields), axis=0)
    shuffled = keys[rng.permutation(len(keys))]
    samples = SortedSamples(1)
    parts = np.split(shuffled, [1, 2, 50, 53, 54])
    for rows in parts:
        values = np.arange(samples.size, samples.size + len(rows), dtype=float)
        no_boot = np.zeros(len(rows), bool)
        samples.insert(Part(rows[:, 1], rows[:, 2], rows[:, 0], no_boot, values[:, None], np.ones(1, bool)))
    assert sorted_rows == list(map(len, parts))
    assert samples["time_us"].tolist() == keys[:, 0].tolist()
    assert shuffled[samples["values"][samples["row"], 0].astype(int)].tolist() == keys.tolist()
