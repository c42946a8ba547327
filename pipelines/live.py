"""Live windows: samples from Kafka become the windows and the growing example of each running job.

samples ─► decode, by run ─► keep (state and timers of a run) ─► windows, live-examples, live-dead-letters

It uses `ciml.transforms.live` and stores nothing: windows go to topics. An unbounded pipeline needs Flink, whose state
holds the samples of each run, its standing, and when its timer is due. A bounded one reads the runs again from their
first samples and keeps nothing. docs/live.md explains why a run's windows are kept in its state, and not as Beam's.
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
from confluent_kafka import KafkaError, KafkaException, Producer

from ciml.data_root import StoredDataset
from ciml.digest import sha256_json
from ciml.errors import CimlError, EngineError, IntegrityError, RejectedInput
from ciml.events.payloads import redact_bytes
from ciml.events.records import Batch, Message, Origin
from ciml.events.samples import End, Samples, decode
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.kafka.connect import as_engine_error, make_client
from ciml.messages import Standing
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.publish import enqueue
from ciml.pipelines.kafka.source import ReadFromKafka
from ciml.transforms.guard import INTERNAL, attempt, bisect, keep_error
from ciml.transforms.live.messages import example_message, late_message, pane_message, rejected_message
from ciml.transforms.live.samples import (
    LATE,
    NO_SAMPLES,
    LivePolicy,
    Part,
    RunState,
    Wake,
    join_parts,
    pack,
    part_of,
    unpack,
)
from ciml.transforms.live.windows import LiveDataset, LiveRun, columns_of

#: The namespace of the pipeline's counters.
METRICS = "ciml.live"
#: Messages leave the source at the end of their bundle, so a read ends at the partition's end, and the next begins a
#: second later. Each adds a name to the state of the source permanently: docs/kafka.md.
READ = ReadOptions(rest_s=1.0, idle_s=4.0, pause_at_end=True)

_FOLD = 64  # newer parts of a run that are joined into an older one
_FOLD_BYTES = 1 << 18  # the same, of their bytes: the head, which has them, is written for each message
_MOST_CACHED = 5000  # runs
MAX_MESSAGE_BYTES = 8 << 20
_FLUSH_S = 60.0
_PRODUCER = {"linger.ms": 5, "compression.type": "lz4", "message.max.bytes": MAX_MESSAGE_BYTES}

#: Topic, key and value of a message.
ToSend = tuple[str, bytes, bytes]

#: The end of the decoded offsets by (topic, partition), where the pipeline's workers are threads of this process.
_decoded_ends: dict[tuple[str, int], int] = {}


@dataclass(frozen=True)
class LiveConfig:
    """Configuration of live windows.

    Attributes:
      kafka: connection to the broker.
      datasets: the data sets whose windows and examples are published.
      topic: topic of the samples.
      windows_topic, examples_topic: topics for windows and examples; "" for none.
      dead_letters_topic: topic for dead letters of samples.
      policy: when windows and examples are published, and how long a run is kept.
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
            raise CimlError("live windows need a data set; name one with --dataset")
        if len(set(names)) < len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise CimlError(f"the data set {repeated} is named twice")


def live_dataset(dataset: StoredDataset) -> LiveDataset:
    """Return a data set whose windows can be published. Raises `CimlError` for one without columns or with context."""
    name = dataset.name
    resolved = dataset.state().resolved
    if resolved is None:
        raise CimlError(
            f"data set {name!r} has no columns before its first span is sealed: run ciml dataset update {name} --seal"
        )
    if resolved.definition.context:
        raise CimlError(f"data set {name!r} has context, which is known when a run has ended; use one without context")
    return LiveDataset(name, resolved)


def build_live(
    pipeline: beam.Pipeline, config: LiveConfig, reads: Sequence[PartitionRead], clock: Callable[[], float]
) -> None:
    """Wire live windows: bounded if the ``reads`` are, else unbounded.

    Args:
      pipeline: the pipeline to build in.
      config: of live windows.
      reads: the partitions and their first offsets.
      clock: measures a run's silence, epoch seconds.
    """
    bounded = all(read.end is not None for read in reads)
    decode_samples = beam.ParDo(DecodeSamples(config)).with_output_types(tuple[str, bytes], letters=ToSend)
    decoded = (
        pipeline
        | "Samples" >> ReadFromKafka(config.kafka, reads, config.read)
        | "Decode" >> decode_samples.with_outputs(DecodeSamples.DEAD_LETTERS, main="parts")
    )
    if bounded:
        by_run = decoded.parts | beam.GroupByKey()
        outgoing = by_run | "Render" >> beam.ParDo(RenderRun(config)).with_output_types(ToSend)
    else:
        outgoing = decoded.parts | "Keep" >> beam.ParDo(KeepRun(config, clock)).with_output_types(ToSend)
    outgoing | "Send" >> beam.ParDo(Send(config.kafka))
    decoded[DecodeSamples.DEAD_LETTERS] | "SendLetters" >> beam.ParDo(Send(config.kafka))


def reached_offsets(topic: str) -> dict[int, int]:
    """Return the end of the decoded offsets by partition. Empty unless the workers are threads of this process."""
    return {partition: offset for (name, partition), offset in list(_decoded_ends.items()) if name == topic}


def forget_ended_job(topic: str) -> None:
    """Forget the runs and decoded offsets of an ended job in this process."""
    _run_cache.clear()
    for key in [key for key in _decoded_ends if key[0] == topic]:
        del _decoded_ends[key]


class DecodeSamples(beam.DoFn):
    """`Batch` of messages -> (run id, a part of the run's samples, packed), one for each run; and dead letters."""

    DEAD_LETTERS = "letters"

    def __init__(self, config: LiveConfig) -> None:
        self._config = config
        self._columns = columns_of(config.datasets)

    def process(self, batch: Batch) -> Iterator[Any]:
        topic = self._config.topic
        partition = batch.covers.partition if batch.covers else -1
        runs: dict[str, list[tuple[int, Samples | End]]] = {}
        for message in batch.messages:
            decoded = attempt("samples", decode, message.value)
            if isinstance(decoded, RejectedInput):
                yield self._rejected(partition, message, decoded)
            else:
                runs.setdefault(decoded.run_id, []).append((message.offset, decoded))
        by_offset = {message.offset: message for message in batch.messages}
        for run_id, messages in runs.items():
            for part, packed in bisect("samples", messages, lambda part: pack(part_of(part, self._columns, partition))):
                if isinstance(packed, RejectedInput):
                    yield self._rejected(partition, by_offset[part[0][0]], packed)
                else:
                    yield run_id, packed
        if batch.covers is not None:
            _decoded_ends[topic, partition] = batch.covers.end

    def _rejected(self, partition: int, message: Message, rejected: RejectedInput) -> Any:
        """Return a message's dead letter, for the output `DEAD_LETTERS`."""
        Metrics.counter(METRICS, f"refused.{rejected.reason}").inc()
        value = rejected_message(Origin(self._config.topic, partition, message.offset), message, rejected)
        return beam.pvalue.TaggedOutput(
            self.DEAD_LETTERS, (self._config.dead_letters_topic, redact_bytes(message.key or b""), value)
        )


_OLDER = beam.DoFn.StateParam(BagStateSpec("older", BytesCoder()))
_HEAD = beam.DoFn.StateParam(ReadModifyWriteStateSpec("head", BytesCoder()))
_WAKE = beam.DoFn.TimerParam(TimerSpec("wake", TimeDomain.REAL_TIME))


class KeepRun(beam.DoFn):
    """(run id, packed part) -> messages. Keeps a run's samples in its state until it ends or is abandoned.

    The state of a run has two parts: ``head`` is small and written for each message, with the newest samples; ``older``
    has the other samples, to which each write appends. ``wake`` is the timer of a run that ends or falls silent.
    """

    def __init__(self, config: LiveConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._messages = LiveMessages(config)
        self._job = uuid.uuid4().hex
        self._columns = sha256_json(columns_of(config.datasets))[:16]

    def process(
        self, element: tuple[str, bytes], older: Any = _OLDER, head: Any = _HEAD, wake: Any = _WAKE
    ) -> Iterator[ToSend]:
        run_id, data = element
        with keep_error():
            part = unpack(data)
            state = self._load(run_id, head)
            if state.standing == "failed":  # reported already
                Metrics.counter(METRICS, f"late.{INTERNAL}").inc(max(part.size, 1))
                return
            if state.standing != "running":
                if late := state.unseen(part):
                    rejected = RejectedInput(LATE[state.standing], "received after the run's samples were released")
                    yield self._messages.late(run_id, late, rejected)
                return
            now_s = self._clock()
            outgoing = attempt("live", self._add, part, state, older, now_s)
            if isinstance(outgoing, RejectedInput):
                outgoing = self._give_up(part, outgoing, state, older, now_s)
            yield from outgoing
            self._save(state, head, wake)

    def _add(self, part: Part, state: RunState, older: Any, now_s: float) -> list[ToSend]:
        """Add a part to a running job; return the messages to publish."""
        outgoing: list[ToSend] = []
        run = self._restore(state, older)
        try:
            new = run.add(part)
        except RejectedInput as rejected:
            outgoing.append(self._messages.late(state.run_id, part, rejected))
        else:
            self._keep(new, state, older)
        outgoing += self._messages.of(run, "running")
        if run.complete:
            outgoing += self._close("ended", run, state, older, now_s)
        state.received(now_s, run.ended)
        if state.standing == "running":
            _run_cache.put(self._job, state.token, run)
        return outgoing

    def _keep(self, new: Part | None, state: RunState, older: Any) -> None:
        """Add the new samples and ends of a part to the state; None without any."""
        if new is None:
            Metrics.counter(METRICS, "repeats").inc()
            return
        Metrics.counter(METRICS, "samples").inc(new.size)
        state.newer.append(pack(new))
        if len(state.newer) >= _FOLD or sum(map(len, state.newer)) >= _FOLD_BYTES:
            older.add(pack(join_parts([unpack(packed) for packed in state.newer])))
            state.newer = []

    @on_timer(_WAKE.timer_spec)
    def on_wake(self, older: Any = _OLDER, head: Any = _HEAD, wake: Any = _WAKE) -> Iterator[ToSend]:
        with keep_error():
            data = head.read()
            if data is None:
                return
            state = RunState.of(data)
            state.woken()
            now_s = self._clock()
            due = state.due(now_s, self._config.policy)
            if due == Wake.FORGET:
                head.clear()
                return
            if due is not None:
                standing: Standing = "ended" if due == Wake.ENDED else "silent"
                outgoing = attempt("live", self._close, standing, None, state, older, now_s)
                if isinstance(outgoing, RejectedInput):
                    last = [unpack(packed) for packed in (*older.read(), *state.newer)][-1:]
                    outgoing = self._give_up(last[0] if last else NO_SAMPLES, outgoing, state, older, now_s)
                yield from outgoing
            self._save(state, head, wake)

    def _load(self, run_id: str, head: Any) -> RunState:
        data = head.read()
        if data is None:
            return RunState(run_id, self._columns)
        state = RunState.of(data)
        if state.columns != self._columns:
            raise IntegrityError("the savepoint is of a job with other data sets; start without the savepoint")
        return state

    def _save(self, state: RunState, head: Any, wake: Any) -> None:
        wake_s = state.next_wake(self._config.policy)
        if wake_s is not None:
            wake.set(Timestamp.of(wake_s))
        head.write(state.to_bytes())

    def _restore(self, state: RunState, older: Any) -> LiveRun:
        run = _run_cache.take(self._job, state.run_id, state.token)
        if run is not None:
            return run
        parts = [unpack(packed) for packed in (*older.read(), *state.newer)]
        if parts:
            Metrics.counter(METRICS, "runs_made_anew").inc()
        return LiveRun.rebuild(state.run_id, parts, self._config.datasets, self._config.policy)

    def _close(
        self, standing: Standing, run: LiveRun | None, state: RunState, older: Any, now_s: float
    ) -> list[ToSend]:
        """Release a run's samples; return its last messages. ``run`` is None if it must be restored first."""
        run = run or self._restore(state, older)
        outgoing = list(self._messages.of(run, standing))
        Metrics.counter(METRICS, f"runs.{standing}").inc()
        older.clear()
        state.close(standing, run.seen, now_s)
        return outgoing

    def _give_up(self, part: Part, rejected: RejectedInput, state: RunState, older: Any, now_s: float) -> list[ToSend]:
        """Abandon a run whose windows raise an exception; return its dead letter, which names the last part."""
        Metrics.counter(METRICS, "runs.failed").inc()
        older.clear()
        state.close("failed", {}, now_s)
        return [self._messages.late(state.run_id, part, rejected)]


class RunCache:
    """A cache of this process's runs, which saves reading a run's state for every message.

    A cached run is valid for one state, identified by its token. After a failed bundle the state has its earlier token,
    so the run is read from its state again.
    """

    def __init__(self, most: int = _MOST_CACHED) -> None:
        self._most = most
        self._runs: OrderedDict[tuple[str, str], tuple[str, LiveRun]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, job: str, run_id: str, token: str) -> LiveRun | None:
        """Remove and return a run; None if it is missing or belongs to a state with another token."""
        with self._lock:
            entry = self._runs.pop((job, run_id), None)
        return entry[1] if entry and entry[0] == token else None

    def put(self, job: str, token: str, run: LiveRun) -> None:
        """Cache a run, with the token of its state."""
        with self._lock:
            self._runs[job, run.run_id] = (token, run)
            while len(self._runs) > self._most:
                self._runs.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._runs.clear()


_run_cache = RunCache()


class RenderRun(beam.DoFn):
    """(run id, all its packed parts) -> the last revision of each message that `KeepRun` would have published."""

    def __init__(self, config: LiveConfig) -> None:
        self._config = config
        self._messages = LiveMessages(config)

    def process(self, element: tuple[str, Iterable[bytes]]) -> Iterator[ToSend]:
        run_id, packed = element
        with keep_error():
            parts = sorted((unpack(data) for data in packed), key=lambda part: (part.partition, part.first))
            outgoing = attempt("live", self._render, run_id, parts)
            if isinstance(outgoing, RejectedInput):
                outgoing = [self._messages.late(run_id, parts[-1], outgoing)]
            yield from outgoing

    def _render(self, run_id: str, parts: Sequence[Part]) -> list[ToSend]:
        outgoing: list[ToSend] = []
        run = LiveRun(run_id, self._config.datasets, self._config.policy)
        for part in parts:
            try:
                run.add(part)
            except RejectedInput as rejected:
                outgoing.append(self._messages.late(run_id, part, rejected))
        return [*outgoing, *self._messages.of(run, "ended" if run.complete else "running")]


class LiveMessages:
    """Renders the messages of runs."""

    def __init__(self, config: LiveConfig) -> None:
        self._config = config

    def of(self, run: LiveRun, standing: Standing) -> Iterator[ToSend]:
        """Yield the messages due for a running job, or the last messages of an ended or silent run."""
        over = standing != "running"
        key = run.run_id.encode()
        panes = run.take_due_panes(over=over)
        windows_topic = self._config.windows_topic
        if windows_topic:
            for pane in panes:
                yield windows_topic, key, pane_message(run.run_id, pane)
        examples_topic = self._config.examples_topic
        if examples_topic and (over or run.are_examples_due()):
            for example in run.take_examples(over=over):
                yield examples_topic, key, example_message(run.run_id, example, standing)

    def late(self, run_id: str, part: Part, rejected: RejectedInput) -> ToSend:
        """Return the dead letter of rejected samples of a run."""
        Metrics.counter(METRICS, f"late.{rejected.reason}").inc(max(part.size, 1))
        value = late_message(self._config.topic, run_id, part, rejected)
        return self._config.dead_letters_topic, run_id.encode(), value


class Send(beam.DoFn):
    """`ToSend` -> nothing. A bundle ends when the broker has all of its messages; a failed bundle is sent again."""

    def __init__(self, kafka: KafkaOptions) -> None:
        self._kafka = kafka
        self._producer: Producer | None = None
        self._failure: tuple[str, KafkaError] | None = None

    def process(self, element: ToSend) -> Iterator[Any]:
        with keep_error():
            topic, key, value = element
            if self._producer is None:
                settings = {**_PRODUCER, **self._kafka.common(), "enable.idempotence": True}
                self._producer = make_client(Producer, self._kafka, settings)
            try:
                enqueue(self._producer, topic, value, key, on_delivery=self._delivered)
            except KafkaException as error:
                self._fail(topic, error.args[0])
            self._producer.poll(0)
        yield from ()

    def finish_bundle(self) -> None:
        with keep_error():
            if self._producer is None:
                return
            unsent = self._producer.flush(_FLUSH_S)
            failure = self._failure
            self._failure = None
            if failure is not None:
                self._fail(*failure)
            if unsent:
                raise EngineError(f"Kafka at {self._kafka.bootstrap} accepted no message within {_FLUSH_S:.0f} s")

    def teardown(self) -> None:
        self._producer = None

    def _delivered(self, error: KafkaError | None, message: Any) -> None:
        if error is not None and self._failure is None:
            self._failure = (message.topic(), error)

    def _fail(self, topic: str, error: KafkaError) -> None:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            raise CimlError(
                f"topic {topic} rejects a message as too large; set its max.message.bytes={MAX_MESSAGE_BYTES}"
            )
        raise as_engine_error(self._kafka, topic, KafkaException(error))
