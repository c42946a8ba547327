"""The demo's events: a plan of messages and outcomes, the logs that are served, and the producer.

Some runs are damaged on purpose; a damage is a trick. Each message is planned with the outcome that ingest must find.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from ciml.cli.demo.corpus import SOURCE, Sample, change_of
from ciml.errors import EngineError
from ciml.events.cloudevents import FINISHED, STARTED, finished_event, run_event
from ciml.events.records import Kind, RunFacts
from ciml.events.run_id import RunId
from ciml.transforms.fetch.policy import LOG_PATHS, OUTPUT_PATHS

#: Shares of the runs in each wave: the first makes a model, each further one a refresh.
WAVES = (0.5, 0.25, 0.25)
#: One run in 16 is damaged, one in 40 is untrusted, and one in 12 has an event of its start.
SPOIL_EVERY = 16
UNTRUSTED_EVERY = 40
STARTED_EVERY = 12
#: The runs of one change in three share an event.
GROUPED_EVERY = 3
_MODES: tuple[Literal["structured", "binary", "bare"], ...] = ("structured", "binary", "bare")
_LOG_URL = "{logs}/{path}"
#: The names of the log and of the output in the folder of a run that has both.
LOG_NAME = LOG_PATHS[0]
OUTPUT_NAME = OUTPUT_PATHS[0]
_SPOILT = "{logs}/spoilt/{path}"
_PASSED: dict[str, Any] = {"outcome": "success", "result": "SUCCESS"}
_FAILED: dict[str, Any] = {"outcome": "failure", "result": "FAILURE"}

#: Topic, partition, offset and run id.
Key = tuple[str, int, int, str]


class Expected(Struct, frozen=True):
    """The expected outcome of one (event, run), or of a message without a run (``run_id`` is "").

    Attributes:
      kind, reason: the final record of the raw manifest.
      trusted: whether the run may be trained on; None without a raw row.
      deferred: whether the run must have been deferred.
      rows: number of samples of the raw row; None without one.
      output: path of the output of the raw row, below the log server's root; "" without one.
      trick: the damage of the event; "" for none.
      topic, partition, offset: position of the acknowledged message.
    """

    run_id: str
    event_key: str
    kind: Kind
    reason: str = ""
    trusted: bool | None = None
    deferred: bool = False
    rows: int | None = None
    output: str = ""
    trick: str = ""
    topic: str = ""
    partition: int = 0
    offset: int = -1

    @property
    def key(self) -> Key:
        """The key of the (event, run) in the raw manifest."""
        return self.topic, self.partition, self.offset, self.run_id


@dataclass(frozen=True, slots=True)
class PlannedMessage:
    """One message and its expected outcomes."""

    wave: int
    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    expected: tuple[Expected, ...]
    trick: str = ""


@dataclass(slots=True)
class Plan:
    """All messages in order, and the logs of the log server.

    Attributes:
      messages: in the order of sending, grouped by wave.
      logs: path below the log server's root -> the sample, and the change of its log (None for none).
      late: paths that appear only when their runs have been deferred -> run id.
      outputs: path below the log server's root -> the sample whose output it is.
    """

    samples: list[Sample]
    messages: list[PlannedMessage] = field(default_factory=list)
    logs: dict[str, tuple[Sample, Callable[[bytes], bytes] | None]] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, Sample] = field(default_factory=dict)

    def waves(self) -> list[list[PlannedMessage]]:
        """Return the messages of each wave."""
        return [[message for message in self.messages if message.wave == wave] for wave in range(len(WAVES))]


def cut_gzip(log: bytes) -> bytes:
    """Return a log of an interrupted upload: the first two thirds of the compressed bytes."""
    return log[: len(log) * 2 // 3]


def cut_text(log: bytes) -> bytes:
    """Return an uncompressed log whose last line is incomplete."""
    text = gzip.decompress(log).rstrip(b"\n")
    return text[: text.rindex(b"\n") + 12]


def not_telemetry(log: bytes) -> bytes:
    """Return the page that a proxy serves instead of a log."""
    return b"<html><body><h1>502 Bad Gateway</h1></body></html>\n" * 20


def other_log(log: bytes) -> bytes:
    """Return another log of the same run, without its last sample."""
    text = gzip.decompress(log).rstrip(b"\n")
    return gzip.compress(text[: text.rindex(b"\n") + 1], mtime=0)


class EventPlan(Struct, frozen=True):
    """One event of a run, and its expected outcome.

    Attributes:
      kind, reason, deferred: as in `Expected`.
      facts: changed facts of the run.
      log: changes the served log; None serves it as it is.
      log_url: the address of the log, with ``{logs}`` for the log server and ``{path}`` for the log's path. The server
        has no logs below ``missing``, and those below ``late`` only after their runs have been deferred.
      value: makes the bytes of a message that holds no event; None for a message with the event.
      rows: the difference of the number of samples that the damage makes.
      again: whether the event has the id of the previous event.
    """

    kind: Kind = "run"
    reason: str = ""
    deferred: bool = False
    facts: Callable[[RunFacts], dict[str, Any]] | None = None
    log: Callable[[bytes], bytes] | None = None
    log_url: str = _LOG_URL
    value: Callable[[RunFacts], bytes | None] | None = None
    rows: int = 0
    again: bool = False


def _another_outcome(facts: RunFacts) -> dict[str, Any]:
    return _FAILED if facts.outcome == "success" else _PASSED


def _cancelled(facts: RunFacts) -> dict[str, Any]:
    """Return an invented run, in addition to the sample."""
    native = f"{facts.build_uuid}-cancelled"
    identity = {"run_id": RunId(SOURCE, native).encode(), "build_uuid": native}
    return {**identity, "outcome": "cancellation", "result": "CANCELED", "log_url": ""}


_SOUND = EventPlan()


def _forbidden(log_url: str) -> tuple[EventPlan]:
    return (EventPlan("dead_letter", "address_not_allowed", log_url=log_url),)


#: The events of a damaged run by the damage, in the order in which they are inflicted.
TRICKS: dict[str, tuple[EventPlan, ...]] = {
    "broken JSON": (EventPlan("dead_letter", "broken_json", value=lambda facts: finished_event(facts)[0][:-40]),),
    "log is not there": (EventPlan("dead_letter", "log_not_found", deferred=True, log_url="{logs}/missing/{path}"),),
    "log cut short (gzip)": (EventPlan("dead_letter", "corrupt_gzip", log=cut_gzip, log_url=_SPOILT),),
    "same event twice": (EventPlan(), EventPlan("repeat", "event", again=True)),
    "address of the cloud's metadata": _forbidden("http://169.254.169.254/latest/meta-data/"),
    "log appears later": (EventPlan(deferred=True, log_url="{logs}/late/{path}"),),
    "log cut short (text)": (EventPlan(log=cut_text, log_url=_SPOILT, rows=-1),),
    "same run by another event": (EventPlan(), EventPlan("repeat", "run")),
    "cancelled run": (EventPlan("ignored", "cancelled", facts=_cancelled, log_url=""), EventPlan()),
    # The first event is wrong, so that the final label is the recorded one.
    "corrected outcome": (
        EventPlan(facts=_another_outcome),
        EventPlan("correction", "outcome"),
    ),
    "no event at all": (EventPlan("dead_letter", "not_an_event", value=lambda facts: b'["finished", "success"]'),),
    "a file of the machine": _forbidden("file:///etc/passwd"),
    "a page instead of a log": (EventPlan("dead_letter", "not_telemetry", log=not_telemetry, log_url=_SPOILT),),
    "another port of the log server": _forbidden("http://127.0.0.1:1/x"),
    "same run, another log": (EventPlan(), EventPlan("repeat", "other_log", log=other_log, log_url=_SPOILT)),
    "event without a log's address": (EventPlan("dead_letter", "missing_field", log_url=""),),
    "tombstone": (EventPlan("dead_letter", "tombstone", value=lambda facts: None),),
}


def make_plan(samples: list[Sample], logs_url: str) -> Plan:
    """Plan one run of the demo. The plan depends on the samples alone.

    Every sixteenth run gets one of the `TRICKS`, and every fortieth comes from the pipeline ``check``. The other runs
    of every third change are in one event.
    """
    planner = _Planner(samples, logs_url.rstrip("/"))
    for index, sample in enumerate(samples):
        planner.add(index, sample)
    planner.send_group()
    return planner.plan


class _Planner:
    """Adds messages and logs to a plan, sample by sample. The wave and the trick belong to the present sample."""

    def __init__(self, samples: list[Sample], logs_url: str) -> None:
        self.plan = Plan(samples)
        self._logs_url = logs_url
        self._rows = {sample.facts.run_id: sample.rows for sample in samples}
        self._wave_ends = [round(len(samples) * sum(WAVES[: wave + 1])) for wave in range(len(WAVES))]
        changes = dict.fromkeys(change_of(sample.facts) for sample in samples)
        self._grouped_changes = set(list(changes)[::GROUPED_EVERY])
        self._sent = 0
        self._wave = 0
        self._trick = ""
        self._group: list[RunFacts] = []

    def add(self, index: int, sample: Sample) -> None:
        """Plan the events of the sample with this index."""
        wave = sum(index >= end for end in self._wave_ends)
        facts = self._serve(sample, _SOUND)
        if self._group and (wave != self._wave or change_of(self._group[0]) != change_of(facts)):
            self.send_group()
        self._wave = wave
        if index % STARTED_EVERY == 5:
            started = facts.replace(phase="started", outcome=None, result="", log_url="", end_us=None)
            self._send(started, plan=EventPlan("ignored", "not_finished"), event_type=STARTED)
        if index % SPOIL_EVERY == 7:
            self._trick = list(TRICKS)[index // SPOIL_EVERY % len(TRICKS)]
            for plan in TRICKS[self._trick]:
                self._damage(sample, plan)
        elif index % UNTRUSTED_EVERY == 13:
            self._trick = "untrusted pipeline"
            self._send(facts.replace(pipeline="check"), trusted=False)
        elif facts.change and facts.change in self._grouped_changes:
            self._group.append(facts)
        else:
            self._send(facts)
        self._trick = ""

    def send_group(self) -> None:
        """Plan one event with the runs that were grouped since the last such event."""
        if self._group:
            self._send(*self._group)
            self._group = []

    def _serve(self, sample: Sample, plan: EventPlan) -> RunFacts:
        """Serve the sample's log, perhaps changed; return its facts with the address.

        An unchanged log is served in a folder with the output of the job, if there is one.
        """
        if sample.output_path and plan.log_url == _LOG_URL:
            folder = run_folder(sample.facts)
            self.plan.logs[folder + LOG_NAME] = (sample, plan.log)
            self.plan.outputs[folder + OUTPUT_NAME] = sample
            return sample.facts.replace(log_url=f"{self._logs_url}/{folder}")
        log_url = plan.log_url.format(logs=self._logs_url, path=sample.log_path)
        path = log_url.removeprefix(f"{self._logs_url}/")
        if path != log_url and not path.startswith("missing/"):
            self.plan.logs[path] = (sample, plan.log)
            if path.startswith("late/"):
                self.plan.late[path] = sample.facts.run_id
        return sample.facts.replace(log_url=log_url)

    def _damage(self, sample: Sample, plan: EventPlan) -> None:
        facts = self._serve(sample, plan)
        if plan.facts is not None:
            facts = facts.replace(**plan.facts(facts))
        if plan.value is None:
            self._send(facts, plan=plan)
            return
        value = plan.value(facts)
        headers = [("ce_specversion", b"1.0"), ("ce_id", b"gone")] if value is None else []
        self._add(facts, value, headers, [Expected("", "", plan.kind, plan.reason)])

    def _send(
        self, *runs: RunFacts, plan: EventPlan = _SOUND, trusted: bool = True, event_type: str = FINISHED
    ) -> None:
        """Plan one event with the runs, all of which have the planned outcome."""
        event_id = f"event-{self._sent - plan.again:05d}"
        value, headers = run_event(event_type, *runs, event_id=event_id, mode=_MODES[self._sent % len(_MODES)])
        self._sent += 1
        event_key = f"{SOURCE} {event_id}"
        expected = [Expected(facts.run_id, event_key, plan.kind, plan.reason, deferred=plan.deferred) for facts in runs]
        if plan.kind == "run":
            expected = [
                replace(line, trusted=trusted, rows=self._rows[line.run_id] + plan.rows, output=self._output(facts))
                for line, facts in zip(expected, runs, strict=True)
            ]
        self._add(runs[0], value, headers, expected)

    def _output(self, facts: RunFacts) -> str:
        """Return the path of the output that ingest finds for a run; "" for none."""
        path = run_folder(facts) + OUTPUT_NAME
        return path if facts.log_url.endswith("/") and path in self.plan.outputs else ""

    def _add(
        self, facts: RunFacts, value: bytes | None, headers: list[tuple[str, bytes]], expected: list[Expected]
    ) -> None:
        key = change_of(facts).encode()  # keyed by change, so that the events of a run stay in order
        lines = tuple(replace(line, trick=self._trick) for line in expected)
        self.plan.messages.append(PlannedMessage(self._wave, key, value, tuple(headers), lines, self._trick))


def run_folder(facts: RunFacts) -> str:
    """Return the path of a run's log and output below the log server's root, with a slash at its end."""
    return f"runs/{facts.build_name}/{facts.build_uuid}/"


@dataclass(frozen=True)
class LogRoot:
    """The folder of the log server: the logs of the corpus, some of them changed or written late, and the outputs."""

    folder: Path
    corpus: Path

    def make(self, plan: Plan) -> None:
        """Write all logs but the late ones, and all outputs."""
        for path in plan.logs:
            if path not in plan.late:
                self.release(plan, path)
        for path, sample in plan.outputs.items():
            shutil.copyfile(self.corpus / sample.output_path, self.folder / path)

    def release(self, plan: Plan, path: str) -> None:
        """Write a log atomically."""
        sample, change = plan.logs[path]
        source = self.corpus / sample.log_path
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(".staged")
        if change is not None:
            staged.write_bytes(change(source.read_bytes()))
        else:
            shutil.copyfile(source, staged)
        os.replace(staged, target)

    def read_text(self, log_url: str, logs_url: str) -> str:
        """Return the text of a run's log as served, decompressed."""
        path = log_url.removeprefix(f"{logs_url}/")
        return self.read(f"{path}{LOG_NAME}" if path.endswith("/") else path).decode()

    def read(self, path: str) -> bytes:
        """Return what is served at a path, decompressed."""
        data = (self.folder / path).read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def produce(bootstrap: str, topic: str, messages: Sequence[PlannedMessage], timeout_s: float = 60.0) -> list[Expected]:
    """Produce the messages and wait until all are acknowledged. Returns the expected outcomes with their positions.

    Raises:
      EngineError: the broker rejects a message, or does not acknowledge all in time.
    """
    from confluent_kafka import KafkaException, Producer

    positions: dict[int, tuple[int, int]] = {}
    rejected: list[str] = []

    def delivered(number: int, error: Any, message: Any) -> None:
        if error is not None:
            rejected.append(str(error))
        else:
            positions[number] = (message.partition(), message.offset())

    # Idempotent, so messages keep their order and only planned repeats occur.
    options = {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5, "log_level": 0}
    try:
        producer = Producer(options)
        for number, message in enumerate(messages):
            report = partial(delivered, number)
            producer.produce(topic, message.value, message.key, headers=list(message.headers), on_delivery=report)
            producer.poll(0)
        unacknowledged = producer.flush(timeout_s)
    except KafkaException as error:
        raise EngineError(f"{bootstrap}: {error.args[0].str()}") from error
    if len(positions) != len(messages):
        reason = rejected[0] if rejected else f"{unacknowledged} were not acknowledged within {timeout_s:g} s"
        lost = len(messages) - len(positions)
        raise EngineError(f"{bootstrap}: {lost} of {len(messages)} events were lost: {reason}")
    return [
        replace(line, topic=topic, partition=positions[number][0], offset=positions[number][1])
        for number, message in enumerate(messages)
        for line in message.expected
    ]
