"""Rows 26 and 27: review systems and a model server fail while a service is killed; names try to be markup."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ciml.data_root import DataRoot
from ciml.engines.processes import free_ports
from ciml.integrations.gerrit.review import TAG
from ciml.manifest.log import ManifestLog
from ciml.serving.predict.log import read_predictions
from ciml.serving.push import push
from ciml.storage import open_store
from ciml.transforms.examples.prepare import prepare_many
from tests.faults import planted
from tests.faults.children import Child, python
from tests.faults.results import Verdict
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.integrations.gerrit.real import READER, Gerrit
from tests.messages import published
from tests.pipelines.predict.predicting import BLESSED, World, telemetry
from tests.serving.models_fixture import DEFINITION, direct, save_model
from tests.verdicts.feedback import github_stub, gitlab_stub, openapi
from tests.verdicts.feedback.github_stub import GitHubServer
from tests.verdicts.feedback.gitlab_stub import GitLabServer
from tests.verdicts.feedback.hostile import CORPUS, faults
from tests.verdicts.feedback.reviews import prediction
from tests.verdicts.feedback.stub import (
    ACCEPTED_THEN_HANG,
    ACCEPTED_THEN_RESET,
    CUT,
    RESET,
    Asked,
    Fault,
    ForwardingServer,
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
"""
_SYSTEM = """
[[system]]
kind = "{0}"
name = "{0}"
sources = ["{1}"]
{2}
secret_file = "{0}-token"
gap_s = 0.01
"""


@dataclass
class Faults:
    """What goes wrong at a server: at random, and rarely enough that a trial ends.

    Attributes:
      rate: share of the requests that fail.
      dead: whether it resets every connection.
      slow: how many more answers may take the client's whole patience.
      injected: number of faults.
    """

    chance: random.Random
    rate: float = 0.0
    dead: bool = False
    slow: int = 1
    injected: int = 0

    def plan(self, asked: Asked) -> Fault | None:
        """Return the fault of a request; called with the server's lock."""
        if not self.dead and self.chance.random() >= self.rate:
            return None
        self.injected += 1
        if self.dead:
            return RESET
        kinds = [says(429, "", {"Retry-After": "1"}), RESET, says(502), says(503, "", {"Retry-After": "1"})]
        if asked.writes:
            kinds += 2 * [ACCEPTED_THEN_RESET, CUT, says(500, after=True)] + 3 * [ACCEPTED_THEN_HANG] * bool(self.slow)
        fault = self.chance.choice(kinds)
        self.slow -= fault is ACCEPTED_THEN_HANG
        return fault


@dataclass
class Answering:
    """`ciml feedback stream` as a process, a GitHub and a GitLab over HTTP, each with its faults, and verdicts."""

    scene: Scene
    topic: str
    github: GitHubServer
    gitlab: GitLabServer
    faults: list[Faults]
    child: Child | None = None
    published: int = 0

    def start(self) -> None:
        """Start the service."""
        folder = self.scene.folder
        self.child = self.scene.ciml(
            "feedback", "stream", "--config", str(folder / "feedback.toml"), "--data-path", str(folder / "data"),
            "--kafka", self.scene.broker, "--predictions-topic", self.topic, defects=self.scene.planted,
            environment={planted.SETTLE: "4"},
        )  # fmt: skip

    def publish(self, records: Sequence[dict[str, Any]], pause: Callable[[], float] = lambda: 0.0) -> None:
        """Write predictions to the topic."""
        self.published = len(records)
        _publish(self.scene.broker, self.topic, (json.dumps(one).encode() for one in records), pause)

    def add_change(self, change: int, **values: str) -> None:
        """Add a change: to GitHub if it is even, to GitLab if it is odd."""
        add = self.gitlab.request if change % 2 else self.github.pull
        add(change, _sha(change), **values)

    def messages(self, change: int) -> list[str]:
        """Return the texts of ciml's messages on a change."""
        return self.gitlab.messages(change) if change % 2 else self.github.messages(change)

    def deltas(self) -> list[dict[str, Any]]:
        """Return the manifest, as its bytes say."""
        root = DataRoot.open(self.scene.folder / "data")
        return [json.loads(data) for _, data in ManifestLog(root.feedback).raw_since(0)]

    def finish(self, verdict: Verdict) -> None:
        """Wait until all verdicts are taken and no patch set waits for its message, and stop the service."""
        child = self.child
        assert child is not None
        until = time.monotonic() + 240
        while (left := self._left()) and time.monotonic() < until and child.poll() is None:
            time.sleep(1.0)
        verdict.expect(not left, f"I2: {left} verdicts are not published within the time; the service: {child.said()}")
        code = child.stop()
        verdict.expect(code in (0, 143, -15), f"I2: the service ended with {code}")
        verdict.count("verdicts", self.published)
        for server in (self.github, self.gitlab):
            verdict.fail(*(f"I11: {line}" for line in server.violations))
            verdict.count("requests", len(server.asked))
        verdict.fail(*(f"I9: GitLab carried out {line!r}" for line in self.gitlab.commands))

    def _left(self) -> int:
        """Return the number of verdicts that are not decided or not published, read independently."""
        deltas, said = self.deltas(), dict[str, int]()
        for outcome in (outcome for delta in deltas for outcome in delta.get("outcomes", ())):
            if outcome["outcome"] not in ("not_sent", "not_found"):
                said[outcome["entry"]] = outcome["changes"]
        silent = sum(sum(delta.get("silent", {}).values()) for delta in deltas)
        return self.published - silent - sum(said.values())


def _publish(broker: str, topic: str, values: Iterable[bytes], pause: Callable[[], float]) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker, "log_level": 0})
    for value in values:
        producer.produce(topic, value, key=b"p")
        producer.poll(0)
        time.sleep(pause())
    if producer.flush(60):
        raise RuntimeError("the broker acknowledges no messages")


@contextmanager
def answering(scene: Scene, seed: int, more: str = "") -> Iterator[Answering]:
    """The servers, the configuration and the topic of a trial; all processes end with it."""
    github, gitlab = GitHubServer(openapi.github()), GitLabServer()
    both = [Faults(random.Random(f"{seed} {name}")) for name in ("github", "gitlab")]
    github.plan, gitlab.plan = both[0].plan, both[1].plan
    (scene.folder / "data").mkdir()
    (scene.folder / "data" / "file").touch()  # a data root that exists
    with serving(github), serving(gitlab):
        config = _CONFIG + _SYSTEM.format("github", "github", f'api = "{github.url}"')
        config += _SYSTEM.format("gitlab", "gitlab", f'server = "{gitlab.url}"') + more
        (scene.folder / "feedback.toml").write_text(config)
        for name, secret in {"github": github_stub.TOKEN, "gitlab": gitlab_stub.TOKEN, "gerrit": READER[1]}.items():
            (scene.folder / f"{name}-token").write_text(secret)
            (scene.folder / f"{name}-token").chmod(0o600)
        one = Answering(scene, scene.topic("predictions"), github, gitlab, both)
        try:
            yield one
        finally:
            if one.child is not None:
                one.child.kill()


def _failed(number: int, change: int, job: str) -> dict[str, Any]:
    """Return the verdict on a run that failed just now."""
    now_us = int(time.time() * 1e6)
    return prediction(
        number, source="gitlab" if change % 2 else "github", patchset="", head=_sha(change), build_name=job,
        project=gitlab_stub.PROJECT if change % 2 else "octo/widget", change=str(change), start_us=now_us - 60_000_000,
        end_us=now_us,
    )  # fmt: skip


def _sha(change: int) -> str:
    return f"{change + 0xABCDEF:040x}"


_JOBS = 10
#: The last trial with stubs alone.
_STUBS = 10


@row(26, "model server dead or slow; review system answers 429, 5xx, or times out after it accepted", trials=14)
def review_system(seed: int, scene: Scene) -> Verdict:
    if seed <= _STUBS:
        with answering(scene, seed) as one:
            return _answer(one, seed, changes=100, kills=8)
    if seed % 2 == 0:
        return _predict(seed, scene)
    return _answer_gerrit(seed, scene)


def _answer_gerrit(seed: int, scene: Scene) -> Verdict:
    gerrit = Gerrit(scene.folder / "gerrit")
    try:
        proxy, proxied = ForwardingServer(f"http://127.0.0.1:{gerrit.http}"), Faults(random.Random(seed))
        proxy.plan = proxied.plan
        more = _SYSTEM.format("gerrit", "zuul", f'url = "{{}}"\nuser = "{READER[0]}"')
        with serving(proxy), answering(scene, seed, more.replace("{}", proxy.url)) as one:
            one.faults.append(proxied)
            numbers = [int(gerrit.change(f"change {number}").partition("~")[2]) for number in range(10)]
            reviewed = [_failed(10_000 + at, 0, f"job-{at % _JOBS}") for at in range(len(numbers) * _JOBS)]
            for at, record in enumerate(reviewed):
                where = {"source": "zuul", "project": "demo", "change": str(numbers[at // _JOBS]), "patchset": "1"}
                record["run"] = {**record["run"], **where, "head": ""}
            verdict = _answer(one, seed, changes=20, kills=4, more=reviewed)
        for number in numbers:  # one message a change, since all jobs have the same verdict
            listed = gerrit.ask("GET", f"/changes/{number}/messages")
            found = [each["message"] for each in listed if each.get("tag") == TAG]
            good = len(found) == 1 and "“job-" in found[0]
            verdict.expect(good, f"I11: Gerrit's change {number} has {len(found)} messages, want one that names a job")
        return verdict
    finally:
        gerrit.kill()


def _answer(
    one: Answering, seed: int, *, changes: int, kills: int, more: Sequence[dict[str, Any]] = ()
) -> Verdict:  # fmt: skip
    """Publish verdicts on changes of the stubs, and more, while everything fails; return what was wrong."""
    verdict, chance, records = Verdict(), random.Random(seed), list(more)
    for change in range(changes):
        one.add_change(change)
        records += [_failed(change * _JOBS + job, change, f"job-{job}") for job in range(_JOBS)]
    chance.shuffle(records)
    for each in one.faults:
        each.rate = 0.15
    one.start()
    publishing = threading.Thread(target=one.publish, args=(records, lambda: chance.expovariate(40.0)), daemon=True)
    publishing.start()
    for number in range(kills):
        time.sleep(chance.uniform(1.0, 6.0))
        if number == kills // 2:
            for each in one.faults:
                each.dead = True
            time.sleep(8.0)
            for each in one.faults:
                each.dead = False
        verdict.count("kills", one.child is not None and one.child.crash())
        one.start()
    publishing.join(120)
    one.finish(verdict)
    verdict.count("faults", sum(each.injected for each in one.faults))
    _judge_answers(verdict, one, changes, len(records))
    return verdict


def _judge_answers(verdict: Verdict, one: Answering, changes: int, number: int) -> None:
    """Compare the systems with the producer's list, and the manifest with the systems."""
    for change in range(changes):
        found = one.messages(change)
        verdict.expect(len(found) == 1, f"I11: change {change} has {len(found)} messages")
        missing = [job for job in range(_JOBS) if found and f"“job-{job}”" not in found[-1]]
        verdict.expect(not missing, f"I2: the message on change {change} lacks jobs {missing}")
    deltas = one.deltas()
    taken = Counter(item["run_id"] for delta in deltas for item in delta.get("verdicts", ()))
    verdict.expect(len(taken) == number and set(taken.values()) <= {1}, f"I2: {len(taken)} verdicts of {number} taken")
    intents = {(each["entry"], each["number"]): each["stamp"] for delta in deltas for each in delta.get("intents", ())}
    closed = Counter(
        (each["entry"], each["number"]) for delta in deltas for each in delta.get("outcomes", ()) if each["number"]
    )
    verdict.expect(closed == Counter(list(intents)), f"I11: {len(intents)} intents, {sum(closed.values())} closed")
    for asked in (*one.github.effects, *one.gitlab.effects):
        sent = str((asked.body or {}).get("body", ""))
        known = any(stamp in sent for stamp in intents.values())
        verdict.expect(known, f"I11: {asked.method} {asked.path}: sent without an intent")


_RUNS = 200


@dataclass
class Predicting:
    """`ciml predict stream` and a model server as processes, and announcements of stored runs."""

    scene: Scene
    port: int
    values: list[bytes] = field(default_factory=list)
    server: Child | None = None
    stream: Child | None = None

    def __post_init__(self) -> None:
        self.data = DataRoot.open(self.scene.folder / "data")
        self.runs, self.predictions = self.scene.topic("runs"), self.scene.topic("predictions")

    def serve(self) -> None:
        """Start the model server. It imports TensorFlow by itself: a forked process must not have it."""
        arguments = ("--grpc-port", str(self.port), "--rest-port", "0", "--poll-seconds", "0.2")
        log = self.scene.log("serve")
        self.server = python("ciml", "serve", "--data-path", self.data.url, *arguments, log=log)

    def predict(self) -> None:
        """Start the stream."""
        self.stream = self.scene.ciml(
            "predict", "stream", "--model", "m", "--server", f"127.0.0.1:{self.port}", "--data-path", self.data.url,
            "--kafka", self.scene.broker, "--runs-topic", self.runs, "--predictions-topic", self.predictions,
        )  # fmt: skip

    def announce(self, seconds: float) -> bool:
        """Announce ten runs a second for so many seconds; return whether any are left."""
        now, self.values = self.values[: round(10 * seconds)], self.values[round(10 * seconds) :]
        _publish(self.scene.broker, self.runs, now, lambda: 0.1)
        return bool(self.values)

    def found(self) -> list[dict[str, Any]]:
        return list(read_predictions(self.data.predictions))

    def messages(self) -> Counter[str]:
        sent = published(self.scene.broker, self.predictions, "predictions")
        return Counter(json.loads(each.value or b"")["run_id"] for each in sent)


def _predict(seed: int, scene: Scene) -> Verdict:
    """The model server is killed and frozen, and the stream killed, while runs are announced."""
    verdict, chance, one = Verdict(), random.Random(seed), Predicting(scene, free_ports(1)[0])
    model = save_model(scene.folder / "model", 1)
    push(one.data, "m", open_store(model), BLESSED, check=False)
    tables = {f"zuul~{number}~1": telemetry(number, 20 + number % 50) for number in range(_RUNS)}
    world = World(one.data, None)  # type: ignore[arg-type]  # without a server in this process
    one.values = [world.put(run_id, table) for run_id, table in tables.items()]
    try:
        one.serve()
        one.predict()
        _disturb(one, verdict, chance)
        until = time.monotonic() + 300
        while (len(one.found()) < _RUNS or one.messages().total() < _RUNS) and time.monotonic() < until:
            time.sleep(0.5)
        _judge_predictions(verdict, one, tables, model)
    finally:
        for child in (one.stream, one.server):
            if child is not None:
                child.kill()
    verdict.count("runs", _RUNS)
    return verdict


def _disturb(one: Predicting, verdict: Verdict, chance: random.Random) -> None:
    for fault in chance.sample(("death", "freeze", "kill"), 7, counts=(3, 2, 2)):
        assert one.stream is not None
        assert one.server is not None
        one.announce(chance.uniform(1.0, 3.0))
        verdict.count("faults" if fault == "freeze" else "kills")
        if fault == "kill":
            one.stream.crash()
            one.predict()
        elif fault == "death":
            one.server.kill()
            one.announce(chance.uniform(0.0, 6.0))
            one.serve()
        else:
            one.server.send(signal.SIGSTOP)
            one.announce(chance.uniform(3.0, 12.0))
            one.server.send(signal.SIGCONT)
    while one.announce(5.0):
        pass


def _judge_predictions(verdict: Verdict, one: Predicting, tables: dict[str, Any], model: Path) -> None:
    """Each run has one prediction, that of the model called directly, and one message; none was given up."""
    found = {each["run_id"]: each for each in one.found()}
    times = Counter(each["run_id"] for each in one.found())
    verdict.expect(times == Counter(list(tables)), f"I2: {len(times)} predicted: {one.stream and one.stream.said()}")
    inputs, n_windows, _ = prepare_many(list(tables.values()), DEFINITION)
    for run_id, wanted in zip(tables, direct(model, inputs, n_windows), strict=True):
        given = found.get(run_id)
        same = given is not None and np.allclose(list(given["probabilities"].values()), wanted, atol=1e-5)
        verdict.expect(same, f"I2: the prediction of {run_id} is not that of the model")
    verdict.expect(one.messages() == times, f"I11: messages by run: {one.messages().most_common(3)}")
    gone = [delta["unpredictable"] for _, delta in ManifestLog(one.data.predictions).since(0) if delta["unpredictable"]]
    verdict.expect(not gone, f"I2: given up: {gone[:3]}")


_MESSAGES = 120
#: Fields of the facts that only appear in a message; the others say where it goes.
_SHOWN = "build_name result branch pipeline provider region flavour owner event url run_id".split()
_PLACES = ("project", "change", "patchset", "head", "source")


@row(27, "comment injection; canary secrets", trials=10)
def injection(seed: int, scene: Scene) -> Verdict:
    verdict, chance = Verdict(), random.Random(seed)

    def repeat_secrets(asked: Asked) -> Fault | None:
        if chance.random() >= 0.1:
            return None
        said = f"bad {asked.headers.get('authorization', '')} {asked.headers.get('private-token', '')}"
        return says(chance.choice((500, 502)), said, {"X-Echo": said.strip()})

    with answering(scene, seed) as one:
        records = [_hostile(one, change, chance) for change in range(_MESSAGES)]
        one.github.plan = one.gitlab.plan = repeat_secrets
        one.start()
        one.publish(records)
        one.finish(verdict)
        shown = scene.run(["feedback", "list", "--data-path", str(scene.folder / "data"), "--last", "0"])[1]
    for change in range(_MESSAGES):
        texts = one.messages(change)
        verdict.count("messages", len(texts))
        verdict.expect(len(texts) <= 1, f"I11: change {change} has {len(texts)} messages")
        for text in texts:
            lines = faults(text, "gitlab" if change % 2 else "github")
            verdict.fail(*(f"I9: change {change}: {line}" for line in lines))
    for secret in (github_stub.TOKEN, gitlab_stub.TOKEN):
        verdict.expect(secret not in shown, "I9: ciml feedback list shows a secret")
        for path in scene.folder.rglob("*"):
            if path.is_file() and not path.name.endswith("-token") and secret.encode() in path.read_bytes():
                verdict.fail(f"I9: {path.relative_to(scene.folder)} has a secret")
    return verdict


def _hostile(one: Answering, change: int, chance: random.Random) -> dict[str, Any]:
    """Return a verdict on a new change; a fifth of them have a hostile place, and no message."""
    one.add_change(change, title=chance.choice(CORPUS)[:200])
    record = _failed(change, change, f"job-{change}")
    part, names = chance.choice([
        (record["run"], _PLACES), (record["verdict"], ("group", "retry")), (record, ("model", "class", "run_id")),
        (record["run"], _SHOWN), (record["run"], _SHOWN),
    ])  # fmt: skip
    part[chance.choice(names)] = chance.choice(CORPUS)[:1024]
    return record
