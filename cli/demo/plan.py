"""The demo's events: a plan of messages and outcomes, the logs that are served, and the producer."""

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

#: Shares of the runs in each wave: the first makes a model, each further one a refresh.
WAVES = (0.5, 0.25, 0.25)
SPOIL_EVERY = 16
UNTRUSTED_EVERY = 40
STARTED_EVERY = 12
GROUPED_EVERY = 3
_MODES: tuple[Literal["structured", "binary", "bare"], ...] = ("structured", "binary", "bare")
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
    trick: str = ""
    topic: str = ""
    partition: int = 0
    offset: int = -1

    @property
    def key(self) -> Key:
        """The key of the (event, run) in the raw manifest."""
        return self.topic, self.partition, self.offset, self.run_id


@dataclass(frozen=True, slots=True)
class Planned:
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
    """

    samples: list[Sample]
    messages: list[Planned] = field(default_factory=list)
    logs: dict[str, tuple[Sample, Callable[[bytes], bytes] | None]] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)

    def waves(self) -> list[list[Planned]]:
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
    """Return another log of the same run: without its last sample."""
    text = gzip.decompress(log).rstrip(b"\n")
    return gzip.compress(text[: text.rindex(b"\n") + 1], mtime=0)


def make_plan(samples: list[Sample], logs_url: str) -> Plan:
    """Plan one run of the demo. The plan depends on the samples alone.

    Every sixteenth run gets one of the tricks below, every fortieth comes from the pipeline ``check``. The other runs
    of every third change are in one event.
    """
    return _Planner(samples, logs_url.rstrip("/")).plan


class _Planner:
    def __init__(self, samples: list[Sample], logs_url: str) -> None:
        self.plan = Plan(samples)
        self._logs_url = logs_url
        self._rows = {sample.facts.run_id: sample.rows for sample in samples}
        self._sent = 0
        self._wave = 0
        self._trick = ""
        tricks = list(self._tricks().items())
        ends = [round(len(samples) * sum(WAVES[: wave + 1])) for wave in range(len(WAVES))]
        changes = {name: number for number, name in enumerate(dict.fromkeys(change_of(s.facts) for s in samples))}
        group: list[RunFacts] = []
        for index, sample in enumerate(samples):
            wave = sum(index >= end for end in ends)
            facts = self._log(sample)
            if group and (wave != self._wave or change_of(group[0]) != change_of(facts)):
                self._send(*group)
                group = []
            self._wave = wave
            if index % STARTED_EVERY == 5:
                started = facts.replace(phase="started", outcome=None, result="", log_url="", end_us=None)
                self._send(started, kind="ignored", reason="not_finished", event_type=STARTED)
            if index % SPOIL_EVERY == 7:
                self._trick, spoil = tricks[index // SPOIL_EVERY % len(tricks)]
                spoil(sample)
            elif index % UNTRUSTED_EVERY == 13:
                self._trick = "untrusted pipeline"
                self._send(facts.replace(pipeline="check"), trusted=False)
            elif facts.change and changes[facts.change] % GROUPED_EVERY == 0:
                group.append(facts)
            else:
                self._send(facts)
            self._trick = ""
        if group:
            self._send(*group)

    def _tricks(self) -> dict[str, Callable[[Sample], object]]:
        """Return the damages by name, in the order in which they are inflicted."""
        metadata = "http://169.254.169.254/latest/meta-data/"
        return {
            "broken JSON": lambda s: self._unreadable(s, finished_event(self._log(s))[0][:-40], "broken_json"),
            "log is not there": self._log_missing,
            "log cut short (gzip)": lambda s: self._lose(self._log(s, cut_gzip), "corrupt_gzip"),
            "same event twice": self._same_event,
            "address of the cloud's metadata": lambda s: self._forbidden(s, metadata),
            "log appears later": self._log_late,
            "log cut short (text)": lambda s: self._send(self._log(s, cut_text), rows=s.rows - 1),
            "same run by another event": lambda s: self._send_again(s, self._log(s), "run"),
            "cancelled run": self._cancelled,
            "corrected outcome": self._correction,
            "no event at all": lambda s: self._unreadable(s, b'["finished", "success"]', "not_an_event"),
            "a file of the machine": lambda s: self._forbidden(s, "file:///etc/passwd"),
            "a page instead of a log": lambda s: self._lose(self._log(s, not_telemetry), "not_telemetry"),
            "another port of the log server": lambda s: self._forbidden(s, "http://127.0.0.1:1/x"),
            "same run, another log": lambda s: self._send_again(s, self._log(s, other_log), "other_log"),
            "event without a log's address": lambda s: self._lose(s.facts, "missing_field"),
            "tombstone": lambda s: self._unreadable(s, None, "tombstone"),
        }

    def _log(self, sample: Sample, change: Callable[[bytes], bytes] | None = None, folder: str = "") -> RunFacts:
        """Serve the sample's log, changed or in another folder; return its facts with the address."""
        path = f"{'spoilt/' if change else folder}{sample.log_path}"
        self.plan.logs[path] = (sample, change)
        return sample.facts.replace(log_url=f"{self._logs_url}/{path}")

    def _send(
        self,
        *runs: RunFacts,
        kind: Kind = "run",
        reason: str = "",
        rows: int | None = None,
        trusted: bool = True,
        deferred: bool = False,
        event_id: str = "",
        event_type: str = FINISHED,
    ) -> str:
        """Plan one event with the runs, each of which becomes ``kind``. Returns its id."""
        event_id = event_id or f"event-{self._sent:05d}"
        value, headers = run_event(event_type, *runs, event_id=event_id, mode=_MODES[self._sent % len(_MODES)])
        self._sent += 1
        expected = [Expected(facts.run_id, f"{SOURCE} {event_id}", kind, reason, deferred=deferred) for facts in runs]
        if kind == "run":
            expected = [
                replace(line, trusted=trusted, rows=self._rows[line.run_id] if rows is None else rows)
                for line in expected
            ]
        self._add(runs[0], value, headers, expected)
        return event_id

    def _add(
        self, facts: RunFacts, value: bytes | None, headers: list[tuple[str, bytes]], expected: list[Expected]
    ) -> None:
        key = change_of(facts).encode()  # keyed by change, so that the events of a run stay in order
        lines = tuple(replace(line, trick=self._trick) for line in expected)
        self.plan.messages.append(Planned(self._wave, key, value, tuple(headers), lines, self._trick))

    def _unreadable(self, sample: Sample, value: bytes | None, reason: str) -> None:
        headers = [("ce_specversion", b"1.0"), ("ce_id", b"gone")] if value is None else []
        self._add(sample.facts, value, headers, [Expected("", "", "dead_letter", reason)])

    def _lose(self, facts: RunFacts, reason: str) -> None:
        self._send(facts, kind="dead_letter", reason=reason)

    def _forbidden(self, sample: Sample, url: str) -> None:
        self._lose(sample.facts.replace(log_url=url), "address_not_allowed")

    def _log_missing(self, sample: Sample) -> None:
        facts = sample.facts.replace(log_url=f"{self._logs_url}/missing/{sample.log_path}")
        self._send(facts, kind="dead_letter", reason="log_not_found", deferred=True)

    def _log_late(self, sample: Sample) -> None:
        facts = self._log(sample, folder="late/")
        self.plan.late[f"late/{sample.log_path}"] = facts.run_id
        self._send(facts, deferred=True)

    def _same_event(self, sample: Sample) -> None:
        facts = self._log(sample)
        self._send(facts, kind="repeat", reason="event", event_id=self._send(facts))

    def _send_again(self, sample: Sample, second: RunFacts, reason: str) -> None:
        self._send(self._log(sample))
        self._send(second, kind="repeat", reason=reason)

    def _correction(self, sample: Sample) -> None:
        # The first event is wrong, so that the final label is the recorded one.
        facts = self._log(sample)
        self._send(facts.replace(**(_FAILED if facts.outcome == "success" else _PASSED)))
        self._send(facts, kind="correction", reason="outcome")

    def _cancelled(self, sample: Sample) -> None:
        # An invented run, in addition to the sample.
        native = f"{sample.facts.build_uuid}-cancelled"
        facts = sample.facts.replace(run_id=RunId(SOURCE, native).encode(), build_uuid=native)
        self._send(facts.replace(outcome="cancellation", result="CANCELED"), kind="ignored", reason="cancelled")
        self._send(self._log(sample))


@dataclass(frozen=True)
class LogRoot:
    """The folder of the log server, with the corpus' logs, of which some are changed and some are late."""

    folder: Path
    corpus: Path

    def make(self, plan: Plan) -> None:
        """Write all logs but the late ones."""
        for path in plan.logs:
            if path not in plan.late:
                self.release(plan, path)

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
        data = (self.folder / log_url.removeprefix(f"{logs_url}/")).read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()


def produce(bootstrap: str, topic: str, messages: Sequence[Planned], timeout_s: float = 60.0) -> list[Expected]:
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
