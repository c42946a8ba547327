"""The work items of the feedback service, with a review system in memory and a topic as the broker lists it."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from ciml.data_root import DataRoot
from ciml.events.records import Message, OffsetRange
from ciml.kafka import KafkaOptions
from ciml.metrics import Board
from ciml.pipelines import feedback as pipeline
from ciml.pipelines.feedback import FeedbackConfig, Judge, feedback_replica
from ciml.pipelines.kafka.broker import Listing
from ciml.services.feedback import FeedbackService, feedback_families
from ciml.verdicts.feedback.config import Feedback, load_feedback
from ciml.verdicts.feedback.truths import Correction, add_corrections
from ciml.verdicts.signatures.stored import BOOKMARK
from tests.scraping import collected
from tests.services.supervising import run_planned
from tests.verdicts.evidence.test_output import DOWN, fail, passing_runs
from tests.verdicts.feedback.reviews import Review, ReviewSystem, feedback, prediction
from tests.verdicts.feedback.worlds import take

TOPIC = "predictions"


def failed(number: int, **run: Any) -> dict[str, Any]:
    """The prediction of a run of another change that failed just now."""
    now_us = int(time.time() * 1e6)
    given = {"change": str(number), "start_us": now_us - 60_000_000, "end_us": now_us, **run}
    return {**prediction(number, **given), "time_us": now_us}


def put(
    data: DataRoot, *records: dict[str, Any], age_s: float = 10.0, start: int = 0, config: Feedback | None = None
) -> None:
    """Take predictions ``age_s`` seconds ago."""
    messages = [Message(start + number, orjson.dumps(one)) for number, one in enumerate(records)]
    covers = OffsetRange(TOPIC, "T", 0, start, start + len(records))
    take(feedback_replica(data), covers, messages, Judge(config or feedback()), int((time.time() - age_s) * 1e6))


def service_of(
    data: DataRoot, review: Review, end: int, monkeypatch: pytest.MonkeyPatch, config: Feedback | None = None
) -> FeedbackService:
    monkeypatch.setattr(ReviewSystem, "client", lambda *_: review)
    monkeypatch.setattr("ciml.services.service.make_topic", lambda *_: None)
    for name in ("list_topic", "list_again"):
        monkeypatch.setattr(f"ciml.services.service.{name}", lambda *_: Listing(TOPIC, "T", {0: (0, end)}))
    service = FeedbackService(FeedbackConfig(data, config or feedback(), TOPIC, kafka=KafkaOptions("none:1")))
    service.open()
    return service


@pytest.mark.parametrize(
    ("faults", "calls"),
    [
        ([], ["head", "find", "post", "head", "find", "post"]),
        (["busy"], ["head"]),
        (["", "", "", "away"], ["head", "find", "post", "head"]),
    ],
)
def test_a_system_that_asks_to_wait_is_not_called_again(
    faults: list[str], calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataRoot.open(tmp_path)
    put(data, failed(1), failed(2))
    review = Review(script=faults)
    service = service_of(data, review, 2, monkeypatch)
    run_planned(service)
    assert review.calls == calls


def test_a_dry_run_needs_no_secret_and_calls_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "feedback.toml").write_text(
        'settle_s = 0\nsettle_most_s = 0\nactive_models = ["*"]\n'
        '[[system]]\nkind = "github"\nname = "hub"\nsources = ["github"]\nsecret_file = "no-such-file"\n'
    )
    config, data = load_feedback(tmp_path / "feedback.toml"), DataRoot.open(tmp_path / "data")
    put(data, failed(1, source="github"), config=config)
    service = service_of(data, Review(), 1, monkeypatch, config)
    with caplog.at_level(logging.INFO):
        run_planned(service)
    assert "“unit” failed, probably because of the machine" in caplog.text
    with feedback_replica(data).state() as state:
        assert state.messages == {("hub", "dry_run"): 1}


def test_all_new_facts_are_settled_in_several_deltas_if_one_cannot_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataRoot.open(tmp_path)
    put(data, *(failed(number) for number in range(1, 6)))
    add_corrections(data, [Correction(f"zuul~{number}~1", "code", "operator", 1) for number in range(1, 6)])
    monkeypatch.setattr(pipeline, "_MOST_SETTLED", 2)
    service = service_of(data, Review(script=["busy"]), 5, monkeypatch)
    run_planned(service)
    with feedback_replica(data).state() as state:
        assert [verdict.settled for verdict in state.history] == ["code"] * 5


def test_metrics_count_what_waits_and_what_is_settled(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path)
    put(data, failed(1), age_s=500.0)
    put(data, failed(2), failed(3), start=1)
    settled = [
        {"id": f"{number:032x}", "cause": cause, "by": "reruns", "trusted": True}
        for number, cause in ((1, "machine"), (2, "code"))
    ]
    feedback_replica(data).append(lambda state: {"time_us": 1, "settled": settled})
    with feedback_replica(data).state() as state:
        board = Board()
        board.put("feedback", feedback_families(state, ["review"]))
    shown = collected(board)
    assert shown["ciml_feedback_waiting"] == {("review",): 3}
    assert shown["ciml_feedback_oldest_timestamp_seconds"]["review",] == pytest.approx(time.time() - 500, abs=60)
    assert shown["ciml_feedback_recorded_verdicts"] == {
        ("machine", "cause", outcome): 1 for outcome in ("right", "wrong", "open")
    }
    # Prometheus does not count the first value of a new series as an increase.
    kinds = ("up", "down", "not_helpful")
    assert shown["ciml_feedback_reactions_total"] == {(kind, "review"): 0 for kind in kinds}


def test_it_keeps_failure_signatures_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataRoot.open(tmp_path / "data")
    fail(passing_runs(data), 10, DOWN)
    service = service_of(data, Review(), 0, monkeypatch)
    service.plan({0: 0})
    bookmark = data.failures.read(BOOKMARK)
    assert b"could not reach the mirror" in bookmark
    service.plan({0: 0})  # not every time
    assert data.failures.read(BOOKMARK) == bookmark
    service.close()
