"""The service: predictions from Kafka as messages on a GitHub over HTTP, its worker killed in between."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from ciml.data_root import DataRoot
from ciml.pipelines.feedback import feedback_replica
from ciml.verdicts.feedback.truths import corrections_of
from tests.pipelines.ingest.ingesting import need_real
from tests.scraping import scrape
from tests.services.supervising import Supervised, supervised
from tests.verdicts.feedback.github_stub import TOKEN, GitHubServer
from tests.verdicts.feedback.reviewing import SHA
from tests.verdicts.feedback.reviews import prediction
from tests.verdicts.feedback.stub import ACCEPTED_THEN_RESET, in_turn

pytestmark = [pytest.mark.engines, pytest.mark.timeout(240)]


def failed(number: int, **run: Any) -> dict[str, Any]:
    """The prediction of a run that failed just now on pull request 7."""
    now_us = int(time.time() * 1e6)
    given = {
        "source": "github", "project": "octo/widget", "change": "7", "patchset": SHA, "head": SHA,
        "start_us": now_us - 60_000_000, "end_us": now_us, **run,
    }  # fmt: skip
    return prediction(number, **given)


def publish(kafka: str, topic: str, *records: dict[str, Any]) -> None:
    producer = Producer({"bootstrap.servers": kafka})
    for one in records:
        producer.produce(topic, json.dumps(one).encode(), key=one["run_id"].encode())
    assert producer.flush(30) == 0


def configure(folder: Path, github: GitHubServer, more: str = "") -> str:
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    (folder / "feedback.toml").write_text(
        f"""
dry_run = false
settle_s = 0.5
settle_most_s = 2
active_models = ["*"]
min_passing_runs = 0
reviewers = ["hub:cleo"]
{more}
[[system]]
kind = "github"
name = "hub"
sources = ["github"]
api = "{github.url}"
secret_file = "token"
gap_s = 0.1
"""
    )
    return str(folder / "feedback.toml")


def start(one: Supervised, config: str, data: Path, kafka: str, topic: str) -> None:
    data.mkdir()
    (data / "file").touch()  # a data root that exists
    done = one.begin(
        "feedback", "--config", config, "--data-path", str(data), "--kafka", kafka, "--predictions-topic", topic,
        "--metrics-port", "0",
    )  # fmt: skip
    assert done.exception is None, done.exception


def test_a_message_survives_a_killed_worker_and_a_lost_answer(
    kafka: str, topic: Callable[..., str], tmp_path: Path, github_server: GitHubServer
) -> None:
    need_real(kafka)
    predictions, data = topic(1, "predictions"), tmp_path / "data"
    config = configure(tmp_path, github_server)
    github_server.plan = in_turn(ACCEPTED_THEN_RESET)
    with supervised(tmp_path / "home") as one:
        start(one, config, data, kafka, predictions)
        publish(kafka, predictions, failed(1), failed(2, build_name="lint"), failed(3, outcome="success"))
        one.wait(lambda: len(github_server.messages(7)) == 1, "no message")
        one.kill_worker()
        publish(kafka, predictions, failed(4, build_name="docs"))

        def settled() -> bool:
            with feedback_replica(DataRoot.open(data)).state() as state:
                return bool(state.entries) and not state.opened

        one.wait(settled, "the messages are not settled")
        (text,) = github_server.messages(7)
        assert [text.count(f"“{job}”") for job in ("unit", "lint", "docs")] == [1, 1, 1]
        counts = {"taken": 3, "not_failed": 1, "messages posted": 1, "messages edited": 1}
        one.wait(lambda: one.status()["counts"] == counts, "not all is counted")
        found = scrape(one.status()["metrics"])
        assert found["ciml_service_health"][("running", "feedback")] == 1
        assert found["ciml_feedback_messages_total"] == {("posted", "hub"): 1, ("edited", "hub"): 1}
        assert found["ciml_feedback_verdicts_total"] == {("taken",): 3, ("not_failed",): 1}
        assert found["ciml_feedback_unsettled"] == {("hub",): 0}
        kinds = ("up", "down", "not_helpful")
        assert found["ciml_feedback_reactions_total"] == {(kind, "hub"): 0 for kind in kinds}  # an increase begins at 0
        assert one.ask("stop").exception is None
    assert corrections_of(DataRoot.open(data)) == {}
    assert TOKEN not in "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.log"))
