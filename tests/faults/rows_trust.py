"""Row 20: events that are forged, unsigned or altered, and ids that lead elsewhere."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ciml.data_root import DataRoot
from ciml.events.records import Batch, Message, OffsetRange, Origin, Outcome, RunFacts
from ciml.integrations.adapter import Delivery
from ciml.integrations.config import load_receivers
from ciml.integrations.registry import AUTH, read_event
from ciml.kafka import KafkaOptions
from ciml.pipelines.ingest.committer import Committer
from ciml.runs.latest_runs import latest_runs
from ciml.runs.state import open_raw
from ciml.runs.verify import verify_raw
from ciml.services.receivers import WebhooksService
from ciml.transforms.guard import guarded_messages
from ciml.transforms.ingest.decode import decode
from ciml.trust import TrustPolicy, evaluate, evaluate_batch
from tests.faults.children import ROOT
from tests.faults.results import Verdict
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.integrations import github_samples
from tests.integrations.deliveries import message_of
from tests.messages import published
from tests.pipelines.datasets.dataset_scenes import telemetry
from tests.runs.scenes import RawStore
from tests.transforms.samples import make_facts

_SAMPLE = (ROOT / "integrations/trust_github.toml").read_text()
_POLICY = TrustPolicy.parse(_SAMPLE.replace('review = ["merged"]', 'review = ["approved", "merged"]'))
_FORGED, _SIGNED, _RUNS = 300, 20, 12
_SECRET = b"the secret of row twenty, long enough"
_PROJECT, _WAITING = "octo/widget", "9" * 40
_SIGNATURE = "x-hub-signature-256"
#: Native ids that lead elsewhere when they are used as a path.
_PATHS = (
    "../x", "../../../../tmp/ciml-row-20", "/etc/ciml-row-20", "..%2f..%2fx", "a/../../b", "..", "x\u202e/y", "~1~2",
)  # fmt: skip
_CONFIG = """
[webhooks]
port = 0

[[source]]
receiver = "webhooks"
name = "github"
adapter = "github"
secret_file = ["secret"]
"""
#: Body, headers and path of a request.
Post = tuple[bytes, dict[str, str], str]


def _sign(body: bytes, secret: bytes = _SECRET) -> str:
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


def _signed(delivery: Delivery, number: int = 0) -> Post:
    """Return a delivery as GitHub sends it."""
    headers = {
        "content-type": "application/json", "x-github-delivery": f"delivery-{number}", _SIGNATURE: _sign(delivery.body),
    }  # fmt: skip
    return delivery.body, {**delivery.headers, **headers}, "/hooks/github"


def _alter(rng: random.Random, post: Post) -> Post:
    """Make a signed delivery into one that no secret signed."""
    body, headers, path = post
    right = headers[_SIGNATURE]
    bit, digit = rng.randrange(8 * len(body)), rng.randrange(7, len(right))
    flipped = bytearray(body)
    flipped[bit // 8] ^= 1 << bit % 8
    unsigned = {name: value for name, value in headers.items() if name != _SIGNATURE}
    sha1 = "sha1=" + hmac.new(_SECRET, body, hashlib.sha1).hexdigest()

    def signature(text: str) -> Post:
        return body, {**headers, _SIGNATURE: text}, path

    return rng.choice([
        (body, unsigned, path), (body, {**unsigned, "x-hub-signature": sha1}, path), signature(""),
        signature("sha256="), signature(right[: rng.randrange(len(right))]), signature(_sign(b"{}")),
        signature(_sign(body, rng.randbytes(24))),
        signature(right[:digit] + ("0" if right[digit] != "0" else "1") + right[digit + 1 :]),
        signature(f"{right},{_sign(b'{}')}"), (bytes(flipped), headers, path), (body + b" ", headers, path),
        (body, headers, rng.choice(("/hooks/../hooks/other", "/hooks/github%2f", "/hooks", "/", "/hooks/github/x"))),
    ])  # fmt: skip


def _unproved(rng: random.Random, runs: list[RunFacts]) -> Iterator[Message]:
    """Yield messages that somebody wrote to the topic: ciml's own events, and deliveries without a proof."""
    claims: list[dict[str, Any]] = [
        {"id": run.build_uuid, "job": run.build_name, "outcome": rng.choice(("success", "failure", "timeout")),
         "fork": "no", "event": "push", "branch": "main", "review": "merged", "pipeline": "gate",
         "subjects": list(run.subjects), "trusted": True} for run in runs
    ]  # fmt: skip
    claims += [{"id": native, "job": rng.choice(("unit", "../job", "..")), "outcome": "success"} for native in _PATHS]
    for number, claim in enumerate(claims):
        facts = {
            **claim,
            "auth": "hmac-sha256",
            "end_time": "2026-11-25T10:01:00Z",
            "log_url": "https://logs.example.org/x",
        }
        event = {"specversion": "1.0", "id": f"forged-{number}", "source": "github"}
        yield Message(0, json.dumps({**event, "type": "dev.ciml.run.finished.v1", "data": facts}).encode())

    run_event = github_samples.workflow_run(head=rng.choice((github_samples.REPOSITORY, github_samples.FORK)))
    reviews = [github_samples.reviewed(state) for state in ("approved", "dismissed")]
    for delivery in (*reviews, run_event):
        message = message_of("github", delivery, "github")
        for proof in ((), ((AUTH, b""),)):
            others = tuple(header for header in message.headers if header[0] != AUTH)
            yield message._replace(headers=others + proof)


class _Target:
    """A raw store with runs that GitHub's own deliveries reported."""

    def __init__(self, folder: Path) -> None:
        self.data = DataRoot.open(folder / "data")
        self.raw, self.committing, self.offset = RawStore(self.data), Committer(self.data.raw), 0

    def ingest(self, messages: list[Message]) -> list[Outcome]:
        """Ingest messages of the topic; a log has the telemetry of its run."""
        messages = [message._replace(offset=self.offset + at) for at, message in enumerate(messages)]
        covers = OffsetRange("t", "T", 0, self.offset, self.offset + len(messages))
        batch = guarded_messages("decode", lambda part: decode(part, read_event=read_event), Batch(covers, messages))
        batch = evaluate_batch(batch, _POLICY)
        settled = [self._outcome(each.origin, each.event_key, each.mention) for each in batch.pending_runs]
        return self._commit(covers, batch.settled + settled)

    def add(self, runs: list[RunFacts]) -> None:
        covers = OffsetRange("t", "T", 0, 0, len(runs))
        self._commit(covers, [
            self._outcome(Origin("t", 0, number), f"github {run.build_uuid}", run) for number, run in enumerate(runs)
        ])  # fmt: skip

    def _outcome(self, origin: Origin, key: str, run: RunFacts) -> Outcome:
        return Outcome("run", origin, key, run, trust=evaluate(_POLICY, run), file=self.raw.write(run, telemetry(3)))

    def _commit(self, covers: OffsetRange, settled: list[Outcome]) -> list[Outcome]:
        self.offset = covers.end
        self.committing.commit([Batch(covers, settled=settled)], partial(evaluate, _POLICY))
        return settled

    def runs(self) -> dict[str, tuple[RunFacts, str, Any]]:
        """Return facts, outcome and trust of the runs that were proved."""
        found = latest_runs(*open_raw(self.data.raw))
        return {run.own.run_id: (run.facts, run.outcome, run.trust.trusted) for run in found if run.own.auth}


def _known() -> list[RunFacts]:
    """Return runs, of which a third is trusted, a third comes from a fork, and a third waits for its review."""
    kinds: list[dict[str, Any]] = [
        {"fork": "no", "event": "push", "branch": "main", "review": "pushed"}, {"fork": "yes", "event": "pull_request"},
        {"fork": "no", "event": "pull_request", "branch": "main", "change": "42",
         "subjects": (f"sha:{_PROJECT}/{_WAITING}",)},
    ]  # fmt: skip
    usual = {
        "source": "github",
        "auth": "hmac-sha256",
        "subjects": ("workflow_run:1", f"sha:{_PROJECT}/{github_samples.SHA}"),
    }
    return [
        make_facts(number, **{**usual, **kinds[number % 3]}).replace(run_id=f"github~{number}~1")
        for number in range(1, _RUNS + 1)
    ]


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "data" not in path.relative_to(folder).parts}


@row(20, "forged, unsigned, altered events; ids such as ../x")
def forged(seed: int, scene: Scene) -> Verdict:
    verdict, rng, folder = Verdict(), random.Random(seed), scene.folder
    (folder / "secret").write_bytes(_SECRET)
    (folder / "secret").chmod(0o600)
    (folder / "receivers.toml").write_text(_CONFIG)
    target, topic = _Target(folder), scene.topic()
    target.add(_known())
    before, files = target.runs(), _files(folder)
    service = WebhooksService(load_receivers(folder / "receivers.toml"), KafkaOptions(scene.broker), topic)
    service.open()
    try:
        _attack(verdict, rng, partial(_send, service.port))
        messages = published(scene.broker, topic, "ci-events")
        verdict.expect(messages == [], f"I2: {len(messages)} forged deliveries were accepted")
        accepted = _send_signed(verdict, rng, partial(_send, service.port))
    finally:
        service.close()
    _write_to_topic(verdict, rng, target, before)
    messages = published(scene.broker, topic, "ci-events")
    verdict.expect(len(messages) == accepted, f"I2: {len(messages)} messages of {accepted} deliveries, each sent twice")
    target.ingest(messages)
    raised = {run_id for run_id, run in target.runs().items() if run[2] and not before.get(run_id, run)[2]}
    wanted = {run.run_id for run in _known() if _WAITING in run.subjects[0]}
    verdict.expect(raised == wanted, f"I10: a signed approval raised {sorted(raised)}, want {sorted(wanted)}")
    verdict.expect(_files(folder) == files, f"root: {sorted(_files(folder) ^ files)} changed")
    verdict.fail(*(f"root: {path} exists" for path in ("/tmp/ciml-row-20", "/etc/ciml-row-20") if Path(path).exists()))
    verdict.fail(*(f"I2: {line}" for line in verify_raw(target.data.raw).findings))
    return verdict


def _send(port: int, post: Post) -> int:
    body, headers, path = post
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def _attack(verdict: Verdict, rng: random.Random, send: Callable[[Post], int]) -> None:
    for number in range(_FORGED):
        post = _alter(rng, _signed(rng.choice((
            github_samples.reviewed(), github_samples.job(id=rng.randrange(1, _RUNS + 1)),
            github_samples.job(id=rng.choice(_PATHS), conclusion="success"),
        )), number))  # fmt: skip
        status = send(post)
        verdict.count("requests")
        verdict.expect(400 <= status < 500, f"I2: answered {status}: {post}")


def _send_signed(verdict: Verdict, rng: random.Random, send: Callable[[Post], int]) -> int:
    """Send signed deliveries, each twice; return their number. The first approves the runs that wait."""
    posts = [_signed(github_samples.reviewed(sha=_WAITING))]
    posts += [_signed(github_samples.job(id=7000 + number), number) for number in range(1, _SIGNED)]
    for post in (*posts, *rng.sample(posts, len(posts))):
        verdict.expect((status := send(post)) == 202, f"I2: a signed delivery was answered {status}")
    return len(posts)


def _write_to_topic(verdict: Verdict, rng: random.Random, target: _Target, before: dict[str, Any]) -> None:
    sent = list(_unproved(rng, [*_known(), *_known()]))
    rng.shuffle(sent)
    settled = target.ingest(sent)
    verdict.count("written to the topic", len(sent))
    verdict.expect(target.runs() == before, "I10: a message without proof changed a run")
    proved = [outcome for outcome in settled if outcome.mention is not None and outcome.mention.auth]
    verdict.expect(not proved, f"I10: {len(proved)} events claimed a proof")
    trusted = [outcome.run_id for outcome in settled if outcome.trust.trusted]
    verdict.expect(not trusted, f"I10: trusted without proof: {trusted[:3]}")
    state = open_raw(target.data.raw)[1]
    verdict.expect(sum(state.totals().values()) >= len(settled), "I2: not everything is accounted for")
