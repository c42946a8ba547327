"""The stages beside a run's state: what is decoded, rendered once, and sent."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from itertools import permutations
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from apache_beam.pvalue import TaggedOutput
from confluent_kafka import KafkaError

from ciml.errors import CimlError, EngineError
from ciml.events.records import Batch, Message, OffsetRange
from ciml.events.samples import End, Samples, encode
from ciml.kafka import KafkaOptions
from ciml.pipelines import live
from ciml.pipelines.live import MAX_MESSAGE_BYTES, DecodeSamples, KeepRun, LiveConfig, RenderRun, Send
from ciml.transforms.live.samples import LivePolicy, RunState, pack, part_of, unpack
from ciml.transforms.live.windows import LiveDataset, LiveRun, columns_of
from tests.pipelines.kafka.recorded_topic import RecordedProducer, Topic
from tests.pipelines.keyed_state import Bag, Cell, One
from tests.pipelines.live.living import USUAL, Kept, assert_equals_batch, datasets, replayed
from tests.pipelines.live.test_run_state import POLICY, longest
from tests.pipelines.poison import check_detail, fail_for
from tests.transforms.live.live_scenes import recorded, some
from tests.transforms.samples import LOAD, USR, make_facts, resolved, table

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
