"""GitHub: what was executed and who reviewed it."""

from __future__ import annotations

from adapters.adapter import Delivery
from tests.adapters.executed import Scenario, Sent
from tests.adapters.github_samples import FORK, job, workflow_run


def _scenario(name: str, sent: list[Delivery | Sent], executed: str, reviewed: str, trusted: bool) -> Scenario:
    return Scenario(name, sent, executed, reviewed, trusted, "trust_github.toml", "github", "hmac-sha256", "github")


SCENARIOS = [
    _scenario("a push to main", [job(), workflow_run()], "main", "the protection of main", True),
    _scenario("a push to main of a fork", [job(), workflow_run(head=FORK)], "the fork's main", "nobody", False),
]
