"""CDEvents: runs of a chain, and what is said of its change. No event says which version of it a run executed."""

from __future__ import annotations

from typing import Any

from ciml.integrations.adapter import Delivery
from tests.integrations.executed import Scenario, Sent
from tests.integrations.samples import cdevent, delivery

POLICY = """globs = 2

[[rule]]
name = "own projects"
trusted = true
source = ["cdevents"]
auth = ["mtls"]
project = ["demo/released"]

[[rule]]
name = "reviewed"
trusted = true
source = ["cdevents"]
auth = ["mtls"]
review = ["approved", "merged"]
"""


def run(chain: str | None = "c1", minute: int = 1, **custom: Any) -> Delivery:
    kind = "dev.cdevents.taskrun.finished.0.3.0"
    context = {"timestamp": at(minute), **({"chainId": chain} if chain is not None else {})}
    fields = {"log_url": "https://logs.example/7.csv", **custom}
    content = {"taskName": "build", "outcome": "success"}
    return delivery(cdevent(kind, content, context=context, customData={"ciml": fields}))


def change(predicate: str, chain: str | None = "c1", minute: int = 5, **parts: Any) -> Delivery:
    kind = f"dev.cdevents.change.{predicate}.0.3.0"
    context = {"id": f"{predicate}-{minute}", "timestamp": at(minute)}
    context |= {"chainId": chain} if chain is not None else {}
    content = {"repository": {"id": parts.pop("repository", "demo/app")}}
    return delivery(cdevent(kind, content, context=context, subject={"id": "change-7", "content": content}))


def at(minute: int) -> str:
    return f"2026-11-24T12:{minute:02}:00Z"


def bad(name: str, *sent: Delivery | Sent, executed: str = "a version of the change", auth: str = "mtls") -> Scenario:
    return Scenario(name, sent, executed, "nobody, as far as events say", False, POLICY, "cdevents", auth, "cdevents")


def good(name: str, *sent: Delivery | Sent) -> Scenario:
    who = "who may send for the project"
    return Scenario(name, sent, "released code", who, True, POLICY, "cdevents", "mtls", "cdevents")


SCENARIOS = [
    good("a run of a project of the policy", run(project="demo/released")),
    good("a run of a project of the policy, without a chain", run(None, project="demo/released")),
    bad("no review", run()),
    bad("a merge of the chain's change", run(), change("merged"), executed="perhaps an earlier version"),
    bad(
        "a merge after another version",
        change("created", minute=0),
        run(),
        change("updated", minute=3),
        change("merged"),
        executed="the first version",
    ),
    bad("a run after the merge", change("merged", minute=1), run(minute=5)),
    bad("a review, which may have disapproved", run(), change("reviewed")),
    bad("an abandoned change", run(), change("abandoned")),
    bad("a created change", run(), change("created")),
    bad("a merge of another chain", run(), change("merged", "c2")),
    bad("a merge without a chain", run(None), change("merged", None)),
    bad("an empty chain", run(""), change("merged", "")),
    bad("a merge of a chain in other letters", run(), change("merged", "C1")),
    bad("a merge that nobody proved", run(), Sent(change("merged"), auth="")),
    bad("a run that nobody proved", Sent(run(project="demo/released"), auth=""), change("merged")),
    bad("a run that a token proves", Sent(run(project="demo/released"), auth="token")),
    bad(
        "a merge in a project whose name begins as one of the policy",
        run(),
        change("merged", repository="demo/released2"),
    ),
    bad("a run of a project in a deeper folder", run(project="demo/released/fork")),
    bad("a run of a project in other letters", run(project="Demo/Released")),
    bad("labels that claim a review", run(labels={"review": "merged", "project": "demo/released"})),
    bad("an event that claims to be a listing", run(event="push", pipeline="gate", branch="main")),
    bad("a run that claims to be partly approved", run(review="partly_approved")),
    bad("a run that claims a review in other letters", run(review="Merged")),
    bad("a run that claims two reviews", run(review="merged approved")),
]
