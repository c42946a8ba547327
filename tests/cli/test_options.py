from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ciml.cli.command import make_command
from ciml.cli.commands.serve.service import command as service_command
from ciml.cli.options import EngineChoice
from ciml.cli.running import Foreground, stop_on_signals
from ciml.engines import EngineState, state
from ciml.engines.kafka import MOCK
from ciml.errors import CimlError
from ciml.options import option
from ciml.services.files import ServiceFiles, StartOptions
from tests.services.supervising import options_for
from tests.services.test_supervisor import Idle


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "CIML_")):
            monkeypatch.delenv(name)


@dataclass(frozen=True, kw_only=True)
class Options:
    data_path: str | None = option(kind="new data")
    kafka: str | None = option(kind="broker")
    engine: EngineChoice = option(kind="engine")
    home: Path = option(kind="home")


@dataclass(frozen=True, kw_only=True)
class OptionalBroker(Options):
    kafka: str | None = option(kind="optional broker")


def run(arguments: list[str], home: Path, required: bool = True) -> tuple[Result, dict[str, Any]]:
    seen: dict[str, Any] = {}

    def see(options: Options) -> None:
        seen.update(vars(options), s3=os.environ.get("AWS_ENDPOINT_URL_S3"))

    def see_any(options: OptionalBroker) -> None:
        see(options)

    command = make_command("see")(see if required else see_any)
    return CliRunner().invoke(command, [*arguments, "--home", str(home)]), seen


def written(home: Path, **changes: EngineState) -> None:
    state.write(home, changes)


KAFKA = EngineState("kafka", "real", "Kafka", "127.0.0.1:9092")
FLINK = EngineState("flink", "real", "Flink", "127.0.0.1:8099")
S3 = EngineState("s3", "real", "S3", "http://127.0.0.1:5000")


def test_defaults_come_from_the_engines_that_run_and_what_is_given_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written(tmp_path, kafka=KAFKA, flink=FLINK, s3=S3)
    result, seen = run(["--data-path", "s3://bucket/x"], tmp_path)
    assert result.exit_code == 0, result.output
    assert seen == {
        "data_path": "s3://bucket/x", "kafka": "127.0.0.1:9092", "engine": EngineChoice("flink", "127.0.0.1:8099"),
        "home": tmp_path, "s3": "http://127.0.0.1:5000",
    }  # fmt: skip
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        os.environ.pop(name)
    _, seen = run(["--kafka", "elsewhere:1", "--engine", "micro-batches", "--data-path", "/d"], tmp_path)
    assert (seen["kafka"], seen["engine"]) == ("elsewhere:1", EngineChoice("micro-batches"))
    _, seen = run(["--engine", "flink:elsewhere:8099"], tmp_path)
    assert seen["engine"] == EngineChoice("flink", "elsewhere:8099")
    monkeypatch.setenv("AWS_PROFILE", "production")  # the user's own S3
    assert run(["--data-path", "s3://bucket"], tmp_path)[1]["s3"] is None


def test_a_light_flink_means_micro_batches(tmp_path: Path):
    written(tmp_path, kafka=KAFKA, flink=EngineState("flink", "light", "light: bounded micro-batches"))
    _, seen = run([], tmp_path)
    assert seen["engine"] == EngineChoice("micro-batches")
    result, _ = run(["--engine", "flink"], tmp_path)
    assert isinstance(result.exception, CimlError)
    assert str(result.exception).startswith("only light: bounded micro-batches runs here")


def test_an_engine_that_died_is_no_default(tmp_path: Path):
    written(tmp_path, kafka=EngineState("kafka", "light", MOCK, "127.0.0.1:9092", pid=2**22 - 3, started=1.0))
    result, _ = run([], tmp_path)
    assert isinstance(result.exception, CimlError)
    assert str(result.exception) == "no Kafka broker: start one (ciml up kafka) or name one (--kafka HOST:PORT)"
    result, seen = run([], tmp_path, required=False)
    assert (result.exit_code, seen["kafka"], seen["engine"]) == (0, None, EngineChoice("micro-batches"))


@pytest.mark.parametrize("value", ["spark", "micro-batches:x", "flinky"])
def test_an_unknown_engine_is_refused(tmp_path: Path, value: str):
    result, _ = run(["--kafka", "x:1", "--engine", value], tmp_path)
    assert result.exit_code == 2
    assert f"unknown engine {value!r}; choose from flink, flink:HOST:PORT, micro-batches" in result.output


def test_the_first_signal_stops_and_the_next_one_interrupts():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        stop = stop_on_signals()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_service_with_a_problem_does_not_start_in_the_foreground():
    class Lacking(Idle):
        def problems(self) -> dict[str, str]:
            return {"logs.example.org": "token: no such file"}

        def open(self) -> None:
            raise AssertionError("it starts")

    with pytest.raises(CimlError, match="token: no such file"):
        Foreground().run(Lacking("idle"), None)


@pytest.mark.parametrize("local", [False, True])
def test_only_the_credentials_of_the_local_s3_are_no_secrets(
    local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written(tmp_path, s3=S3, kafka=KAFKA)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", S3.address if local else "https://s3.example.org")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    started: list[StartOptions] = []
    monkeypatch.setattr("ciml.services.control.start", lambda files, options, *_, **__: started.append(options) or 0)
    (tmp_path / "receivers.toml").touch()
    words = ["start", "webhooks", "--config", str(tmp_path / "receivers.toml"), "--home", str(tmp_path)]
    done = CliRunner().invoke(service_command, words, standalone_mode=False)
    assert done.exception is None, done.exception
    (options,) = started
    assert options.secret_variables == (() if local else ("AWS_SECRET_ACCESS_KEY",))
    assert "secret" not in str(options.environment)


def test_the_exit_code_of_a_status_is_that_of_the_worst_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ciml.services.status._query_in_child", lambda files, status: {"read_us": {}, "job": {}})
    codes = []
    for name, health in (("c", "stopped"), ("a", "failed"), ("b", "stopped")):
        files = ServiceFiles(tmp_path, name)
        files.put_options(StartOptions(options_for("webhooks", config="c"), "", cwd=str(tmp_path)))
        files.put_status({"health": health, "why": ""})
        files.want("stop")
        done = CliRunner().invoke(service_command, ["status", "--json", "--home", str(tmp_path)], standalone_mode=False)
        codes.append(done.return_value)
    assert codes == [1, 2, 2]
