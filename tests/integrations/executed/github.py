"""GitHub: pushes, tags, queues and merges."""

from __future__ import annotations

from tests.integrations.executed import Sent
from tests.integrations.github_samples import FORK, REPOSITORY, SHA, delivery, job, workflow_run
from tests.integrations.github_stories import (
    EVIL,
    FIX,
    GRACE,
    JOB,
    MAIN,
    MINE,
    NOBODY,
    OTHER_SHA,
    PULL,
    RESTORED,
    SAMPLE,
    UNSEEN,
    at,
    bad,
    good,
    merged,
    pr,
    push,
    queue,
    reviewed,
    run,
)

BRANCHES = [
    good("a push to main", [job(), workflow_run(), push()], MAIN, "the protection of main"),
    good(
        "a push to a release branch",
        [job(head_branch="release/2"), run(event="push", head_branch="release/2"), push("refs/heads/release/2")],
        "release/2",
        "the protection of release/2",
    ),
    good("a schedule", [job(), workflow_run(event="schedule")], MAIN, "the protection of main"),
    good(
        "a merge group",
        [
            job(head_branch=f"gh-readonly-queue/main/pr-42-{SHA}"),
            run(event="merge_group", head_branch=f"gh-readonly-queue/main/pr-42-{SHA}"),
        ],
        "42, merged into main",
        "the rules of the merge queue",
    ),
    good(
        "a push to main whose commit is tagged main, too",
        [job(), workflow_run(), push(), push("refs/tags/main")],
        MAIN,
        "the protection of main",
    ),
    good(
        "a push to main whose commit was the head of a pull request into mine",
        [job(), workflow_run(), push(), pr(number=66, base="mine")],
        MAIN,
        "the protection of main",
    ),
    bad("a pushed tag named main", [job(), workflow_run(), push("refs/tags/main", by="eve")], "a tag", NOBODY),
    bad(
        "a tag named main, and a push of the commit to another branch",
        [job(), workflow_run(), push("refs/tags/main"), push("refs/heads/mine")],
        "a tag",
        NOBODY,
    ),
    bad(
        "a tag named main, and a push of another commit to main",
        [job(), workflow_run(), push("refs/tags/main"), push(sha=OTHER_SHA)],
        "a tag",
        NOBODY,
    ),
    bad(
        "a tag named main on a commit that was approved",
        [job(), workflow_run(), push("refs/tags/main"), pr(), reviewed()],
        "a tag",
        GRACE,
    ),
    bad(
        "a tag named release/1",
        [job(head_branch="release/1"), run(event="push", head_branch="release/1")],
        "a tag",
        NOBODY,
    ),
    bad(
        "a push to a branch named gh-readonly-queue/main",
        [
            job(head_branch=f"gh-readonly-queue/main/pr-42-{SHA}"),
            run(event="push", head_branch=f"gh-readonly-queue/main/pr-42-{SHA}"),
            push(f"refs/heads/gh-readonly-queue/main/pr-42-{SHA}"),
        ],
        "a branch of Eve",
        NOBODY,
    ),
    bad(
        "a push to a branch named refs/heads/main",
        [
            job(head_branch="refs/heads/main"),
            run(event="push", head_branch="refs/heads/main"),
            push("refs/heads/refs/heads/main"),
        ],
        "a branch of Eve",
        NOBODY,
    ),
    bad("a push to main of a fork", [job(), workflow_run(head=FORK), push()], "the fork's main", NOBODY),
    bad("a push to main of a deleted fork", [job(), workflow_run(head=None), push()], "unknown", NOBODY),
    bad(
        "a push to fix, approved as pull request 42",
        [JOB, run(event="push"), pr(), reviewed(), push("refs/heads/fix")],
        "fix",
        GRACE,
    ),
    bad(
        "a push to fix, merged as pull request 42",
        [JOB, run(event="push"), pr(), merged(), push("refs/heads/fix")],
        "fix, its workflow on push",
        "main",
    ),
    bad("a workflow that is dispatched on fix", [JOB, run(event="workflow_dispatch"), pr(), merged()], "fix", "main"),
    bad("a job whose workflow run was never reported", [job(), push()], "unknown", NOBODY),
    bad(
        "a merge group of another branch",
        [
            job(head_branch=f"gh-readonly-queue/mine/pr-42-{SHA}"),
            run(event="merge_group", head_branch=f"gh-readonly-queue/mine/pr-42-{SHA}"),
            queue("mine"),
        ],
        "mine",
        "the rules of mine",
    ),
    bad(
        "a push without a proof",
        [Sent(job(), auth=""), Sent(workflow_run(), auth=""), Sent(push(), auth="")],
        MAIN,
        NOBODY,
    ),
    bad(
        "a proved push whose workflow run is forged", [job(), Sent(workflow_run(), auth=""), push()], "unknown", NOBODY
    ),
    bad("a proved workflow run whose push is forged", [job(), workflow_run(), Sent(push(), auth="")], "a tag", NOBODY),
    bad(
        "a deletion of main is no push of its commit",
        [job(), workflow_run(), push(sha="0" * 40, before=SHA, deleted=True)],
        "a tag",
        NOBODY,
    ),
]

MERGES = [
    good("a pull request that was merged into main", [*PULL, merged()], FIX, "who may write merged it"),
    good(
        "a merge, and no other event of the pull request arrived", [*UNSEEN, merged()], FIX, "who may write merged it"
    ),
    good("a merge after an approval of the author", [*PULL, reviewed(by="ada"), merged()], FIX, "who may write"),
    good("a merge after a request for changes", [*PULL, reviewed("changes_requested"), merged()], FIX, "who may write"),
    good(
        "a merge, and its workflow run ended after it",
        [JOB, run((42, "main"), action="requested", minute=2), run(minute=50), pr(), merged()],
        FIX,
        "who may write",
    ),
    good(
        "a merge, and the same commit was pushed to another branch",
        [*PULL, merged(), push("refs/heads/copy")],
        FIX,
        "who may write merged it",
    ),
    good(
        "a merge, and a pull request of a fork has the same commit",
        [*PULL, merged(), pr(number=7, head=FORK, base="mine")],
        FIX,
        "who may write merged it",
    ),
    good(
        "a merge, and a fork asks to merge the same commit into main",
        [*PULL, merged(), pr(number=7, head=FORK, by="mallory", author="mallory")],
        FIX,
        "who may write merged it",
    ),
    good(
        "a merge, and a later push to the branch fix",
        [
            JOB,
            run((42, "main"), action="requested", minute=2),
            run((42, "main"), listed=OTHER_SHA),
            pr(),
            pr("synchronize", sha=OTHER_SHA, minute=9),
            pr("closed", merged=True),
        ],
        FIX,
        "who may write merged fix itself",
    ),
    good(
        "a rerun after the merge", [*PULL, merged(), run((42, "main"), minute=55, run_attempt=2)], FIX, "who may write"
    ),
    bad("a pull request that was closed", [*PULL, pr("closed", minute=40)], FIX, NOBODY),
    bad("a pull request that nobody read", PULL, FIX, NOBODY),
    bad("42 was merged; 66 into mine has the same head", [*MINE, pr(), merged()], EVIL, "main, of 42 alone"),
    bad("66 was merged into mine", [*MINE, merged(66, "mine")], EVIL, "Eve merged 66 into mine"),
    bad(
        "66 was merged into mine; the default branch is unknown",
        [*MINE, merged(66, "mine", default="")],
        EVIL,
        "Eve merged 66",
    ),
    bad(
        "the base is empty, and so is the default branch",
        [JOB, run((66, "mine"), action="requested"), merged(66, "", default="")],
        EVIL,
        NOBODY,
    ),
    bad(
        "the events of 66 come after those of 42",
        [*PULL[:3], merged(), pr(number=66, base="mine", minute=50)],
        "42 or 66",
        "42 alone",
    ),
    bad(
        "66 was opened, and closed before its run was reported",
        [
            JOB,
            run((42, "main")),
            pr(number=66, base="mine"),
            pr("closed", 66, "mine", minute=3),
            pr(minute=4),
            merged(),
        ],
        EVIL,
        "42 alone",
    ),
    bad(
        "the workflow run listed both when it was requested",
        [JOB, run((42, "main"), (66, "mine"), action="requested", minute=2), run((42, "main")), pr(), merged()],
        "42 or 66",
        "42 alone",
    ),
    bad(
        "the workflow run listed 66 first, then 42",
        [JOB, run((66, "mine"), action="requested", minute=2), run((42, "main")), pr(), merged()],
        EVIL,
        "42 alone",
    ),
    bad(
        "the workflow run listed 42 first, then 66",
        [JOB, run((42, "main"), action="requested", minute=2), run((66, "mine")), pr(), merged()],
        "42 or 66",
        "42",
    ),
    bad(
        "42 was merged into main; its run executed it before it was retargeted from mine",
        [
            JOB,
            run((42, "mine"), action="requested", minute=2),
            run((42, "main")),
            pr(base="mine"),
            pr("edited", minute=10, before="mine"),
            merged(),
        ],
        EVIL,
        "42, when its base was main",
    ),
    bad(
        "retargeted from mine, and only the edit was seen",
        [JOB, run((42, "main")), pr("edited", minute=10, before="mine"), merged()],
        EVIL,
        "42, with base main",
    ),
    bad(
        "retargeted to mine and back between request and completion",
        [JOB, run((42, "mine"), action="in_progress", minute=4), run((42, "main")), merged()],
        EVIL,
        "42, with base main",
    ),
    bad("the default branch of the event is another one", [*PULL, merged(default="trunk")], FIX, "who merged it"),
    bad(
        "a merge of a fork's pull request of the same number and commit",
        [*UNSEEN, merged(head=FORK)],
        FIX,
        "the fork's, merged into main",
    ),
    bad("a merge of a pull request whose repository was deleted", [*UNSEEN, merged(head=None)], FIX, "unknown"),
    bad(
        "a merge in another repository of the organisation",
        [
            *UNSEEN,
            delivery(
                "pull_request",
                {
                    "action": "closed",
                    "repository": {**REPOSITORY, "full_name": "octo/sandbox"},
                    "sender": {"login": "eve"},
                    "pull_request": {
                        "number": 42,
                        "merged": True,
                        "user": {"login": "eve"},
                        "updated_at": at(40),
                        "head": {"sha": SHA, "repo": {"full_name": "octo/sandbox"}},
                        "base": {"ref": "main", "repo": {"full_name": "octo/sandbox"}},
                    },
                },
            ),
        ],
        FIX,
        "another repository",
    ),
    bad("a merge of another commit", [*PULL, merged(sha=OTHER_SHA)], FIX, "another commit"),
    bad("a merge of 43", [*UNSEEN, merged(43)], "42 or 43", "43 alone"),
    bad("a forged merge", [*PULL, Sent(merged(), auth="")], FIX, NOBODY),
    bad(
        "a base with an unusual name, then a retarget to main",
        [
            JOB,
            run((66, "mine\u202e"), action="requested", minute=2),
            run((66, "main")),
            pr(number=66, base="mine\u202e"),
            pr("edited", 66, "main", before="mine\u202e", minute=8),
            merged(66),
        ],
        EVIL,
        "66, when its base was main",
    ),
    bad(
        "a pull request with an unusual base has the same head",
        [JOB, run((42, "main")), pr(number=66, base="\x07" * 9), pr(), merged()],
        "42 or 66",
        "42 alone",
    ),
    bad(
        "a base of excessive length has the same head",
        [JOB, run((42, "main")), pr(number=66, base="b" * 5000), pr(), merged()],
        "42 or 66",
        "42 alone",
    ),
    bad(
        "main is merged into mine: the head was pushed to main",
        [job(), run((66, "mine"), head_branch="main"), push(), pr(number=66, base="mine")],
        "main, merged into mine",
        "main alone",
    ),
    bad(
        "a backport: the same head into main and release/1, one of them merged",
        [*UNSEEN, pr(), pr(number=43, base="release/1"), merged()],
        "42 or 43",
        "42 alone",
    ),
    bad(
        "pull_request_target of a merged pull request",
        [JOB, run((42, "main"), event="pull_request_target"), pr(), merged()],
        "whatever the workflow checks out",
        "main",
    ),
    bad(
        "a workflow_run after a merged pull request",
        [JOB, run((42, "main"), event="workflow_run"), pr(), merged()],
        "main and artifacts",
        "main",
    ),
    bad(
        "issue_comment on a merged pull request",
        [JOB, run((42, "main"), event="issue_comment"), pr(), merged()],
        "whatever the workflow checks out",
        "main",
    ),
    bad(
        "a fork's run of its merged pull request",
        [JOB, run(head=FORK), pr(head=FORK), merged(head=FORK)],
        "the fork's head, merged into an unknown base",
        "main",
    ),
    bad(
        "a fork's run of a commit that was merged from within",
        [JOB, run(head=FORK), pr(), merged()],
        "the fork's commit, merged into an unknown base",
        "42 alone",
    ),
    bad("a fork's run that lists 42", [JOB, run((42, "main"), head=FORK), pr(), merged()], "a fork's", "42 alone"),
    bad(
        "a run in a repository that was renamed",
        [JOB, run((42, "main"), head=RESTORED), pr(), merged()],
        "unknown",
        "42",
    ),
    bad("a workflow run that lists no pull request", [JOB, run(), pr(), merged()], "unknown", "42"),
    bad(
        "a workflow run that lists 42 with another head",
        [JOB, run((42, "main"), listed=OTHER_SHA), pr(), merged()],
        "an earlier head of some pull request",
        "42",
    ),
    bad("a merge group that was not merged", [JOB, run((42, "main")), pr(), queue(reason="dequeued")], FIX, NOBODY),
    bad("a merge group whose commit is the head of 42", [*PULL, queue()], FIX, "the merge group alone"),
    bad(
        "a merge into a release branch, which is not the default one",
        [JOB, run((42, "release/2")), pr(base="release/2"), merged(base="release/2")],
        "fix, merged into release/2",
        "unknown: not the default branch",
        SAMPLE,
    ),
]


SCENARIOS = [*BRANCHES, *MERGES]
