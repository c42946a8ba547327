"""A small result of the demo, as the report and the table get it."""

from __future__ import annotations

import msgspec

from ciml.cli.demo.report.result import (
    AccountingLine,
    AnswerLine,
    Check,
    Confusion,
    DemoResult,
    ExclusionLine,
    PredictionLine,
    Profile,
    SpanLine,
    SpoiltLine,
    StepLine,
    VersionLine,
)

CLASSES = ["alder", "birch", "cedar", "dune"]


def version(model: str, number: int, accuracy: float, verdict: str = "pushed", why: str = "") -> VersionLine:
    return VersionLine(
        model=model,
        version=number,
        verdict=verdict,
        why=why,
        accuracy=accuracy,
        low=accuracy - 0.06,
        high=accuracy + 0.05,
        tested=180,
        trained=420,
        base_rate=0.295,
        number="memory",
        one_number=0.31,
        one_number_low=0.25,
        one_number_high=0.375,
        champion=None if number == 1 else accuracy - 0.02,
        took_s=6.2,
    )


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
            AccountingLine(kind="dead_letter", reason="corrupt_gzip", expected=3, counted=3),
        ],
        "spoilt": [SpoiltLine(trick="broken JSON", messages=3, became="dead_letter: broken_json")],
        "spans": [
            SpanLine(
                dataset=name, span=span, version=1, splits={"train": 104, "test": 46},
                classes=dict(zip(CLASSES, (44, 38, 37, 31), strict=True)),
            )
            for name in ("status", "pool") for span in (1, 2, 3, 4, 5)
        ],
        "exclusions": [ExclusionLine(dataset="status", reason="missing_column", runs=1)],
        "versions": [
            version("status", 1, 0.80),
            version("status", 2, 0.86),
            version("status", 3, 0.87),
            version("pool", 1, 0.61),
            version("pool", 2, 0.60, "kept", "accuracy 0.600 is below the champion's 0.620"),
        ],
        "confusions": [
            Confusion(
                model="status", version=3, classes=CLASSES,
                counts=[[50, 2, 1, 3], [1, 44, 0, 2], [3, 0, 40, 4], [2, 1, 5, 33]],
            )
        ],
        "predictions": [
            PredictionLine(
                model="status", by_version={"1": 380, "2": 200, "3": 175}, untrusted=20, p50_ms=48.0,
                p99_ms=900.0,
                latencies_ms=[20 * 1.012**step for step in range(380)],
            ),
            PredictionLine(
                model="pool", by_version={"1": 755}, untrusted=20, p50_ms=52.0,
                p99_ms=950.0,
                latencies_ms=[25 * 1.012**step for step in range(380)],
            ),
        ],
        "profiles": [
            Profile(provider=name, runs=200 - place, means=[20 + 3 * place + step for step in range(6)])
            for place, name in enumerate(CLASSES)
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
