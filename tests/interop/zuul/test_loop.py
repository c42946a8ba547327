"""The whole loop: a change of a real Gerrit fails in a real Zuul, and says by itself what ciml makes of it.

change → Gerrit → Zuul → job with telemetry and output → MQTT → Kafka → ingest → predict → verdict → feedback → message

The model has learned from the sample runs alone: their jobs are others, and so are their tools and their machine.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from ciml.data_root import DataRoot
from ciml.intervals import wilson
from ciml.manifest.log import ManifestLog
from ciml.runs.latest_runs import StoredRun, latest_runs
from ciml.runs.outputs import read_output
from ciml.runs.state import open_raw
from ciml.verdict_rules import Verdict
from ciml.verdicts.evidence.output import output_evidence
from ciml.verdicts.feedback.config import Policy
from ciml.verdicts.feedback.judgement import doubt_of
from tests.corpus import CORPUS, builds
from tests.interop.zuul import gerrit
from tests.interop.zuul.conftest import ROOT, Operator, wait_until
from tests.interop.zuul.loop import FIRST, LATER, Message, Plan, machine, messages, propose, reported

pytestmark = [pytest.mark.interop, pytest.mark.engines, pytest.mark.timeout(7200)]
MODEL = "cause"
EXAMPLES = ROOT / "examples"
#: Longer than a feedback that was killed waits before it settles a call of unknown outcome, seconds.
QUIET_S = 60.0

#: The words of a verdict.
_BECAUSE = {"code": "this change", "machine": "the machine"}
#: Of 80 failures, a third are calibration's: with the example's coverage of 0.9, they would leave few verdicts.
_COVERAGE = ("coverage = 0.9", "coverage = 0.8")


@dataclass
class Change:
    """A change, its runs and its messages."""

    plan: Plan
    number: str
    runs: list[StoredRun] = field(default_factory=list)
    said: list[Message] = field(default_factory=list)

    @property
    def checked(self) -> StoredRun:
        """The run of the pipeline check."""
        return next(run for run in self.runs if run.facts.pipeline == "check")


@pytest.fixture
def learned(operator: Operator) -> Operator:
    """An operator with a model of causes, which has learned from the sample runs that have an output."""
    lines = [json.dumps(line) for line in builds() if "output_path" in line]
    (operator.folder / "builds.jsonl").write_text("\n".join(lines))
    place = ("--data-path", "data")
    operator.ciml("backfill", "builds.jsonl", "--logs", str(CORPUS), *place)
    (operator.folder / "experiment.toml").write_text(
        (EXAMPLES / "cause-experiment.toml").read_text().replace(*_COVERAGE)
    )
    operator.ciml("dataset", "create", MODEL, "--definition", str(EXAMPLES / "cause.toml"), *place)
    operator.ciml("dataset", "update", MODEL, "--seal", *place)
    print(operator.ciml("refresh", "--dataset", MODEL, "--experiment", "experiment.toml", *place, timeout=900))
    return operator


@dataclass
class Working:
    """An operator's ingest, model server, predict and feedback, in processes of their own."""

    operator: Operator
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def data(self) -> DataRoot:
        return DataRoot.open(str(self.operator.folder / "data"))

    def start(self, *command: str) -> None:
        """Start a command at the end of the topics."""
        place = ("--data-path", "data", "--kafka", self.operator.kafka)
        self.processes[command[0]] = self.operator.start(*command, *place)

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self.processes[name].kill()
        self.processes[name].wait(30)


#: The loop measures the way to a message, so its new model needs no settled verdicts and no comparison.
_IN_EARNEST = 'dry_run = false\nsettle_s = 2\nactive_models = ["*"]\nmin_passing_runs = 0'
_FEEDBACK_COMMAND = ("feedback", "stream", "--config", "feedback.toml")


@pytest.fixture
def at_work(learned: Operator) -> Iterator[Working]:
    """The operator with a model, and all that answers changes."""
    learned.ciml("up", "models", "--models-config", "data/models/models.config")
    feedback = learned.folder / "feedback.toml"  # as ciml connect wrote it, but in earnest; a change has one job
    feedback.write_text(feedback.read_text().replace("dry_run = true", _IN_EARNEST))
    policies = ("--fetch-policy", "fetch.toml", "--trust-policy", "trust.toml")
    working = Working(learned)
    working.start("ingest", "--engine", "micro-batches", *policies)
    working.start("predict", "stream", "--engine", "micro-batches", "--model", MODEL)
    working.start(*_FEEDBACK_COMMAND)
    try:
        yield working
    finally:
        for process in working.processes.values():
            process.terminate()
        for process in working.processes.values():
            process.wait(60)
        learned.ciml("down")


def test_the_changes(at_work: Working, zuul: Path) -> None:
    changes = []
    with machine(zuul) as struck:
        for batch in (FIRST, *LATER):
            changes += followed(batch)
            at_work.kill("feedback")  # it may be in the middle of anything
            at_work.start(*_FEEDBACK_COMMAND)
    predicted = settled(at_work.data, changes)
    for change in changes:
        change.said = messages(change.number)
    report(at_work, changes, predicted)
    assert len(struck) == sum(change.plan.trouble != "none" for change in changes)
    for change in changes:
        check(at_work.data, change, predicted)
    assert any(change.said for change in changes), "no verdict was confident: nothing was posted"


def followed(batch: tuple[Plan, ...]) -> list[Change]:
    """Propose the changes of a batch, and wait for Zuul's reports. Approve what is to merge, and wait until it is."""
    changes = [Change(plan, propose(plan)) for plan in batch]
    for change in changes:
        wait_until(lambda change=change: reported(change.number), f"check of change {change.number}", 900)
        if change.plan.merges:
            gerrit.approve(change.number)
    for change in changes:
        if change.plan.merges:
            wait_until(lambda change=change: gerrit.status(change.number) == "MERGED", f"merge of {change.number}", 900)
    return changes


def settled(data: DataRoot, changes: list[Change]) -> dict[str, dict[str, Any]]:
    """Wait until all runs are stored and predicted, and until nothing more is posted. Return predictions by run."""
    predicted: dict[str, dict[str, Any]] = {}

    def are_predicted() -> bool:
        runs = list(latest_runs(*open_raw(data.raw)))
        predicted.update(predictions(data))
        for change in changes:
            change.runs = [run for run in runs if (run.facts.project, run.facts.change) == ("app", change.number)]
        wanted = all(len(change.runs) == 1 + change.plan.merges for change in changes)
        return wanted and all(run.facts.run_id in predicted for change in changes for run in change.runs)

    wait_until(are_predicted, "a prediction for each run", 180)
    before, since = -1, time.monotonic()
    while time.monotonic() - since < QUIET_S:
        if (now := sum(len(messages(change.number)) for change in changes)) != before:
            before, since = now, time.monotonic()
        time.sleep(1.0)
    return predicted


def predictions(data: DataRoot) -> dict[str, dict[str, Any]]:
    """Return the stored predictions of causes, or why there is none, by run."""
    return {
        record["run_id"]: record
        for _, delta in ManifestLog(data.predictions).since(0)
        for record in [*delta["unpredictable"], *delta["predictions"]]
        if record["model"] == MODEL
    }  # fmt: skip


def published_s(kafka: str) -> dict[str, float]:
    """Return when the first prediction of each run was published on the topic, epoch seconds, by run."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "none", "enable.auto.commit": False})
    try:
        _, end = consumer.get_watermark_offsets(TopicPartition("predictions", 0), 30)
        consumer.assign([TopicPartition("predictions", 0, 0)])
        times: dict[str, float] = {}
        while end and (message := consumer.poll(30)) is not None:
            times.setdefault((message.key() or b"").decode(), message.timestamp()[1] / 1e3)
            if message.offset() == end - 1:
                break
        return times
    finally:
        consumer.close()


def check(data: DataRoot, change: Change, predicted: dict[str, dict[str, Any]]) -> None:
    """Check outcomes, outputs, verdicts and messages of a change."""
    where = f"{change.plan.kind}, change {change.number}"
    assert change.checked.outcome in change.plan.outcomes, where
    for run in change.runs:
        assert run.facts.auth == "mqtt-user", where
        assert run.facts.log_url.endswith("/dstat-csv_log.txt.gz"), where  # an artifact names the telemetry
        assert run.facts.output_url.endswith("/job-output.txt"), where
        assert run.file.rows >= 1, where
        kept = read_output(data.raw, run.output)
        assert not isinstance(kept, str), (where, kept)
        record = predicted[run.facts.run_id]
        if "reason" in record:  # it passed within the first sample
            assert (record["reason"], run.outcome) == ("empty", "success"), (where, record)
            continue
        assert ("verdict" in record) == (run.outcome != "success"), (where, record)
        if "verdict" in record:
            assert record["run"]["change"] == change.number, where
            assert record["run"]["outcome"] == run.outcome, where
            assert record["run"]["output_url"] == run.facts.output_url, where
    verdicts = [predicted[run.facts.run_id].get("verdict", {}) for run in change.runs]
    confident = [verdict["cause"] for verdict in verdicts if verdict and is_clear(verdict)]
    assert [said.patchset for said in change.said] == [1] * len(confident), where
    for said, cause in zip(change.said, confident, strict=True):
        assert f"“unit” failed, probably because of {_BECAUSE[cause]}." in said.text.partition("\n")[0], said.text


def is_clear(verdict: dict[str, Any]) -> bool:
    """Return whether a verdict is certain enough for a message."""
    return doubt_of(Verdict.from_json(verdict), Policy()) is None


def report(at_work: Working, changes: list[Change], predicted: dict[str, dict[str, Any]]) -> None:
    """Print what became of each change, the counts, the seconds, and the messages."""
    published = published_s(at_work.operator.kafka)
    waited: dict[str, list[float]] = {"verdict on the topic": [], "message": []}
    judged, lines, likely = Counter[tuple[str, str]](), Counter[bool](), Counter[bool]()
    print("\n| change | kind | outcome | cause | verdict | probability, set | right | line | verdict, s | message, s |")
    for change in changes:
        run, plan = change.checked, change.plan
        end_s = run.facts.end_us / 1e6
        record = predicted[run.facts.run_id]
        verdict = record.get("verdict", {})
        topic_s = published[run.facts.run_id] - end_s if "reason" not in record else None
        waited["verdict on the topic"] += [topic_s] if verdict and topic_s is not None else []
        waited["message"] += [said.time_s - end_s for said in change.said]
        cells = [change.number, plan.kind, run.outcome, plan.cause or "–", record.get("reason", "–"), "–", "–", "–"]
        if verdict:
            evidence = output_evidence(at_work.data, run.facts.run_id)
            quoted = evidence.line.sentence if evidence and evidence.line else ""
            judged[plan.cause, verdict["cause"]] += 1
            likely[verdict["probabilities"][plan.cause] == verdict["probability"]] += 1
            lines[bool(re.search(plan.line, quoted)) if plan.line else False] += 1
            without = "no telemetry" if verdict.get("without_telemetry") else ""
            probability = f"{verdict['probability']:.2f} {verdict['set']} {verdict.get('outside') or ''}{without}"
            is_right = "yes" if verdict["cause"] == plan.cause else "no"
            cells[4:] = [verdict["cause"], probability, is_right, quoted or "none"]
        cells += [
            f"{topic_s:.1f}" if topic_s is not None else "–",
            ", ".join(f"{said.time_s - end_s:.1f}" for said in change.said) or "–",
        ]
        print(f"| {' | '.join(cells)} |")
    summarise(judged, lines, likely)
    for what, seconds in waited.items():
        if seconds:
            p50, p95 = statistics.median(seconds), sorted(seconds)[int(0.95 * (len(seconds) - 1) + 0.5)]
            spread = f"p50 {p50:.1f} s, p95 {p95:.1f} s, most {max(seconds):.1f} s"
            print(f"from the end of the job to the {what}: {spread}, {len(seconds)} of them")
    for change in changes:
        for said in change.said:
            print(f"\n--- change {change.number}, {change.plan.kind}\n{said.text}")


def summarise(judged: Counter[tuple[str, str]], lines: Counter[bool], likely: Counter[bool]) -> None:
    """Print the counts of verdicts by cause with their shares: of the right, of the commonest cause, of the lines.

    ``likely`` counts whether the most probable cause is the right one.
    """
    failed = sum(judged.values())
    right = sum(number for (cause, verdict), number in judged.items() if cause == verdict)
    given = sum(number for (_, verdict), number in judged.items() if verdict != "unknown")
    of_cause = Counter[str]()
    for (cause, _), number in judged.items():
        of_cause[cause] += number
    counts = {
        "right, of all failed": (right, failed),
        "right, of those with a cause": (right, given),
        "base rate": (max(of_cause.values(), default=0), failed),
        "most probable cause right": (likely[True], likely.total()),
        "quoted lines that explain the failure": (lines[True], lines.total()),
    }
    print(*(f"{cause} → {verdict}: {number}" for (cause, verdict), number in sorted(judged.items())), sep="; ")
    for what, (number, total) in counts.items():
        low, high = wilson(number, total)
        print(f"{what}: {number} of {total} ({low:.2f} to {high:.2f})")
