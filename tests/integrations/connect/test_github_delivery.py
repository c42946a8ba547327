"""From nothing to the first run: an operator connects GitHub, and a signed delivery becomes a stored run."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ciml.integrations.adapter import Delivery
from ciml.kafka import KafkaOptions
from ciml.pipelines.kafka.broker import make_topic
from tests.integrations import github_samples as github
from tests.transforms.fetch.certificates import make_certificate
from tests.transforms.fetch.log_server import LogServer, serving
from tests.transforms.fetch.zips import zipped

ROOT = Path(__file__).parents[3]
LOG = ROOT / "tests/golden/telemetry/dool.log"

pytestmark = pytest.mark.engines


class Operator:
    """Runs commands of ciml in a folder."""

    def __init__(self, folder: Path, kafka: str, topic: str) -> None:
        self.folder, self.kafka, self.topic = folder, ("--kafka", kafka), ("--topic", topic)
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "CIML_HOME": str(folder / "home")}

    def ciml(self, *arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "ciml", *arguments, *self.kafka, *self.topic]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def receiver(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "ciml", "receive", "webhooks", "--config", "receivers.toml"]
        command += [*self.kafka, *self.topic]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def operator(kafka: str, tmp_path: Path) -> Operator:
    topic = f"connect-{time.time_ns()}"
    make_topic(KafkaOptions.of(kafka), topic, 1)
    return Operator(tmp_path, kafka, topic)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[LogServer]:
    """GitHub's API with an artifact of the job 4001, made while it ran."""
    certificate = make_certificate(tmp_path, "localhost")
    with serving(lambda: LogServer(certificate=certificate)) as server:
        artifact = {"id": 5, "name": "ciml-4001", "expired": False, "created_at": "2026-11-24T12:19:00Z",
                    "size_in_bytes": 1, "workflow_run": {"id": 81}}  # fmt: skip
        listed = json.dumps({"total_count": 1, "artifacts": [artifact]}).encode()
        runs = "/repos/octo/widget/actions/runs/81/artifacts?per_page=100&page=1"
        server.answers[runs] = (200, listed, {"Content-Type": "application/json"})
        log = zipped({"unit/x/dstat-csv_log.txt.gz": gzip.compress(LOG.read_bytes(), mtime=0)})
        server.answers["/repos/octo/widget/actions/artifacts/5/zip"] = (200, log, {})
        yield server


def post(url: str, delivery: Delivery, secret: str) -> int:
    """Send a delivery as GitHub does."""
    signature = "sha256=" + hmac.new(secret.encode(), delivery.body, hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json", "X-Hub-Signature-256": signature, "X-GitHub-Delivery": delivery.id,
        "X-GitHub-Event": delivery.headers["x-github-event"],
    }  # fmt: skip
    with urllib.request.urlopen(urllib.request.Request(url, delivery.body, headers), timeout=30) as answer:
        return int(answer.status)


def test_from_nothing_to_the_first_run(operator: Operator, api: LogServer) -> None:
    base = f"https://localhost:{api.server_port}"
    (certificate,) = operator.folder.glob("*.pem")
    (operator.folder / "receivers.toml").write_text("[webhooks]\nport = 0\n")
    connect = (
        "connect", "github", "--url", "https://ci.example.org", "--api", base, "--internal", "--ca-file",
        str(certificate),
    )  # fmt: skip
    said = operator.ciml(*connect)
    secret = (operator.folder / "secrets/github").read_text().strip()
    assert secret not in said
    assert "missing    secrets/github-token" in said
    (operator.folder / "secrets/github-token").write_text("t0ken\n")

    receiver = operator.receiver()
    try:
        assert receiver.stderr is not None
        found = next(match for line in receiver.stderr if (match := re.search(r"webhooks at (\S+)", line)))
        url = f"{found[1].rstrip('/')}/hooks/github"
        repository = {**github.REPOSITORY, "url": f"{base}/repos/octo/widget"}
        ping = github.delivery("ping", {"zen": "Design for failure.", "hook_id": 1, "repository": repository})
        for one in (ping, github.workflow_run(), github.push(repository=repository), github.job(repository=repository)):
            assert post(url, one, secret) == 202
    finally:
        receiver.terminate()
        receiver.communicate(timeout=30)

    operator.ciml(
        "ingest", "--data-path", "data", "--fetch-policy", "fetch.toml", "--trust-policy", "trust.toml", "--once",
        "--engine", "micro-batches",
    )  # fmt: skip
    said = operator.ciml(*connect, "--wait", "60s", "--data-path", "data")
    waited = said.partition("Waiting for an event of github")[2]
    ping, update, push, run = waited.split("event at ")[1:]
    assert "is ignored, no_run: a ping only tests the webhook" in ping
    assert "update of the runs of workflow_run:81: event push" in update
    assert (
        f"sha:octo/widget/{github.SHA}: review own by grace; branch:octo/widget/main/{github.SHA}: review pushed"
        in push
    )
    assert "run github~4001~1 (unit (3.11), failure) is stored" in run
    assert "run github~4001~1 is trusted now, by the rule 'main branches'" in run  # the workflow run was a push to main


def test_nothing_that_comes_is_said_with_what_to_check(operator: Operator) -> None:
    said = operator.ciml("connect", "github", "--url", "https://ci.example.org", "--wait", "1s", code=1)
    assert "no event that says how a job ended:" in said
    assert "ciml service status webhooks" in said
