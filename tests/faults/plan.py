"""What a producer sends, and what has to become of each (delivery, run): by construction, never by looking at results.

Events are written here field by field, so that no mistake of ciml's own writer can hide one of its reader.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.corpus import CORPUS, builds

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
    """One message. ``timestamp_s`` counts from the present; None for none."""

    key: str
    value: bytes | None
    claims: tuple[Claim, ...]
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int = 0
    timestamp_s: float | None = None


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


#: Builds of the sample corpus, which runs take in turn.
_BUILDS = 120
#: Their providers.
PROVIDERS = sorted({build["node_flavor"] for build in builds(_BUILDS)})
_USUAL = Mix()


@dataclass
class Run:
    """A real run under a new id, and the file that its telemetry comes from."""

    native: str
    job: str
    provider: str
    log: str
    url: str
    start: str
    end: str

    @property
    def run_id(self) -> str:
        return f"zuul~{self.native}~1"

    def body(self, **changes: Any) -> dict[str, Any]:
        body = {
            "id": self.native, "job": self.job, "result": "SUCCESS", "pipeline": "gate", "project": "p",
            "branch": "main", "change": self.native[-12:], "provider": self.provider, "log_url": self.url,
            "start_time": self.start, "end_time": self.end,
        }  # fmt: skip
        return {key: value for key, value in {**body, **changes}.items() if value is not None}

    def claim(self, kind: str, reason: str = "", outcome: str = "success", *logs: str) -> Claim:
        times = _us(self.start), _us(self.end)
        return Claim(self.run_id, kind, reason, logs or (self.log,), *times, self.job, outcome)


def _us(text: str) -> int:
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1_000_000)


def envelope(event_id: str, data: Any, kind: str = FINISHED) -> dict[str, Any]:
    """Return a CloudEvent."""
    return {"specversion": "1.0", "id": event_id, "source": "zuul", "type": kind, "data": data}


def repeated(claim: Claim) -> Claim:
    """Return what a claim becomes when its event comes again."""
    return replace(claim, kind="repeat", reason="event") if claim.run_id else claim


class Planner:
    """Makes plans. All that is random comes from one seed.

    Args:
      seed: of everything.
      logs_url: where the served folder is; the corpus lies below it as ``corpus``.
      served: the trial's own part of that folder, for logs that are broken, missing or late.
      url: the address of ``served``.
      partitions: how many there are to choose from.
      scale: plans have so many times the runs that are asked for.

    Attributes:
      plan: the messages that are not sent yet.
    """

    def __init__(
        self, seed: int, logs_url: str, served: Path, url: str, partitions: int = 2, scale: float = 1.0
    ) -> None:
        self.random = random.Random(seed)
        self.plan = Plan()
        self.partitions = partitions
        self.served = served
        self._seed, self._scale = seed, scale
        self._logs_url, self._url = logs_url, url
        self._number = 0
        served.mkdir(parents=True, exist_ok=True)

    def run(self, log: str = "") -> Run:
        """Return a real run under an id of its own; ``log`` names another file of the trial's own folder."""
        build = self._build()
        native = f"s{self._seed}-{self._number}-{build['build_uuid'][:8]}"
        self._number += 1
        file = str(self.served / log) if log else str(CORPUS / build["log_path"])
        url = f"{self._url}/{log}" if log else f"{self._logs_url}/corpus/{build['log_path'].removeprefix('logs/')}"
        times = build["start_time"], build["end_time"]
        return Run(native, build["build_name"], build["node_flavor"], file, url, *times)

    def _build(self) -> dict[str, Any]:
        return builds(_BUILDS)[self._number % _BUILDS]

    def send(
        self, key: str, event: dict[str, Any] | bytes | None, *claims: Claim, late_s: float = 0.0, mode: str = ""
    ) -> None:
        """Add a message: structured, binary or bare, by chance, unless ``mode`` says."""
        headers: list[tuple[str, bytes]] = []
        value = event if isinstance(event, bytes) else None
        if isinstance(event, dict):
            mode = mode or self.random.choice(("structured", "binary", "bare"))
            value = json.dumps(event if mode != "binary" else event["data"]).encode()
            if mode == "structured":
                headers = [("content-type", b"application/cloudevents+json; charset=utf-8")]
            elif mode == "binary":
                headers = [(f"ce_{name}", event[name].encode()) for name in ("specversion", "id", "source", "type")]
        partition = self.random.randrange(self.partitions)
        self.plan.sends.append(Send(key, value, claims, tuple(headers), partition, -late_s if late_s else None))

    def event(self, run: Run, claim: Claim, prefix: str = "e", *, late_s: float = 0.0, **changes: Any) -> None:
        """Add an event of a finished run."""
        self.send(run.native, envelope(f"{prefix}-{run.native}", run.body(**changes)), claim, late_s=late_s)

    def plain(self, late_s: float = 0.0) -> Run:
        """Add a run that becomes a row."""
        run = self.run()
        self.event(run, run.claim("run"), late_s=late_s)
        return run

    def mixed(self, runs: int, mix: Mix = _USUAL) -> Plan:
        """Add runs, most of them plain, the others with the tricks of a mix; return the plan."""
        runs = max(round(runs * self._scale), 12)
        tricks: list[tuple[float, Callable[[], Any]]] = [
            (mix.repeats, self._repeat), (mix.again, self._again), (mix.corrections, self._correction),
            (mix.started, self._started), (mix.cancelled, self._cancelled), (mix.several, self._several),
            (mix.bad, self._bad), (mix.late_logs, self._late_log), (mix.other_log, self._other_log),
            (mix.late, lambda: self.plain(late_s=self.random.choice((30.0, 300.0, 4000.0, 90_000.0)))),
        ]  # fmt: skip
        todo: list[Callable[[], Any]] = []
        for share, trick in tricks:
            todo += [trick] * max(round(share * runs), 1 if share else 0)
        todo += [self.plain] * max(runs - len(todo), 0)
        self.random.shuffle(todo)
        for add in todo:
            add()
        self._scatter()
        return self.plan

    def _scatter(self) -> None:
        """Move repeats away from what they repeat, some far and some near, and late events out of their order."""
        sends = self.plan.sends
        places: dict[int, float] = {}
        seen: set[str] = set()
        for index, send in enumerate(sends):
            moved = send.key in seen or send.timestamp_s is not None
            places[id(send)] = index + (self.random.expovariate(1 / (0.1 * len(sends))) if moved else 0.0)
            seen.add(send.key)
        sends.sort(key=lambda send: places[id(send)])

    def _repeat(self) -> None:
        run = self.plain()
        for _ in range(self.random.choice((1, 1, 2))):
            self.event(run, repeated(run.claim("run")))

    def _again(self) -> None:
        run = self.plain()
        self.event(run, run.claim("repeat", "run"), "other")

    def _correction(self) -> None:
        run = self.plain()
        self.event(run, run.claim("correction", "outcome", "failure"), "c", result="FAILURE")

    def _started(self) -> None:
        run = self.plain()
        event = envelope(f"s-{run.native}", {"id": run.native, "job": run.job}, STARTED)
        self.send(run.native, event, run.claim("ignored", "not_finished"))

    def _cancelled(self) -> None:
        run = self.run()
        self.event(run, run.claim("ignored", "cancelled"), result="ABORTED")

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
            self.send(runs[0].native, event, *map(repeated, claims))

    def _late_log(self) -> None:
        name = f"late-{self._number}.csv.gz"
        self.plan.late_logs[name] = (CORPUS / self._build()["log_path"]).read_bytes()
        run = self.run(log=name)
        self.event(run, run.claim("run"))

    def _other_log(self) -> None:
        name = f"other-{self._number}.csv"
        run = self.run()
        text = gzip.decompress(Path(run.log).read_bytes()).rstrip(b"\n")
        (self.served / name).write_bytes(text[: text.rindex(b"\n") + 1])
        logs = (run.log, str(self.served / name))
        self.event(run, run.claim("run", "", "success", *logs))
        self.event(run, run.claim("repeat", "other_log", "success", *logs), "o", log_url=f"{self._url}/{name}")

    def _bad_log(self, name: str, data: bytes | None, reason: str) -> None:
        """Add a run whose log is ``data`` (None: missing), which makes it a dead letter."""
        if data is not None:
            (self.served / name).write_bytes(data)
        run = self.run(log=name)
        self.event(run, run.claim("dead_letter", reason))

    def _bad(self) -> None:
        number = self._number
        real = (CORPUS / self._build()["log_path"]).read_bytes()
        header = re.split(rb"(?m)^(?=[^\"])", gzip.decompress(real), maxsplit=1)[0]
        run = self.run()

        def undecodable(value: bytes | dict[str, Any] | None, reason: str) -> None:
            self.send(run.native, value, Claim("", "dead_letter", reason), mode="bare")

        def useless(reason: str, **changes: Any) -> None:
            self.event(run, run.claim("dead_letter", reason), **changes)

        def of_body(kind: str = FINISHED, **changes: Any) -> dict[str, Any]:
            return envelope(f"e-{run.native}", run.body(**changes), kind)

        kinds: list[Callable[[], None]] = [
            lambda: undecodable(b'{"specversion": "1.0", "id": ', "broken_json"),
            lambda: undecodable(b"\xff\xfe\x00", "broken_json"),
            lambda: undecodable(b"[1, 2]", "not_an_event"),
            lambda: undecodable(None, "tombstone"),
            lambda: undecodable(of_body("dev.example.unknown"), "unknown_type"),
            lambda: undecodable(of_body(id=None), "missing_field"),
            lambda: undecodable(of_body(attempt=0), "bad_run_id"),
            lambda: useless("missing_field", log_url=None),
            lambda: useless("bad_field", result="MAYBE"),
            lambda: useless("bad_time", end_time="2001-01-01T00:00:00Z"),
            lambda: useless("address_not_allowed", log_url="http://169.254.169.254/x"),
            lambda: useless("address_not_allowed", log_url="file:///etc/passwd"),
            lambda: self._bad_log(f"none-{number}.csv", None, "log_not_found"),
            lambda: self._bad_log(f"cut-{number}.csv.gz", real[:-20], "corrupt_gzip"),
            lambda: self._bad_log(f"html-{number}.csv", b"<html><body>404</body></html>\n" * 30, "not_telemetry"),
            lambda: self._bad_log(f"head-{number}.csv", header, "empty_telemetry"),
        ]
        self.random.choice(kinds)()
