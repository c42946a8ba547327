"""What a producer sends, and what has to become of each (delivery, run): by construction, never by looking at results.

Events are written here field by field, so that no mistake of ciml's own writer can hide one of its reader.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from tests.corpus import CORPUS
from tests.corpus import builds as listed

FINISHED, STARTED = "dev.ciml.run.finished.v1", "dev.ciml.run.started.v1"


@dataclass(frozen=True)
class Claim:
    """What one delivery says of one run, and what that has to become.

    The kinds of one run's deliveries may be dealt out among them in any way (which of two is the row and which the
    repeat depends on what is committed first), but in these numbers. Of a message that names no run, exactly this one.

    Attributes:
      run_id: as ciml encodes it; "" where the message says nothing of any run.
      kind, reason: as in the manifest's lists; ``a|b`` where two reasons are equally true.
      logs: the files that its telemetry may come from: one, or two where events name different logs.
      start_us, end_us: the run's times, which settle those of its log.
      job, outcome: of the event.
    """

    run_id: str
    kind: str
    reason: str = ""
    logs: tuple[str, ...] = ()
    start_us: int | None = None
    end_us: int | None = None
    job: str = ""
    outcome: str = ""


@dataclass(frozen=True)
class Send:
    """One message. ``pause_s`` is waited before it; ``timestamp_s`` counts from the present; None for none."""

    key: str
    value: bytes | None
    claims: tuple[Claim, ...]
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int = 0
    timestamp_s: float | None = None
    pause_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        value = None if self.value is None else base64.b64encode(self.value).decode()
        headers = [[name, base64.b64encode(data).decode()] for name, data in self.headers]
        return {**asdict(self), "value": value, "headers": headers}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Send:
        data = None if value["value"] is None else base64.b64decode(value["value"])
        headers = tuple((name, base64.b64decode(text)) for name, text in value["headers"])
        claims = tuple(Claim(**{**claim, "logs": tuple(claim["logs"])}) for claim in value["claims"])
        return cls(**{**value, "value": data, "headers": headers, "claims": claims})


@dataclass
class Plan:
    """Messages in order, and the logs that come later: from the path in the served folder to its content."""

    sends: list[Send] = field(default_factory=list)
    late_logs: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Mix:
    """Which share of the runs meets what; the rest are plain runs."""

    repeats: float = 0.02
    again: float = 0.02  # another event that says the same
    corrections: float = 0.02
    started: float = 0.03
    cancelled: float = 0.01
    several: float = 0.02  # events that name several runs
    bad: float = 0.05
    late_logs: float = 0.01
    late: float = 0.015  # events that come minutes or hours after their time, out of order
    other_log: float = 0.01

    def scaled(self, **changes: float) -> Mix:
        return Mix(**{**asdict(self), **changes})


@dataclass
class Run:
    """A real run under a new id."""

    native: str
    run_id: str
    job: str
    provider: str
    log: str  # the file
    url: str
    start: str
    end: str
    start_us: int
    end_us: int

    def body(self, **changes: Any) -> dict[str, Any]:
        body = {
            "id": self.native, "job": self.job, "result": "SUCCESS", "pipeline": "gate", "project": "p",
            "branch": "main", "change": self.native[-12:], "provider": self.provider, "log_url": self.url,
            "start_time": self.start, "end_time": self.end,
        }  # fmt: skip
        return {key: value for key, value in {**body, **changes}.items() if value is not None}

    def claim(self, kind: str, reason: str = "", outcome: str = "success", *logs: str) -> Claim:
        return Claim(
            self.run_id, kind, reason, logs or (self.log,), self.start_us, self.end_us, self.job, outcome
        )  # fmt: skip


@cache
def builds(count: int = 120) -> list[dict[str, Any]]:
    """Real runs of the sample corpus."""
    return listed(count)


def _us(text: str) -> int:
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1_000_000)


def envelope(event_id: str, data: Any, kind: str = FINISHED, source: str = "zuul") -> dict[str, Any]:
    """A CloudEvent."""
    return {"specversion": "1.0", "id": event_id, "source": source, "type": kind, "data": data}


class Planner:
    """Makes plans. All that is random comes from one seed.

    Args:
      seed: of everything.
      logs_url: where the served folder is; the corpus lies below it as ``corpus``.
      served: the trial's own part of that folder, for logs that are broken, missing or late.
      url: the address of ``served``.
      partitions: how many there are to choose from.
      scale: plans have so many times the runs that are asked for.
    """

    def __init__(
        self, seed: int, logs_url: str, served: Path, url: str, partitions: int = 2, scale: float = 1.0
    ) -> None:
        self.random = random.Random(seed)
        self.prefix = f"s{seed}"
        self.plan = Plan()
        self.partitions = partitions
        self._scale = scale
        self._logs_url, self.served, self._url = logs_url, served, url
        self._number = 0
        served.mkdir(parents=True, exist_ok=True)

    def run(self, *, native: str = "", log: str = "", **changes: Any) -> Run:
        """A real run under an id of its own; ``log`` names another file of the trial's own folder."""
        build = builds()[self._number % len(builds())]
        native = native or f"{self.prefix}-{self._number}-{build['build_uuid'][:8]}"
        self._number += 1
        file = str(self.served / log) if log else str(CORPUS / build["log_path"])
        url = f"{self._url}/{log}" if log else f"{self._logs_url}/corpus/{build['log_path'].removeprefix('logs/')}"
        return Run(
            native, f"zuul~{native}~1", build["build_name"], build["node_flavor"], file, changes.get("url", url),
            build["start_time"], build["end_time"], _us(build["start_time"]), _us(build["end_time"]),
        )  # fmt: skip

    def send(
        self, key: str, event: dict[str, Any] | bytes | None, *claims: Claim, late_s: float = 0.0, mode: str = ""
    ) -> Send:
        """Adds a message. Structured, binary or bare, by chance, unless ``mode`` says."""
        headers: list[tuple[str, bytes]] = []
        value: bytes | None
        if isinstance(event, dict):
            mode = mode or self.random.choice(("structured", "binary", "bare"))
            value = json.dumps(event if mode != "binary" else event["data"]).encode()
            if mode == "structured":
                headers = [("content-type", b"application/cloudevents+json; charset=utf-8")]
            elif mode == "binary":
                headers = [(f"ce_{name}", event[name].encode()) for name in ("specversion", "id", "source", "type")]
        else:
            value = event
        at = self.random.randrange(self.partitions)
        send = Send(key, value, claims, tuple(headers), at, -late_s if late_s else None)
        self.plan.sends.append(send)
        return send

    def plain(self, late_s: float = 0.0, **changes: Any) -> Run:
        """A run that becomes a row."""
        run = self.run()
        self.send(run.native, envelope(f"e-{run.native}", run.body(**changes)), run.claim("run"), late_s=late_s)
        return run

    def mixed(self, runs: int, mix: Mix | None = None) -> Plan:
        """``runs`` runs, most of them plain, the others with the tricks of a mix."""
        mix, runs = mix or Mix(), max(round(runs * self._scale), 12)
        tricks: list[tuple[float, Callable[[], None]]] = [
            (mix.repeats, self._repeat), (mix.again, self._again), (mix.corrections, self._correction),
            (mix.started, self._started), (mix.cancelled, self._cancelled), (mix.several, self._several),
            (mix.bad, self._bad), (mix.late_logs, self._late_log), (mix.other_log, self._other_log),
            (mix.late, self._late),
        ]  # fmt: skip
        todo: list[Callable[[], Any]] = []
        for share, trick in tricks:
            todo += [trick] * max(round(share * runs), 1 if share else 0)
        todo += [self.plain] * max(runs - len(todo), 0)
        self.random.shuffle(todo)
        for each in todo:
            each()
        self._scatter()
        return self.plan

    def mixed_again(self, runs: int, mix: Mix | None = None) -> Plan:
        """As `mixed`, a further plan with other runs."""
        self.plan = Plan()
        return self.mixed(runs, mix)

    def _scatter(self) -> None:
        """Moves repeats away from what they repeat, some far and some near, and late events out of their order."""
        sends = self.plan.sends
        places: dict[int, float] = {}
        seen: set[str] = set()
        for index, send in enumerate(sends):
            moved = send.key in seen or send.timestamp_s is not None
            places[id(send)] = index + (self.random.expovariate(1 / (0.1 * len(sends))) if moved else 0.0)
            seen.add(send.key)
        sends.sort(key=lambda send: places[id(send)])

    # --- the tricks

    def _repeat(self) -> None:
        run = self.run()
        event = envelope(f"e-{run.native}", run.body())
        self.send(run.native, event, run.claim("run"))
        for _ in range(self.random.choice((1, 1, 2))):
            self.send(run.native, event, run.claim("repeat", "event"))

    def _again(self) -> None:
        run = self.plain()
        self.send(run.native, envelope(f"other-{run.native}", run.body()), run.claim("repeat", "run"))

    def _correction(self) -> None:
        run = self.plain()
        body = run.body(result="FAILURE")
        self.send(run.native, envelope(f"c-{run.native}", body), run.claim("correction", "outcome", "failure"))

    def _started(self) -> None:
        run = self.plain()
        event = envelope(f"s-{run.native}", {"id": run.native, "job": run.job}, STARTED)
        self.send(run.native, event, run.claim("ignored", "not_finished"))

    def _cancelled(self) -> None:
        run = self.run()
        event = envelope(f"x-{run.native}", run.body(result="ABORTED"))
        self.send(run.native, event, run.claim("ignored", "cancelled"))

    def _several(self) -> None:
        runs = [self.run() for _ in range(self.random.choice((2, 3, 5)))]
        bodies = [run.body() for run in runs]
        claims = [run.claim("run") for run in runs]
        if self.random.random() < 0.5:
            bad = self.run()
            bodies.append(bad.body(start_time="yesterday"))
            claims.append(bad.claim("dead_letter", "bad_time"))
        event = envelope(f"m-{runs[0].native}", {"runs": bodies})
        self.send(runs[0].native, event, *claims)
        if self.random.random() < 0.3:  # the same event again repeats each of its runs
            self.send(runs[0].native, event, *(self._repeated(claim) for claim in claims))

    @staticmethod
    def _repeated(claim: Claim) -> Claim:
        return Claim(**{**asdict(claim), "kind": "repeat", "reason": "event"})

    def _late(self) -> None:
        self.plain(late_s=self.random.choice((30.0, 300.0, 4000.0, 90_000.0)))

    def _late_log(self) -> None:
        name = f"late-{self._number}.csv.gz"
        content = (CORPUS / builds()[self._number % len(builds())]["log_path"]).read_bytes()
        run = self.run(log=name)
        self.plan.late_logs[name] = content
        self.send(run.native, envelope(f"e-{run.native}", run.body()), run.claim("run"))

    def _other_log(self) -> None:
        name = f"other-{self._number}.csv"
        run = self.run()
        text = gzip.decompress(Path(run.log).read_bytes()).rstrip(b"\n")
        (self.served / name).write_bytes(text[: text.rindex(b"\n") + 1])
        logs = (run.log, str(self.served / name))
        self.send(run.native, envelope(f"e-{run.native}", run.body()), run.claim("run", "", "success", *logs))
        other = envelope(f"o-{run.native}", run.body(log_url=f"{self._url}/{name}"))
        self.send(run.native, other, run.claim("repeat", "other_log", "success", *logs))

    def bad_log(self, name: str, data: bytes | None, reason: str, **changes: Any) -> Run:
        """A run whose log is ``data`` (None: not there at all), which makes it a dead letter."""
        if data is not None:
            (self.served / name).write_bytes(data)
        run = self.run(log=name)
        event = envelope(f"e-{run.native}", run.body(**changes))
        self.send(run.native, event, run.claim("dead_letter", reason))
        return run

    def _bad(self) -> None:
        number = self._number
        real = (CORPUS / builds()[number % len(builds())]["log_path"]).read_bytes()
        header = re.split(rb"(?m)^(?=[^\"])", gzip.decompress(real), maxsplit=1)[0]
        run = self.run()
        native, body = run.native, run.body()

        def undecodable(value: bytes | dict[str, Any] | None, reason: str, mode: str = "bare") -> Callable[[], Any]:
            return lambda: self.send(native, value, Claim("", "dead_letter", reason), mode=mode)

        def useless(event: dict[str, Any], reason: str) -> Callable[[], Any]:
            return lambda: self.send(native, event, run.claim("dead_letter", reason))

        kinds: list[Callable[[], Any]] = [
            undecodable(b'{"specversion": "1.0", "id": ', "broken_json"),
            undecodable(b"\xff\xfe\x00", "broken_json"),
            undecodable(b"[1, 2]", "not_an_event"),
            undecodable(None, "tombstone"),
            undecodable(envelope(f"e-{native}", body, "dev.example.unknown"), "unknown_type"),
            undecodable(envelope(f"e-{native}", run.body(id=None)), "missing_field"),
            undecodable(envelope(f"e-{native}", run.body(attempt=0)), "bad_run_id"),
            useless(envelope(f"e-{native}", run.body(log_url=None)), "missing_field"),
            useless(envelope(f"e-{native}", run.body(result="MAYBE")), "bad_field"),
            useless(envelope(f"e-{native}", run.body(end_time="2001-01-01T00:00:00Z")), "bad_time"),
            useless(envelope(f"e-{native}", run.body(log_url="http://169.254.169.254/x")), "address_not_allowed"),
            useless(envelope(f"e-{native}", run.body(log_url="file:///etc/passwd")), "address_not_allowed"),
            lambda: self.bad_log(f"none-{number}.csv", None, "log_not_found"),
            lambda: self.bad_log(f"cut-{number}.csv.gz", real[:-20], "corrupt_gzip"),
            lambda: self.bad_log(f"html-{number}.csv", b"<html><body>404</body></html>\n" * 30, "not_telemetry"),
            lambda: self.bad_log(f"head-{number}.csv", header, "empty_telemetry"),
        ]
        self.random.choice(kinds)()


def now_iso() -> str:
    """The present, for reports."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
