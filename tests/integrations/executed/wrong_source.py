"""Deliveries under the source of Zuul, by the built-in policy: what another system's adapter reads is not Zuul's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ciml.integrations.adapter import Delivery
from tests.integrations import gitlab_samples
from tests.integrations.executed import Sent, Source
from tests.integrations.github_samples import FORK, SHA, job, merged, pr, reviewed, run
from tests.integrations.samples import delivery, zuul_build, zuul_message

POLICY = "ciml/trust_default.toml"


def report(pipeline: str, branch: str = "main", **fields: Any) -> Delivery:
    """Return a report of Zuul's MQTT reporter."""
    return delivery(
        zuul_message(zuul_build(), pipeline=pipeline, branch=branch, **fields), {"topic": "zuul/main/result"}
    )


def zuul_report(base: str = "main") -> Sent:
    """Return the report of Zuul on pull request 42 of GitHub."""
    return Sent(report("check", base, project="octo/widget", change="42", patchset=SHA), "zuul", "mqtt-user")


ZUUL = Source("zuul", "mqtt-user", POLICY, "zuul")
GITHUB = Source("github", "hmac-sha256", POLICY, "zuul")
GATE = {"workflow_name": "gate", "head_branch": "fix"}
SCENARIOS = {
    "a gate, by a user of the broker": ZUUL.good(report("gate")),
    "a gate, by a certificate of the broker": replace(ZUUL, auth="mqtt-certificate").good(report("gate")),
    "a merge, by a user of the broker": ZUUL.good(report("post")),
    "a check, by a user of the broker": ZUUL.bad(report("check")),
    "a gate that nothing proves": replace(ZUUL, auth="").bad(report("gate")),
    "a gate of a branch of one's own": ZUUL.bad(report("gate", "mine")),
    "Zuul tests 42, which was merged": GITHUB.good(zuul_report(), pr(), merged()),
    "Zuul tests 42, which was approved": GITHUB.good(zuul_report(), pr(), reviewed()),
    "Zuul tests 42 in mine, approved in main": GITHUB.bad(zuul_report("mine"), reviewed()),
    "Zuul tests 42; 66 has the same head": GITHUB.bad(zuul_report(), reviewed(), pr(number=66, base="mine")),
    "Zuul tests 42, approved by its author": GITHUB.bad(zuul_report(), pr(), reviewed(by="ada")),
    "a fork names its workflow gate": GITHUB.bad(job(**GATE), run(name="gate", head=FORK)),
    "a branch names its workflow gate": GITHUB.bad(job(**GATE), run((42, "main"), name="gate"), pr()),
    "a branch names its workflow post": GITHUB.bad(job(workflow_name="post"), run((42, "main"), name="post"), pr()),
    "a workflow named gate, approved": GITHUB.bad(job(**GATE), run((42, "main"), name="gate"), pr(), reviewed()),
    "a workflow named gate, merged": GITHUB.bad(job(**GATE), run((42, "main"), name="gate"), pr(), merged()),
    "a job of GitLab, approved": Source("gitlab", "token", POLICY, "zuul").bad(
        gitlab_samples.job(),
        gitlab_samples.pipeline(),
        gitlab_samples.merge_request(action="approved", target_branch="main"),
    ),
}
