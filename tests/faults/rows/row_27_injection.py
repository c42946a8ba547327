"""Row 27: names that want to be more than text, in every field; secrets that must not appear anywhere."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.answering import Answering, answering, failed, messages, servers, sha
from tests.faults.scene import Scene
from tests.faults.verdict import Verdict
from tests.verdicts.feedback import github_stub, gitlab_stub
from tests.verdicts.feedback.hostile import CORPUS, faults
from tests.verdicts.feedback.stub import Asked, Fault, says

ROW = 27
TITLE = "comment injection; canary secrets"
INJECTED = (
    "120 verdicts with links, mentions, references, HTML, emphasis, commands, bidi and control characters in each "
    "field of facts, verdict and prediction, to a GitHub and a GitLab over HTTP that repeat credentials in their errors"
)
EXPECTED = "inert text by GitHub's own renderer and both systems' rules; no secret in any output or file"
INVARIANTS = ("I9", "I11")
TRIALS = 10
ENGINES = ("micro-batches",)

_MESSAGES = 120
#: Fields of the facts that only appear; the others say where a message goes.
_SHOWN = (
    "build_name",
    "result",
    "branch",
    "pipeline",
    "provider",
    "region",
    "flavour",
    "owner",
    "event",
    "url",
    "run_id",
)
_PLACES = ("project", "change", "patchset", "head", "source")


def trial(seed: int, scene: Scene) -> Verdict:
    verdict, chance = Verdict(), random.Random(seed)
    with answering(scene, seed) as one:
        records = list(_predictions(one, chance))
        for server in servers(one):
            server.plan = _repeats_secrets(chance)
        one.start()
        one.publish(records)
        settled = one.wait(len(records))
        shown = scene.run(["feedback", "list", "--data-path", str(scene.folder / "data"), "--last", "0"])[1]
        one.stop()
        verdict.expect(settled, f"I11: not all is said within the time; the service: {one.child and one.child.said()}")
        _judge(verdict, one)
        _find_secrets(verdict, scene.folder, shown)
        verdict.count("messages", sum(bool(messages(one, change)) for change in range(_MESSAGES)))
        verdict.count("verdicts", len(records))
    return verdict


def _predictions(one: Answering, chance: random.Random) -> Iterator[dict[str, Any]]:
    """One verdict a change; a fifth of them have a hostile place, and no message."""
    for change in range(_MESSAGES):
        if change % 2 == 0:
            one.github.pull(change, sha(change), title=chance.choice(CORPUS)[:200])
        else:
            one.gitlab.request(change, sha(change), title=chance.choice(CORPUS)[:200])
        text = chance.choice(CORPUS)[:1024]
        record = failed(change, change, f"job-{change}")
        kind = chance.randrange(5)
        if kind == 0:
            record["run"][chance.choice(_PLACES)] = text
        elif kind == 1:
            field = chance.choice(("group", "retry"))
            record["verdict"][field] = text
        elif kind == 2:
            record[chance.choice(("model", "class", "run_id"))] = text
        else:
            record["run"][chance.choice(_SHOWN)] = text
        yield record


def _repeats_secrets(chance: random.Random) -> Any:
    def plan(asked: Asked) -> Fault | None:
        if chance.random() >= 0.1:
            return None
        said = f"bad {asked.headers.get('authorization', '')} {asked.headers.get('private-token', '')}"
        return says(chance.choice((500, 502)), said, {"X-Echo": said.strip()})

    return plan


def _judge(verdict: Verdict, one: Answering) -> None:
    for change in range(_MESSAGES):
        found = messages(one, change)
        verdict.expect(len(found) <= 1, f"I11: change {change} has {len(found)} messages")
        for text in found:
            markup = "github" if change % 2 == 0 else "gitlab"
            verdict.fail(*(f"I9: change {change}: {line}" for line in faults(text, markup)))  # type: ignore[arg-type]
    verdict.fail(*(f"I9: GitLab carried out {line!r}" for line in one.gitlab.commands))
    for server in servers(one):
        verdict.fail(*(f"I11: {line}" for line in server.violations))


def _find_secrets(verdict: Verdict, folder: Path, shown: str) -> None:
    for secret in (github_stub.TOKEN, gitlab_stub.TOKEN):
        verdict.expect(secret not in shown, "I9: ciml feedback list shows a secret")
        for path in folder.rglob("*"):
            if path.is_file() and not path.name.endswith("-token") and secret.encode() in path.read_bytes():
                verdict.fail(f"I9: {path.relative_to(folder)} has a secret")
