"""Row 20: events that are forged, unsigned or altered, and ids that lead elsewhere."""

from __future__ import annotations

import http.client
import random
from functools import partial
from pathlib import Path
from typing import Any

from ciml.data_root import DataRoot
from ciml.events.records import Batch, Message, OffsetRange, Origin, Outcome, RunFacts
from ciml.integrations.registry import read_event
from ciml.pipelines.ingest.committer import Committer
from ciml.runs.latest_runs import latest_runs
from ciml.runs.state import open_raw
from ciml.runs.verify import verify_raw
from ciml.transforms.guard import guarded_messages
from ciml.transforms.ingest.decode import decode
from ciml.trust import TrustPolicy, evaluate, evaluate_batch
from tests.faults import forging
from tests.faults.scene import Scene
from tests.faults.verdict import Verdict
from tests.messages import published
from tests.pipelines.datasets.dataset_scenes import telemetry
from tests.runs.scenes import RawStore
from tests.transforms.samples import make_facts

ROW = 20
TITLE = "forged, unsigned, altered events; ids such as ../x"
INJECTED = (
    "300 requests to the receiver of webhooks, made from signed ones in twelve ways, none with a valid signature; "
    "twenty signed ones, each sent twice; and messages that were written to the topic without a receiver: events that "
    "claim every fact of a trusted run, updates without proof, ids that are paths"
)
EXPECTED = "refused; nothing outside the root; no label, no fact and no trust of a proved run changed"
INVARIANTS = ("I2", "I10", "root")
TRIALS = 20
ENGINES = ("micro-batches",)

_SAMPLE = Path(__file__).parents[3] / "integrations/trust_github.toml"
_POLICY = TrustPolicy.parse(_SAMPLE.read_text().replace('review = ["merged"]', 'review = ["approved", "merged"]'))
_FORGED, _SIGNED, _RUNS = 300, 20, 12
_CONFIG = """
[webhooks]
port = 0

[[source]]
receiver = "webhooks"
name = "github"
adapter = "github"
secret_file = ["secret"]
"""


class _Target:
    """A raw store with runs that GitHub's own deliveries reported."""

    def __init__(self, folder: Path) -> None:
        self.data = DataRoot.open(folder / "data")
        self.raw, self.committing, self.offset = RawStore(self.data), Committer(self.data.raw), 0

    def commit(self, messages: list[Message]) -> list[Outcome]:
        """Ingest messages of the topic; a log has the telemetry of its run."""
        messages = [message._replace(offset=self.offset + at) for at, message in enumerate(messages)]
        covers = OffsetRange("t", "T", 0, self.offset, self.offset + len(messages))
        self.offset = covers.end
        batch = guarded_messages("decode", lambda part: decode(part, read_event=read_event), Batch(covers, messages))
        batch = evaluate_batch(batch, _POLICY)
        settled = batch.settled + [
            Outcome("run", each.origin, each.event_key, each.mention, trust=each.trust,
                    file=self.raw.write(each.mention, telemetry(3)))
            for each in batch.pending_runs
        ]  # fmt: skip
        self._commit(Batch(covers, settled=settled))
        return settled

    def add(self, runs: list[RunFacts]) -> None:
        settled = []
        for run in runs:
            file = self.raw.write(run, telemetry(int(run.build_uuid)))
            origin = Origin("t", 0, self.offset)
            settled.append(
                Outcome("run", origin, f"github {run.build_uuid}", run, trust=evaluate(_POLICY, run), file=file)
            )
            self.offset += 1
        self._commit(Batch(OffsetRange("t", "T", 0, settled[0].origin.offset, self.offset), settled=settled))

    def _commit(self, batch: Batch) -> None:
        self.committing.commit([batch], partial(evaluate, _POLICY))

    def runs(self) -> dict[str, tuple[RunFacts, str, Any]]:
        """Facts, outcome and trust of the runs that were proved."""
        found = latest_runs(*open_raw(self.data.raw))
        return {run.own.run_id: (run.facts, run.outcome, run.trust.trusted) for run in found if run.own.auth}


def _known() -> list[RunFacts]:
    """Runs, of which a third is trusted, a third comes from a fork, and a third waits for its review."""
    kinds: list[dict[str, Any]] = [
        {"fork": "no", "event": "push", "branch": "main", "review": "pushed"}, {"fork": "yes", "event": "pull_request"},
        {"fork": "no", "event": "pull_request", "branch": "main", "change": "7",
         "subjects": (f"sha:{forging.PROJECT}/{'9' * 40}",)},
    ]  # fmt: skip
    return [
        make_facts(
            number, source="github", auth="hmac-sha256",
            **{"subjects": ("workflow_run:1", f"sha:{forging.PROJECT}/{forging.SHA}"), **kinds[number % 3]},
        ).replace(run_id=f"github~{number}~1")
        for number in range(1, _RUNS + 1)
    ]  # fmt: skip


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "data" not in path.relative_to(folder).parts}


def trial(seed: int, scene: Scene) -> Verdict:
    verdict, rng = Verdict(), random.Random(seed)
    try:
        from ciml.integrations.config import load_receivers
        from ciml.kafka import KafkaOptions
        from ciml.services.receivers import WebhooksService
    except ImportError as error:
        verdict.skipped = f"no receiver of webhooks: {error.name}"
        return verdict
    folder = scene.folder / "row-20"
    folder.mkdir(parents=True)
    (folder / "secret").write_bytes(forging.SECRET)
    (folder / "secret").chmod(0o600)
    (folder / "receivers.toml").write_text(_CONFIG)
    target, topic = _Target(folder), scene.topic()
    target.add(_known())
    before, files = target.runs(), _files(scene.folder)
    service = WebhooksService(load_receivers(folder / "receivers.toml"), KafkaOptions(scene.broker), topic)
    service.open()
    try:
        _attack(verdict, rng, service.port)
        messages = published(scene.broker, topic, "ci-events")
        verdict.expect(messages == [], f"I2: {len(messages)} forged deliveries were accepted")
        accepted = _honest(verdict, rng, service.port)
    finally:
        service.close()
    _write_to_topic(verdict, rng, target, before)
    messages = published(scene.broker, topic, "ci-events")
    verdict.expect(len(messages) == accepted, f"I2: {len(messages)} messages of {accepted} deliveries, each sent twice")
    target.commit(messages)
    raised = {run_id for run_id, run in target.runs().items() if run[2]} - {
        run_id for run_id, run in before.items() if run[2]
    }
    wanted = {run.run_id for run in _known() if "9" * 40 in run.subjects[0]}
    verdict.expect(raised == wanted, f"I10: a signed approval raised {sorted(raised)}, want {sorted(wanted)}")
    verdict.expect(_files(scene.folder) == files, f"root: {sorted(_files(scene.folder) ^ files)} changed")
    verdict.fail(*(f"root: {path} exists" for path in ("/tmp/ciml-row-20", "/etc/ciml-row-20") if Path(path).exists()))
    verdict.fail(*(f"I2: {line}" for line in verify_raw(target.data.raw).findings))
    return verdict


def _attack(verdict: Verdict, rng: random.Random, port: int) -> None:
    for number in range(_FORGED):
        made = rng.choice((
            forging.signed("pull_request_review", forging.review("approved"), number),
            forging.signed("workflow_job", forging.job(rng.randrange(1, _RUNS + 1), "failure"), number),
            forging.signed("workflow_job", forging.job(rng.choice(forging.PATHS), "success"), number),
        ))  # fmt: skip
        post = forging.alter(rng, made)
        status = _post(port, post)
        verdict.count("requests")
        verdict.expect(400 <= status < 500, f"I2: {post.how}: answered {status}: {post.headers} {post.body[:80]!r}")


def _honest(verdict: Verdict, rng: random.Random, port: int) -> int:
    """Send signed deliveries, each twice; return their number. The first approves the runs that wait."""
    posts = [forging.signed("pull_request_review", forging.review("approved", "9" * 40), 0)]
    posts += [
        forging.signed("workflow_job", forging.job(7000 + number, "success"), number) for number in range(1, _SIGNED)
    ]
    for post in (*posts, *rng.sample(posts, len(posts))):
        verdict.expect((status := _post(port, post)) == 202, f"I2: a signed delivery was answered {status}")
    return len(posts)


def _post(port: int, post: forging.Post) -> int:
    one = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        one.request("POST", post.path, post.body, post.headers)
        return one.getresponse().status
    finally:
        one.close()


def _write_to_topic(verdict: Verdict, rng: random.Random, target: _Target, before: dict[str, Any]) -> None:
    sent = list(forging.unproved(rng, [*_known(), *_known()]))
    rng.shuffle(sent)
    settled = target.commit([Message(0, each.value, tuple(each.headers)) for each in sent])
    verdict.count("written to the topic", len(sent))
    verdict.expect(target.runs() == before, "I10: a message without proof changed a run")
    found = [outcome for outcome in settled if outcome.mention is not None and outcome.mention.auth]
    verdict.expect(not found, f"I10: {len(found)} events claimed a proof")
    trusted = [outcome.run_id for outcome in settled if outcome.trust.trusted]
    verdict.expect(not trusted, f"I10: trusted without proof: {trusted[:3]}")
    state = open_raw(target.data.raw)[1]
    verdict.expect(sum(state.totals().values()) >= len(settled), "I2: not everything is accounted for")
