"""The state of a live run: when its timer fires, what is due then, and which samples are late."""

from __future__ import annotations

from itertools import count

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from ciml.errors import CimlError
from ciml.kafka import KafkaOptions
from ciml.manifest.coverage import RangeSet
from ciml.pipelines.live import KeepRun, LiveConfig, RunCache, ToSend
from ciml.transforms.live.samples import LivePolicy, Part, RunState, Wake, pack, part_of
from ciml.transforms.live.windows import LiveDataset, LiveRun, columns_of
from tests.pipelines.keyed_state import Bag, Cell, One
from tests.pipelines.live import living
from tests.transforms.live.live_scenes import Disorder, arrivals, recorded
from tests.transforms.samples import corpus, resolved

POLICY = LivePolicy(grace_s=10.0, silence_s=100.0, remember_s=1000.0)


def again(state: RunState) -> RunState:
    return RunState.of(state.to_bytes())


def test_a_run_with_new_samples_waits_for_its_silence() -> None:
    state = RunState("zuul~1~1", "c")
    state.received(1000.0, ended=False)
    assert state.next_wake(POLICY) == 1100.0
    state = again(state)
    state.received(1050.0, ended=False)
    assert state.next_wake(POLICY) is None  # the present timer fires too early, and is set again then
    state = again(state)
    assert state.due(1100.0, POLICY) is None
    state.woken()
    assert state.next_wake(POLICY) == 1150.0
    assert again(state).due(1150.0, POLICY) == Wake.SILENT


def test_an_end_is_sooner_than_a_silence() -> None:
    state = RunState("zuul~1~1", "c")
    state.received(1000.0, ended=False)
    state.next_wake(POLICY)
    state.received(1001.0, ended=True)
    assert state.next_wake(POLICY) == 1011.0
    state.received(1009.0, ended=True)  # a late sample does not restart the grace
    assert (state.due(1010.9, POLICY), state.due(1011.0, POLICY)) == (None, Wake.ENDED)


def test_a_run_that_is_over_is_remembered_and_then_forgotten() -> None:
    state = RunState("zuul~1~1", "c")
    state.received(1000.0, ended=True)
    state.close("ended", {7: RangeSet([(0, 5), (6, 9)])}, 1002.0)
    assert state.next_wake(POLICY) == 2002.0
    state = again(state)
    assert (state.standing, state.due(2001.0, POLICY), state.due(2002.0, POLICY)) == ("ended", None, Wake.FORGET)
    late = state.unseen(part(7, [4, 5, 5, 8, 9]))
    assert late is not None
    assert late.sequence.tolist() == [5, 9]
    assert state.unseen(part(7, [0, 8])) is None
    assert state.unseen(part(7, [])) is None
    other = state.unseen(part(8, [0]))
    assert other is not None
    assert other.size == 1


def test_a_run_with_too_many_holes_takes_all_for_late() -> None:
    state = RunState("zuul~1~1", "c")
    state.close("silent", {7: RangeSet([(2 * n, 2 * n + 1) for n in range(1001)])}, 0.0)
    assert len(state.to_bytes()) < 1000
    late = state.unseen(part(7, [0, 1]))
    assert late is not None
    assert late.size == 2


def part(recorder: int, numbers: list[int]) -> Part:
    n = len(numbers)
    return Part(
        np.full(n, recorder), np.array(numbers, np.int64), np.zeros(n, np.int64), np.zeros(n, bool), np.zeros((n, 1)),
        np.ones(1, bool),
    )  # fmt: skip


def test_newer_samples_are_kept_with_the_head() -> None:
    state = RunState("zuul~1~1", "c")
    state.newer = [pack(part(7, [0, 1])), b"", pack(part(8, [10]))]  # 10 is a line's end
    assert again(state).newer == state.newer
    state.close("ended", {}, 0.0)
    assert again(state).newer == []


def test_each_message_makes_another_token() -> None:
    state = RunState("zuul~1~1", "c")
    tokens = set()
    for second in range(10):
        state.received(float(second), ended=False)
        tokens.add(state.token)
    assert len(tokens) == 10
    assert again(state).token == state.token


def test_a_kept_run_is_that_of_one_state() -> None:
    datasets = [LiveDataset("one", resolved())]
    kept, runs = RunCache(most=2), [LiveRun(f"zuul~{n}~1", datasets, POLICY) for n in range(3)]
    for n, run in enumerate(runs):
        kept.put("job", f"token-{n}", run)
    assert kept.take("job", "zuul~0~1", "token-0") is None  # more than it keeps
    assert kept.take("other", "zuul~1~1", "token-1") is None
    assert kept.take("job", "zuul~1~1", "token-1") is runs[1]
    assert kept.take("job", "zuul~1~1", "token-1") is None
    assert kept.take("job", "zuul~2~1", "an older token") is None
    assert kept.take("job", "zuul~2~1", "token-2") is None  # a run of another state was dropped


def test_a_configuration_names_data_sets_once() -> None:
    one = LiveDataset("one", resolved())
    with pytest.raises(CimlError, match="named twice"):
        LiveConfig(KafkaOptions("host:1"), (one, one))
    with pytest.raises(CimlError, match="name one"):
        LiveConfig(KafkaOptions("host:1"), ())


def longest(datasets: tuple[LiveDataset, ...]) -> tuple[str, list[bytes], living.Known]:
    """The messages of a run that is longer than those of the corpus, each as a packed part; and the run."""
    run_id = "zuul~long~1"
    samples = pa.concat_tables(corpus(20)[1]).slice(0, 400)
    times = pa.array([second * 1_000_000 for second in range(400)], pa.timestamp("us", tz="UTC"))
    samples = samples.set_column(0, samples.schema.field(0), times)
    messages = arrivals(recorded(run_id, samples), np.random.default_rng(1), Disorder())
    assert len(messages) > 3 * 64
    parts = [pack(part_of([(0, each)], columns_of(datasets), 0)) for _, each in messages]
    return run_id, parts, {run_id: (corpus(1)[0][0].replace(run_id=run_id), samples)}


def test_a_run_that_is_over_leaves_no_samples_in_its_state_and_once_forgotten_nothing() -> None:
    datasets = living.datasets(**living.USUAL)
    now = [1000.0]
    keep = KeepRun(LiveConfig(KafkaOptions("host:1"), datasets, policy=POLICY), lambda: now[0])
    older, head, wake = Bag(), One(), Cell()
    run_id, parts, _ = longest(datasets)
    for each in parts[:-1]:
        list(keep.process((run_id, each), older, head, wake))
    assert older.held
    list(keep.process((run_id, parts[-1]), older, head, wake))
    assert older.held == []
    assert RunState.of(head.held[0]).newer == []
    while wake.rings:
        now[0] = wake.rings.pop()
        assert list(keep.on_wake(older, head, wake)) == []
    assert (now[0], head.held) == (1000.0 + POLICY.remember_s, [])


SENT: list[ToSend] = []  # global, since Beam would copy a local one


def send(message: ToSend) -> None:
    SENT.append(message)


def test_a_long_run_is_restored_from_its_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that loses its cache at each message; newer samples are joined into older ones."""
    datasets = living.datasets(**living.USUAL)
    run_id, parts, known = longest(datasets)
    newer: list[int] = []
    SENT.clear()
    save = RunState.to_bytes
    monkeypatch.setattr(RunState, "to_bytes", lambda state: newer.append(len(state.newer)) or save(state))

    monkeypatch.setattr(RunCache, "take", lambda *_: None)
    days = count()  # the runner rings a timer at once, whatever its time
    keep = KeepRun(LiveConfig(KafkaOptions("host:1"), datasets), lambda: 100_000.0 * next(days))
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        _ = (
            pipeline
            | beam.Create([(run_id, each) for each in parts], reshuffle=False)
            | beam.ParDo(keep).with_output_types(ToSend)
            | beam.Map(send)
        )
    assert max(newer) < 64
    kept = living.Kept(KafkaOptions("host:1"), LiveConfig(KafkaOptions("host:1"), datasets))
    for message in SENT:
        kept.take(*message)
    assert kept.ended() == {run_id}
    assert living.assert_equals_batch(kept, [run_id], datasets, known) == 2
