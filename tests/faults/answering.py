"""A trial of feedback: `ciml feedback stream` as a process, a GitHub and a GitLab over HTTP, and verdicts to say."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ciml.data_root import DataRoot
from ciml.manifest.log import ManifestLog
from tests.faults.children import Child
from tests.faults.scene import Scene
from tests.integrations.gerrit.real import READER, Gerrit
from tests.verdicts.feedback import github_stub, gitlab_stub, openapi
from tests.verdicts.feedback.github_stub import GitHubServer
from tests.verdicts.feedback.gitlab_stub import GitLabServer
from tests.verdicts.feedback.reviews import prediction
from tests.verdicts.feedback.stub import (
    ACCEPTED_THEN_HANG,
    ACCEPTED_THEN_RESET,
    CUT,
    RESET,
    Asked,
    Fault,
    ForwardingServer,
    ReviewServer,
    says,
    serving,
)

_CONFIG = """
dry_run = false
settle_s = 1
settle_most_s = 4
active_models = ["*"]
min_passing_runs = 0
max_jobs = 10
max_bytes = 16000
{more}
[[system]]
kind = "github"
name = "hub"
sources = ["github"]
api = "{github}"
secret_file = "github-token"
gap_s = 0.01

[[system]]
kind = "gitlab"
name = "lab"
sources = ["gitlab"]
server = "{gitlab}"
secret_file = "gitlab-token"
gap_s = 0.01
"""
_GERRIT = """
[[system]]
kind = "gerrit"
name = "review"
sources = ["zuul"]
url = "{url}"
user = "{user}"
secret_file = "gerrit-token"
gap_s = 0.01
"""
_HOLD_S = 240.0


@dataclass
class Faults:
    """What goes wrong at a server: by chance, and rarely enough that a trial ends.

    Attributes:
      rate: share of the requests that fail.
      dead: whether it resets every connection.
      slow: how many more answers may take the client's whole patience.
      injected: by kind.
    """

    chance: random.Random
    rate: float = 0.0
    dead: bool = False
    slow: int = 1
    injected: Counter[str] = field(default_factory=Counter)

    def plan(self, asked: Asked) -> Fault | None:
        """The fault of a request; called with the server's lock."""
        if self.dead:
            return self._count("dead", RESET)
        if self.chance.random() >= self.rate:
            return None
        kinds: list[tuple[str, Fault]] = [
            ("429", says(429, "Too Many Requests", {"Retry-After": "1"})), ("reset", RESET),
            ("502", says(502)), ("503", says(503, "", {"Retry-After": "1"})),
        ]  # fmt: skip
        if asked.writes:
            lost = [("accepted, reset", ACCEPTED_THEN_RESET), ("accepted, cut", CUT)]
            kinds += 2 * [*lost, ("accepted, 500", says(500, after=True))]
            if self.slow:
                kinds += 3 * [("accepted, hangs", ACCEPTED_THEN_HANG)]
        name, fault = self.chance.choice(kinds)
        self.slow -= name == "accepted, hangs"
        return self._count(name, fault)

    def _count(self, name: str, fault: Fault) -> Fault:
        self.injected[name] += 1
        return fault


@dataclass
class Answering:
    """The parts of a trial.

    Attributes:
      scene: its folder and broker.
      topic: of the predictions.
      github, gitlab: the servers, each with its faults.
      child: the service; a kill starts another.
    """

    scene: Scene
    topic: str
    github: GitHubServer
    gitlab: GitLabServer
    faults: tuple[Faults, ...]
    config: Path
    child: Child | None = None
    kills: int = 0

    @property
    def data(self) -> DataRoot:
        return DataRoot.open(self.scene.folder / "data")

    def start(self) -> None:
        """Start the service."""
        self.child = self.scene.ciml(
            "feedback", "stream", "--config", str(self.config), "--data-path", str(self.scene.folder / "data"),
            "--kafka", self.scene.broker, "--predictions-topic", self.topic, name="feedback", planted=True,
            environment={"CIML_FAULTS_SETTLE": "4"},
        )  # fmt: skip

    def kill(self) -> None:
        """Kill it with SIGKILL, and start another."""
        if self.child is not None:
            self.kills += self.child.crash()
        self.start()

    def stop(self) -> int | None:
        """End it as an operator does."""
        return self.child.stop() if self.child is not None else None

    def publish(self, records: Iterable[dict[str, Any]], pause: Callable[[], float] = lambda: 0.0) -> None:
        """Write predictions to the topic."""
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.scene.broker, "log_level": 0})
        for one in records:
            producer.produce(self.topic, json.dumps(one).encode(), key=b"p")
            producer.poll(0)
            time.sleep(pause())
        if producer.flush(60):
            raise RuntimeError("the broker acknowledges no predictions")

    def deltas(self) -> list[dict[str, Any]]:
        """The manifest, as its bytes say."""
        return [json.loads(data) for _, data in ManifestLog(self.data.feedback).raw_since(0)]

    def wait(self, verdicts: int) -> bool:
        """Wait until all verdicts are taken and nothing is left to say; False if that takes too long."""
        until = time.monotonic() + _HOLD_S
        while time.monotonic() < until:
            if self.child is not None and self.child.poll() is not None:
                return False
            if left(self.deltas(), verdicts) == 0:
                return True
            time.sleep(1.0)
        return False


def left(deltas: list[dict[str, Any]], verdicts: int) -> int:
    """The number of verdicts that are not decided, and of patch sets that are not answered: read independently."""
    taken = sum(len(delta.get("verdicts", ())) + sum(delta.get("silent", {}).values()) for delta in deltas)
    said: dict[str, int] = {}
    for delta in deltas:
        for outcome in delta.get("outcomes", ()):
            if outcome["outcome"] not in ("not_sent", "not_found"):
                said[outcome["entry"]] = outcome["changes"]
    return verdicts - taken + sum(len(delta.get("verdicts", ())) for delta in deltas) - sum(said.values())


@contextmanager
def answering(scene: Scene, seed: int, more: str = "") -> Iterator[Answering]:
    """The servers, the configuration and the topic of a trial; all processes end with it."""
    github, gitlab = GitHubServer(openapi.github()), GitLabServer()
    chance = random.Random(seed)
    faults = Faults(random.Random(chance.random())), Faults(random.Random(chance.random()))
    github.plan, gitlab.plan = faults[0].plan, faults[1].plan
    (scene.folder / "data").mkdir(parents=True)
    (scene.folder / "data" / "file").touch()  # a data root that exists
    for name, secret in (("github-token", github_stub.TOKEN), ("gitlab-token", gitlab_stub.TOKEN)):
        (scene.folder / name).write_text(secret)
        (scene.folder / name).chmod(0o600)
    with serving(github), serving(gitlab):
        config = scene.folder / "feedback.toml"
        config.write_text(_CONFIG.format(github=github.url, gitlab=gitlab.url, more=more))
        one = Answering(scene, scene.topic("predictions"), github, gitlab, faults, config)
        try:
            yield one
        finally:
            if one.child is not None:
                one.child.kill()


def failed(number: int, change: int, job: str, **run: Any) -> dict[str, Any]:
    """The verdict on a run that failed just now: on GitHub for an even change, on GitLab for an odd one."""
    even, now_us = change % 2 == 0, int(time.time() * 1e6)
    given = {
        "source": "github" if even else "gitlab", "project": "octo/widget" if even else gitlab_stub.PROJECT,
        "change": str(change), "patchset": "", "head": sha(change), "build_name": job, "start_us": now_us - 60_000_000,
        "end_us": now_us, **run,
    }  # fmt: skip
    return prediction(number, **given)


def sha(change: int) -> str:
    """The commit of a change."""
    return f"{change + 0xABCDEF:040x}"


def messages(one: Answering, change: int) -> list[str]:
    """The texts of ciml's messages on a change."""
    return one.github.messages(change) if change % 2 == 0 else one.gitlab.messages(change)


def servers(one: Answering) -> tuple[ReviewServer, ReviewServer]:
    return one.github, one.gitlab


@contextmanager
def beside_gerrit(scene: Scene, seed: int) -> Iterator[tuple[Answering, Gerrit, ForwardingServer]]:
    """As `answering`, with a real Gerrit among the systems, whose proxy fails as the others do."""
    gerrit = Gerrit(scene.folder / "gerrit")
    try:
        proxy = ForwardingServer(f"http://127.0.0.1:{gerrit.http}")
        faults = Faults(random.Random(seed))
        proxy.plan = faults.plan
        (scene.folder / "gerrit-token").write_text(READER[1])
        (scene.folder / "gerrit-token").chmod(0o600)
        with serving(proxy):
            more = _GERRIT.format(url=proxy.url, user=READER[0])
            with answering(scene, seed, more) as one:
                one.faults = (*one.faults, faults)
                yield one, gerrit, proxy
    finally:
        gerrit.kill()


def in_background(function: Callable[[], None]) -> threading.Thread:
    """Run a function in a thread."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread
