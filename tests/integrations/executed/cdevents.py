"""CDEvents: runs of a chain, and what is said of its change. No event says which version of it a run executed."""

from __future__ import annotations

from typing import Any

from ciml.integrations.adapter import Delivery
from tests.integrations.executed import Sent, Source
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


CDEVENTS = Source("cdevents", "mtls", POLICY, "cdevents")
good = CDEVENTS.good
bad = CDEVENTS.bad
SCENARIOS = {
    "a run of a project of the policy": good(run(project="demo/released")),
    "a run of a project of the policy, without a chain": good(run(None, project="demo/released")),
    "no review": bad(run()),
    "a merge of the chain's change": bad(run(), change("merged")),
    "a merge after another version": bad(
        change("created", minute=0), run(), change("updated", minute=3), change("merged")
    ),
    "a run after the merge": bad(change("merged", minute=1), run(minute=5)),
    "a review, which may have disapproved": bad(run(), change("reviewed")),
    "a created change": bad(run(), change("created")),
    "a merge of another chain": bad(run(), change("merged", "c2")),
    "an empty chain": bad(run(""), change("merged", "")),
    "a merge of a chain in other letters": bad(run(), change("merged", "C1")),
    "a merge that nobody proved": bad(run(), Sent(change("merged"), auth="")),
    "a run that nobody proved": bad(Sent(run(project="demo/released"), auth=""), change("merged")),
    "a run that a token proves": bad(Sent(run(project="demo/released"), auth="token")),
    "a merge in a project whose name begins as one of the policy": bad(
        run(), change("merged", repository="demo/released2")
    ),
    "a run of a project in a deeper folder": bad(run(project="demo/released/fork")),
    "a run of a project in other letters": bad(run(project="Demo/Released")),
    "labels that claim a review": bad(run(labels={"review": "merged", "project": "demo/released"})),
    "an event that claims to be a listing": bad(run(event="push", pipeline="gate", branch="main")),
    "a run that claims to be partly approved": bad(run(review="partly_approved")),
    "a run that claims a review in other letters": bad(run(review="Merged")),
    "a run that claims two reviews": bad(run(review="merged approved")),
}
