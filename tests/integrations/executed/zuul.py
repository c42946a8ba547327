"""Zuul: items of several changes, pipelines, and messages that others wrote."""

from __future__ import annotations

from typing import Any

from tests.integrations import github_samples
from tests.integrations.executed import Scenario, Sent
from tests.integrations.executed.gerrit import (
    CLEO,
    MESSAGE,
    Given,
    account,
    at,
    check,
    created,
    delivery,
    merged,
    updated,
    vote,
    voted,
)
from tests.integrations.samples import RUN, SHA, cloudevent, zuul_build, zuul_message

SECOND = {"project": "demo/lib", "branch": "main", "change": "9", "patchset": "1", "owner": "eve"}
FIRST = {"project": "demo/app", "branch": "main", "change": "7", "patchset": "1", "owner": "ada"}
APPROVED = [updated(), created(), voted()]
OTHER = [updated(project="demo/lib"), created(project="demo/lib", number=9), voted(project="demo/lib", number=9)]


SAMPLE = "integrations/trust_zuul.toml"


def story(name: str, trusted: bool, executed: str, reviewed: str, sent: Given) -> Scenario:
    return Scenario(name, sent, executed, reviewed, trusted, SAMPLE, "gerrit", "ssh", "zuul", "b1")


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


def good_pipeline(name: str) -> Scenario:
    return story(f"a build of {name}", True, "approved or merged code", "who approved it in Zuul", [pipeline(name)])


def bad_pipeline(name: str) -> Scenario:
    return story(f"a build of a pipeline called {name}", False, "anything", "nobody", [pipeline(name)])


SCENARIOS = [
    *map(good_pipeline, ("gate", "promote", "post", "periodic", "periodic-weekly", "release")),
    *map(
        bad_pipeline,
        (
            "check",
            "experimental",
            "gate-check",
            "check-gate",
            "Gate",
            "gate/check",
            "periodic-x/check",
            "post-review",
            "releases",
        ),
    ),
    story("an item of two approved changes in gate", True, "both", "both", [item(FIRST, SECOND, pipeline="gate")]),
    story(
        "an item of two changes of which the first is approved",
        False,
        "changes 7 and 9",
        CLEO,
        [*APPROVED, item(FIRST, SECOND)],
    ),
    story(
        "an item of two changes, and a build of the approved one",
        False,
        "changes 7 and 9",
        CLEO,
        [*APPROVED, item(SECOND, FIRST, change=FIRST)],
    ),
    story(
        "an item of two changes, of which each is approved",
        False,
        "changes 7 and 9",
        "Cleo: both, but nothing says that of the item",
        [*APPROVED, *OTHER, item(FIRST, SECOND)],
    ),
    story(
        "an item of two changes of which one was merged",
        False,
        "changes 7 and 9",
        CLEO,
        [created(), merged(), item(FIRST, SECOND)],
    ),
    story("an item of one change that is listed twice", False, "change 7", CLEO, [*APPROVED, item(FIRST, FIRST)]),
    story(
        "a retried build of an item of two changes", False, "changes 7 and 9", CLEO, [*APPROVED, retried(FIRST, SECOND)]
    ),
    story("a retried build of an approved change", True, "change 7", CLEO, [*APPROVED, retried(FIRST)]),
    story("a list of one change", True, "change 7", CLEO, [*APPROVED, item(FIRST)]),
    story(
        "a message about an approved change, and a build of another",
        False,
        "change 9",
        CLEO,
        [*APPROVED, item(FIRST, change=SECOND)],
    ),
    story("a build without a change", False, "unknown", CLEO, [*APPROVED, item(FIRST, change={})]),
    story(
        "an approval of a change whose number has a zero before",
        False,
        "another change",
        CLEO,
        [*APPROVED, check(change={"change": "07"})],
    ),
    story(
        "an approval of the project in other letters",
        False,
        "another project",
        CLEO,
        [*APPROVED, check(change={"project": "Demo/app"})],
    ),
    story(
        "an approval of a patch set of the same number, and a head commit",
        False,
        "a pull request of GitHub",
        CLEO,
        [*APPROVED, check(change={"patchset": SHA})],
    ),
    story("a gate without a proof", False, "anything", "nobody", [pipeline("gate", "")]),
    story("a gate that a webhook's token proves", False, "anything", "nobody", [pipeline("gate", "token")]),
    story("a gate that Gerrit's session proves", False, "anything", "nobody", [pipeline("gate", "ssh")]),
    story("a post that nobody proved", False, "anything", "nobody", [pipeline("post", "")]),
    story("an approved check that nobody proved", False, "change 7", CLEO, [*APPROVED, pipeline("check", "")]),
    Scenario(
        "a workflow of GitHub that is called gate, under the name of Zuul's source",
        [github_samples.job(workflow_name="gate")],
        "a fork's workflow",
        "nobody",
        False,
        SAMPLE,
        "github",
        "hmac-sha256",
        "zuul",
    ),
    Scenario(
        "an event of ciml's own format that claims to be a gate",
        [cloudevent("dev.ciml.run.finished.v1", {**RUN, "review": "merged"})],
        "anything",
        "nobody",
        False,
        SAMPLE,
        "cloudevents",
        "",
        "zuul",
    ),
    Scenario(
        "a gate under the name of another source",
        [pipeline("gate")],
        "anything",
        "nobody of this Zuul",
        False,
        SAMPLE,
        "zuul",
        "mqtt-user",
        "zuul-two",
    ),
    story(
        "an approval by the webhooks plugin",
        True,
        "change 7",
        CLEO,
        [*(Sent(sent, auth="token") for sent in APPROVED), check()],
    ),
    story(
        "an approval by an account that shares the owner's name alone",
        True,
        "change 7",
        CLEO,
        [updated(), created(), voted(author={**account("cleo"), "name": account("ada")["name"]}), check()],
    ),
    story(
        "a vote that is given together with a comment on another label",
        True,
        "change 7",
        CLEO,
        [
            updated(),
            created(message=MESSAGE),
            voted(votes=[vote("Code-Review", "2", "0"), vote("Verified", "1")], eventCreatedOn=at(6)),
            check(),
        ],
    ),
]
