"""Row 26: the review system answers 429, 5xx, or not at all after it accepted; and the service is killed.

The last trials have the other half: a real Gerrit among the review systems, and a model server that is dead or slow.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ciml.integrations.gerrit.review import TAG
from tests.faults import predicting
from tests.faults.answering import (
    Answering,
    answering,
    beside_gerrit,
    failed,
    in_background,
    messages,
    servers,
    sha,
)
from tests.faults.scene import Scene
from tests.faults.verdict import Verdict
from tests.integrations.gerrit.real import Gerrit

ROW = 26
TITLE = "model server dead or slow; review system answers 429, 5xx, or times out after it accepted"
INJECTED = (
    "1,000 verdicts on 100 changes of a GitHub and a GitLab over HTTP (each request checked against GitHub's own "
    "description), ten jobs a change in a random order; 15 % of the requests fail: 429 and 503 with Retry-After, 502, "
    "resets, and accepted writes whose answer is lost by a reset, a cut, a 500 or 20 s of silence; both systems are "
    "dead for 8 s; the service is killed by SIGKILL eight times. From trial 11 on by turns: 300 verdicts on 30 "
    "changes, ten of them of a real Gerrit behind a proxy that fails in the same ways; and 200 runs for a model server "
    "that is killed three times and frozen twice for up to 12 s, with the stream killed twice"
)
EXPECTED = (
    "every verdict is said, by exactly one message a change and patch set (Gerrit edits none: there a further job of "
    "the same verdict adds nothing); no intent is left open; each run has one prediction, that of the model"
)
INVARIANTS = ("I2", "I11")
TRIALS = 14
#: The last trial with stubs alone.
_STUBS = 10
ENGINES = ("micro-batches",)

_CHANGES, _JOBS, _KILLS = 100, 10, 8
#: With a real Gerrit: changes of the stubs, of Gerrit, and kills.
_FEW, _REVIEWED, _FEW_KILLS = 20, 10, 4


def trial(seed: int, scene: Scene) -> Verdict:
    if seed <= _STUBS:
        with answering(scene, seed) as one:
            return _play(one, random.Random(seed), range(_CHANGES), _KILLS)
    if seed % 2 == 0:
        return predicting.trial(seed, scene)
    with beside_gerrit(scene, seed) as (one, gerrit, proxy):
        numbers = [int(gerrit.change(f"change {number}").partition("~")[2]) for number in range(_REVIEWED)]
        reviewed = [failed(10_000 + at, 0, f"job-{at % _JOBS}") for at in range(_REVIEWED * _JOBS)]
        for at, record in enumerate(reviewed):
            where = {"source": "zuul", "project": "demo", "change": str(numbers[at // _JOBS]), "patchset": "1"}
            record["run"] = {**record["run"], **where, "head": ""}
        verdict = _play(one, random.Random(seed), range(_FEW), _FEW_KILLS, reviewed)
        _judge_gerrit(verdict, gerrit, numbers)
        verdict.count("requests", len(proxy.asked))
    return verdict


def _play(
    one: Answering, chance: random.Random, changes: range, kills: int, more: Sequence[dict[str, Any]] = ()
) -> Verdict:
    """Publish verdicts on changes of the stubs, and more, while everything fails; return what was wrong."""
    verdict = Verdict()
    records = [*_predictions(one, changes), *more]
    chance.shuffle(records)
    for faults in one.faults:
        faults.rate = 0.15
    one.start()
    producer = in_background(lambda: one.publish(records, lambda: chance.expovariate(40.0)))
    for number in range(kills):
        time.sleep(chance.uniform(1.0, 6.0))
        if number == kills // 2:
            _outage(one)
        one.kill()
    producer.join(120)
    settled = one.wait(len(records))
    code = one.stop()
    verdict.expect(settled, f"I2: not all is said within the time; the service: {one.child and one.child.said()}")
    verdict.expect(code in (0, 143, -15), f"I2: the service ended with {code}")
    _judge(verdict, one, changes, len(records))
    verdict.count("verdicts", len(records))
    verdict.count("kills", one.kills)
    verdict.count("requests", sum(len(server.asked) for server in servers(one)))
    verdict.count("faults", sum(sum(faults.injected.values()) for faults in one.faults))
    return verdict


def _predictions(one: Answering, changes: range) -> list[dict[str, Any]]:
    records = []
    for change in changes:
        if change % 2 == 0:
            one.github.pull(change, sha(change))
        else:
            one.gitlab.request(change, sha(change))
        records += [failed(change * _JOBS + job, change, f"job-{job}") for job in range(_JOBS)]
    return records


def _outage(one: Answering) -> None:
    for faults in one.faults:
        faults.dead = True
    time.sleep(8.0)
    for faults in one.faults:
        faults.dead = False


def _judge_gerrit(verdict: Verdict, gerrit: Gerrit, numbers: Sequence[int]) -> None:
    """Read the messages of a real Gerrit: one a change, since all jobs have the same verdict."""
    for number in numbers:
        listed = gerrit.ask("GET", f"/changes/{number}/messages")
        found = [each["message"] for each in listed if each.get("tag") == TAG]
        verdict.expect(len(found) == 1, f"I11: Gerrit's change {number} has {len(found)} messages")
        verdict.expect(bool(found) and "“job-" in found[0], f"I2: the message on Gerrit's change {number} names no job")


def _judge(verdict: Verdict, one: Answering, changes: range, number: int) -> None:
    """Compare the systems with the producer's list, and the manifest with the systems."""
    for change in changes:
        found = messages(one, change)
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
    for server in servers(one):
        verdict.fail(*(f"I11: {line}" for line in server.violations))
        for asked in server.effects:
            sent = str((asked.body or {}).get("body", ""))
            known = any(stamp in sent for stamp in intents.values())
            verdict.expect(known, f"I11: {asked.method} {asked.path}: sent without an intent")
    verdict.fail(*(f"I9: GitLab carried out {line!r}" for line in one.gitlab.commands))
