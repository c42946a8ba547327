"""Each alert of the chart fires by its own fault on running services, and is quiet without it; each panel has data.

The rules are the chart's; only their durations are shorter. The tests share one world, and are in an order: at first
nothing is served.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ciml import engines
from ciml.kafka import KafkaOptions
from ciml.pipelines.feedback import feedback_replica
from tests.interop.prometheus import plugins
from tests.interop.prometheus.conftest import FEEDBACK, INGEST, MODELS, MQTT, PREDICT, TRAINER, WEBHOOKS, start_serving
from tests.interop.prometheus.server import rules
from tests.interop.prometheus.world import World, read_panels
from tests.pipelines.kafka.kafka_topics import recreate
from tests.verdicts.feedback.stub import says

pytestmark = [pytest.mark.engines, pytest.mark.interop, pytest.mark.timeout(1200)]
#: Alerts that this file does not fire, with the reason.
NOT_FIRED = {
    "CimlCheckpointGrows",  # 16 MiB of state take a Flink hours
    "CimlModelLoadFailed",  # the rule of CimlModelRefused, for another outcome
}
FIRED: set[str] = set()


def fires(one: World, *alerts: tuple[str, str], most_s: float = 150.0, meanwhile: Callable[[], object] = int) -> None:
    """Wait until these alerts of these jobs have fired."""
    one.prometheus.wait_for(*alerts, most_s=most_s, meanwhile=meanwhile)
    FIRED.update(name for name, _ in alerts)


def test_nothing_is_served_and_a_trainer_has_no_data_set(bare: World) -> None:
    one = bare
    start_serving(one)
    one.service("ciml-trainer-never", "trainer", "--dataset", "never", "--data-path", "data")
    fires(one, ("CimlModelNotServed", MODELS), ("CimlServiceWaits", PREDICT), ("CimlTrainerIdle", "ciml-trainer-never"))
    one.stop("ciml-trainer-never")


def test_nothing_fires_while_all_works(steady: World) -> None:
    began = time.monotonic()
    while time.monotonic() - began < 30:
        steady.deliver(steady.failed(steady.sent))
        assert steady.prometheus.firing() == set()
        time.sleep(3)
    assert not steady.prometheus.has_fired("CimlFeedbackUnhelpful", FEEDBACK)
    message = steady.github.comments[-1]
    # The clock of the stub is another one, and its reactions have the time of their message.
    message.at = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    message.reactions += [("-1", login) for login in ("ada", "bo", "cy", "di")]  # see `test_reviewers_who_object`


def test_inputs_that_cannot_be_used(steady: World) -> None:
    one = steady
    one.flood(20)
    one.post("broken", json.dumps({"id": 1}).encode(), {"content-type": "application/json"})
    one.deliver(one.failed(1, build_name="defect"))
    fires(one, ("CimlDeadLettersGrow", INGEST), ("CimlInternalErrors", INGEST), ("CimlUnpredictable", PREDICT))
    # the adapter is corrected, and what it rejected is replayed
    plugins.repair(one.plugins)
    one.kill_worker(INGEST)
    one.ciml("dead-letters", "replay", "--reason", "internal_error", "--data-path", "data")
    one.prometheus.wait_for_quiet()


def test_logs_that_come_slowly_and_logs_that_do_not_come(steady: World) -> None:
    one = steady
    one.logs.slow_s = 11.0
    for number in range(8):
        one.deliver(one.failed(number))
    fires(one, ("CimlLogHostSlow", INGEST))
    one.logs.slow_s = 0.0
    late = one.failed(1)
    path = late.log_url.removeprefix(one.logs.url)
    log = one.logs.answers.pop(path)
    one.deliver(late)
    one.until(lambda: one.prometheus.query("ciml_deferred_next_try_timestamp_seconds") != [], "no log is deferred")
    with one.hanging(one.worker(INGEST)):
        one.flood(1100)
        fires(
            one, ("CimlLogsOverdue", INGEST), ("CimlNoCommit", INGEST), ("CimlLagGrows", INGEST),
            meanwhile=lambda: one.flood(20), most_s=60,
        )  # fmt: skip
        one.logs.answers[path] = log
    one.prometheus.wait_for_quiet(most_s=300)


def test_workers_that_are_killed_again_and_again(steady: World) -> None:
    one = steady
    for number in range(3):  # each commits something
        one.deliver(one.failed(number))
        one.until(lambda: one.health(INGEST) == "running" and _lag(one, INGEST) == 0, "the ingest does not read")
        one.kill_worker(INGEST)
    for _ in range(5):  # none of these does
        one.flood(10)
        one.kill_worker(INGEST, 90)
    fires(one, ("CimlIngestStalled", INGEST), ("CimlResubmittedOften", INGEST))
    one.prometheus.wait_for_quiet(most_s=300)


def test_a_predict_that_hangs_and_one_that_is_killed(steady: World) -> None:
    one = steady
    one.deliver(one.failed(0))
    one.until(lambda: _lag(one, PREDICT) == 0, "predict does not read")
    with one.hanging(one.worker(PREDICT)):
        one.deliver(one.failed(1))
        time.sleep(65)  # longer than a prediction may take
    fires(one, ("CimlPredictionsLate", PREDICT))
    for _ in range(5):
        one.deliver(one.failed(2))
        one.kill_worker(PREDICT, 90)
    fires(one, ("CimlServiceStalled", PREDICT))
    one.prometheus.wait_for_quiet(most_s=300)


def test_a_review_system_that_fails(steady: World) -> None:
    one = steady
    one.github.plan = lambda asked: says(502)
    for number in range(8):  # the model is not sure of each
        one.deliver(one.failed(number))
    fires(one, ("CimlFeedbackLate", FEEDBACK))
    one.github.plan = lambda asked: None
    one.prometheus.wait_for_quiet(most_s=400)
    one.github.plan = lambda asked: says(403, "Resource not accessible by integration")
    for number in range(8, 16):
        one.deliver(one.failed(number))
    fires(one, ("CimlFeedbackRefused", FEEDBACK), most_s=240)
    one.github.plan = lambda asked: None
    one.prometheus.wait_for_quiet()


def test_a_manifest_that_nobody_maintains(steady: World) -> None:
    one = steady
    with one.hanging(one.worker(FEEDBACK)):
        manifest = feedback_replica(one.data)
        for number in range(3100):
            muted = "muted" if number % 2 == 0 else "unmuted"
            manifest.append(lambda state, muted=muted: {"time_us": int(time.time() * 1e6), muted: ["none/*"]})  # type: ignore[misc]
        fires(one, ("CimlManifestNotMaintained", FEEDBACK))
    one.prometheus.wait_for_quiet()


def test_a_trainer_that_hangs_and_services_that_are_gone(steady: World) -> None:
    one = steady
    one.running[WEBHOOKS].kill()
    os.kill(int(one.mosquitto.pid or 0), signal.SIGKILL)
    with one.hanging(one.worker(TRAINER)):
        fires(one, ("CimlTrainerIdle", TRAINER), ("CimlServiceDown", WEBHOOKS), ("CimlSourceDisconnected", MQTT))
    one.restart(WEBHOOKS)
    again = engines.start(["mosquitto"], one.folder / "home", engines.Settings(tied=True, ports=one.mosquitto.ports))
    one.mosquitto = again.states["mosquitto"]
    one.prometheus.wait_for_quiet()


def test_a_model_that_was_altered(steady: World) -> None:
    one = steady
    one.running[MODELS].terminate()
    one.running[MODELS].wait(30)
    (model,) = sorted((one.folder / "data/models").rglob("saved_model.pb"))[-1:]
    intact = model.read_bytes()
    model.write_bytes(intact[:-1] + bytes((intact[-1] ^ 1,)))
    one.restart(MODELS)
    fires(one, ("CimlModelRefused", MODELS), ("CimlModelNotServed", MODELS))
    one.running[MODELS].terminate()
    one.running[MODELS].wait(30)
    model.write_bytes(intact)
    one.restart(MODELS)
    one.prometheus.wait_for_quiet()


def test_a_broker_that_does_not_answer(steady: World) -> None:
    one = steady
    with one.hanging(one.kafka.pid):
        fires(one, ("CimlBlind", INGEST), ("CimlIngestWaits", INGEST), ("CimlServiceWaits", FEEDBACK))
    one.prometheus.wait_for_quiet(most_s=300)


def test_services_that_may_not_continue(steady: World, tmp_path: Path) -> None:
    """A topic that was created again, and a configuration that names a secret that is not there."""
    one = steady
    engines.create_topics(one.kafka.address, {"again": 1})
    one.service(
        "ciml-ingest-again", "ingest", "--topic", "again", "--runs-topic", "", "--data-path", str(tmp_path),
        "--engine", "micro-batches", "--fetch-policy", "fetch.toml",
    )  # fmt: skip
    one.service(
        "ciml-feedback-broken", "feedback", "--config", "broken-feedback.toml", "--data-path", "data",
        "--predictions-topic", "predictions",
    )  # fmt: skip
    one.until(lambda: one.health("ciml-ingest-again") == "running", "the ingest does not run")
    recreate(KafkaOptions(one.kafka.address), "again")
    fires(one, ("CimlIngestFailed", "ciml-ingest-again"), ("CimlServiceFailed", "ciml-feedback-broken"))
    for job in ("ciml-ingest-again", "ciml-feedback-broken"):
        one.stop(job)
    one.prometheus.wait_for_quiet()


def test_reviewers_who_object(steady: World) -> None:
    """Their reactions are read five minutes after the last message: perhaps during an earlier test."""
    steady.until(lambda: steady.prometheus.has_fired("CimlFeedbackUnhelpful", FEEDBACK), "it does not fire", 400)
    FIRED.add("CimlFeedbackUnhelpful")
    steady.prometheus.wait_for_quiet()


def test_each_panel_has_data(steady: World) -> None:
    """Each query has a number, and all but the lag, which is 0 while all works, one that is not 0."""
    until = time.monotonic() + 120
    steady.flood(1)  # a dead letter
    while True:
        steady.deliver(steady.failed(steady.sent))
        time.sleep(5)
        values = {
            f"{title}: {query}": [value for _, value in steady.prometheus.query(query)]
            for title, query in read_panels()
        }  # fmt: skip
        empty = [name for name, found in values.items() if not (any(found) or (found and name.startswith("Lag")))]
        if not empty:
            return
        assert time.monotonic() < until, empty


def test_every_alert_was_fired() -> None:
    (group,) = rules()["groups"]
    assert {rule["alert"] for rule in group["rules"]} - NOT_FIRED == FIRED


def _lag(one: World, job: str) -> float:
    return sum(value for _, value in one.prometheus.query(f'ciml_lag_messages{{job="{job}"}}'))
