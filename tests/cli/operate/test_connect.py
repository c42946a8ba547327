"""``ciml connect``: what is written and printed, what is asked for, and what it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ciml.events.records import Origin
from ciml.services.arrivals import Arrival, Effect
from ciml.verdicts.feedback.config import load_feedback
from tests.cli.calling import ciml

COMMANDS = {
    "github": ("--url", "https://ci.example.org"),
    "gitlab": ("--url", "https://ci.example.org"),
    "zuul": ("--broker", "mqtts://mqtt.example.org", "--logs", "https://logs.example.org"),
    "gerrit": ("--ssh", "ssh://ciml@review.example.org"),
    "tekton": ("--url", "https://ci.example.org", "--logs", "s3://cilogs/tekton", "--client", "CN=tekton"),
    "jenkins": ("--url", "https://ci.example.org", "--server", "https://jenkins.example.org"),
}


def connect(*arguments: str, code: int = 0) -> str:
    return ciml("connect", *arguments, code=code).output


@pytest.mark.parametrize("system", COMMANDS)
def test_each_system_prints_the_other_side_and_the_services(system: str, tmp_path: Path) -> None:
    said = connect(system, *COMMANDS[system], "--folder", str(tmp_path / "conf"))
    assert said.index("made") < said.index("On the other side: Paths of secrets are below") < said.index("--- 1. ")
    start = said.partition("Start here, or restart what runs:")[2].split("\n")
    receiver = {"zuul": "mqtt", "gerrit": "gerrit"}.get(system, "webhooks")
    assert start[1] == f"  ciml service start {receiver} --config {tmp_path / 'conf/receivers.toml'}"
    for option in start[2].split():
        assert not option.endswith(".toml") or Path(option).exists()
    for secret in (tmp_path / "conf/secrets").glob("*"):
        assert secret.read_text().strip() not in said


@pytest.mark.parametrize(
    ("system", "more"),
    [("github", ()), ("github", ("--app", "12345")), ("gitlab", ()), ("gerrit", ("--rest", "https://r.example.org"))],
)
def test_feedback_is_a_dry_run_that_is_printed(system: str, more: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "conf"
    said = connect(system, *COMMANDS[system], *more, "--feedback", "--folder", str(folder))
    assert f"made       {folder / 'feedback.toml'}" in said
    assert f"  ciml service start feedback --config {folder / 'feedback.toml'} --data-path data" in said
    assert f"It prints its messages until dry_run is false in {folder / 'feedback.toml'}." in said
    (secret,) = load_feedback(folder / "feedback.toml").systems[0].secret_file
    assert f"missing    {folder / secret}" in said
    again = connect(system, *COMMANDS[system], *(() if "--app" in more else more), "--folder", str(folder))
    assert "service start feedback" not in again


@pytest.mark.parametrize(
    ("system", "more", "message"),
    [
        ("github", ("--app", "7"), "--app is that of the feedback; add --feedback"),
        ("gerrit", ("--feedback",), "missing --rest: the address of Gerrit's REST API, such as https://review"),
        ("gitlab", ("--server", "http://gl", "--feedback"), "--server 'http://gl': give the address of GitLab"),
        ("github", ("--wait",), "--wait: no Kafka broker: start one"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_written(
    system: str, more: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    places = ("--folder", str(tmp_path / "conf"), "--home", str(tmp_path / "home"))
    assert message in connect(system, *COMMANDS[system], *more, *places, code=2)
    assert not (tmp_path / "conf").exists()


def test_the_services_have_the_options_that_were_given(tmp_path: Path) -> None:
    words = ("--folder", str(tmp_path), "--topic", "hub", "--data-path", str(tmp_path / "d"))
    said = connect("github", *COMMANDS["github"], *words)
    assert f"--config {tmp_path / 'receivers.toml'} --topic hub" in said
    assert f"ingest --data-path {tmp_path / 'd'} --topic hub" in said


@pytest.mark.parametrize("system", COMMANDS)
def test_what_is_missing_is_named_where_nobody_can_be_asked(system: str, tmp_path: Path) -> None:
    said = connect(system, "--folder", str(tmp_path), code=2)
    assert any(f"missing {option}: the " in said for option in COMMANDS[system][::2])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("system", "more"), [("zuul", ()), ("github", ("--feedback",))])
def test_connecting_needs_the_extra_of_receivers_alone(system: str, more: tuple[str, ...], tmp_path: Path) -> None:
    words = ["connect", system, *COMMANDS[system], *more, "--folder", str(tmp_path)]
    code = (
        "import sys\n"
        "absent = ('numpy', 'pyarrow', 'apache_beam', 'boto3', 'httpx', 'starlette', 'jwt')\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        f"import ciml.services.arrivals; from ciml.cli.main import cli; cli({words!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "trust.toml").exists()


FAILED = Effect("the event is a dead letter", final=True, rejected=True)
STORED = Effect("a run", final=True)


@pytest.mark.parametrize(
    ("arrivals", "code"),
    [
        ([], 1),
        ([[Effect("ignored")]], 1),
        ([[Effect("ignored")], [STORED]], 0),
        ([[STORED, FAILED]], 2),
        ([[FAILED, STORED]], 2),
        ([[STORED], [FAILED]], 0),
    ],
)
def test_the_exit_code_is_that_of_the_first_event_of_a_run(
    arrivals: list[list[Effect]], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [Arrival(Origin("ci-events", 0, offset), tuple(effects)) for offset, effects in enumerate(arrivals)]
    monkeypatch.setattr("ciml.services.arrivals.read_arrivals", lambda *_: iter(events))
    words = ("--folder", str(tmp_path), "--kafka", "none:1", "--wait", "1s")
    said = connect("github", *COMMANDS["github"], *words, code=code)
    assert ("no event that says how a job ended" in said) == (code == 1)
