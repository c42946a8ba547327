"""Row 26: the review system answers 429, 5xx, or not at all after it accepted; and the service is killed."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

from tests.faults.answering import Answering, answering, failed, in_background, messages, servers, sha
from tests.faults.scene import Scene
from tests.faults.verdict import Verdict

ROW = 26
TITLE = "review system answers 429, 5xx, or times out after it accepted"
INJECTED = (
    "1,000 verdicts on 100 changes of a GitHub and a GitLab over HTTP (each request checked against GitHub's own "
    "description), ten jobs a change in a random order; 15 % of the requests fail: 429 and 503 with Retry-After, 502, "
    "resets, and accepted writes whose answer is lost by a reset, a cut, a 500 or 20 s of silence; both systems are "
    "dead for 8 s; the service is killed by SIGKILL eight times"
)
EXPECTED = "every verdict is said, by exactly one message a change and patch set; no intent is left open"
INVARIANTS = ("I2", "I11")
TRIALS = 10
ENGINES = ("micro-batches",)

_CHANGES, _JOBS, _KILLS = 100, 10, 8


def trial(seed: int, scene: Scene) -> Verdict:
    verdict, chance = Verdict(), random.Random(seed)
    with answering(scene, seed) as one:
        records = _predictions(one, chance)
        for faults in one.faults:
            faults.rate = 0.15
        one.start()
        producer = in_background(lambda: one.publish(records, lambda: chance.expovariate(40.0)))
        for number in range(_KILLS):
            time.sleep(chance.uniform(1.0, 6.0))
            if number == _KILLS // 2:
                _outage(one)
            one.kill()
        producer.join(120)
        settled = one.wait(len(records))
        code = one.stop()
        verdict.expect(settled, f"I2: not all is said within the time; the service: {one.child and one.child.said()}")
        verdict.expect(code in (0, 143, -15), f"I2: the service ended with {code}")
        _judge(verdict, one, len(records))
        verdict.count("verdicts", len(records))
        verdict.count("kills", one.kills)
        verdict.count("requests", sum(len(server.asked) for server in servers(one)))
        verdict.count("faults", sum(sum(faults.injected.values()) for faults in one.faults))
    return verdict


def _predictions(one: Answering, chance: random.Random) -> list[dict[str, Any]]:
    records = []
    for change in range(_CHANGES):
        if change % 2 == 0:
            one.github.pull(change, sha(change))
        else:
            one.gitlab.request(change, sha(change))
        records += [failed(change * _JOBS + job, change, f"job-{job}") for job in range(_JOBS)]
    chance.shuffle(records)
    return records


def _outage(one: Answering) -> None:
    for faults in one.faults:
        faults.dead = True
    time.sleep(8.0)
    for faults in one.faults:
        faults.dead = False


def _judge(verdict: Verdict, one: Answering, number: int) -> None:
    """Compare the systems with the producer's list, and the manifest with the systems."""
    for change in range(_CHANGES):
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
