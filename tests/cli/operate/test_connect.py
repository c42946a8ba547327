"""``ciml connect``: what is written and printed, what is asked for, and what it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import cli

COMMANDS = {
    "github": ("--url", "https://ci.example.org"),
    "gitlab": ("--url", "https://ci.example.org"),
    "zuul": ("--broker", "mqtts://mqtt.example.org", "--logs", "https://logs.example.org"),
    "gerrit": ("--ssh", "ssh://ciml@review.example.org"),
    "tekton": ("--url", "https://ci.example.org", "--logs", "s3://cilogs/tekton", "--client", "CN=tekton"),
    "jenkins": ("--url", "https://ci.example.org", "--server", "https://jenkins.example.org"),
}


def ciml(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["connect", *arguments], standalone_mode=False)
    code = result.return_value if result.exception is None else getattr(result.exception, "exit_code", None)
    assert (code or 0) == exit_code, f"{result.output}{result.exception!r}"
    return f"{result.output}{result.exception or ''}"


@pytest.mark.parametrize("system", COMMANDS)
def test_each_system_prints_the_other_side_and_the_services(system: str, tmp_path: Path) -> None:
    said = ciml(system, *COMMANDS[system], "--folder", str(tmp_path / "conf"))
    assert said.index("made") < said.index("On the other side: Paths of secrets are below") < said.index("--- 1. ")
    start = said.partition("Start here, or restart what runs:")[2].split("\n")
    receiver = {"zuul": "mqtt", "gerrit": "gerrit"}.get(system, "webhooks")
    assert start[1] == f"  ciml service start {receiver} --config {tmp_path / 'conf/receivers.toml'}"
    for option in start[2].split():
        assert not option.endswith(".toml") or Path(option).exists()
    for secret in (tmp_path / "conf/secrets").glob("*"):
        assert secret.read_text().strip() not in said


def test_the_services_have_the_options_that_were_given(tmp_path: Path) -> None:
    said = ciml(
        "github", *COMMANDS["github"], "--folder", str(tmp_path), "--topic", "hub", "--data-path", str(tmp_path / "d")
    )
    assert f"--config {tmp_path / 'receivers.toml'} --topic hub" in said
    assert f"ingest --data-path {tmp_path / 'd'} --topic hub" in said


@pytest.mark.parametrize("system", COMMANDS)
def test_what_is_missing_is_named_where_nobody_can_be_asked(system: str, tmp_path: Path) -> None:
    said = ciml(system, "--folder", str(tmp_path), exit_code=2)
    assert f"missing {COMMANDS[system][0]}: the " in said
    assert list(tmp_path.iterdir()) == []


def test_waiting_needs_a_broker_before_anything_is_written(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "conf"
    said = ciml("github", *COMMANDS["github"], "--folder", str(folder), "--home", str(home), "--wait", exit_code=2)
    assert "--wait: no Kafka broker: start one" in said
    assert not folder.exists()


def test_connecting_needs_the_extra_of_receivers_alone(tmp_path: Path) -> None:
    code = f"""
import sys
for name in ("numpy", "pyarrow", "apache_beam", "boto3", "httpx", "starlette"):
    sys.modules[name] = None
from cli.main import cli
cli(["connect", "zuul", *{COMMANDS["zuul"]!r}, "--folder", {str(tmp_path)!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "trust.toml").exists()
