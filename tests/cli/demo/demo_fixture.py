"""A small result of the demo, as the report and the table get it."""

from __future__ import annotations

import msgspec

from ciml.cli.demo.result import (
    AccountingLine,
    AnswerLine,
    Check,
    DemoResult,
    Evaluation,
    Metrics,
    PredictionLine,
    Refresh,
    Share,
    SpanLine,
    StepLine,
)

CLASSES = ["alder", "birch", "cedar", "dune"]


def refreshed(model: str, number: int, accuracy: float, reason: str = "", baseline: str = "memory") -> Refresh:
    """A refresh that pushed the version ``number``, or was rejected for ``reason``."""
    champion = None if number == 1 else Evaluation(Share(accuracy - 0.02))
    evaluation = Evaluation(Share(accuracy, accuracy - 0.06, accuracy + 0.05), Share(0.295), 180, 420)
    metrics = Metrics(evaluation, champion=champion, baselines={baseline: Share(0.31, 0.25, 0.375)})
    return Refresh(model, None if reason else number, [reason] if reason else [], {"train": 6.2}, metrics)


def demo_result(**changes: object) -> DemoResult:
    """A result in which every check passed, with some fields changed."""
    values: dict[str, object] = {
        "started": "2026-01-02 03:04:05 UTC",
        "took_s": 93.4,
        "engines": {"Kafka": "4.1.1, one broker", "Flink": "1.19, embedded", "model server": "TensorFlow 2.21"},
        "runs": 780,
        "messages": 831,
        "accounting": [
            AccountingLine(kind="run", expected=755, counted=755),
            AccountingLine(kind="repeat", reason="event", expected=3, counted=3),
            AccountingLine(kind="ignored", reason="not_finished", expected=65, counted=65),
            AccountingLine(kind="dead_letter", reason="corrupt_gzip", trick="log cut short", expected=3, counted=3),
        ],
        "spans": [
            SpanLine(
                dataset=name, span=span, version=1, splits={"train": 104, "test": 46},
                classes=dict(zip(CLASSES, (44, 38, 37, 31), strict=True)), excluded={"missing_column": 1},
            )
            for name in ("status", "pool") for span in (1, 2, 3, 4, 5)
        ],
        "refreshes": [
            refreshed("status", 1, 0.80),
            refreshed("status", 2, 0.86),
            refreshed("status", 3, 0.87),
            refreshed("pool", 1, 0.61),
            refreshed("pool", 2, 0.60, "accuracy 0.600 is below the champion's 0.620"),
        ],
        "predictions": [
            PredictionLine(
                model="status", by_version={"1": 380, "2": 200, "3": 175}, untrusted=20, p50_ms=48.0, p99_ms=900.0
            ),
            PredictionLine(model="pool", by_version={"1": 755}, untrusted=20, p50_ms=52.0, p99_ms=950.0),
        ],
        "answers": [
            AnswerLine(
                change="1", job="unit", outcome="timeout", cause="machine", verdict="machine", probability=0.93,
                took_s=6.4, messages=["unit failed, probably because of the machine .\n\nProbability <93 %>."],
            ),
            AnswerLine(
                change="2", job="lint", outcome="failure", cause="code", verdict="unknown", probability=0.61,
                silent="unknown",
            ),
        ],
        "checks": [
            Check(name="each (event, run) has the expected outcome", passed=True, detail="826 of 826"),
            Check(name="no untrusted run in a snapshot", passed=True, detail="20 untrusted, 5 snapshots"),
        ],
        "steps": [
            StepLine(name="engines", began_s=0.0, took_s=7.1),
            StepLine(name="first half", began_s=7.1, took_s=12.0),
            StepLine(name="first models", began_s=19.1, took_s=30.0),
        ],
        "notes": [],
    }  # fmt: skip
    return msgspec.convert({**values, **changes}, DemoResult)
