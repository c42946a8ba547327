"""Live windows on a real broker: on Flink, whose state holds the runs; and once, from the runs' first samples."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from ciml.events.samples import End, Samples
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.pipelines.flink import jobs as flink_rest
from ciml.pipelines.flink.jobs import list_flink_jobs
from ciml.pipelines.flink.submit import FlinkJob, flink_options
from ciml.pipelines.kafka.broker import list_topic
from ciml.pipelines.kafka.reader import close_readers
from ciml.pipelines.live import KeepRun, LiveConfig, build_live, forget_ended_job, reached_offsets
from ciml.services.driver import drive
from ciml.services.live import LiveService, make_topics, plan_live
from ciml.transforms.live.samples import LivePolicy
from tests.pipelines.flink.flink_state import checkpoint_counts
from tests.pipelines.ingest.ingesting import MakeTopic, need_real, wait_for
from tests.pipelines.live.living import USUAL, Kept, assert_equals_batch, datasets, replayed, send

pytestmark = [pytest.mark.engines, pytest.mark.timeout(180)]


@pytest.fixture
def config(kafka: str, topic: MakeTopic) -> LiveConfig:
    need_real(kafka)
    return LiveConfig(
        KafkaOptions(kafka), datasets(**USUAL), topic(2, "samples"), topic(2, "windows"), topic(1, "examples"),
        topic(1, "letters"), read=ReadOptions(slice_s=1.0, rest_s=1.0, idle_s=1.0),
    )  # fmt: skip


@pytest.fixture
def kept(config: LiveConfig) -> Iterator[Kept]:
    kept = Kept(config.kafka, config)
    yield kept
    kept.close()


class Worker:
    """Fails once for each of ``fails``, when it stores a run's state and has sent its windows: the bundle is lost,
    and Flink goes back to a checkpoint.

    Attributes:
      fails: what is to be done before it fails.
      failures: how often it did.
    """

    fails: ClassVar[list[Callable[[], None]]] = []
    failures = 0


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> type[Worker]:
    save = KeepRun._save

    def failing(self: KeepRun, *arguments: Any) -> None:
        if Worker.fails:
            Worker.fails.pop()()
            Worker.failures += 1
            raise RuntimeError("a worker that fails, once")
        save(self, *arguments)

    monkeypatch.setattr(KeepRun, "_save", failing)
    return Worker


@contextmanager
def living(config: LiveConfig, endpoint: str) -> Iterator[FlinkJob]:
    reads = plan_live(config, make_topics(config), None, bounded=False)
    job = FlinkJob(lambda p: build_live(p, config, reads, time.time), flink_options(endpoint, "live"))
    try:
        yield job
    finally:
        job.cancel()
        close_readers()


def test_runs_on_flink_equal_the_batch_result(
    kafka: str, config: LiveConfig, kept: Kept, flink_jobs: str, worker: type[Worker]
) -> None:
    """Sixty runs, out of order, late and repeated, through two failures: Flink goes back to a checkpoint, and this
    process, which has the runs as they were later, must not go on with them; then it has lost them too."""
    messages = replayed(60, seed=2)
    run_ids = list(dict.fromkeys(run_id for run_id, _ in messages))
    parts = [messages[at : at + len(messages) // 4 + 1] for at in range(0, len(messages), len(messages) // 4 + 1)]
    with living(config, flink_jobs) as job:
        send(kafka, config.topic, parts[0], 2)
        wait_for(lambda: len(kept.look().windows) > 10, 120)
        (inside,) = [each for each in list_flink_jobs(flink_jobs) if each.name == job.name]
        wait_for(lambda: flink_rest.last_checkpoint(inside) is not None)
        send(kafka, config.topic, parts[1], 2)
        bounds = list_topic(config.kafka, config.topic).bounds
        wait_for(lambda: reached_offsets(config.topic) == {part: end for part, (_, end) in bounds.items()})
        for number, lose in enumerate([lambda: None, lambda: forget_ended_job(config.topic)], 1):
            worker.fails.append(lose)
            send(kafka, config.topic, parts[1 + number], 2)
            wait_for(lambda number=number: checkpoint_counts(inside)["restored"] == number, 120)
            done = checkpoint_counts(inside)["completed"]
            wait_for(lambda done=done: checkpoint_counts(inside)["completed"] > done + 1, 120)
        wait_for(lambda: kept.look().ended() == set(run_ids), 120)
    assert (len(parts), worker.failures) == (4, 2)
    assert kept.repeats > 0
    assert assert_equals_batch(kept, run_ids, config.datasets) >= 110
    assert kept.dead_letters == []


def test_a_run_is_let_go_of_and_what_comes_later_is_on_record(
    kafka: str, config: LiveConfig, kept: Kept, flink_jobs: str
) -> None:
    config = replace(config, policy=LivePolicy(grace_s=3.0, silence_s=8.0))
    whole = replayed(3, seed=4)
    silent, holey, fine = dict.fromkeys(run_id for run_id, _ in whole)
    lost = next(message for run_id, message in whole if run_id == holey and isinstance(message, Samples))
    messages: list[tuple[str, Samples | End | bytes]] = [
        one for one in whole if one[1] is not lost and (one[0] != silent or isinstance(one[1], Samples))
    ]
    with living(config, flink_jobs):
        send(kafka, config.topic, [*messages, (silent, b"{"), (holey, b'{"run_id": 7}')], 2)
        wait_for(lambda: kept.look().over() == {silent: "silent", holey: "ended", fine: "ended"}, 120)
        assert_equals_batch(kept, [fine], config.datasets)
        assert kept.examples[holey, "load"]["missing"] == lost.sequence.size
        assert kept.examples[silent, "load"]["missing"] == 0
        rejected = {each["reason"]: base64.b64decode(each["payload"]["value"]) for each in kept.dead_letters}
        assert rejected == {"broken_json": b"{", "bad_run_id": b'{"run_id": 7}'}

        # What was there before is no news, and what was not is on record.
        before = dict(kept.examples)
        send(kafka, config.topic, [*whole, (holey, lost), (silent, one_more(whole, silent))], 2)
        wait_for(lambda: len(kept.look().dead_letters) >= 4, 60)
        assert kept.examples == before
    late = {dead_letter["run_id"]: dead_letter for dead_letter in kept.dead_letters if "run_id" in dead_letter}
    assert late.keys() == {holey, silent}
    assert late[holey]["reason"] == "run_ended"
    assert late[holey]["sequences"] == {str(lost.recorder_us): lost.sequence.tolist()}
    assert (late[silent]["reason"], late[silent]["samples"]) == ("run_silent", 1)


def one_more(messages: list[tuple[str, Samples | End]], run_id: str) -> Samples:
    """A sample that the run's recorder has not sent yet."""
    last = next(message for whose, message in messages if whose == run_id and isinstance(message, Samples))
    columns = {name: getattr(last, name)[:1] for name in ("time_us", "boot", "values")}
    return replace(last, sequence=last.sequence[:1] + 9999, **columns)


def test_runs_read_again_equal_the_batch_result(kafka: str, config: LiveConfig, kept: Kept) -> None:
    """Without Flink: each message so far is published once, and again from the first samples when there are more."""
    messages = replayed(20, seed=3)
    run_ids = list(dict.fromkeys(run_id for run_id, _ in messages))
    send(kafka, config.topic, messages[: len(messages) // 2], 2)
    drive(LiveService(config, since_s=None), until="end")
    kept.look()
    running = set(run_ids) - kept.ended()
    assert running
    seen = {run_id for run_id, _ in kept.examples}
    assert all(kept.examples[run_id, "load"]["standing"] == "running" for run_id in running & seen)
    send(kafka, config.topic, messages[len(messages) // 2 :], 2)
    drive(LiveService(config, since_s=3600.0), until="end")
    assert kept.look().ended() == set(run_ids)
    assert assert_equals_batch(kept, run_ids, config.datasets) >= 30
    drive(LiveService(config, since_s=0.0), until="end")
    assert kept.look().dead_letters == []
