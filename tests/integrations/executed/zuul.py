"""Zuul: items of several changes, pipelines, and messages that others wrote."""

from __future__ import annotations

from typing import Any

from tests.integrations import github_samples
from tests.integrations.executed import Sent, Source
from tests.integrations.executed.gerrit import CREATED, ZUUL, at, bad, check, created, good, merged, updated, voted
from tests.integrations.samples import RUN, SHA, account, cloudevent, delivery, vote, zuul_build, zuul_message

SECOND = {"project": "demo/lib", "branch": "main", "change": "9", "patchset": "1", "owner": "eve"}
FIRST = {"project": "demo/app", "branch": "main", "change": "7", "patchset": "1", "owner": "ada"}
APPROVED = [*CREATED, voted()]
OTHER = [updated(project="demo/lib"), created(project="demo/lib", number=9), voted(project="demo/lib", number=9)]


def item(*changes: dict[str, str], pipeline: str = "check", auth: str = "mqtt-user", **build: Any) -> Sent:
    """Return the report of an item of several changes; the build is of the first unless it says otherwise."""
    made = zuul_build(**({"change": changes[0]} | build))
    message = zuul_message(made, pipeline=pipeline, changes=list(changes), **changes[0])
    return Sent(delivery(message), "zuul", auth)


def retried(*changes: dict[str, str]) -> Sent:
    """Return the report of a build that Zuul retried: it names no change of its own."""
    message = zuul_message(
        pipeline="check", changes=list(changes), **changes[0], buildset={"retry_builds": [zuul_build(result="RETRY")]}
    )
    return Sent(delivery(message), "zuul", "mqtt-user")


def pipeline(name: str, auth: str = "mqtt-user", **change: Any) -> Sent:
    sent = check(pipeline=name, change=change)
    return Sent(sent.delivery, "zuul", auth)


TRUSTED_PIPELINES = "gate promote post periodic periodic-weekly release"
OTHER_PIPELINES = "check experimental gate-check check-gate Gate gate/check periodic-x/check post-review releases"
SCENARIOS = {
    **{f"a build of {name}": good(pipeline(name)) for name in TRUSTED_PIPELINES.split()},
    **{f"a build of a pipeline called {name}": bad(pipeline(name)) for name in OTHER_PIPELINES.split()},
    "a workflow of GitHub that is called gate, under the name of Zuul's source": Source(
        "github", "hmac-sha256", ZUUL.policy, "zuul"
    ).bad(github_samples.job(workflow_name="gate")),
    "an event of ciml's own format that claims to be a gate": Source("cloudevents", "", ZUUL.policy, "zuul").bad(
        cloudevent("dev.ciml.run.finished.v1", {**RUN, "review": "merged"})
    ),
    "a gate under the name of another source": Source("zuul", "mqtt-user", ZUUL.policy, "zuul-two").bad(
        pipeline("gate")
    ),
    "an item of two approved changes in gate": good(item(FIRST, SECOND, pipeline="gate")),
    "a retried build of an approved change": good(*APPROVED, retried(FIRST)),
    "a list of one change": good(*APPROVED, item(FIRST)),
    "an approval by the webhooks plugin": good(*(Sent(sent, auth="token") for sent in APPROVED), check()),
    "an approval by an account that shares the owner's name alone": good(
        *CREATED, voted(author={**account("cleo"), "name": account("ada")["name"]}), check()
    ),
    "a vote that is given together with a comment on another label": good(
        *CREATED, voted(votes=[vote("Code-Review", "2", "0"), vote("Verified", "1")], eventCreatedOn=at(6)), check()
    ),
    "an item of two changes of which the first is approved": bad(*APPROVED, item(FIRST, SECOND)),
    "an item of two changes, and a build of the approved one": bad(*APPROVED, item(SECOND, FIRST, change=FIRST)),
    "an item of two changes, of which each is approved": bad(*APPROVED, *OTHER, item(FIRST, SECOND)),
    "an item of two changes of which one was merged": bad(created(), merged(), item(FIRST, SECOND)),
    "an item of one change that is listed twice": bad(*APPROVED, item(FIRST, FIRST)),
    "a retried build of an item of two changes": bad(*APPROVED, retried(FIRST, SECOND)),
    "a message about an approved change, and a build of another": bad(*APPROVED, item(FIRST, change=SECOND)),
    "a build without a change": bad(*APPROVED, item(FIRST, change={})),
    "an approval of a change whose number has a zero before": bad(*APPROVED, check(change={"change": "07"})),
    "an approval of the project in other letters": bad(*APPROVED, check(change={"project": "Demo/app"})),
    "an approval of a patch set of the same number, and a head commit": bad(*APPROVED, check(change={"patchset": SHA})),
    "a gate without a proof": bad(pipeline("gate", "")),
    "a gate that a webhook's token proves": bad(pipeline("gate", "token")),
    "a gate that Gerrit's session proves": bad(pipeline("gate", "ssh")),
    "a post that nobody proved": bad(pipeline("post", "")),
    "an approved check that nobody proved": bad(*APPROVED, pipeline("check", "")),
}
