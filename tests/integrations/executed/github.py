"""GitHub: what was executed and who reviewed it.

The commit ``fix`` is the head of pull request 42 by Ada, from the branch ``fix`` into ``main``. Grace is a member too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ciml.integrations.adapter import Delivery
from tests.integrations.executed import Sent, Source
from tests.integrations.github_samples import (
    FORK,
    OTHER_SHA,
    SHA,
    check_run,
    job,
    merged,
    pr,
    push,
    queue,
    reviewed,
    run,
    workflow_run,
)

RESTORED = {**FORK, "full_name": "octo/widget-fork"}


def in_sandbox(sent: Delivery) -> Delivery:
    """Return the same delivery of another repository."""
    return sent._replace(body=sent.body.replace(b"octo/widget", b"octo/sandbox"))


def queued(base: str, event: str = "merge_group") -> list[Delivery]:
    """Return the job and the workflow run of a branch called as one of the merge queue."""
    branch = f"gh-readonly-queue/{base}/pr-42-{SHA}"
    return [job(head_branch=branch), run(event=event, head_branch=branch)]


JOB = job(head_branch="fix")
#: Of pull request 42 into main: the run, and what GitHub sends before it.
PULL = [JOB, run((42, "main"), action="requested", minute=2), run((42, "main")), pr()]
#: The same without the events of the pull request: their delivery failed.
UNSEEN = PULL[:3]
#: Of pull request 66 into a branch of its author, where any workflow may be. Its head is that of 42.
MINE = [JOB, run((66, "mine"), action="requested", minute=2), run((66, "mine")), pr(number=66, base="mine", by="eve")]


SAMPLE = Path(__file__).parents[3] / "integrations/trust_github.toml"
MERGES = Source("github", "hmac-sha256", "integrations/trust_github.toml", "github")
#: For repositories where all members and collaborators may write.
APPROVALS = replace(MERGES, policy=SAMPLE.read_text().replace('review = ["merged"]', 'review = ["approved", "merged"]'))
good = APPROVALS.good
bad = APPROVALS.bad
SCENARIOS = {
    "a push to main": MERGES.good(job(), workflow_run(), push()),
    "a push to a release branch": MERGES.good(
        job(head_branch="release/2"), run(event="push", head_branch="release/2"), push("refs/heads/release/2")
    ),
    "a schedule": MERGES.good(job(), workflow_run(event="schedule")),
    "a merge group": MERGES.good(*queued("main")),
    "a push to main whose commit is tagged main, too": MERGES.good(
        job(), workflow_run(), push(), push("refs/tags/main")
    ),
    "a push to main whose commit was the head of a pull request into mine": MERGES.good(
        job(), workflow_run(), push(), pr(number=66, base="mine")
    ),
    "a pull request that was merged into main": MERGES.good(*PULL, merged()),
    "a merge, and no other event of the pull request arrived": MERGES.good(*UNSEEN, merged()),
    "a merge after an approval of the author": MERGES.good(*PULL, reviewed(by="ada"), merged()),
    "a merge after a request for changes": MERGES.good(*PULL, reviewed("changes_requested"), merged()),
    "a merge, and its workflow run ended after it": MERGES.good(
        JOB, run((42, "main"), action="requested", minute=2), run(minute=50), pr(), merged()
    ),
    "a merge, and the same commit was pushed to another branch": MERGES.good(*PULL, merged(), push("refs/heads/copy")),
    "a merge, and a pull request of a fork has the same commit": MERGES.good(
        *PULL, merged(), pr(number=7, head=FORK, base="mine")
    ),
    "a merge, and a fork asks to merge the same commit into main": MERGES.good(
        *PULL, merged(), pr(number=7, head=FORK, by="mallory", author="mallory")
    ),
    "a merge, and a later push to the branch fix": MERGES.good(
        JOB,
        run((42, "main"), action="requested", minute=2),
        run((42, "main"), listed=OTHER_SHA),
        pr(),
        pr("synchronize", sha=OTHER_SHA, minute=9),
        pr("closed", merged=True),
    ),
    "a rerun after the merge": MERGES.good(*PULL, merged(), run((42, "main"), minute=55, run_attempt=2)),
    "an approval by another member": good(*PULL, reviewed()),
    "an approval before the run": good(JOB, run((42, "main")), pr(), reviewed(minute=1)),
    "an approval by the owner": good(*PULL, reviewed(association="OWNER")),
    "an approval in capitals": good(*PULL, reviewed("APPROVED")),
    "an approval and one by the author": good(*PULL, reviewed(), reviewed(by="ada", minute=31)),
    "an approval and one by the pusher": good(
        *PULL, reviewed(), reviewed(by="bob", minute=31), push("refs/heads/fix", by="bob")
    ),
    "an approval by Grace; Linus dismissed his own": good(
        *PULL, reviewed(), reviewed(by="linus", minute=31), reviewed("dismissed", by="linus", minute=32)
    ),
    "changes were requested, then approved by the same member": good(
        *PULL, reviewed("changes_requested"), reviewed(minute=31)
    ),
    "a request for changes was dismissed; another member approved": good(
        *PULL,
        reviewed("changes_requested", by="linus"),
        reviewed("dismissed", by="linus", minute=31),
        reviewed(minute=32),
    ),
    "an outsider requested changes": good(
        *PULL, reviewed(), reviewed("changes_requested", by="mallory", minute=31, association="NONE")
    ),
    "an approval of fix, then a push of another commit": good(
        *PULL, reviewed(), pr("synchronize", sha=OTHER_SHA, minute=35)
    ),
    "an approval of fix, a force-push, and one back to fix": good(
        *PULL, reviewed(), pr("synchronize", sha=OTHER_SHA, minute=35), pr("synchronize", minute=36)
    ),
    "an approval, and a fork's pull request of the same commit, with changes requested": good(
        *PULL, reviewed(), reviewed("changes_requested", 7, head=FORK, by="linus", author="mallory")
    ),
    "an approval by Grace after Ada's workflow was run again": good(
        *PULL, run((42, "main"), minute=25, run_attempt=2), reviewed()
    ),
    "an approval into a release branch": good(
        JOB, run((42, "release/2")), pr(base="release/2"), reviewed(base="release/2")
    ),
    "a merge into a release branch, which is not the default one": MERGES.bad(
        JOB, run((42, "release/2")), pr(base="release/2"), merged(base="release/2")
    ),
    "an approval by a member who may only read": MERGES.bad(*PULL, reviewed()),
    "a pushed tag named main": bad(job(), workflow_run(), push("refs/tags/main", by="eve")),
    "a tag named main, and a push of the commit to another branch": bad(
        job(), workflow_run(), push("refs/tags/main"), push("refs/heads/mine")
    ),
    "a tag named main, and a push of another commit to main": bad(
        job(), workflow_run(), push("refs/tags/main"), push(sha=OTHER_SHA)
    ),
    "a tag named main on a commit that was approved": bad(
        job(), workflow_run(), push("refs/tags/main"), pr(), reviewed()
    ),
    "a tag named release/1": bad(job(head_branch="release/1"), run(event="push", head_branch="release/1")),
    "a push to a branch named gh-readonly-queue/main": bad(
        *queued("main", "push"), push(f"refs/heads/gh-readonly-queue/main/pr-42-{SHA}")
    ),
    "a push to a branch named refs/heads/main": bad(
        job(head_branch="refs/heads/main"),
        run(event="push", head_branch="refs/heads/main"),
        push("refs/heads/refs/heads/main"),
    ),
    "a push to main of a fork": bad(job(), workflow_run(head=FORK), push()),
    "a push to main of a deleted fork": bad(job(), workflow_run(head=None), push()),
    "a push to fix, approved as pull request 42": bad(JOB, run(event="push"), pr(), reviewed(), push("refs/heads/fix")),
    "a push to fix, merged as pull request 42": bad(JOB, run(event="push"), pr(), merged(), push("refs/heads/fix")),
    "a workflow that is dispatched on fix": bad(JOB, run(event="workflow_dispatch"), pr(), merged()),
    "a job whose workflow run was never reported": bad(job(), push()),
    "a merge group of another branch": bad(*queued("mine"), queue("mine")),
    "a push without a proof": bad(Sent(job(), auth=""), Sent(workflow_run(), auth=""), Sent(push(), auth="")),
    "a proved push whose workflow run is forged": bad(job(), Sent(workflow_run(), auth=""), push()),
    "a proved workflow run whose push is forged": bad(job(), workflow_run(), Sent(push(), auth="")),
    "a deletion of main is no push of its commit": bad(
        job(), workflow_run(), push(sha="0" * 40, before=SHA, deleted=True)
    ),
    "a pull request that was closed": bad(*PULL, pr("closed", minute=40)),
    "a pull request that nobody read": bad(*PULL),
    "42 was merged; 66 into mine has the same head": bad(*MINE, pr(), merged()),
    "66 was merged into mine": bad(*MINE, merged(66, "mine")),
    "66 was merged into mine; the default branch is unknown": bad(*MINE, merged(66, "mine", default="")),
    "the base is empty, and so is the default branch": bad(
        JOB, run((66, "mine"), action="requested"), merged(66, "", default="")
    ),
    "the events of 66 come after those of 42": bad(*PULL[:3], merged(), pr(number=66, base="mine", minute=50)),
    "66 was opened, and closed before its run was reported": bad(
        JOB, run((42, "main")), pr(number=66, base="mine"), pr("closed", 66, "mine", minute=3), pr(minute=4), merged()
    ),
    "the workflow run listed both when it was requested": bad(
        JOB, run((42, "main"), (66, "mine"), action="requested", minute=2), run((42, "main")), pr(), merged()
    ),
    "the workflow run listed 66 first, then 42": bad(
        JOB, run((66, "mine"), action="requested", minute=2), run((42, "main")), pr(), merged()
    ),
    "the workflow run listed 42 first, then 66": bad(
        JOB, run((42, "main"), action="requested", minute=2), run((66, "mine")), pr(), merged()
    ),
    "42 was merged into main; its run executed it before it was retargeted from mine": bad(
        JOB,
        run((42, "mine"), action="requested", minute=2),
        run((42, "main")),
        pr(base="mine"),
        pr("edited", minute=10, before="mine"),
        merged(),
    ),
    "retargeted from mine, and only the edit was seen": bad(
        JOB, run((42, "main")), pr("edited", minute=10, before="mine"), merged()
    ),
    "retargeted to mine and back between request and completion": bad(
        JOB, run((42, "mine"), action="in_progress", minute=4), run((42, "main")), merged()
    ),
    "the default branch of the event is another one": bad(*PULL, merged(default="trunk")),
    "a merge of a fork's pull request of the same number and commit": bad(*UNSEEN, merged(head=FORK)),
    "a merge in another repository of the organisation": bad(*UNSEEN, in_sandbox(merged(by="eve", author="eve"))),
    "a merge of another commit": bad(*PULL, merged(sha=OTHER_SHA)),
    "a merge of 43": bad(*UNSEEN, merged(43)),
    "a forged merge": bad(*PULL, Sent(merged(), auth="")),
    "a base with an unusual name, then a retarget to main": bad(
        JOB,
        run((66, "mine\u202e"), action="requested", minute=2),
        run((66, "main")),
        pr(number=66, base="mine\u202e"),
        pr("edited", 66, "main", before="mine\u202e", minute=8),
        merged(66),
    ),
    "a pull request with an unusual base has the same head": bad(
        JOB, run((42, "main")), pr(number=66, base="\x07" * 9), pr(), merged()
    ),
    "a base of excessive length has the same head": bad(
        JOB, run((42, "main")), pr(number=66, base="b" * 5000), pr(), merged()
    ),
    "main is merged into mine: the head was pushed to main": bad(
        job(), run((66, "mine"), head_branch="main"), push(), pr(number=66, base="mine")
    ),
    "a backport: the same head into main and release/1, one of them merged": bad(
        *UNSEEN, pr(), pr(number=43, base="release/1"), merged()
    ),
    "pull_request_target of a merged pull request": bad(
        JOB, run((42, "main"), event="pull_request_target"), pr(), merged()
    ),
    "a workflow_run after a merged pull request": bad(JOB, run((42, "main"), event="workflow_run"), pr(), merged()),
    "issue_comment on a merged pull request": bad(JOB, run((42, "main"), event="issue_comment"), pr(), merged()),
    "a fork's run of its merged pull request": bad(JOB, run(head=FORK), pr(head=FORK), merged(head=FORK)),
    "a fork's run of a commit that was merged from within": bad(JOB, run(head=FORK), pr(), merged()),
    "a fork's run that lists 42": bad(JOB, run((42, "main"), head=FORK), pr(), merged()),
    "a run in a repository that was renamed": bad(JOB, run((42, "main"), head=RESTORED), pr(), merged()),
    "a workflow run that lists no pull request": bad(JOB, run(), pr(), merged()),
    "a workflow run that lists 42 with another head": bad(JOB, run((42, "main"), listed=OTHER_SHA), pr(), merged()),
    "a merge group whose commit is the head of 42": bad(*PULL, queue()),
    "an approval by a first-timer": bad(*PULL, reviewed(association="FIRST_TIME_CONTRIBUTOR")),
    "an approval without an association": bad(*PULL, reviewed(association="")),
    "an approval by the author": bad(*PULL, reviewed(by="ada")),
    "an approval by the author in other letters": bad(*PULL, reviewed(by="Ada")),
    "an approval of a pull request by nobody": bad(*UNSEEN, reviewed(author="")),
    "an approval by who pushed the commit": bad(*PULL, pr("synchronize", by="grace", minute=5), reviewed()),
    "an approval by who pushed the branch that Ada asks to merge": bad(
        *PULL, push("refs/heads/fix", by="grace"), reviewed()
    ),
    "an approval by who started the run": bad(JOB, run((42, "main"), actor="grace"), pr(), reviewed()),
    "an approval by who opened the pull request for its author": bad(*UNSEEN, pr(by="grace"), reviewed()),
    "an approval and a later approval by the pusher, dismissed by nobody, of another commit": bad(
        *PULL, reviewed(sha=OTHER_SHA)
    ),
    "an approval that was dismissed": bad(*PULL, reviewed(), reviewed("dismissed", minute=31)),
    "an approval, then changes requested by the same member": bad(
        *PULL, reviewed(), reviewed("changes_requested", minute=31)
    ),
    "an approval, then changes requested by a second member": bad(
        *PULL, reviewed(), reviewed("changes_requested", by="linus", minute=31)
    ),
    "changes requested, then an approval by a second member": bad(
        *PULL, reviewed("changes_requested", by="linus", minute=29), reviewed()
    ),
    "an approval of 66 into main by a member, of a run of 42": bad(*UNSEEN, reviewed(number=66)),
    "an approval of 42 when its base was main; the run executed it in mine": bad(JOB, run((42, "mine")), reviewed()),
    "an approval, then a retarget to mine, and a run there": bad(
        JOB, run((42, "mine"), minute=38), pr(), reviewed(), pr("edited", base="mine", before="main", minute=35)
    ),
    "an approval, a retarget to mine, a run, and a retarget back": bad(
        JOB,
        run((42, "mine"), action="requested", minute=37),
        run((42, "main"), minute=39),
        pr(),
        reviewed(),
        pr("edited", base="mine", before="main", minute=35),
        pr("edited", before="mine", minute=38),
    ),
    "the same, and the edits were lost": bad(
        JOB, run((42, "mine"), action="requested", minute=37), run((42, "main"), minute=39), pr(), reviewed()
    ),
    "the same, and the request was lost": bad(
        JOB, run((42, "main"), minute=39), pr(), reviewed(), pr("edited", base="mine", before="main", minute=35)
    ),
    "an approval of 66 into mine by a colluding member": bad(*MINE, reviewed(number=66, base="mine", author="eve")),
    "an approval of 42; 66 into mine has the same head": bad(*MINE, pr(), reviewed()),
    "an approval of 42; 66 was opened into mine, ran, and was closed": bad(
        JOB, run((42, "main")), pr(), pr(number=66, base="mine"), pr("closed", 66, "mine", minute=4), reviewed()
    ),
    "an approval of 42; 66 reviewed too, by a comment of another base": bad(
        *UNSEEN, reviewed(), reviewed("changes_requested", 66, "mine", by="linus")
    ),
    "an approval of a fork's pull request": bad(JOB, run(head=FORK), pr(head=FORK), reviewed(head=FORK)),
    "an approval of a fork's pull request, whose commit is in a branch here": bad(
        JOB, run((42, "main")), reviewed(head=FORK)
    ),
    "an approval of a fork's pull request, for a push here": bad(
        JOB, run(event="push"), reviewed(number=7, head=FORK, author="mallory")
    ),
    "an approval of a deleted fork": bad(JOB, run(head=None), reviewed(head=None)),
    "a forged approval": bad(*PULL, Sent(reviewed(), auth="")),
    "a forged dismissal of a request for changes": bad(
        *PULL, reviewed("changes_requested"), Sent(reviewed("dismissed", minute=50), auth="")
    ),
    "an approval of a run whose job is forged": bad(Sent(JOB, auth=""), *PULL[1:], reviewed()),
    "an approval of a push to main by a tag": bad(job(), workflow_run(), pr(), reviewed()),
    "a review event of a run started by pull_request_review": bad(
        JOB, run((42, "main"), event="pull_request_review"), pr(), reviewed()
    ),
    "fifty-one members approve": bad(*PULL, *(reviewed(by=f"member{number}") for number in range(51))),
    "a GitHub event under the source of Zuul": bad(
        job(workflow_name="gate"), run((42, "main"), name="gate", head=FORK)
    ),
    "a check run of an app, of an approved pull request": bad(check_run(pull_requests=[]), pr(), reviewed()),
    "a check run of an app that lists 42": bad(check_run(), pr(), merged()),
    "a check run of an app on a commit of main": bad(check_run(pull_requests=[]), push()),
}
