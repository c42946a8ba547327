"""GitLab: what was executed and who reviewed it.

The commit is the last one of merge request 6 by Bob (user 5), from the branch ``fix`` into ``main``. Ada is another
member, who starts pipelines; Grace is a third.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ciml.integrations.adapter import Delivery
from tests.integrations.executed import Sent, Source
from tests.integrations.gitlab_samples import PROJECT, SHA, delivery, job, merge_request, pipeline

OTHER_SHA = SHA[::-1]
PEOPLE = {"ada": 3, "bob": 5, "grace": 9, "linus": 11, "eve": 13}


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
BRANCH = [job(ref="fix"), pipeline(ref="fix")]
GITLAB = Source("gitlab", "token", "integrations/trust_gitlab.toml", "gitlab")
good = GITLAB.good
bad = GITLAB.bad
SCENARIOS = {
    "a push to main": good(job(), pipeline()),
    "a schedule on main": good(job(), pipeline(source="schedule")),
    "a push to a release branch": good(job(ref="release/2"), pipeline(ref="release/2")),
    "a push to main whose commit is in a merge request into mine": good(
        job(), pipeline(), request(iid=7, target="mine")
    ),
    "an approval by another member": good(*PULL, approved()),
    "an approval before the pipeline": good(JOB, of_request(), approved(minute=1)),
    "a merge into main": good(*PULL, merged()),
    "an approval, then a merge": good(*PULL, approved(), merged()),
    "a merge after an approval was withdrawn": good(
        *PULL, approved(), request("unapproved", minute=31, by="grace"), merged()
    ),
    "an approval was withdrawn and given again": good(
        *PULL, approved(), request("unapproved", minute=31, by="grace"), approved(minute=32)
    ),
    "an approval by Grace and one by the author": good(*PULL, approved(), approved("bob", 31)),
    "an approval by Grace and one by who started the pipeline": good(*PULL, approved(), approved("ada", 31)),
    "an approval of the commit, then a push of another": good(*PULL, approved(), pushed(sha=OTHER_SHA, minute=35)),
    "an approval, and a merge request of a fork with the same commit": good(
        *PULL, approved(), request(iid=7, source=99, target="mine", by="eve", author="eve")
    ),
    "an approval, and a fork's merge request that lost its own": good(
        *PULL, approved(), request("unapproved", 7, source=99, minute=50, by="eve", author="eve")
    ),
    "an approval in a release branch": good(
        JOB, of_request(target="release/2"), request(target="release/2"), approved(target="release/2")
    ),
    "a push to main, signed": replace(GITLAB, auth="standard-webhooks").good(job(), pipeline()),
    "a push to fix": bad(*BRANCH),
    "a push to fix, approved as merge request 6": bad(*BRANCH, request(), approved()),
    "a push to fix, merged as merge request 6": bad(*BRANCH, request(), merged()),
    "a tag named main": bad(job(tag=True), pipeline(tag=True)),
    "a tag named main of an approved commit": bad(job(tag=True), pipeline(tag=True), request(), approved()),
    "a tag called as the ref of an approved merge request": bad(
        job(ref="refs/merge-requests/6/head", tag=True),
        pipeline(ref="refs/merge-requests/6/head", tag=True),
        request(),
        approved(),
    ),
    "a branch called as the ref of an approved merge request": bad(
        JOB, pipeline(ref="refs/merge-requests/6/head"), request(), approved()
    ),
    "a push to main that does not say whether it is a tag": bad(job(), pipeline(tag=None)),
    "a pipeline started by hand on fix, which was merged": bad(
        job(ref="fix"), pipeline(ref="fix", source="web"), merged()
    ),
    "a job whose pipeline was never reported": bad(job()),
    "a job of a merge request whose pipeline was never reported": bad(JOB, request(), approved()),
    "a merge request that nobody read": bad(*PULL),
    "a merge request that was closed": bad(*PULL, request("close", minute=40)),
    "an approval that is not the last one that is required": bad(*PULL, request("approval", minute=30, by="grace")),
    "an approval by the author": bad(*PULL, approved("bob")),
    "an approval of an unknown author": bad(*PULL, approved(author="")),
    "an approval by nobody": bad(*PULL, approved("")),
    "an approval by who pushed the commit": bad(*PULL, pushed("grace", minute=5), approved()),
    "an approval by who opened it for its author": bad(*PULL[:3], request(by="grace"), approved()),
    "an approval by who started the pipeline": bad(
        job(ref="refs/merge-requests/6/head", user=person("grace")), of_request(by="grace"), request(), approved()
    ),
    "an approval that was withdrawn": bad(*PULL, approved(), request("unapproved", minute=31, by="grace")),
    "an approval that another member's withdrawal ended": bad(
        *PULL, approved(), request("unapproved", minute=31, by="linus")
    ),
    "an approval of another commit": bad(*PULL, approved(sha=OTHER_SHA)),
    "an approval of 7 into main, of a pipeline of 6": bad(*PULL[:3], approved(iid=7)),
    "an approval of 7 into mine, of a pipeline of 6": bad(*PULL[:3], approved(iid=7, target="mine", author="eve")),
    "an approval of 6; the pipeline is of 7 into mine": bad(
        JOB, of_request(7, "mine"), request(iid=7, target="mine"), request(), approved()
    ),
    "an approval of 7 into mine by a colluding member": bad(
        JOB,
        of_request(7, "mine"),
        request(iid=7, target="mine", by="eve", author="eve"),
        approved(iid=7, target="mine", author="eve"),
    ),
    "7 was merged into mine": bad(JOB, of_request(7, "mine"), merged(iid=7, target="mine")),
    "7 was merged into mine; the default branch is unknown": bad(
        JOB, of_request(7, "mine"), merged(iid=7, target="mine", default="")
    ),
    "target and default branch are empty": bad(JOB, of_request(7, ""), merged(iid=7, target="", default="")),
    "two targets: the pipeline's event changes from mine to main": bad(
        JOB, of_request(target="mine", minute=2), of_request(), request(), approved()
    ),
    "two targets: the merge request was retargeted from mine": bad(
        JOB, of_request(), request("update", before="mine", minute=9), approved()
    ),
    "two targets: an approval, and the pipeline after a retarget": bad(
        JOB,
        of_request(target="mine"),
        request(),
        approved(),
        request("update", target="mine", before="main", minute=35),
    ),
    "two targets: an unusual name first": bad(
        JOB, of_request(target="mine\u202e", minute=2), of_request(), approved(), request("update", before="mine\u202e")
    ),
    "two merge requests of one commit, into main and mine, of which one was approved": bad(
        *PULL, request(iid=7, target="mine"), approved()
    ),
    "a fork's merge request": bad(JOB, of_request(source=99), request(source=99), approved(source=99)),
    "a fork's merge request that was merged": bad(JOB, of_request(source=99), merged(source=99)),
    "a fork's merge request of the same number and commit": bad(*PULL[:3], merged(source=99)),
    "a fork's pipeline of a commit that was approved within": bad(JOB, of_request(source=99), request(), approved()),
    "a merge request whose source is unknown": bad(JOB, of_request(), request(), approved(source_project_id=None)),
    "a pipeline that does not show its merge request": bad(
        job(ref="fix"), pipeline(source="merge_request_event", ref="fix"), request(), approved()
    ),
    "a merged results pipeline, whose commit nobody reviewed": bad(
        job(ref="refs/merge-requests/6/merge", sha=OTHER_SHA), of_request(sha=OTHER_SHA), request(), approved()
    ),
    "a child pipeline of an approved merge request": bad(
        JOB,
        pipeline(
            {"iid": 6, "source_project_id": 44, "target_project_id": 44, "target_branch": "main"},
            source="parent_pipeline",
            ref="fix",
        ),
        request(),
        approved(),
    ),
    "a forged approval": bad(*PULL, Sent(approved(), auth="")),
    "a forged merge": bad(*PULL, Sent(merged(), auth="")),
    "a forged job": bad(Sent(JOB, auth=""), *PULL[1:], approved()),
    "a forged pipeline": bad(JOB, Sent(of_request(), auth=""), request(), approved()),
    "the default branch of the event is another one": bad(*PULL, merged(default="trunk")),
    "an approval of another project's merge request": bad(
        *PULL[:3], approved(target_project_id=45, source_project_id=45)
    ),
}
