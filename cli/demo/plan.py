"""The demo's events and their expected outcomes, planned before the first is sent."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ciml.cli.demo.corpus import SOURCE, Sample, change_of
from ciml.events.cloudevents import STARTED, finished_event, run_event
from ciml.events.records import Kind, RunFacts
from ciml.events.run_id import RunId

Mode = Literal["structured", "binary", "bare"]
_MODES: tuple[Mode, ...] = ("structured", "binary", "bare")
#: Shares of the runs in each wave: the first makes a model, each further one a refresh.
WAVES = (0.5, 0.25, 0.25)
SPOIL_EVERY = 16
UNTRUSTED_EVERY = 40
STARTED_EVERY = 12
GROUPED_EVERY = 3
_PASSED: dict[str, Any] = {"outcome": "success", "result": "SUCCESS"}


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected outcome of one (event, run), or of a message without a run (``run_id`` is "").

    Attributes:
      kind, reason: the final record of the raw manifest.
      trusted: whether the run may be trained on; None without a raw row.
      deferred: whether the run must have been deferred.
      rows: number of samples of the raw row; None without one.
    """

    run_id: str
    event_key: str
    kind: Kind
    reason: str = ""
    trusted: bool | None = None
    deferred: bool = False
    rows: int | None = None


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
      late: paths that appear only when their runs have been deferred.
    """

    samples: list[Sample]
    messages: list[Planned] = field(default_factory=list)
    logs: dict[str, tuple[Sample, Callable[[bytes], bytes] | None]] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)  # path -> run id

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


def _change(sample: Sample) -> str:
    return change_of(sample.facts)


class _Planner:
    def __init__(self, samples: list[Sample], logs_url: str) -> None:
        self.plan = Plan(samples)
        self._logs_url = logs_url
        self._sent = 0
        tricks = list(self._tricks().items())
        ends = [round(len(samples) * sum(WAVES[: wave + 1])) for wave in range(len(WAVES))]
        group: list[RunFacts] = []
        changes = {change: number for number, change in enumerate(dict.fromkeys(_change(each) for each in samples))}
        for index, sample in enumerate(samples):
            wave = sum(index >= end for end in ends)
            position = index % SPOIL_EVERY
            turn = index // SPOIL_EVERY
            facts = self._with_log(sample)
            if group and (wave != self._wave or change_of(group[0]) != change_of(facts)):
                self._send(group)
                group = []
            self._wave = wave
            if index % STARTED_EVERY == 5:
                self._started(facts)
            if position == 7:
                name, spoil = tricks[turn % len(tricks)]
                self._trick = name
                spoil(sample)
                self._trick = ""
            elif index % UNTRUSTED_EVERY == 13:
                self._trick = "untrusted pipeline"
                self._send([facts.replace(pipeline="check")], rows=sample.rows, trusted=False)
                self._trick = ""
            elif facts.change and changes[_change(sample)] % GROUPED_EVERY == 0:  # its runs in one event
                group.append(facts)
            else:
                self._send([facts], rows=sample.rows)
        if group:
            self._send(group)

    _wave = 0
    _trick = ""

    def _tricks(self) -> dict[str, Callable[[Sample], None]]:
        return {
            "broken JSON": self._broken_json,
            "log is not there": self._log_missing,
            "log cut short (gzip)": lambda s: self._bad_log(s, cut_gzip, "corrupt_gzip"),
            "same event twice": self._same_event,
            "address of the cloud's metadata": lambda s: self._address(s, "http://169.254.169.254/latest/meta-data/"),
            "log appears later": self._log_late,
            "log cut short (text)": self._cut_text,
            "same run by another event": self._same_run,
            "cancelled run": self._cancelled,
            "corrected outcome": self._correction,
            "no event at all": self._not_an_event,
            "a file of the machine": lambda s: self._address(s, "file:///etc/passwd"),
            "a page instead of a log": lambda s: self._bad_log(s, not_telemetry, "not_telemetry"),
            "another port of the log server": lambda s: self._address(s, "http://127.0.0.1:1/x"),
            "same run, another log": self._other_log,
            "event without a log's address": self._no_address,
            "tombstone": self._tombstone,
        }

    def _with_log(self, sample: Sample, path: str = "", change: Callable[[bytes], bytes] | None = None) -> RunFacts:
        path = path or sample.log_path
        self.plan.logs[path] = (sample, change)
        return sample.facts.replace(log_url=f"{self._logs_url}/{path}")

    def _add(self, key: str, value: bytes | None, headers: list[tuple[str, bytes]], expected: list[Expected]) -> None:
        self.plan.messages.append(
            Planned(self._wave, key.encode(), value, tuple(headers), tuple(expected), self._trick)
        )

    def _send(
        self,
        runs: list[RunFacts],
        kind: Kind = "run",
        reason: str = "",
        *,
        rows: int | None = None,
        trusted: bool = True,
        deferred: bool = False,
        event_id: str = "",
        event_type: str = "",
    ) -> str:
        """Send one event with the runs, each of which becomes ``kind``. Returns its id."""
        event_id = event_id or f"event-{self._sent:05d}"
        mode = _MODES[self._sent % len(_MODES)]
        self._sent += 1
        if event_type:
            value, headers = run_event(event_type, *runs, event_id=event_id, mode=mode)
        else:
            value, headers = finished_event(*runs, event_id=event_id, mode=mode)
        row = kind == "run"
        known = {sample.facts.run_id: sample.rows for sample in self.plan.samples} if len(runs) > 1 else {}
        expected = [
            Expected(
                facts.run_id,
                f"{SOURCE} {event_id}",
                kind,
                reason,
                trusted if row else None,
                deferred,
                (rows if rows is not None else known.get(facts.run_id)) if row else None,
            )
            for facts in runs
        ]
        # keyed by change, so that the events of a run stay in order
        self._add(change_of(runs[0]), value, headers, expected)
        return event_id

    def _started(self, facts: RunFacts) -> None:
        started = facts.replace(phase="started", outcome=None, result="", log_url="", end_us=None)
        self._send([started], "ignored", "not_finished", event_type=STARTED)

    def _nothing(self, sample: Sample, value: bytes | None, headers: list[tuple[str, bytes]], reason: str) -> None:
        self._add(change_of(sample.facts), value, headers, [Expected("", "", "dead_letter", reason)])

    def _broken_json(self, sample: Sample) -> None:
        value, headers = finished_event(self._with_log(sample))
        self._nothing(sample, value[: len(value) * 3 // 5], headers, "broken_json")

    def _not_an_event(self, sample: Sample) -> None:
        self._nothing(sample, b'["finished", "success"]', [], "not_an_event")

    def _tombstone(self, sample: Sample) -> None:
        self._nothing(sample, None, [("ce_specversion", b"1.0"), ("ce_id", b"gone")], "tombstone")

    def _log_missing(self, sample: Sample) -> None:
        facts = sample.facts.replace(log_url=f"{self._logs_url}/missing/{sample.log_path}")
        self._send([facts], "dead_letter", "log_not_found", deferred=True)

    def _log_late(self, sample: Sample) -> None:
        path = f"late/{sample.log_path}"
        facts = self._with_log(sample, path)
        self.plan.late[path] = facts.run_id
        self._send([facts], rows=sample.rows, deferred=True)

    def _bad_log(self, sample: Sample, change: Callable[[bytes], bytes], reason: str) -> None:
        self._send([self._with_log(sample, f"spoilt/{sample.log_path}", change)], "dead_letter", reason)

    def _cut_text(self, sample: Sample) -> None:
        self._send([self._with_log(sample, f"spoilt/{sample.log_path}", cut_text)], rows=sample.rows - 1)

    def _address(self, sample: Sample, url: str) -> None:
        self._send([sample.facts.replace(log_url=url)], "dead_letter", "address_not_allowed")

    def _no_address(self, sample: Sample) -> None:
        self._send([sample.facts], "dead_letter", "missing_field")

    def _same_event(self, sample: Sample) -> None:
        facts = self._with_log(sample)
        event_id = self._send([facts], rows=sample.rows)
        self._send([facts], "repeat", "event", event_id=event_id)

    def _same_run(self, sample: Sample) -> None:
        facts = self._with_log(sample)
        self._send([facts], rows=sample.rows)
        self._send([facts], "repeat", "run")

    def _other_log(self, sample: Sample) -> None:
        self._send([self._with_log(sample)], rows=sample.rows)
        self._send([self._with_log(sample, f"spoilt/{sample.log_path}", other_log)], "repeat", "other_log")

    def _correction(self, sample: Sample) -> None:
        # the first event is wrong, so that the label is the recorded one in the end
        facts = self._with_log(sample)
        passed = facts.outcome == "success"
        wrong = facts.replace(outcome="failure", result="FAILURE") if passed else facts.replace(**_PASSED)
        self._send([wrong], rows=sample.rows)
        self._send([facts], "correction", "outcome")

    def _cancelled(self, sample: Sample) -> None:
        # an invented run, in addition to the sample
        native = f"{sample.facts.build_uuid}-cancelled"
        facts = sample.facts.replace(
            run_id=RunId(SOURCE, native).encode(),
            build_uuid=native,
            outcome="cancellation",
            result="CANCELED",
        )
        self._send([facts], "ignored", "cancelled")
        self._send([self._with_log(sample)], rows=sample.rows)
