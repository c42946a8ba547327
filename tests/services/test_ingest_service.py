"""An ingest under a supervisor, as micro-batches: killed, stopped, resumed; the sums are the producer's own."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ciml import engines
from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError
from ciml.kafka import KafkaOptions
from ciml.kafka.connect import admin
from ciml.services.files import ServiceFiles, StartOptions, bound_log
from tests.pipelines.ingest.ingesting import account, need_real
from tests.pipelines.ingest.scenario import send
from tests.scraping import scrape
from tests.services.supervising import Ingest, ingest, options_for, shell


@pytest.fixture
def one(kafka: str, topic: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ingest]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:  # of tests on S3 in the same process
        monkeypatch.delenv(name)
    scenario = send(kafka, topic(2, "events"), 2, tmp_path / "logs", runs=60)
    with ingest(tmp_path / "home", str(tmp_path / "data"), scenario, topic(1, "runs")) as made:
        yield made


@pytest.mark.engines
@pytest.mark.timeout(240)
def test_the_service_survives_kills_of_all_its_processes(one: Ingest) -> None:
    need_real(one.scenario.broker)  # without transactions a kill may announce twice
    done = one.start("--engine", "micro-batches", "-X", "client.id=secret")
    assert done.exception is None, done.exception
    assert "is running on micro-batches" in done.output
    assert one.code() == 0
    # a second start is rejected, and changes nothing
    again = one.start("--engine", "micro-batches")
    assert isinstance(again.exception, CimlError)
    assert "already running" in str(again.exception)
    # the worker dies: the supervisor starts another
    worker = one.kill("worker")
    one.wait(lambda: one.files.process("worker") is not None and one.pid("worker") != worker, "no new worker")
    # the supervisor dies: its worker keeps running, and the next supervisor takes it over
    one.wait(lambda: one.status()["job"]["state"] == "running", "the new worker does not run")
    supervisor, worker = one.kill("supervisor"), one.pid("worker")
    alone = one.status()
    assert (alone["health"], one.code()) == ("stalled", 2)
    assert "its supervisor died, its job keeps running" in alone["why"]
    assert alone["lag"].keys() == {"0", "1"}
    done = one.ask("resume")
    assert done.exception is None, done.exception
    assert (one.pid("supervisor") != supervisor, one.pid("worker")) == (True, worker)
    assert "already running" in one.ask("resume").output
    one.scenario.log_arrives()
    one.finish()
    # stopped
    seen = one.status()
    assert (seen["health"], seen["supervisor"], seen["worker"], one.code()) == ("stopped", None, None, 1)
    assert (seen["behind"], seen["deferred"], seen["dead_letters"]) == (0, 0, seen["counts"]["dead_letter"])
    assert len(seen["resubmissions"]) == seen["resubmitted"] == 1
    assert "already stopped" in one.ask("stop").output
    assert "secret" not in json.dumps(seen)
    assert stat.S_IMODE((one.files.folder / "options.json").stat().st_mode) == 0o600
    # resumed, and stopped without a supervisor
    assert one.ask("resume").exception is None
    one.kill("supervisor")
    done = one.ask("stop", "--savepoint")
    assert "no savepoint is needed" in done.output
    assert (one.files.process("worker"), one.code()) == (None, 1)


@pytest.mark.engines
@pytest.mark.timeout(180)
def test_a_recreated_topic_fails_the_service(one: Ingest) -> None:
    from confluent_kafka.admin import NewTopic

    need_real(one.scenario.broker)
    one.start("--engine", "micro-batches", "--metrics-port", "0")
    one.wait(lambda: one.settled() > 0, "nothing is settled")
    client = admin(KafkaOptions(one.scenario.broker))
    client.delete_topics([one.scenario.topic])[one.scenario.topic].result()

    def recreated() -> bool:
        future = client.create_topics([NewTopic(one.scenario.topic, 2, 1)])[one.scenario.topic]
        return future.exception() is None

    one.wait(recreated, "the topic is not created")
    one.wait(lambda: (one.status()["health"], one.status()["worker"]) == ("failed", None), "it does not fail")
    seen = one.status()
    assert one.code() == 2
    assert f"topic {one.scenario.topic} was deleted and created again" in seen["why"]
    done = one.ask("resume")
    assert "deleted and created again" in str(done.exception)
    time.sleep(3.0)  # longer than the pauses of the watchdog: Prometheus has time to see it
    assert scrape(seen["metrics"])["ciml_ingest_health"][("failed",)] == 1
    assert "stopped" in one.ask("stop").output
    assert one.files.process("supervisor") is None
    stopped = one.status()
    assert (stopped["health"], stopped["last_failure"]["why"]) == ("stopped", seen["why"])
    # the one remedy, as the status names it
    again = send(one.scenario.broker, one.scenario.topic, 2, one.home / "more", runs=20)
    shell(seen["remedy"])
    one.wait(lambda: one.status()["behind"] == 0, "it does not read the new topic")
    assert one.status()["health"] == "running"
    assert one.status()["last_failure"]["why"] == seen["why"]
    state, _ = account(DataRoot.open(one.data).raw)
    assert state.generation(one.scenario.topic) == f"{one.scenario.topic}@2"
    new = sum(ranges.count() for name, _, ranges in state.partitions() if name.endswith("@2"))
    assert new == len(again.sent)


@pytest.mark.engines
@pytest.mark.timeout(240)
def test_an_outage_of_the_broker_is_waited_for(topic: Callable[..., str], tmp_path: Path) -> None:
    """A broker of its own, known as that of the home, is killed and started again."""
    home = tmp_path / "home"
    with engines.start(["kafka"], home, engines.Settings(tied=True)) as running:
        if running.light:
            pytest.skip("the mock broker keeps nothing")
        engines.create_topics(running.kafka, {"events": 1})
        scenario = send(running.kafka, "events", 1, tmp_path / "logs", runs=5)
        with ingest(home, str(tmp_path / "data"), scenario, "runs") as one:
            assert one.start("--engine", "micro-batches").exception is None
            broker = running.states["kafka"]
            os.kill(int(broker.pid or 0), signal.SIGKILL)
            one.wait(lambda: one.status()["health"] == "waiting", "it does not notice")
            assert one.code() == 2
            assert "does not answer" in one.status()["why"]
            again = engines.start(["kafka"], home, engines.Settings(tied=True, ports=broker.ports))
            try:
                one.wait(lambda: one.status()["health"] == "running", "it does not continue")
                more = send(running.kafka, "events", 1, tmp_path / "more", runs=5)
                assert more.logs != scenario.logs
                one.wait(lambda: one.status()["behind"] == 0, "it does not read on")
            finally:
                one.ask("stop")
                again.stop()


@pytest.mark.engines
def test_a_start_that_cannot_work_fails_at_once(one: Ingest) -> None:
    done = one.start("--engine", "micro-batches", "--topic", "no-such")
    assert isinstance(done.exception, EngineError)
    assert "has no topic no-such" in str(done.exception)
    done = one.start("--engine", "flink:127.0.0.1:1")
    assert "127.0.0.1:1" in str(done.exception)
    assert not one.files.was_started
    assert one.ask("status").exit_code == 1
    assert "no service was started" in str(one.ask("resume").exception)


def test_names_are_file_names(tmp_path: Path) -> None:
    for name in ("", "..", "a/b", "-x", "x" * 65, "a\n"):
        with pytest.raises(CimlError, match="invalid service name"):
            ServiceFiles(tmp_path, name)


def test_the_homes_own_engines_have_their_present_addresses(tmp_path: Path) -> None:
    files = ServiceFiles(tmp_path, "one")
    options = StartOptions(options_for("ingest", kafka="old:1"), "flink", "old:2", local_kafka=True, local_flink=True)
    files.put_options(options)
    assert files.options().service.bootstrap == "old:1"
    from ciml.engines import state

    urls = {"rest": "http://new:3", "workers": "new:4"}
    cluster = engines.EngineState("cluster", "real", "", "new:2", urls=urls)
    embedded = engines.EngineState("flink", "real", "", "embedded:5")
    kafka = engines.EngineState("kafka", "real", "", "new:1")
    state.write(tmp_path, {"kafka": kafka, "cluster": cluster, "flink": embedded})
    found = files.options()
    assert found.service.bootstrap == "new:1"
    assert (found.jobs, found.rest, found.workers) == ("new:2", "http://new:3", "new:4")


def test_one_process_at_a_time_holds_the_lock(tmp_path: Path) -> None:
    files = ServiceFiles(tmp_path, "one")
    with files.exclusive("worker") as held, ServiceFiles(tmp_path, "one").exclusive("worker") as second:
        assert (held, second) == (True, False)
    with files.exclusive("worker") as held:
        assert held


def test_a_log_is_bounded_while_it_is_written(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with log.open("ab") as out:
        out.write(b"first\n" * 10)
        out.flush()
        bound_log(log, 100)
        assert log.stat().st_size == 60
        bound_log(log, 50)
        out.write(b"second\n")
    assert (log.read_bytes(), log.with_suffix(".log.1").read_bytes()) == (b"second\n", b"first\n" * 10)
    bound_log(tmp_path / "none.log", 0)
