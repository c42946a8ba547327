"""Failed runs on changes, each followed from its message to the message on its change."""

from __future__ import annotations

import gzip
import logging
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciml import engines
from ciml.cli.demo.corpus import Sample
from ciml.cli.demo.definitions import CAUSE
from ciml.cli.demo.predictions import Predictions
from ciml.cli.demo.processes import wait_for
from ciml.cli.demo.report.result import AnswerLine
from ciml.cli.demo.review.servers import PROJECT, SETTLE_S, SOURCE, Gerrit, Review, configure
from ciml.events.cloudevents import finished_event
from ciml.events.records import RunFacts
from ciml.events.run_id import RunId
from ciml.verdicts.feedback.corrections import CAUSES

if TYPE_CHECKING:
    from ciml.cli.demo.run import Demo
    from ciml.data_root import DataRoot
    from ciml.serving.registry import Registry
    from ciml.transforms.profiles import Profiles
    from ciml.verdicts.feedback.config import Feedback

#: Seconds from which on the telemetry of a run is surely long enough to be compared.
_LONG_S = 12.0
#: Number of runs, each on a change of its own.
MOST = 6
WAIT_S = 120.0
#: The times of dool's logs: of a sample (epoch seconds, or without a year), and of the header.
_SAMPLED = "%b-%d %H:%M:%S"
_WRITTEN = "%d %b %Y %H:%M:%S"
_TIME = re.compile(
    r"^(?P<epoch>\d{10}(?:\.\d+)?)(?=,)"
    r"|^(?P<sampled>[A-Z][a-z]{2}-\d\d \d\d:\d\d:\d\d)(?=,)"
    r"|(?<=\"Date:\",\")\d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d"
)


def moved(log: bytes, started: datetime, now: datetime) -> bytes:
    """Return a log of dool whose samples were taken as long after ``now`` as they were after ``started``."""

    def later(found: re.Match[str]) -> str:
        if found["epoch"]:
            return f"{float(found[0]) + (now - started).total_seconds():.3f}"
        form, year = (_SAMPLED, f"{started.year} ") if found["sampled"] else (_WRITTEN, "")
        taken = datetime.strptime(year + found[0], ("%Y " if year else "") + form).replace(tzinfo=UTC)
        return (now + (taken - started)).strftime(form)

    lines = gzip.decompress(log).decode().splitlines(keepends=True)
    return gzip.compress("".join(_TIME.sub(later, line, count=1) for line in lines).encode())


def ending_now(sample: Sample, change: Mapping[str, str], now: datetime) -> RunFacts:
    """Return the facts of a run of a change that has just ended, as long as the recorded one, with an id of its own.

    Args:
      sample: the recorded run. Its recorded cause is left out, as nobody has judged the new one.
      change: its number and commit.
      now: the end.
    """
    begin, end = _times(sample.facts)
    end_us = round(now.timestamp() * 1e6)
    start_us = end_us - round((end - begin).total_seconds() * 1e6)
    native = uuid.uuid4().hex
    labels = {name: text for name, text in sample.facts.labels.items() if name != "cause"}
    return sample.facts.replace(
        run_id=RunId(SOURCE, native).encode(),
        build_uuid=native,
        start_us=start_us,
        end_us=end_us,
        source=SOURCE,
        labels=labels,
        pipeline="check",
        project=PROJECT,
        branch="master",
        patchset="1",
        **change,
    )


def _times(facts: RunFacts) -> tuple[datetime, datetime]:
    assert facts.start_us is not None
    assert facts.end_us is not None
    return datetime.fromtimestamp(facts.start_us / 1e6, UTC), datetime.fromtimestamp(facts.end_us / 1e6, UTC)


def publish(broker: str, facts: RunFacts) -> float:
    """Publish a run's event; return the time at which the broker had it, by `time.monotonic`."""
    from paho.mqtt import publish as mqtt

    logging.getLogger("paho").setLevel(logging.CRITICAL)  # it calls the end of a connection an error
    host, _, port = broker.removeprefix("mqtt://").partition(":")
    body, _ = finished_event(facts)
    mqtt.single(f"ci/{PROJECT}/{facts.change}", body, qos=1, hostname=host, port=int(port))
    return time.monotonic()


@dataclass
class Asked:
    """A run that is asked about on a change of its own.

    Attributes:
      sample: the recorded run.
      cause: of its failure, as recorded.
      facts: of the run.
      published_s: `time.monotonic` of its message.
      took_s: from then to what is said on the change; None while nothing is.
      silent: why nothing is to be said, by the policy of feedback; "" for a message; None before the prediction.
      said: the messages.
    """

    sample: Sample
    cause: str
    facts: RunFacts
    published_s: float = 0.0
    took_s: float | None = None
    silent: str | None = None
    said: list[str] = field(default_factory=list)

    def look(self, gerrit: Gerrit) -> None:
        """Read what is said on the change."""
        self.said = gerrit.said(self.facts.change)
        if self.said and self.took_s is None:
            self.took_s = time.monotonic() - self.published_s

    def judge(self, data: DataRoot, feedback: Feedback, record: Mapping[str, Any]) -> None:
        """Judge the prediction of the run as feedback does."""
        from ciml.services.feedback import try_messages

        if self.silent is None and record:
            (trial,) = try_messages(data, feedback, [record])
            self.silent = " ".join(filter(None, [trial.reason, trial.detail and f"({trial.detail})"]))

    def line(self, record: Mapping[str, Any]) -> AnswerLine:
        """Return the line of the report, with the run's prediction."""
        verdict = record.get("verdict", {})
        return AnswerLine(
            change=self.facts.change,
            job=self.sample.facts.build_name,
            outcome=self.sample.facts.outcome or "",
            cause=self.cause,
            verdict=verdict.get("cause", ""),
            probability=verdict.get("probability"),
            silent=self.silent or "",
            took_s=None if self.took_s is None else round(self.took_s, 1),
            messages=self.said,
        )


def ask(demo: Demo, running: engines.Engines, sample: Sample, cause: str) -> Asked:
    """Propose a change, and publish a run of it that has just ended."""
    gerrit = Gerrit(running.gerrit)
    change = gerrit.propose(f"A change, tested by {sample.facts.build_name}")
    now = datetime.now(UTC)
    facts = ending_now(sample, change, now)
    path = f"review/{facts.build_uuid}.csv.gz"
    log = moved((demo.logs.corpus / sample.log_path).read_bytes(), _times(sample.facts)[0], _times(facts)[0])
    (demo.logs.folder / "review").mkdir(exist_ok=True)
    (demo.logs.folder / path).write_bytes(log)
    asked = Asked(sample, cause, facts)
    asked.published_s = publish(running.mosquitto, facts.replace(log_url=f"{demo.engines.logs}/{path}"))
    return asked


def begin_review(demo: Demo, review: Review) -> None:
    """Begin to start the servers of the last act, and see to a model of causes that answers.

    One that the gate rejected is pushed all the same: the act shows the way to a message on a change.
    """
    from ciml.serving.registry import Registry

    registry = Registry(demo.data, CAUSE)
    if not review.missing and registry.state.champion is None:
        if registry.state.last_candidate:
            review.rejected = push_rejected(registry)
        else:
            review.missing = f"too few runs to train the model {CAUSE}"
    review.begin()


def push_rejected(registry: Registry) -> str:
    """Push the last candidate, and record that it was rejected; return the gate's reasons."""
    from ciml.serving.push import push_candidate
    from ciml.serving.registry import Decision
    from ciml.training.runtime import tensorflow

    tensorflow()  # quietly, before the check of the candidate loads it
    candidate = registry.state.last_candidate
    why = "; ".join(registry.state.decisions[candidate].reasons)
    registry.record_decision(candidate, Decision(True, (f"pushed by the demo, although the gate rejected it: {why}",)))
    push_candidate(registry, candidate)
    return why


def answer_changes(demo: Demo, review: Review) -> list[AnswerLine]:
    """Ask about failed runs that no training has seen, and return what was said on their changes.

    Raises:
      EngineError: a prediction, or the message of a verdict that the policy lets pass, does not come.
    """
    with demo.steps.step("start Gerrit and mosquitto") as step:
        running = review.ready()
        if running is None:
            step.report(f"left out: {review.missing}")
            return []
        Gerrit(running.gerrit).set_up()
        from ciml.verdicts.feedback.config import load_feedback

        feedback = load_feedback(start_commands(demo, running))
    with demo.steps.step("answer on changes") as step:
        asked = [ask(demo, running, sample, cause) for sample, cause in chosen(demo)]
        records = Predictions(demo.data.predictions)

        def answered() -> bool:
            records.catch_up()
            for one in asked:
                one.look(Gerrit(running.gerrit))
            found = {one["run_id"]: one for one in records.records}
            verdicts = [found.get(one.facts.run_id, {}) for one in asked]
            for one, record in zip(asked, verdicts, strict=True):
                one.judge(demo.data, feedback, record)
            lines[:] = [one.line(record) for one, record in zip(asked, verdicts, strict=True)]
            step.report(f"{sum(bool(one.said) for one in asked)} messages on {len(asked)} changes")
            return all(verdicts) and all(line.messages or line.silent for line in lines)

        lines: list[AnswerLine] = []
        wait_for(answered, "waiting for messages on changes", demo.children, WAIT_S)
        time.sleep(2 * SETTLE_S)  # whether more is said than should be
        answered()
    return lines


def start_commands(demo: Demo, running: engines.Engines) -> Path:
    """Start the receiver and feedback; let predict ask the model of causes. Return the configuration of feedback."""
    receivers, feedback = configure(Path(demo.data.demo.url("review")), running)
    kafka = ("--kafka", demo.engines.kafka)
    place = ("--data-path", demo.data.url)
    demo.children.end("predict")
    children = {
        "receive": ("receive", "mqtt", "--config", str(receivers), *kafka),
        "predict": (
            "predict",
            "stream",
            *place,
            *kafka,
            "--engine",
            "micro-batches",
            "--model",
            CAUSE,
            "--server",
            demo.engines.models["grpc"],
        ),
        "feedback": ("feedback", "stream", "--config", str(feedback), *place, *kafka),
    }
    for name, arguments in children.items():
        demo.children.start(name, *arguments)
    # The broker keeps messages for a receiver from its first connection on.
    connected = demo.children.running["receive"].log
    wait_for(lambda: "receiving mqtt" in connected.read_text(), "connecting to mosquitto", demo.children, WAIT_S)
    return feedback


def chosen(demo: Demo) -> list[tuple[Sample, str]]:
    """Return failed runs that no training has seen, and their recorded causes: of both causes in turn.

    Runs that can be compared with passing runs of their job come first: of others, nothing is said.
    """
    from ciml.serving.registry import Registry
    from ciml.verdicts.evidence.evidence import profiles_of_version

    champion = Registry(demo.data, CAUSE).state.champion
    profiles = profiles_of_version(demo.data, CAUSE, champion or 1)
    runs = [run for span in demo.data.dataset(CAUSE).state().latest() for run in span.runs if run.split == "test"]
    samples = {sample.facts.run_id: sample for sample in demo.plan.samples}
    by_cause = [
        comparable_first([(samples[run.run_id], cause) for run in runs if run.label_name == cause], profiles)
        for cause in sorted(CAUSES)
    ]
    return [pair for turn in zip_longest(*by_cause) for pair in turn if pair is not None][:MOST]


def comparable_first(runs: Sequence[tuple[Sample, str]], profiles: Profiles) -> list[tuple[Sample, str]]:
    """Return runs, those first that last long enough and whose job has a profile; else in their order."""

    def is_short_or_unknown(pair: tuple[Sample, str]) -> bool:
        facts = pair[0].facts
        begin, end = _times(facts)
        return (end - begin).total_seconds() <= _LONG_S or not profiles.of(facts.build_name).job

    return sorted(runs, key=is_short_or_unknown)
