"""GitLab: what was executed and who reviewed it.

The commit is the last one of merge request 6 by Bob (user 5), from the branch ``fix`` into ``main``. Ada is another
member, who starts pipelines; Grace is a third.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ciml.integrations.adapter import Delivery
from tests.integrations.executed import Scenario, Sent
from tests.integrations.gitlab_samples import PROJECT, SHA, delivery, job, merge_request, pipeline

OTHER_SHA = SHA[::-1]
PEOPLE = {"ada": 3, "bob": 5, "grace": 9, "linus": 11, "eve": 13}
Given = Sequence[Delivery | Sent]


def at(minute: int) -> str:
    return f"2026-11-24 12:{minute:02}:00 UTC"


def person(name: str) -> dict[str, Any]:
    return {"id": PEOPLE[name], "username": name} if name else {}


def request(
    action: str = "open",
    iid: int = 6,
    target: str = "main",
    minute: int = 1,
    *,
    by: str = "bob",
    author: str = "bob",
    sha: str = SHA,
    source: int = 44,
    before: str = "",
    default: str = "main",
    **more: Any,
) -> Delivery:
    """Return an event of a merge request."""
    sent = merge_request(
        source,
        action=action,
        iid=iid,
        target_branch=target,
        updated_at=at(minute),
        last_commit={"id": sha},
        source_branch="fix",
        author_id=PEOPLE.get(author),
        **more,
    )
    body: dict[str, Any] = json.loads(sent.body) | {
        "user": person(by),
        "project": {**PROJECT, "default_branch": default},
    }
    if before:
        body["changes"] = {"target_branch": {"previous": before, "current": target}}
    return delivery(body)


def pushed(by: str = "bob", **more: Any) -> Delivery:
    return request("update", by=by, oldrev="0" * 40, **more)


def approved(by: str = "grace", minute: int = 30, **more: Any) -> Delivery:
    return request("approved", minute=minute, by=by, **more)


def merged(by: str = "grace", minute: int = 40, **more: Any) -> Delivery:
    return request("merge", minute=minute, by=by, **more)


def of_request(
    iid: int = 6, target: str = "main", minute: int = 20, source: int = 44, by: str = "ada", **more: Any
) -> Delivery:
    """Return an event of a pipeline of a merge request."""
    inside: Mapping[str, Any] = {
        "iid": iid,
        "source_project_id": source,
        "target_project_id": 44,
        "source_branch": "fix",
        "target_branch": target,
    }
    fields = {"source": "merge_request_event", "ref": f"refs/merge-requests/{iid}/head", "finished_at": at(minute)}
    body = json.loads(pipeline(inside, **(fields | more)).body) | {"user": person(by)}
    return delivery(body)


JOB = job(ref="refs/merge-requests/6/head")
PULL = [JOB, of_request(minute=2, finished_at=None), of_request(), request(), pushed(minute=1)]
SAMPLE = "integrations/trust_gitlab.toml"


def _scenario(name: str, sent: Given, executed: str, reviewed: str, trusted: bool, auth: str = "token") -> Scenario:
    return Scenario(name, sent, executed, reviewed, trusted, SAMPLE, "gitlab", auth, "gitlab")


def good(name: str, sent: Given, executed: str, by: str, auth: str = "token") -> Scenario:
    return _scenario(name, sent, executed, by, True, auth)


def bad(name: str, sent: Given, executed: str, by: str) -> Scenario:
    return _scenario(name, sent, executed, by, False)


FIX, MAIN, EVIL, NOBODY, GRACE = "fix, for main", "main", "fix, for mine", "nobody", "Grace approved 6 into main"
BRANCH = [job(ref="fix"), pipeline(ref="fix")]

SCENARIOS = [
    good("a push to main", [job(), pipeline()], MAIN, "the protection of main"),
    good("a push to main, signed", [job(), pipeline()], MAIN, "the protection of main", "standard-webhooks"),
    good("a schedule on main", [job(), pipeline(source="schedule")], MAIN, "the protection of main"),
    good("a push to a release branch", [job(ref="release/2"), pipeline(ref="release/2")], "release/2", "protection"),
    good(
        "a push to main whose commit is in a merge request into mine",
        [job(), pipeline(), request(iid=7, target="mine")],
        MAIN,
        "the protection of main",
    ),
    good("an approval by another member", [*PULL, approved()], FIX, GRACE),
    good("an approval before the pipeline", [JOB, of_request(), approved(minute=1)], FIX, GRACE),
    good("a merge into main", [*PULL, merged()], FIX, "a maintainer merged it"),
    good("an approval, then a merge", [*PULL, approved(), merged()], FIX, GRACE),
    good(
        "a merge after an approval was withdrawn",
        [*PULL, approved(), request("unapproved", minute=31, by="grace"), merged()],
        FIX,
        "a maintainer merged it",
    ),
    good(
        "an approval was withdrawn and given again",
        [*PULL, approved(), request("unapproved", minute=31, by="grace"), approved(minute=32)],
        FIX,
        GRACE,
    ),
    good("an approval by Grace and one by the author", [*PULL, approved(), approved("bob", 31)], FIX, GRACE),
    good(
        "an approval by Grace and one by who started the pipeline", [*PULL, approved(), approved("ada", 31)], FIX, GRACE
    ),
    good(
        "an approval of the commit, then a push of another",
        [*PULL, approved(), pushed(sha=OTHER_SHA, minute=35)],
        FIX,
        GRACE,
    ),
    good(
        "an approval, and a merge request of a fork with the same commit",
        [*PULL, approved(), request(iid=7, source=99, target="mine", by="eve", author="eve")],
        FIX,
        GRACE,
    ),
    good(
        "an approval, and a fork's merge request that lost its own",
        [*PULL, approved(), request("unapproved", 7, source=99, minute=50, by="eve", author="eve")],
        FIX,
        GRACE,
    ),
    good(
        "an approval in a release branch",
        [JOB, of_request(target="release/2"), request(target="release/2"), approved(target="release/2")],
        "fix, for release/2",
        "Grace approved 6 into release/2",
    ),
    bad("a push to fix", BRANCH, "fix", NOBODY),
    bad("a push to fix, approved as merge request 6", [*BRANCH, request(), approved()], "fix", GRACE),
    bad("a push to fix, merged as merge request 6", [*BRANCH, request(), merged()], "fix", "main"),
    bad("a tag named main", [job(tag=True), pipeline(tag=True)], "a tag", NOBODY),
    bad(
        "a tag named main of an approved commit",
        [job(tag=True), pipeline(tag=True), request(), approved()],
        "a tag",
        GRACE,
    ),
    bad(
        "a tag called as the ref of an approved merge request",
        [
            job(ref="refs/merge-requests/6/head", tag=True),
            pipeline(ref="refs/merge-requests/6/head", tag=True),
            request(),
            approved(),
        ],
        "a tag",
        GRACE,
    ),
    bad(
        "a branch called as the ref of an approved merge request",
        [JOB, pipeline(ref="refs/merge-requests/6/head"), request(), approved()],
        "a branch",
        GRACE,
    ),
    bad("a push to main that does not say whether it is a tag", [job(), pipeline(tag=None)], "unknown", NOBODY),
    bad(
        "a pipeline started by hand on fix, which was merged",
        [job(ref="fix"), pipeline(ref="fix", source="web"), merged()],
        "fix",
        "main",
    ),
    bad("a job whose pipeline was never reported", [job()], "unknown", NOBODY),
    bad("a job of a merge request whose pipeline was never reported", [JOB, request(), approved()], "unknown", GRACE),
    bad("a merge request that nobody read", PULL, FIX, NOBODY),
    bad("a merge request that was closed", [*PULL, request("close", minute=40)], FIX, NOBODY),
    bad(
        "an approval that is not the last one that is required",
        [*PULL, request("approval", minute=30, by="grace")],
        FIX,
        "Grace, of two",
    ),
    bad("an approval by the author", [*PULL, approved("bob")], FIX, "Bob himself"),
    bad("an approval of an unknown author", [*PULL, approved(author="")], FIX, "unknown"),
    bad("an approval by nobody", [*PULL, approved("")], FIX, "unknown"),
    bad("an approval by who pushed the commit", [*PULL, pushed("grace", minute=5), approved()], FIX, "Grace herself"),
    bad(
        "an approval by who opened it for its author",
        [*PULL[:3], request(by="grace"), approved()],
        FIX,
        "Grace herself",
    ),
    bad(
        "an approval by who started the pipeline",
        [job(ref="refs/merge-requests/6/head", user=person("grace")), of_request(by="grace"), request(), approved()],
        FIX,
        "Grace, who pushed it",
    ),
    bad(
        "an approval that was withdrawn", [*PULL, approved(), request("unapproved", minute=31, by="grace")], FIX, NOBODY
    ),
    bad(
        "an approval that another member's withdrawal ended",
        [*PULL, approved(), request("unapproved", minute=31, by="linus")],
        FIX,
        "not enough",
    ),
    bad("an approval of another commit", [*PULL, approved(sha=OTHER_SHA)], FIX, "another commit"),
    bad("an approval of 7 into main, of a pipeline of 6", [*PULL[:3], approved(iid=7)], FIX, "7 alone"),
    bad(
        "an approval of 7 into mine, of a pipeline of 6",
        [*PULL[:3], approved(iid=7, target="mine", author="eve")],
        FIX,
        "7 alone",
    ),
    bad(
        "an approval of 6; the pipeline is of 7 into mine",
        [JOB, of_request(7, "mine"), request(iid=7, target="mine"), request(), approved()],
        EVIL,
        GRACE,
    ),
    bad(
        "an approval of 7 into mine by a colluding member",
        [
            JOB,
            of_request(7, "mine"),
            request(iid=7, target="mine", by="eve", author="eve"),
            approved(iid=7, target="mine", author="eve"),
        ],
        EVIL,
        "Grace approved 7 into mine",
    ),
    bad("7 was merged into mine", [JOB, of_request(7, "mine"), merged(iid=7, target="mine")], EVIL, "7 into mine"),
    bad(
        "7 was merged into mine; the default branch is unknown",
        [JOB, of_request(7, "mine"), merged(iid=7, target="mine", default="")],
        EVIL,
        "7 into mine",
    ),
    bad(
        "target and default branch are empty",
        [JOB, of_request(7, ""), merged(iid=7, target="", default="")],
        EVIL,
        NOBODY,
    ),
    bad(
        "two targets: the pipeline's event changes from mine to main",
        [JOB, of_request(target="mine", minute=2), of_request(), request(), approved()],
        EVIL,
        GRACE,
    ),
    bad(
        "two targets: the merge request was retargeted from mine",
        [JOB, of_request(), request("update", before="mine", minute=9), approved()],
        EVIL,
        GRACE,
    ),
    bad(
        "two targets: an approval, and the pipeline after a retarget",
        [
            JOB,
            of_request(target="mine"),
            request(),
            approved(),
            request("update", target="mine", before="main", minute=35),
        ],
        EVIL,
        GRACE,
    ),
    bad(
        "two targets: an unusual name first",
        [
            JOB,
            of_request(target="mine\u202e", minute=2),
            of_request(),
            approved(),
            request("update", before="mine\u202e"),
        ],
        EVIL,
        GRACE,
    ),
    bad(
        "two merge requests of one commit, into main and mine, of which one was approved",
        [*PULL, request(iid=7, target="mine"), approved()],
        "6 or 7",
        "6 alone",
    ),
    bad(
        "a fork's merge request",
        [JOB, of_request(source=99), request(source=99), approved(source=99)],
        "a fork's",
        GRACE,
    ),
    bad("a fork's merge request that was merged", [JOB, of_request(source=99), merged(source=99)], "a fork's", "main"),
    bad("a fork's merge request of the same number and commit", [*PULL[:3], merged(source=99)], FIX, "a fork's"),
    bad(
        "a fork's pipeline of a commit that was approved within",
        [JOB, of_request(source=99), request(), approved()],
        "a fork's",
        GRACE,
    ),
    bad(
        "a merge request whose source is unknown",
        [JOB, of_request(), request(), approved(source_project_id=None)],
        FIX,
        "unknown",
    ),
    bad(
        "a pipeline that does not show its merge request",
        [job(ref="fix"), pipeline(source="merge_request_event", ref="fix"), request(), approved()],
        "unknown",
        GRACE,
    ),
    bad(
        "a merged results pipeline, whose commit nobody reviewed",
        [job(ref="refs/merge-requests/6/merge", sha=OTHER_SHA), of_request(sha=OTHER_SHA), request(), approved()],
        "fix merged into main",
        GRACE,
    ),
    bad(
        "a child pipeline of an approved merge request",
        [
            JOB,
            pipeline(
                {"iid": 6, "source_project_id": 44, "target_project_id": 44, "target_branch": "main"},
                source="parent_pipeline",
                ref="fix",
            ),
            request(),
            approved(),
        ],
        "what the parent chose",
        GRACE,
    ),
    bad("a forged approval", [*PULL, Sent(approved(), auth="")], FIX, NOBODY),
    bad("a forged merge", [*PULL, Sent(merged(), auth="")], FIX, NOBODY),
    bad("a forged job", [Sent(JOB, auth=""), *PULL[1:], approved()], "unknown", NOBODY),
    bad("a forged pipeline", [JOB, Sent(of_request(), auth=""), request(), approved()], "unknown", GRACE),
    bad("the default branch of the event is another one", [*PULL, merged(default="trunk")], FIX, "who merged it"),
    bad(
        "an approval of another project's merge request",
        [*PULL[:3], approved(target_project_id=45, source_project_id=45)],
        FIX,
        "another project's",
    ),
]
