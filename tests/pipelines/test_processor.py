"""The kernel of topic processors: what is checked, committed and published, and what waits; judgements of feedback."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.errors import EngineError, IntegrityError
from ciml.events.records import Batch, Message, OffsetRange
from ciml.kafka import KafkaOptions
from ciml.pipelines import feedback as module
from ciml.pipelines import processor as kernel
from ciml.pipelines import processor_beam
from ciml.pipelines.feedback import Judge, Judged, delta_of_judgements, judge_by_history
from ciml.pipelines.processor import BatchProcessor, PipelineConfig
from ciml.pipelines.processor_beam import Commit, Gather
from ciml.verdicts.feedback.config import Policy
from ciml.verdicts.feedback.judgement import Judgement, Silence
from ciml.verdicts.feedback.standing import Share, Standing, Standings
from ciml.verdicts.feedback.state import FeedbackState
from tests.pipelines.keyed_state import Bag, Cell, Count
from tests.tier import tries
from tests.verdicts.feedback.reviews import NOW_S, feedback, prediction


class Read(NamedTuple):
    """A result: the topic of its offsets, and its number."""

    covers: OffsetRange | None
    number: int = 0


class Recorded(BatchProcessor[PipelineConfig, Any, Read]):
    """Records its steps, and dies before one of them.

    Attributes:
      steps: those that happened.
      version: of the manifest; a commit of nothing new leaves it.
    """

    name = "recorded"
    labels = ("Source", "Read")
    topic = "events"

    def __init__(self, dies_before: str = "", *, maintains: bool = False, is_repeated: bool = False) -> None:
        super().__init__(PipelineConfig(kafka=KafkaOptions("kafka:9092"), maintains=maintains))
        self.steps: list[str] = []
        self.version = 4
        self._dies_before = dies_before
        self._is_repeated = is_repeated

    def _step(self, text: str) -> None:
        if text == self._dies_before:
            raise EngineError(f"died before {text}")
        self.steps.append(text)

    def read(self, batch: Batch) -> Read:
        return Read(batch.covers)

    def encode(self, result: Read) -> bytes:
        return b"%d" % result.number

    def decode(self, data: bytes) -> Read:
        return Read(None, int(data))

    def empty_result(self, covers: OffsetRange) -> Read:
        return Read(covers)

    def reconcile(self, state: Any, results: Sequence[Read], now_us: int) -> None:
        raise AssertionError

    def check_topics(self, results: Any) -> None:
        self._step("check " + ",".join(str(result.number) for result in results))

    def commit(self, results: Any) -> int | None:
        self._step("commit " + ",".join(str(result.number) for result in results))
        if self._is_repeated:
            return None
        self.version += 1
        return self.version

    def replica(self) -> Any:
        @contextmanager
        def state() -> Iterator[Any]:
            yield SimpleNamespace(version=self.version)

        return SimpleNamespace(state=state, maintain=lambda: self._step("maintain"))

    def publisher(self) -> Any:
        return SimpleNamespace(announce=lambda: self._step("publish"))


def work(processor: Recorded) -> list[int]:
    """Commit a bundle of two results, and publish."""
    versions = list(Commit(processor).process(("recorded", [b"1", b"2"])))
    return [processor_beam._publish(version, processor) for version in versions]


STEPS = ["check 1,2", "commit 1,2", "maintain", "publish"]


@pytest.mark.parametrize(("is_repeated", "version"), [(False, 5), (True, 4)])
@pytest.mark.parametrize("maintains", [True, False])
def test_a_bundle_is_checked_then_committed_then_published(is_repeated: bool, version: int, maintains: bool) -> None:
    """A repeated bundle is published too: its first try may have died before it was."""
    processor = Recorded(maintains=maintains, is_repeated=is_repeated)
    assert work(processor) == [version]
    assert processor.steps == [step for step in STEPS if maintains or step != "maintain"]


@pytest.mark.parametrize("index", range(len(STEPS)))
def test_a_bundle_that_dies_before_a_step_takes_no_later_one(index: int) -> None:
    processor = Recorded(STEPS[index], maintains=True)
    with pytest.raises(EngineError, match=f"died before {STEPS[index]}"):
        work(processor)
    assert processor.steps == STEPS[:index]


class Plain(Recorded):
    check_topics = BatchProcessor.check_topics


@pytest.mark.parametrize("recreated", ["a", "b", "c"])
def test_every_topic_of_the_results_is_checked(monkeypatch: pytest.MonkeyPatch, recreated: str) -> None:
    asked: list[tuple[str, str]] = []

    def check(kafka: KafkaOptions, topic: str, topic_id: str) -> None:
        asked.append((topic, topic_id))
        if topic == recreated:
            raise IntegrityError(f"{topic} was created again")

    monkeypatch.setattr(kernel, "check_still_that_topic", check)
    covers = [OffsetRange(topic, topic.upper(), partition, 0, 1) for topic in "abc" for partition in range(2)]
    results = [Read(None), *map(Read, covers)]
    with pytest.raises(IntegrityError, match=f"{recreated} was created again"):
        Plain().check_topics(results)
    assert asked == [("a", "A"), ("b", "B"), ("c", "C")]["abc".index(recreated) :: -1][::-1]


@settings(max_examples=tries(60), deadline=None)
@given(st.lists(st.sampled_from(["result", "time", "end"]), max_size=30), st.integers(1, 4))
def test_each_result_leaves_a_gathering_once_in_order_and_none_waits_without_a_timer(
    events: list[str], most: int
) -> None:
    gather = Gather("recorded", 5.0, most)
    waiting, count, timer, end = Bag(), Count(), Cell(), Cell()
    flushed: list[list[bytes]] = []
    number = 0
    for event in events:
        if event == "result":
            before_s = time.time()
            waits = bool(waiting.held)
            out = gather.process(("recorded", b"%d" % number), waiting, count, timer, end)
            number += 1
        elif event == "time":
            out = gather.on_time(waiting, count)
        else:
            out = gather.on_end(waiting, count, timer)
        flushed += [results for _, results in out]
        if event == "result" and not waits:  # the first one sets the timer
            slack_s = 1e-3  # of the timer's rounding
            assert before_s - slack_s <= timer.rings.pop() - 5.0 <= time.time() + slack_s
            assert end.rings
        assert len(waiting.held) < most
        if event != "result":
            assert waiting.held == []
    left = [results for _, results in gather.on_end(waiting, count, timer)]
    results = [b"%d" % n for n in range(number)]
    assert [result for part in [*flushed, *left] for result in part] == results
    assert all(len(part) <= most for part in flushed)
    with contextlib.suppress(StopIteration):
        assert next(iter(gather.on_time(waiting, count))) is None  # nothing is flushed twice


# --- feedback: each message counts once, and a store that does not answer is no silence


SILENT = Judgement(None, Silence("passed"))


def judged(start: int, end: int) -> Judged:
    return Judged(OffsetRange("t", "T", 0, start, end), [(offset, SILENT) for offset in range(start, end)])


def test_a_message_that_comes_again_is_judged_once() -> None:
    """Ranges overlap where a reader or a process began again."""
    state = FeedbackState()
    covered = 0
    for version, results in enumerate([[judged(0, 4)], [judged(2, 6), judged(5, 8)]], 1):
        delta = delta_of_judgements(state, results, Policy(), 1)
        assert delta is not None
        state.apply(version, {**delta, "version": version})
        covered += delta["silent"]["passed"]
    assert covered == 8
    assert delta_of_judgements(state, [judged(0, 8)], Policy(), 1) is None


def test_an_unexpected_error_affects_its_message_and_an_engine_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> Judgement:
        raise error

    monkeypatch.setattr(module, "decide_feedback", fails)
    error: Exception = KeyError("verdict")
    judge = Judge(feedback())
    with caplog.at_level(logging.ERROR):
        assert judge.judge(Message(7, b"{}"), (), 1).silence == Silence("bad_record")
    assert "the prediction at offset 7 cannot be used" in caplog.text
    error = EngineError("away")
    with pytest.raises(EngineError, match="away"):
        judge.judge(Message(8, b"{}"), (), 1)


@pytest.mark.parametrize("mode", ["active", "shadow", "precision"])
def test_only_an_active_model_is_heard(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = feedback()
    judgement = Judge(config).judge(Message(0, orjson.dumps(prediction())), (), int(NOW_S * 1e6))
    standing = Standing(mode, "why", Share(9, 10), Share(1, 2), Share(3, 4))
    monkeypatch.setattr(Standings, "of", lambda *_: standing)
    item, silence = judge_by_history(judgement, Standings([], config.policy, 0))
    if mode == "active":
        assert item is not None
        assert (item.right, item.settled, item.passed, item.reruns, silence) == (9, 10, 3, 4, None)
    else:
        assert (item, silence) == (None, Silence(mode, "why"))
