"""Services under a supervisor without Flink: killed, failed, stopped, resumed; the sums are the producer's own."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from ciml import engines
from ciml.data_root import DataRoot
from ciml.engines.processes import lasting_ports
from ciml.errors import CimlError
from ciml.kafka import KafkaOptions
from ciml.kafka.connect import admin
from ciml.services.files import ServiceFiles, bound_log
from tests.pipelines.ingest.ingesting import account, need_real
from tests.pipelines.ingest.scenario import send
from tests.scraping import scrape
from tests.services.supervising import Ingest, ingest, shell, supervised, webhooks


@pytest.fixture(autouse=True)
def _without_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of tests on S3 in the same process: a service would continue only where they are set."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def one(kafka: str, topic: Callable[..., str], tmp_path: Path) -> Iterator[Ingest]:
    scenario = send(kafka, topic(2, "events"), 2, tmp_path / "logs", runs=60)
    with ingest(tmp_path / "home", str(tmp_path / "data"), scenario, topic(1, "runs")) as made:
        yield made


@pytest.mark.engines
@pytest.mark.timeout(240)
def test_the_service_survives_kills_of_all_its_processes(one: Ingest) -> None:
    need_real(one.scenario.broker)  # without transactions a kill may announce twice
    for words, error in ((("--topic", "no-such"), "has no topic no-such"), (("--engine", "flink:127.0.0.1:1"), ":1")):
        assert error in str(one.start("--engine", "micro-batches", *words).exception)
    assert not one.files.was_started
    assert "no service was started" in str(one.ask("resume").exception)
    # On a busy machine, the late log arrives after the usual retries: the last one waits for it.
    done = one.start("--engine", "micro-batches", "-X", "client.id=secret", "--retry-after", "30s")
    assert "is running on micro-batches" in done.output
    assert one.code() == 0
    assert "already running" in str(one.start("--engine", "micro-batches").exception)
    # the worker dies: the supervisor starts another
    one.kill_worker()
    # the supervisor dies: its worker keeps running, and the next supervisor takes it over
    supervisor = one.kill("supervisor")
    worker = one.pid("worker")
    alone = one.status()
    assert (alone["health"], one.code()) == ("stalled", 2)
    assert "its supervisor died, its job keeps running" in alone["why"]
    assert alone["lag"].keys() == {"0", "1"}
    one.run("resume")
    assert (one.pid("supervisor") != supervisor, one.pid("worker")) == (True, worker)
    assert "already running" in one.run("resume")
    one.scenario.log_arrives()
    one.finish()
    seen = one.status()
    assert (seen["health"], seen["supervisor"], seen["worker"], one.code()) == ("stopped", None, None, 1)
    assert (seen["behind"], seen["deferred"], seen["dead_letters"]) == (0, 0, seen["counts"]["dead_letter"])
    assert len(seen["resubmissions"]) == seen["resubmitted"] == 1
    assert "already stopped" in one.run("stop")
    assert "secret" not in json.dumps(seen)
    assert stat.S_IMODE((one.files.folder / "options.json").stat().st_mode) == 0o600
    # resumed, and stopped without a supervisor
    one.run("resume")
    one.kill("supervisor")
    assert "no savepoint is needed" in one.run("stop", "--savepoint")
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
    assert "deleted and created again" in str(one.ask("resume").exception)
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
@pytest.mark.timeout(300)
def test_a_failed_service_continues_by_its_commands(kafka: str, topic: Callable[..., str], tmp_path: Path) -> None:
    config = tmp_path / "receivers.toml"
    secret = tmp_path / "secret"
    secret.write_text("a secret that is long enough")
    valid = webhooks(lasting_ports(1)[0], secret)
    config.write_text(valid)
    words = ("--config", str(config), "--kafka", kafka, "--topic", topic())
    with supervised(tmp_path / "home") as one:

        def runs() -> bool:
            return bool(one.status()["health"] == "running" and one.status()["worker"])

        def fail() -> None:
            config.write_text("nonsense")
            one.kill("worker")
            one.wait(lambda: one.status()["health"] == "failed", "it does not fail")
            seen = one.status()
            assert "receivers.toml" in seen["last_failure"]["why"]
            assert seen["remedy"] == f"ciml service resume one --home {one.home}"
            config.write_text(valid)

        assert one.begin("webhooks", *words).exception is None
        fail()
        assert "is running" in one.run("resume")
        fail()
        assert "is stopped" in one.run("stop")
        assert (one.status()["health"], one.code()) == ("stopped", 1)
        command = [sys.executable, "-m", "ciml", "service", "run", "webhooks", "--name", "one"]
        foreground = subprocess.Popen([*command, "--home", str(one.home), "--tied-to", str(os.getpid()), *words])
        try:
            one.wait(runs, "the foreground does not work")
            fail()
            assert foreground.wait(60) == 4
        finally:
            foreground.kill()
            foreground.wait()
        # as after a boot: the machine died while the supervisor watched, and the pids are other processes' now
        one.files.put_status({**one.files.status(), "health": "running"})
        for what in ("supervisor", "worker"):
            one.files.record(what, os.getpid(), 1000.0)
        seen = one.status()
        assert (seen["health"], seen["why"]) == ("stalled", "its supervisor died")
        shell(seen["remedy"])
        one.wait(runs, "it does not work after the boot")


@pytest.mark.engines
@pytest.mark.timeout(300)
def test_a_service_follows_the_homes_own_s3(tmp_path: Path) -> None:
    """The endpoint gets another port while the service runs."""
    home = tmp_path / "home"
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    ports = lasting_ports(2)

    def restart(port: int) -> None:
        engines.stop(["s3"], home)
        engines.start(["s3"], home, engines.Settings(tied=True, ports={"s3": port}))
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys)
        client.create_bucket(Bucket="trial")
        client.put_object(Bucket="trial", Key="data/file", Body=b"")

    restart(ports[0])
    try:
        with supervised(home) as one:
            done = one.begin("trainer", "--data-path", "s3://trial/data", "--dataset", "later")
            assert done.exception is None, done.exception
            assert json.loads((one.files.folder / "options.json").read_text())["local_s3"] is True
            worker = one.pid("worker")
            restart(ports[1])

            def follows() -> bool:
                is_new = one.files.process("worker") is not None and one.pid("worker") != worker
                return is_new and one.status()["health"] == one.files.report().get("state") == "running"

            one.wait(follows, "it does not follow")
            address = (one.files.options().environment or {})["AWS_ENDPOINT_URL_S3"]
            assert address == f"http://127.0.0.1:{ports[1]}"
    finally:
        engines.stop(["s3"], home)


def test_names_are_file_names(tmp_path: Path) -> None:
    for name in ("", "..", "a/b", "-x", "x" * 65, "a\n"):
        with pytest.raises(CimlError, match="invalid service name"):
            ServiceFiles(tmp_path, name)


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
