"""Deliveries under the source of Zuul, by the built-in policy: what another system's adapter reads is not Zuul's."""

from __future__ import annotations

import json

from ciml.integrations.adapter import Delivery
from tests.integrations import gitlab_samples
from tests.integrations.executed import Scenario, Sent
from tests.integrations.github_samples import FORK, SHA, job
from tests.integrations.github_stories import merged, pr, reviewed, run

POLICY = "ciml/trust_default.toml"
BUILD = {
    "uuid": "6fb31b3b1d2c4b9a8d4a2a3b4c5d6e7f",
    "job_name": "unit",
    "result": "SUCCESS",
    "voting": True,
    "start_time": 1795521600,
    "end_time": 1795522800,
    "log_url": "https://logs.example/6fb/",
}


def report(pipeline: str, branch: str = "main") -> Delivery:
    """Return a report of Zuul's MQTT reporter."""
    body = {
        "action": "success",
        "pipeline": pipeline,
        "project": "infra/widget",
        "branch": branch,
        "change": 42,
        "patchset": 1,
        "timestamp": 1795522800,
        "buildset": {"uuid": "b1", "result": "SUCCESS", "builds": [BUILD]},
    }
    return Delivery(json.dumps(body).encode(), {"topic": "zuul/main/gate/result"}, "")


def zuul_report(base: str = "main") -> Sent:
    """Return the report of Zuul on pull request 42 of GitHub."""
    body = json.loads(report("check").body)
    body |= {"project": "octo/widget", "branch": base, "patchset": SHA}
    return Sent(Delivery(json.dumps(body).encode(), {"topic": "zuul/main/check/result"}, ""), "zuul", "mqtt-user")


def reviewed_here(name: str, sent: list[Delivery | Sent], by: str, trusted: bool) -> Scenario:
    executed = "42, merged into its base"
    return Scenario(name, sent, executed, by, trusted, POLICY, "github", "hmac-sha256", "zuul")


def github(name: str, sent: list[Delivery]) -> Scenario:
    return Scenario(
        name, sent, "a workflow of anybody", "nobody", False, POLICY, "github", "hmac-sha256", "zuul", "4001"
    )


def zuul(name: str, pipeline: str, auth: str, trusted: bool, branch: str = "main") -> Scenario:
    sent = [report(pipeline, branch)]
    return Scenario(name, sent, pipeline, "Zuul's pipeline", trusted, POLICY, "zuul", auth, "zuul")


GATE = {"workflow_name": "gate", "head_branch": "fix"}
SCENARIOS = [
    zuul("a gate, by a user of the broker", "gate", "mqtt-user", True),
    zuul("a gate, by a certificate of the broker", "gate", "mqtt-certificate", True),
    zuul("a merge, by a user of the broker", "post", "mqtt-user", True),
    zuul("a check, by a user of the broker", "check", "mqtt-user", False),
    zuul("a gate that nothing proves", "gate", "", False),
    zuul("a gate of a branch of one's own", "gate", "mqtt-user", False, "mine"),
    reviewed_here("Zuul tests 42, which was merged", [zuul_report(), pr(), merged()], "who may write", True),
    reviewed_here("Zuul tests 42, which was approved", [zuul_report(), pr(), reviewed()], "Grace", True),
    reviewed_here(
        "Zuul tests 42 in mine, approved in main", [zuul_report("mine"), reviewed()], "Grace, in main", False
    ),
    reviewed_here(
        "Zuul tests 42; 66 has the same head", [zuul_report(), reviewed(), pr(number=66, base="mine")], "42", False
    ),
    reviewed_here("Zuul tests 42, approved by its author", [zuul_report(), pr(), reviewed(by="ada")], "Ada", False),
    github("a fork names its workflow gate", [job(**GATE), run(name="gate", head=FORK)]),
    github("a branch names its workflow gate", [job(**GATE), run((42, "main"), name="gate"), pr()]),
    github("a branch names its workflow post", [job(workflow_name="post"), run((42, "main"), name="post"), pr()]),
    github("a workflow named gate, approved", [job(**GATE), run((42, "main"), name="gate"), pr(), reviewed()]),
    github("a workflow named gate, merged", [job(**GATE), run((42, "main"), name="gate"), pr(), merged()]),
    Scenario(
        "a job of GitLab, approved",
        [
            gitlab_samples.job(),
            gitlab_samples.pipeline(),
            gitlab_samples.merge_request(action="approved", target_branch="main"),
        ],
        "a pipeline of anybody",
        "nobody",
        False,
        POLICY,
        "gitlab",
        "token",
        "zuul",
    ),
]
