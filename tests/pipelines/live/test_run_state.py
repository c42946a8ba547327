"""The state of a live run: its timer, what is due then, late samples; and the stages beside it."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from itertools import count, permutations
from typing import Any
from unittest.mock import Mock

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import TaggedOutput
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from confluent_kafka import KafkaError

from ciml.errors import CimlError, EngineError
from ciml.events.records import Batch, Message, OffsetRange
from ciml.events.samples import End, Samples, encode
from ciml.kafka import KafkaOptions
from ciml.manifest.coverage import RangeSet
from ciml.pipelines import live
from ciml.pipelines.live import MAX_MESSAGE_BYTES, DecodeSamples, KeepRun, LiveConfig, RenderRun, RunCache, Send, ToSend
from ciml.transforms.live.samples import LivePolicy, Part, RunState, Wake, pack, part_of, unpack
from ciml.transforms.live.windows import LiveDataset, LiveRun, columns_of
from tests.pipelines.kafka.recorded_topic import RecordedProducer, Topic
from tests.pipelines.keyed_state import Bag, Cell, One
from tests.pipelines.live.living import USUAL, Kept, Known, assert_equals_batch, datasets, replayed
from tests.pipelines.poison import check_detail, fail_for
from tests.transforms.live.live_scenes import Disorder, arrivals, recorded, some
from tests.transforms.samples import LOAD, USR, corpus, make_facts, resolved, table

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


def longest(datasets: tuple[LiveDataset, ...]) -> tuple[str, list[bytes], Known]:
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
    ours = datasets(**USUAL)
    now = [1000.0]
    keep = KeepRun(LiveConfig(KafkaOptions("host:1"), ours, policy=POLICY), lambda: now[0])
    older, head, wake = Bag(), One(), Cell()
    run_id, parts, _ = longest(ours)
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
    ours = datasets(**USUAL)
    run_id, parts, known = longest(ours)
    newer: list[int] = []
    SENT.clear()
    save = RunState.to_bytes
    monkeypatch.setattr(RunState, "to_bytes", lambda state: newer.append(len(state.newer)) or save(state))

    monkeypatch.setattr(RunCache, "take", lambda *_: None)
    days = count()  # the runner rings a timer at once, whatever its time
    keep = KeepRun(LiveConfig(KafkaOptions("host:1"), ours), lambda: 100_000.0 * next(days))
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        _ = (
            pipeline
            | beam.Create([(run_id, each) for each in parts], reshuffle=False)
            | beam.ParDo(keep).with_output_types(ToSend)
            | beam.Map(send)
        )
    assert max(newer) < 64
    kept = Kept(KafkaOptions("host:1"), LiveConfig(KafkaOptions("host:1"), ours))
    for message in SENT:
        kept.take(*message)
    assert kept.ended() == {run_id}
    assert assert_equals_batch(kept, [run_id], ours, known) == 2


# --- the stages beside a run's state


RUN = make_facts(1).run_id
DATASETS = (LiveDataset("one", resolved((USR, LOAD), sample_interval="10s")),)


def config(topic: str = "samples", **changes: Any) -> LiveConfig:
    return LiveConfig(KafkaOptions("host:1"), DATASETS, topic, **changes)


def message_of(*values: float) -> Samples:
    times = [1_772_000_000_000_000 + second * 1_000_000 for second in range(len(values))]
    (message,) = recorded(RUN, table(times, usr=list(values), load=[1.0] * len(values)))
    return message


def test_a_message_that_cannot_be_decoded_is_published_without_its_secrets() -> None:
    batch = Batch(
        OffsetRange("samples", "T", 1, 5, 9),
        [
            Message(5, encode(message_of(1.0))),
            Message(6, b'{"password": "hunter2"', key=b'{"password": "hunter2"}'),
            Message(8, encode(message_of(1.0, 2.0))),
        ],
    )
    out = list(DecodeSamples(config()).process(batch))
    (rejected,) = [each.value for each in out if isinstance(each, TaggedOutput)]
    ((run_id, packed),) = [each for each in out if not isinstance(each, TaggedOutput)]
    topic, key, value = rejected
    assert (topic, json.loads(value)["origin"]) == ("live-dead-letters", ["samples", 1, 6])
    assert b"hunter2" not in key + value
    part = unpack(packed)
    assert (run_id, part.partition, part.first, part.last, part.size) == (RUN, 1, 5, 8, 3)


def test_a_job_s_offsets_are_forgotten_with_it_and_those_of_others_stay() -> None:
    for topic, partition, end in (("a", 0, 5), ("a", 1, 7), ("b", 0, 9)):
        list(DecodeSamples(config(topic)).process(Batch(OffsetRange(topic, "T", partition, 0, end))))
    assert (live.reached_offsets("a"), live.reached_offsets("b")) == ({0: 5, 1: 7}, {0: 9})
    live.forget_ended_job("a")
    assert (live.reached_offsets("a"), live.reached_offsets("b")) == ({}, {0: 9})
    live.forget_ended_job("b")


def test_of_two_samples_with_one_number_the_first_in_the_topic_counts_in_whatever_order_parts_come() -> None:
    columns = columns_of(DATASETS)
    values = (message_of(1.0, 2.0), message_of(10.0, 20.0, 30.0), some(message_of(0.0, 0.0, 0.0, 5.0), np.array([3])))
    parts = [pack(part_of([(offset, each)], columns, 0)) for offset, each in zip((3, 4, 10), values, strict=True)]
    rendered = [list(RenderRun(config()).process((RUN, order))) for order in permutations(parts)]
    assert all(each == rendered[0] for each in rendered)
    (window,) = [json.loads(value) for topic, _, value in rendered[0] if topic == "windows"]
    assert (window["samples"], window["values"][0]) == (4, (1.0 + 2.0 + 30.0 + 5.0) / 4)


def test_samples_beyond_the_limit_are_a_dead_letter_and_the_others_are_rendered() -> None:
    columns = columns_of(DATASETS)
    parts = [pack(part_of([(n, message_of(*range(1, n + 1)))], columns, 0)) for n in (2, 3)]
    sent = list(RenderRun(config(policy=LivePolicy(most_samples=2))).process((RUN, parts)))
    assert [topic for topic, _, _ in sent] == ["live-dead-letters", "windows", "live-examples"]
    assert json.loads(sent[0][2])["reason"] == "run_too_long"


def test_samples_beyond_the_limit_are_counted_as_rejected_and_not_as_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: Counter[str] = Counter()
    count_up = Mock(side_effect=lambda _, name: Mock(inc=lambda number=1: counted.update({name: number})))
    monkeypatch.setattr(live.Metrics, "counter", count_up)
    keep = KeepRun(config(policy=LivePolicy(most_samples=2)), lambda: 1000.0)
    state = Bag(), One(), Cell()
    for offset, number in enumerate((2, 2, 3)):
        packed = pack(part_of([(offset, message_of(*range(number)))], columns_of(DATASETS), 0))
        list(keep.process((RUN, packed), *state))
    assert counted == {"samples": 2, "repeats": 1, "late.run_too_long": 3}


def test_large_messages_are_not_written_again_with_each_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_FOLD_BYTES", 3000)
    keep = KeepRun(config(), lambda: 1000.0)
    older, head, wake = Bag(), One(), Cell()
    written = 0
    message = message_of(*range(2000))
    for number in range(40):
        rows = some(message, np.arange(50 * number, 50 * number + 50))
        list(keep.process((RUN, pack(part_of([(number, rows)], columns_of(DATASETS), 0))), older, head, wake))
        written += len(head.held[0])
    assert written < 2 * sum(map(len, older.held))


def bundle(send: Send, values: Sequence[bytes]) -> None:
    for value in values:
        list(send.process(("windows", b"key", value)))
    send.finish_bundle()


@pytest.mark.parametrize(
    ("fault", "unsent", "kind", "text"),
    [
        (None, 1, EngineError, "accepted no message within 60 s"),
        (KafkaError(KafkaError._MSG_TIMED_OUT), 0, EngineError, "host:1"),
        (KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), 0, EngineError, "topic windows"),
        (KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), 0, CimlError, f"max.message.bytes={MAX_MESSAGE_BYTES}"),
    ],
)
def test_a_bundle_ends_when_the_broker_has_all_of_it_and_one_that_failed_is_sent_again(
    monkeypatch: pytest.MonkeyPatch, fault: KafkaError | None, unsent: int, kind: type[CimlError], text: str
) -> None:
    broker = Topic()
    connect = Mock(side_effect=lambda _, options, settings: RecordedProducer(broker, settings))
    monkeypatch.setattr(live, "make_client", connect)
    send = Send(KafkaOptions("host:1"))
    send.finish_bundle()  # of an empty bundle
    bundle(send, [b"1", b"2"])
    connect.assert_called_once()
    assert connect.call_args.args[2]["enable.idempotence"] is True
    broker.fault = fault
    broker.unsent = unsent
    with pytest.raises(kind, match=text):
        bundle(send, [b"3", b"4"])
    broker.fault = None
    broker.unsent = 0
    bundle(send, [b"3", b"4"])
    stored = [message.value for message in broker.messages]
    assert stored[:2] == [b"1", b"2"]
    assert stored[-2:] == [b"3", b"4"]


# --- a poisoned sample costs its message, and a run whose windows raise its own windows


def check_internal_error(dead_letter: bytes | dict[str, Any], start: str) -> None:
    value = json.loads(dead_letter) if isinstance(dead_letter, bytes) else dead_letter
    assert value["reason"] == "internal_error"
    check_detail(value["detail"], start)


def test_other_samples_and_runs_are_rendered_beside_poisoned_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = LiveConfig(KafkaOptions("host:1"), datasets(**USUAL))
    replay: list[tuple[str, Samples | End]] = replayed(8, seed=5)
    torn, failing, *others = dict.fromkeys(run_id for run_id, _ in replay)
    bad = [message for run_id, message in replay if run_id == torn and isinstance(message, Samples)][1]

    def is_torn(parts: Sequence[tuple[int, Samples | End]], *_: Any) -> bool:
        return any(each is not None and each.run_id == torn and encode(each) == encode(bad) for _, each in parts)

    fail_for(monkeypatch, live, "decode", lambda value: value == b'{"poison": 1}')
    fail_for(monkeypatch, live, "part_of", is_torn)
    fail_for(monkeypatch, LiveRun, "take_due_panes", lambda run, **_: run.run_id == failing)
    values = [encode(message) for _, message in replay]
    values.insert(3, b'{"poison": 1}')
    messages = [Message(offset, value) for offset, value in enumerate(values)]
    batch = Batch(OffsetRange("samples", "T", 0, 0, len(messages)), messages)
    kept = Kept(ours.kafka, ours)
    parts: dict[str, list[bytes]] = {}
    for each in DecodeSamples(ours).process(batch):
        if isinstance(each, TaggedOutput):
            kept.take(*each.value)
        else:
            parts.setdefault(each[0], []).append(each[1])
    for element in parts.items():
        for outgoing in RenderRun(ours).process(element):
            kept.take(*outgoing)
    assert assert_equals_batch(kept, others, ours.datasets) >= len(others)
    assert kept.examples[torn, "load"]["samples"] > 0  # but for the poisoned message
    assert (failing, "load") not in kept.examples
    by_offset = {each["origin"][2]: each for each in kept.dead_letters if "run_id" not in each}
    check_internal_error(by_offset.pop(3), "samples: IndexError: decode at ")
    assert list(by_offset) == [offset for offset, value in enumerate(values) if value == encode(bad)]
    for dead_letter in by_offset.values():
        check_internal_error(dead_letter, "samples: IndexError: part_of at ")
        assert base64.b64decode(dead_letter["payload"]["value"]) == encode(bad)
    (given_up,) = [each for each in kept.dead_letters if "run_id" in each]
    assert given_up["run_id"] == failing
    check_internal_error(given_up, "live: IndexError: take_due_panes at ")


def test_a_run_that_is_given_up_is_reported_once_and_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets_, now = datasets(**USUAL), [1000.0]
    run_id, parts, _ = longest(datasets_)
    keep = KeepRun(LiveConfig(KafkaOptions("host:1"), datasets_, policy=POLICY), lambda: now[0])
    older, head, wake = Bag(), One(), Cell()
    for each in parts[:70]:
        assert [topic for topic, _, _ in keep.process((run_id, each), older, head, wake)] != ["live-dead-letters"]
    assert older.held
    fail_for(monkeypatch, LiveRun, "take_due_panes", lambda run, **_: run.run_id == run_id)
    sent = [message for each in parts[70:] for message in keep.process((run_id, each), older, head, wake)]
    ((topic, key, dead_letter),) = sent
    assert (topic, key) == ("live-dead-letters", run_id.encode())
    check_internal_error(dead_letter, "live: IndexError: take_due_panes at ")
    assert older.held == []
    assert head.held
    state = RunState.of(head.held[0])
    assert (state.standing, state.newer) == ("failed", [])
    while wake.rings:
        now[0] = wake.rings.pop()
        assert list(keep.on_wake(older, head, wake)) == []
    assert (now[0], head.held) == (1000.0 + POLICY.remember_s, [])
    # in the place of a run that fell silent, too: nothing has to come for it to be given up
    other = Bag(), One(), Cell()
    monkeypatch.undo()
    for each in parts[:3]:
        list(keep.process((run_id, each), *other))
    fail_for(monkeypatch, LiveRun, "take_due_panes", lambda run, **_: run.run_id == run_id)
    now[0] = other[2].rings.pop()
    ((topic, _, dead_letter),) = keep.on_wake(*other)
    assert topic == "live-dead-letters"
    check_internal_error(dead_letter, "live: IndexError: take_due_panes at ")
