"""Live windows: samples from Kafka to the windows and the growing example of each run that is running.

samples ─► decode, by run ─► keep (state and timers of a run) ─► windows, live-examples, live-dead-letters

For ever it needs Flink, whose state holds the samples. Bounded, it reads the runs again from their first samples and
keeps nothing. docs/live.md says why a run's windows are kept in its state, and not as Beam's.
"""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from ciml.digest import sha256_json
from ciml.errors import CimlError, IntegrityError, RejectedInput
from ciml.events.payload_redaction import redact_bytes
from ciml.events.records import Batch, Message, Origin
from ciml.events.samples import End, Samples, decode
from pipelines.kafka.client import KafkaOptions
from pipelines.kafka.produce import Send, ToSend
from pipelines.kafka.source import PartitionRead, ReadFromKafka, ReadOptions
from pipelines.live.run_state import RunState, Wake
from transforms.guard import INTERNAL, attempt, bisect
from transforms.ingest.errors import keep_error
from transforms.live.messages import (
    LATE,
    Standing,
    example_message,
    late_message,
    pane_message,
    rejected_message,
)
from transforms.live.samples import NO_SAMPLES, Part, join_parts, pack, part_of, unpack
from transforms.live.windows import LiveDataset, LivePolicy, LiveRun, columns_of

#: The namespace of the pipeline's counters.
METRICS = "ciml.live"
#: What was read goes on when its bundle ends, so a look ends where the partition does, and the next comes a second
#: later. Each adds a name to the state of the source, for good: docs/kafka.md.
READ = ReadOptions(rest_s=1.0, idle_s=4.0, pause_at_end=True)

_FOLD = 64  # newer parts that become one older
_MOST_KEPT = 5000  # runs that are kept in this process beside their state


@dataclass(frozen=True)
class LiveConfig:
    """What live windows are made of.

    Attributes:
      kafka: how to reach the broker.
      datasets: whose windows and examples are wanted.
      topic: where samples come from.
      windows_topic, examples_topic: where windows and examples are published; "" for nowhere.
      dead_letters_topic: where samples that could not be used are published.
      policy: when windows and examples are published, and for how long a run is kept.
      read: how partitions are read.
    """

    kafka: KafkaOptions
    datasets: tuple[LiveDataset, ...]
    topic: str = "samples"
    windows_topic: str = "windows"
    examples_topic: str = "live-examples"
    dead_letters_topic: str = "live-dead-letters"
    policy: LivePolicy = field(default_factory=LivePolicy)
    read: ReadOptions = READ

    def __post_init__(self) -> None:
        names = [dataset.name for dataset in self.datasets]
        if not names:
            raise CimlError("live windows need a data set: name one (--dataset)")
        if len(set(names)) < len(names):
            raise CimlError(f"the data set {next(name for name in names if names.count(name) > 1)} is named twice")


class LiveMessages:
    """From what a run tells to messages."""

    def __init__(self, config: LiveConfig) -> None:
        self._config = config

    def due(self, run: LiveRun) -> Iterator[ToSend]:
        """What a run that is running has to tell."""
        yield from self._panes(run, over=False)
        if run.examples_due():
            yield from self._examples(run, "running")

    def over(self, run: LiveRun, standing: Standing) -> Iterator[ToSend]:
        """Yield the last that is published of a run."""
        yield from self._panes(run, over=True)
        yield from self._examples(run, standing)

    def _panes(self, run: LiveRun, over: bool) -> Iterator[ToSend]:
        panes = run.panes(over=over)
        if topic := self._config.windows_topic:
            key = run.run_id.encode()
            for pane in panes:
                yield topic, key, pane_message(run.run_id, pane)

    def _examples(self, run: LiveRun, standing: Standing) -> Iterator[ToSend]:
        if topic := self._config.examples_topic:
            for example in run.examples(over=standing != "running"):
                yield topic, run.run_id.encode(), example_message(run.run_id, example, standing)

    def late(self, run_id: str, part: Part, refused: RejectedInput) -> ToSend:
        """Samples that no run takes any more."""
        Metrics.counter(METRICS, f"late.{refused.reason}").inc(max(part.size, 1))
        return self._config.dead_letters_topic, run_id.encode(), late_message(self._config.topic, run_id, part, refused)


class DecodeSamples(beam.DoFn):
    """`Batch` of messages -> (run id, a part of the run's samples, packed), one for each run; and dead letters."""

    LETTERS = "letters"

    def __init__(self, config: LiveConfig) -> None:
        self._config, self._columns = config, columns_of(config.datasets)

    def process(self, batch: Batch) -> Iterator[Any]:
        topic, partition = self._config.topic, batch.covers.partition if batch.covers else -1
        runs: dict[str, list[tuple[int, Samples | End]]] = {}
        for message in batch.messages:
            decoded = attempt("samples", decode, message.value)
            if isinstance(decoded, RejectedInput):
                yield self._refused(partition, message, decoded)
            else:
                runs.setdefault(decoded.run_id, []).append((message.offset, decoded))
        came = {message.offset: message for message in batch.messages}
        for run_id, messages in runs.items():
            for some, packed in bisect("samples", messages, lambda some: pack(part_of(some, self._columns, partition))):
                if isinstance(packed, RejectedInput):
                    yield self._refused(partition, came[some[0][0]], packed)
                else:
                    yield run_id, packed
        if batch.covers is not None:
            note(topic, partition, batch.covers.end)

    def _refused(self, partition: int, message: Message, refused: RejectedInput) -> Any:
        """Return a message's dead letter, for the output `LETTERS`."""
        Metrics.counter(METRICS, f"refused.{refused.reason}").inc()
        letter = rejected_message(Origin(self._config.topic, partition, message.offset), message, refused)
        return beam.pvalue.TaggedOutput(
            self.LETTERS, (self._config.dead_letters_topic, redact_bytes(message.key or b""), letter)
        )


_reached: dict[tuple[str, int], int] = {}


def note(topic: str, partition: int, offset: int) -> None:
    """Remember how far this process has decoded."""
    _reached[topic, partition] = offset


def reached(topic: str) -> dict[int, int]:
    """Return how far this process has decoded each partition, where the pipeline's workers are its threads."""
    return {partition: offset for (name, partition), offset in list(_reached.items()) if name == topic}


def begin_anew(topic: str) -> None:
    """Forget what this process keeps of an earlier job, which is over: its runs, and how far it had decoded."""
    _kept.clear()
    for place in [place for place in _reached if place[0] == topic]:
        del _reached[place]


class KeptRuns:
    """The runs of this process, beside their state: without them each would be read anew for every message.

    A run is valid for one state alone, known by its token. When a bundle fails, state goes back to what it was before,
    and so to another token: then the run is made anew from its state.
    """

    def __init__(self, most: int = _MOST_KEPT) -> None:
        self._most = most
        self._runs: OrderedDict[tuple[str, str], tuple[str, LiveRun]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, job: str, run_id: str, token: str) -> LiveRun | None:
        """Take a run out, if it is that of the state with this token; else it is forgotten."""
        with self._lock:
            found = self._runs.pop((job, run_id), None)
        return found[1] if found and found[0] == token else None

    def put(self, job: str, token: str, run: LiveRun) -> None:
        """Put it back, with the token of its state."""
        with self._lock:
            self._runs[job, run.run_id] = (token, run)
            while len(self._runs) > self._most:
                self._runs.popitem(last=False)

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._runs.clear()


_kept = KeptRuns()


class KeepRun(beam.DoFn):
    """(run id, packed part) -> messages. Keeps a run's samples in its state until it ends or is given up."""

    _older = BagStateSpec("older", BytesCoder())
    _head = ReadModifyWriteStateSpec("head", BytesCoder())
    _wake = TimerSpec("wake", TimeDomain.REAL_TIME)

    def __init__(self, config: LiveConfig, clock: Callable[[], float]) -> None:
        self._config, self._clock = config, clock
        self._teller = LiveMessages(config)
        self._job = uuid.uuid4().hex
        self._columns = sha256_json(columns_of(config.datasets))[:16]

    def process(
        self,
        element: tuple[str, bytes],
        older: Any = beam.DoFn.StateParam(_older),  # noqa: B008
        head: Any = beam.DoFn.StateParam(_head),  # noqa: B008
        wake: Any = beam.DoFn.TimerParam(_wake),  # noqa: B008
    ) -> Iterator[ToSend]:
        run_id, data = element
        with keep_error():
            part, state = unpack(data), self._load(run_id, head)
            if state.standing == "failed":  # it was reported then
                Metrics.counter(METRICS, f"late.{INTERNAL}").inc(max(part.size, 1))
                return
            if state.standing != "running":
                if late := state.unseen(part):
                    refused = RejectedInput(LATE[state.standing], "it came after the run's samples were let go of")
                    yield self._teller.late(run_id, late, refused)
                return
            now_s = self._clock()
            outgoing = attempt("live", self._take, part, state, older, now_s)
            yield from (
                self._give_up(part, outgoing, state, older, now_s) if isinstance(outgoing, RejectedInput) else outgoing
            )
            self._save(state, head, wake)

    def _take(self, part: Part, state: RunState, older: Any, now_s: float) -> list[ToSend]:
        """Take in a part of a run that is running; return what to publish."""
        outgoing: list[ToSend] = []
        run = _kept.take(self._job, state.run_id, state.token) or self._again(state, older)
        try:
            taken = run.add(part)
        except RejectedInput as refused:
            taken = None
            outgoing.append(self._teller.late(state.run_id, part, refused))
        if taken is None:
            Metrics.counter(METRICS, "repeats").inc()
        else:
            Metrics.counter(METRICS, "samples").inc(taken.size)
            state.newer.append(pack(taken))
            if len(state.newer) >= _FOLD:
                older.add(pack(join_parts([unpack(each) for each in state.newer])))
                state.newer = []
        outgoing += self._teller.due(run)
        if run.complete:
            outgoing += self._close(run, "ended", state, older, now_s)
        state.is_heard(now_s, run.ended)
        if state.standing == "running":
            _kept.put(self._job, state.token, run)
        return outgoing

    @on_timer(_wake)
    def on_wake(
        self,
        older: Any = beam.DoFn.StateParam(_older),  # noqa: B008
        head: Any = beam.DoFn.StateParam(_head),  # noqa: B008
        wake: Any = beam.DoFn.TimerParam(_wake),  # noqa: B008
    ) -> Iterator[ToSend]:
        with keep_error():
            if (data := head.read()) is None:
                return
            state = RunState.of(data)
            state.woken()
            now_s = self._clock()
            due = state.due(now_s, self._config.policy)
            if due == Wake.FORGET:
                head.clear()
                return
            if due is not None:
                outgoing = attempt("live", self._close_due, due, state, older, now_s)
                if isinstance(outgoing, RejectedInput):
                    last = [unpack(each) for each in (*older.read(), *state.newer)][-1:]
                    outgoing = self._give_up(last[0] if last else NO_SAMPLES, outgoing, state, older, now_s)
                yield from outgoing
            self._save(state, head, wake)

    def _close_due(self, due: Wake, state: RunState, older: Any, now_s: float) -> list[ToSend]:
        run = _kept.take(self._job, state.run_id, state.token) or self._again(state, older)
        return self._close(run, "ended" if due == Wake.ENDED else "silent", state, older, now_s)

    def _load(self, run_id: str, head: Any) -> RunState:
        data = head.read()
        if data is None:
            return RunState(run_id, self._columns)
        state = RunState.of(data)
        if state.columns != self._columns:
            raise IntegrityError("the savepoint is of a job with other data sets: begin a new one without it")
        return state

    def _save(self, state: RunState, head: Any, wake: Any) -> None:
        at_s = state.sets_wake(self._config.policy)
        if at_s is not None:
            wake.set(Timestamp.of(at_s))
        head.write(state.to_bytes())

    def _again(self, state: RunState, older: Any) -> LiveRun:
        parts = [unpack(each) for each in (*older.read(), *state.newer)]
        if parts:
            Metrics.counter(METRICS, "runs_made_anew").inc()
        return LiveRun.again(state.run_id, parts, self._config.datasets, self._config.policy)

    def _close(self, run: LiveRun, standing: Standing, state: RunState, older: Any, now_s: float) -> list[ToSend]:
        """Let go of a run's samples; return the last messages to publish."""
        outgoing = list(self._teller.over(run, standing))
        Metrics.counter(METRICS, f"runs.{standing}").inc()
        older.clear()
        state.is_over(standing, run.seen, now_s)
        return outgoing

    def _give_up(self, part: Part, refused: RejectedInput, state: RunState, older: Any, now_s: float) -> list[ToSend]:
        """Let go of a run whose windows raise an exception; return its one dead letter, which names the last."""
        Metrics.counter(METRICS, "runs.failed").inc()
        older.clear()
        state.is_over("failed", {}, now_s)
        return [self._teller.late(state.run_id, part, refused)]


class TellRun(beam.DoFn):
    """(run id, all its packed parts) -> messages: what `KeepRun` would have published of it by now, each but once."""

    def __init__(self, config: LiveConfig) -> None:
        self._config, self._teller = config, LiveMessages(config)

    def process(self, element: tuple[str, Iterable[bytes]]) -> Iterator[ToSend]:
        run_id, packed = element
        with keep_error():
            parts = sorted((unpack(data) for data in packed), key=lambda part: (part.partition, part.first))
            outgoing = attempt("live", self._tell, run_id, parts)
            yield from (
                [self._teller.late(run_id, parts[-1], outgoing)] if isinstance(outgoing, RejectedInput) else outgoing
            )

    def _tell(self, run_id: str, parts: Sequence[Part]) -> list[ToSend]:
        outgoing: list[ToSend] = []
        run = LiveRun(run_id, self._config.datasets, self._config.policy)
        for part in parts:
            try:
                run.add(part)
            except RejectedInput as refused:
                outgoing.append(self._teller.late(run_id, part, refused))
        return outgoing + list(self._teller.over(run, "ended") if run.complete else self._teller.due(run))


def build_live(
    pipeline: beam.Pipeline, config: LiveConfig, reads: Sequence[PartitionRead], clock: Callable[[], float]
) -> None:
    """Wire live windows: bounded where the ``reads`` are, else for ever.

    Args:
      pipeline: to build in.
      config: what to use.
      reads: which partitions are read, and from where.
      clock: the time by which a run's silence is measured, epoch s.
    """
    bounded = all(read.end is not None for read in reads)
    decode_samples = beam.ParDo(DecodeSamples(config)).with_output_types(tuple[str, bytes], letters=ToSend)
    decoded = (
        pipeline
        | "Samples" >> ReadFromKafka(config.kafka, reads, config.read)
        | "Decode" >> decode_samples.with_outputs(DecodeSamples.LETTERS, main="parts")
    )
    if bounded:
        outgoing = decoded.parts | beam.GroupByKey() | "Tell" >> beam.ParDo(TellRun(config)).with_output_types(ToSend)
    else:
        outgoing = decoded.parts | "Keep" >> beam.ParDo(KeepRun(config, clock)).with_output_types(ToSend)
    outgoing | "Send" >> beam.ParDo(Send(config.kafka))
    decoded[DecodeSamples.LETTERS] | "SendLetters" >> beam.ParDo(Send(config.kafka))
