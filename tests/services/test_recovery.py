"""Each kind of service recovers from each fault, by itself or by the command that its status names.

`pytest -s -m interop tests/services/test_recovery.py` tries all of them, and prints the table of docs/operations.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from ciml import engines
from ciml.engines.processes import lasting_ports
from ciml.services.options import KINDS
from tests.integrations.gerrit.server import FakeGerrit
from tests.integrations.gerrit.test_gerrit import source as gerrit_source
from tests.integrations.mqtt.conftest import certificates, mosquitto
from tests.integrations.mqtt.test_supervised import config as mqtt_config
from tests.pipelines.predict.predicting import World
from tests.services.recovery import FAULTS, SECRET, Kind, Scene, Trials, broker_words, data_words, scene, table
from tests.services.supervising import shell, supervised
from tests.verdicts.feedback.conftest import github_server
from tests.verdicts.feedback.github_stub import GitHubServer
from tests.verdicts.feedback.test_service import configure

__all__ = ["certificates", "github_server", "mosquitto"]

ANY_CREDENTIALS = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
_rows: dict[str, dict[str, str]] = {}


@pytest.fixture(scope="module")
def world_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("recovery")
        with scene(folder, patch.setenv, lambda name: patch.delenv(name, raising=False)) as one:
            yield one


def kind_of(name: str, one: Scene, request: pytest.FixtureRequest) -> Kind:
    """Return a kind with what it needs."""
    folder = one.folder / name
    folder.mkdir()
    properties = one.write(f"{name}/kafka.properties", "client.id = ciml\n")
    if name == "ingest":
        token = one.write(f"{name}/token", SECRET.replace(" ", "-"))
        policy = one.write(
            f"{name}/fetch.toml",
            f'hosts = ["logs.example.org"]\n[[credentials]]\nhost = "logs.example.org"\ntoken_file = "{token}"\n',
        )
        words = (*data_words(one), "--engine", "micro-batches", "--fetch-policy", str(policy))
        return Kind(name, words, token, policy, broken="hosts = 3")
    if name == "predict":
        world: World = request.getfixturevalue("world")
        world.push(request.getfixturevalue("folders")[0])
        words = (*data_words(one), "--kafka-config", str(properties), "--model", "m", "--server", world.address)
        return Kind(name, (*words, "--engine", "micro-batches"), properties, properties)
    if name == "live":
        one.upload(request.getfixturevalue("made"))
        engine = ("--engine", f"flink:{request.getfixturevalue('flink')}")
        words = (*data_words(one), "--kafka-config", str(properties), "--dataset", "providers", *engine)
        return Kind(name, words, properties, properties, s3_at_start=True)
    if name == "trainer":
        experiment = one.write(f"{name}/experiment.toml", "epochs = 1\n")
        words = ("--data-path", "s3://trial/data", "--dataset", "later", "--experiment", str(experiment))
        return Kind(name, words, one.credentials, experiment, uses_broker=False)
    if name == "webhooks":
        (port,) = lasting_ports(1)
        secret = one.write(f"{name}/hub-secret", SECRET)
        text = (
            f'[webhooks]\nport = {port}\n[[source]]\nreceiver = "webhooks"\nname = "hub"\nadapter = "github"\n'
            f'secret_file = "{secret}"\n'
        )
        config = one.write(f"{name}/receivers.toml", text)
        words = ("--config", str(config), *broker_words(one))
        return Kind(name, words, secret, config, uses_s3=False, own_port=port)
    if name == "mqtt":
        config = mqtt_config(folder, request.getfixturevalue("mosquitto"))
        return Kind(name, ("--config", str(config), *broker_words(one)), folder / "password", config, uses_s3=False)
    if name == "gerrit":
        server = FakeGerrit(folder / "gerrit")
        server.start()
        request.addfinalizer(server.stop)
        config = one.write(f"{name}/receivers.toml", gerrit_source(server))
        words = ("--config", str(config), *broker_words(one))
        return Kind(name, words, server.folder / "key", config, uses_s3=False)
    server: GitHubServer = request.getfixturevalue("github_server")
    config = Path(configure(folder, server))
    return Kind(name, ("--config", str(config), *data_words(one)), folder / "token", config)


def recover(name: str, faults: tuple[str, ...], one: Scene, request: pytest.FixtureRequest) -> dict[str, str]:
    kind = kind_of(name, one, request)
    home = one.home / name
    with supervised(home) as service:
        trials = Trials(one, kind, service)
        trials.begin()
        for fault in faults:
            trials.run(fault)
        assert service.ask("stop").exception is None
        assert service.status()["health"] == "stopped"
    return trials.cells


@pytest.mark.engines
@pytest.mark.timeout(600)
def test_ingest_recovers_from_what_failed_before(world_outside: Scene, request: pytest.FixtureRequest) -> None:
    faults = ("credential missing", "S3 hanging", "invalid configuration")
    cells = recover("ingest", faults, world_outside, request)
    assert cells == {
        "credential missing": "yes, by itself", "S3 hanging": "yes, by itself",
        "invalid configuration": "yes, ciml service resume",
    }  # fmt: skip


@pytest.mark.engines
@pytest.mark.timeout(300)
def test_a_failed_service_starts_again_by_every_command(kafka: str, topic: Callable[..., str], tmp_path: Path) -> None:
    (port,) = lasting_ports(1)
    (tmp_path / "secret").write_text(SECRET)
    config = tmp_path / "receivers.toml"
    valid = (
        f'[webhooks]\nport = {port}\n[[source]]\nreceiver = "webhooks"\nname = "hub"\nadapter = "github"\n'
        f'secret_file = "{tmp_path / "secret"}"\n'
    )
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
        assert "is running" in one.ask("resume").output
        fail()
        done = one.begin("webhooks", *words)
        assert done.exception is None, done.exception
        assert "is running" in done.output
        fail()
        assert "is stopped" in one.ask("stop").output
        assert (one.status()["health"], one.code()) == ("stopped", 1)
        command = [sys.executable, "-m", "ciml.cli.main", "service", "run", "webhooks", "--name", "one"]
        foreground = subprocess.Popen([*command, "--home", str(one.home), "--tied-to", str(os.getpid()), *words])
        try:
            one.wait(runs, "the foreground does not work")
            fail()
            assert foreground.wait(60) == 4
            foreground = subprocess.Popen([*command, "--home", str(one.home), "--tied-to", str(os.getpid()), *words])
            one.wait(runs, "the container that is started again does not work")
            # the machine dies while the service has failed: stale files, and pids that are other processes' now
            for what in ("supervisor", "worker"):
                one.kill(what)
        finally:
            foreground.kill()
            foreground.wait()
        one.wait(lambda: one.files.process("worker") is None, "the worker does not end")
        one.files.put_report({**one.files.report(), "state": "ended", "error": "x", "fault": True})
        for what in ("supervisor", "worker"):
            one.files.record(what, os.getpid(), 1000.0)
        seen = one.status()
        assert (seen["health"], seen["why"]) == ("stalled", "its supervisor died")
        shell(seen["remedy"])
        one.wait(runs, "it does not work after the boot")
        text = one.ask("status", "one").output
        assert "last failure" in text
        assert "ago" in text


@pytest.mark.engines
@pytest.mark.timeout(300)
def test_a_service_follows_the_homes_own_s3_and_resumes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint gets another port while the service runs, and again while it is stopped."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"

    def restart(port: int) -> None:
        engines.stop(["s3"], home)
        engines.start(["s3"], home, engines.Settings(tied=True, ports={"s3": port}))
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **ANY_CREDENTIALS)
        client.create_bucket(Bucket="trial")
        client.put_object(Bucket="trial", Key="data/file", Body=b"")

    first, second, third = lasting_ports(3)
    restart(first)
    try:
        with supervised(home) as one:

            def runs(port: int) -> bool:
                seen, report = one.status(), one.files.report()
                at = (one.files.options().environment or {})["AWS_ENDPOINT_URL_S3"]
                return (seen["health"], report.get("state"), at) == ("running", "running", f"http://127.0.0.1:{port}")

            done = one.begin("trainer", "--data-path", "s3://trial/data", "--dataset", "later")
            assert done.exception is None, done.exception
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                del os.environ[name]  # which the command set
            record = (one.files.folder / "options.json").read_text()
            assert json.loads(record)["local_s3"] is True
            worker = one.pid("worker")
            restart(second)
            one.wait(lambda: runs(second) and one.pid("worker") != worker, "it does not follow")
            assert one.ask("stop").exception is None
            restart(third)
            seen = one.status()
            assert (seen["health"], seen["remedy"]) == ("stopped", f"ciml service resume one --home {home}")
            shell(seen["remedy"])
            one.wait(lambda: runs(third), "it does not work with the present address")
    finally:
        engines.stop(["s3"], home)


@pytest.mark.interop
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_recovers_from_each_fault(name: str, world_outside: Scene, request: pytest.FixtureRequest) -> None:
    _rows[name] = recover(name, FAULTS, world_outside, request)
    print(f"\n{table(_rows)}\n{json.dumps(_rows)}")
    assert all(_rows[name][fault].startswith("yes") for fault in FAULTS)
