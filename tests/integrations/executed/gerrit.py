"""Gerrit and Zuul: what a run of check executed, and who reviewed it.

The change is 7 of demo/app, to main: Ada owns it, Bob uploads it, Eve wrote the commits. Cleo and Dan review. The tip
of main is `TIP`. Change 8 is another one, with the commit `OPEN`, which nobody reviewed.
"""

from __future__ import annotations

from typing import Any

from ciml.integrations.adapter import Delivery
from tests.integrations.executed import Sent, Source
from tests.integrations.samples import account, delivery, gerrit, ref_update, vote, zuul_build, zuul_message

TIP = "1" * 40
OPEN = "8" * 40
MINE = "d" * 40
REVISIONS = {1: "a" * 40, 2: "b" * 40, 3: "c" * 40}
MESSAGE = "A change\n\nChange-Id: I7\n"
DEPENDS = f"{MESSAGE}Depends-On: https://review.example/c/demo/app/+/8\n"


def event(kind: str, minute: int, patchset: int = 1, **fields: Any) -> Delivery:
    """Return an event; parents and made belong to the patch set, branch, number, message, … to the change."""
    body = gerrit(kind, eventCreatedOn=at(minute))
    of_change = [name for name in ("project", "branch", "number", "status") if name in fields]
    body["change"] |= {"commitMessage": fields.pop("message", MESSAGE)} | {name: fields.pop(name) for name in of_change}
    body["patchSet"] |= {
        "number": patchset,
        "revision": REVISIONS.get(patchset, TIP),
        "parents": list(fields.pop("parents", [TIP])),
        "createdOn": at(0),
        **fields.pop("made", {}),
    }
    return delivery({**body, "project": body["change"]["project"], **fields})


def at(minute: int) -> int:
    return 1795521600 + 60 * minute


def created(patchset: int = 1, minute: int = 1, **fields: Any) -> Delivery:
    return event("patchset-created", minute, patchset, **fields)


def voted(
    patchset: int = 1, minute: int = 5, value: str = "2", before: str | None = "0", by: str = "cleo", **fields: Any
) -> Delivery:
    votes = fields.pop("votes", [vote("Code-Review", value, before)])
    return event("comment-added", minute, patchset, **({"author": account(by), "approvals": votes} | fields))


def deleted(patchset: int = 1, minute: int = 7, **fields: Any) -> Delivery:
    votes = [vote("Code-Review", "0", "2")]
    return event("vote-deleted", minute, patchset, reviewer=account("cleo"), approvals=votes, **fields)


def merged(patchset: int = 1, minute: int = 9, **fields: Any) -> Delivery:
    """Return a merge by Cleo; ``by_submit`` says that Gerrit made the patch set then."""
    made = dict(fields.pop("made", {}))
    if fields.pop("by_submit", False):
        made = {"uploader": account("cleo"), "createdOn": at(minute), "kind": "TRIVIAL_REBASE"} | made
    revision = REVISIONS.get(patchset, TIP)
    new = {"newRev": revision, "submitter": account("cleo"), "status": "MERGED"}
    return event("change-merged", minute, patchset, made=made, **(new | fields))


def updated(new: str = TIP, old: str = "0" * 40, name: str = "refs/heads/main", project: str = "demo/app") -> Delivery:
    update = {**ref_update(name, new, old), "project": project}
    return delivery({"type": "ref-updated", "refUpdate": update, "eventCreatedOn": at(0)})


def check(patchset: int = 1, pipeline: str = "check", **fields: Any) -> Sent:
    """Return Zuul's report of a build of a patch set; ``change`` is merged into its change."""
    change = {"project": "demo/app", "branch": "main", "change": "7", "patchset": str(patchset), "owner": "ada"}
    change |= fields.pop("change", {})
    build = zuul_build(change=change, **fields)
    return Sent(delivery(zuul_message(build, pipeline=pipeline, **change)), "zuul", "mqtt-user")


STACKED = created(parents=[OPEN])
NEXT = updated(MINE, TIP)  # main has another tip
LAST = merged(2, parents=[MINE], by_submit=True)  # patch set 2 is patch set 1 on that tip
REBASE = {"kind": "TRIVIAL_REBASE"}
IN_EVE = {"branch": "eve"}
OF_8 = {"number": 8, "made": {"revision": OPEN}}
NINE = [f"{number:040x}" for number in range(1, 10)]
CREATED = [updated(), created()]
ZUUL = Source("gerrit", "ssh", "integrations/trust_zuul.toml", "zuul")
good = ZUUL.good
bad = ZUUL.bad
SCENARIOS = {
    "an approval on the tip of the branch": good(*CREATED, voted(), check()),
    "an approval on the tip before the last": good(updated(MINE, TIP), created(), voted(), check()),
    "an approval by Workflow": good(*CREATED, voted(votes=[vote("Workflow", "1", "0")]), check()),
    "a second approval, after one was taken back": good(
        *CREATED, voted(), voted(minute=6, value="0", before="2"), voted(minute=7), check()
    ),
    "an approval after the owner's own vote": good(*CREATED, voted(by="ada"), voted(minute=6), check()),
    "an approval on a change that was merged before, as it was": good(
        merged(**OF_8, minute=0, newRev=OPEN), STACKED, voted(), check()
    ),
    "an approval on a change that is merged later, as it was": good(
        STACKED, voted(), check(), merged(**OF_8, newRev=OPEN)
    ),
    "an approval on the merge commit of another change": good(
        merged(**OF_8, minute=0, newRev=TIP), created(), voted(), check()
    ),
    "an approval of a merge of two commits of the branch": good(
        updated(MINE, TIP), created(parents=[TIP, MINE]), voted(parents=[TIP, MINE]), check()
    ),
    "an approval in a project whose commits have SHA-256": good(
        updated("f" * 64), created(parents=["f" * 64]), voted(), check()
    ),
    "an approval of the second patch set by itself": good(*CREATED, created(2, 2), voted(2), check(2)),
    "an approval with a sign, and a vote of 0": good(
        *CREATED, voted(votes=[vote("Code-Review", "+2", "1"), vote("Verified", "0")]), check()
    ),
    "an approval before votes that approve nothing": good(
        *CREATED,
        voted(),
        voted(minute=6, votes=[vote("Code-Review", "-1", "0"), vote("Workflow", "-1", "0")], by="dan"),
        voted(minute=7, votes=[vote("Verified", "-2", "2")], by="dan"),
        check(),
    ),
    "a message that speaks of dependencies": good(
        updated(), created(message="Explain Depends-On: and more\n\nNo-Depends-On: 9\n"), voted(), check()
    ),
    "a retried build of an approved patch set": good(*CREATED, voted(), check(result="RETRY_LIMIT", buildset={})),
    "a dependency of an earlier patch set": good(
        updated(), created(message=DEPENDS), created(2, 2), voted(2, 6), check(2)
    ),
    "a merge of the patch set": good(created(), merged(), check()),
    "a merge together with its parent": good(
        STACKED, merged(**OF_8, newRev=REVISIONS[1]), merged(parents=[OPEN]), check()
    ),
    "a merge after a block": good(created(), voted(minute=3, value="-2", by="dan"), merged(), check()),
    "a merge by a merge commit": good(created(), merged(newRev=MINE), check()),
    "a vote that was deleted after the merge": good(created(), merged(), deleted(minute=10, status="MERGED"), check()),
    "a rebase at submit": good(*CREATED, NEXT, LAST, check()),
    "a rebase at submit, of a patch set that was approved": good(*CREATED, voted(), NEXT, LAST, check()),
    "a cherry-pick at submit, on the same parent": good(
        *CREATED, merged(2, by_submit=True, made={"kind": "NO_CODE_CHANGE"}), check()
    ),
    "the patch set that a rebase at submit made": good(*CREATED, NEXT, LAST, check(2)),
    "an approval after the move, on a commit that both branches have": good(
        updated(), created(branch="eve"), voted(), check()
    ),
    "no review": bad(*CREATED, check()),
    "an approval on an open change": bad(updated(), STACKED, voted(), check()),
    "an approval on an approved, open change": bad(
        updated(), STACKED, voted(), created(number=8, made={"revision": OPEN}), voted(number=8, minute=6), check()
    ),
    "an approval on a change that was merged as another commit": bad(
        updated(), STACKED, voted(), merged(2, number=8, made={"revision": MINE}, newRev=MINE), check()
    ),
    "an approval on an abandoned change": bad(
        updated(), STACKED, voted(), event("change-abandoned", 6, **OF_8), check()
    ),
    "an approval on a tip that no event shows": bad(created(), voted(), check()),
    "an approval of a patch set whose creation no event shows": bad(updated(), voted(), check()),
    "an approval of a patch set without known parents": bad(updated(), created(parents=[]), voted(), check()),
    "an approval of a patch set of which one parent is empty": bad(
        updated(), created(parents=[TIP, ""]), voted(), check()
    ),
    "an approval of a patch set whose parent is no commit": bad(updated(), created(parents=["main"]), voted(), check()),
    "an approval of a merge of which one parent is not merged": bad(
        updated(), created(parents=[TIP, OPEN]), voted(), check()
    ),
    "an approval of a merge of another branch": bad(
        updated(), updated(MINE, name="refs/heads/eve"), created(parents=[TIP, MINE]), voted(), check()
    ),
    "an approval of a merge of nine commits": bad(*map(updated, NINE), created(parents=NINE), voted(), check()),
    "a parent that is the tip of a tag": bad(updated(name="refs/tags/v1"), created(), voted(), check()),
    "a parent that is a change's ref": bad(updated(OPEN, name="refs/changes/08/8/1"), STACKED, voted(), check()),
    "a parent that is in a branch called as main with another name": bad(
        updated(name="refs/heads/refs/heads/main"), created(), voted(), check()
    ),
    "a parent of another project's main": bad(updated(project="eve/app"), created(), voted(), check()),
    "a parent of a project whose name looks the same": bad(updated(project="demo%2Fapp"), created(), voted(), check()),
    "a parent merged into another branch": bad(
        merged(**OF_8, minute=0, branch="eve", newRev=OPEN), STACKED, voted(), check()
    ),
    "a parent whose merge nobody proved": bad(Sent(updated(), auth=""), created(), voted(), check()),
    "parents that nobody proved": bad(updated(), Sent(created(), auth=""), voted(), check()),
    "an approval that nobody proved": bad(*CREATED, Sent(voted(), auth=""), check()),
    "parents that a forged event replaces": bad(updated(), STACKED, Sent(created(minute=9), auth=""), voted(), check()),
    "parents of the first patch set, and an approval of the second": bad(
        *CREATED, created(2, 2, parents=[OPEN]), voted(2), check(2)
    ),
    "an approval by the owner": bad(*CREATED, voted(by="ada"), check()),
    "an approval by the uploader": bad(*CREATED, voted(by="bob"), check()),
    "an approval by the author": bad(*CREATED, voted(by="eve"), check()),
    "an approval by the author's second account, with the same address": bad(
        *CREATED, voted(author={"username": "eve2", "email": "eve@example.org"}), check()
    ),
    "an approval of another patch set": bad(*CREATED, created(2, 2), voted(), check(2)),
    "an approval that Gerrit copied to the next patch set": bad(
        *CREATED, voted(), created(2, 6), voted(2, 7, before=None), check(2)
    ),
    "an approval that Gerrit copied to a rebased patch set": bad(
        *CREATED, voted(), created(2, 6, made=REBASE), voted(2, 7, before=None), check(2)
    ),
    "a vote of the CI system": bad(*CREATED, voted(votes=[vote("Verified", "2", "0")]), check()),
    "an approval that became a +1": bad(*CREATED, voted(), voted(minute=6, value="1", before="2"), check()),
    "a vote for Workflow that was taken back": bad(
        *CREATED, voted(), voted(minute=6, votes=[vote("Workflow", "-1", "1"), vote("Code-Review", "2")]), check()
    ),
    "a vote on another label": bad(*CREATED, voted(votes=[vote("Anything", "2", "0")]), check()),
    "votes without a change, which may be copies": bad(
        *CREATED, voted(votes=[vote("Code-Review", "2"), vote("Workflow", "1")]), check()
    ),
    "a block together with an approval": bad(
        *CREATED, voted(), voted(minute=6, votes=[vote("Code-Review", "-2", "0"), vote("Workflow", "1", "0")]), check()
    ),
    "an approval of another change": bad(*CREATED, voted(number=70), check()),
    "an approval of the change of another project": bad(*CREATED, voted(project="demo"), check()),
    "an approval of project demo, change app/7": bad(*CREATED, voted(project="demo/app/7", number=1), check()),
    "an approval that was taken back": bad(*CREATED, voted(), voted(minute=6, value="0", before="2"), check()),
    "an approval that was deleted": bad(*CREATED, voted(), deleted(), check()),
    "an approval by which the change was closed already": bad(*CREATED, voted(status="ABANDONED"), check()),
    "a block after an approval": bad(*CREATED, voted(), voted(minute=6, value="-2", by="dan"), check()),
    "a block before an approval": bad(*CREATED, voted(minute=4, value="-2", by="dan"), voted(), check()),
    "a block of the patch set before, which Gerrit keeps": bad(
        *CREATED, voted(minute=2, value="-2", by="dan"), created(2, 3), voted(2), check(2)
    ),
    "a block of a later patch set": bad(*CREATED, voted(), voted(2, 6, "-2", by="dan"), check()),
    "an approval of a change that depends on an open one": bad(
        updated(), created(message=DEPENDS), voted(message=DEPENDS), check()
    ),
    "a merge of a change that depended on another": bad(
        updated(), created(message=DEPENDS), voted(), merged(message=DEPENDS), check()
    ),
    "a dependency in other letters": bad(
        updated(), created(message=f"{MESSAGE}depends-on:https://review.example/8"), voted(), check()
    ),
    "a dependency between blanks": bad(
        updated(), created(message="A change\n\t DEPENDS-ON : https://review.example/9"), voted(), check()
    ),
    "a dependency by its change's id": bad(
        updated(), created(message=f"{MESSAGE}depends-on:I0123456789012345678901234567890123456789"), voted(), check()
    ),
    "a dependency on the first line": bad(
        updated(), created(message="Depends-On: https://review.example/8"), voted(), check()
    ),
    "a dependency that the next patch set lacks": bad(
        updated(), created(message=DEPENDS), created(2, 2), voted(1), voted(2, 6), merged(2), check()
    ),
    "a dependency that Gerrit's submit left out of the last patch set": bad(
        updated(), created(message=DEPENDS), merged(2, by_submit=True, made={"kind": "NO_CODE_CHANGE"}), check()
    ),
    "an unknown message": bad(updated(), created(message=None), voted(), check()),
    "a merge whose message names a dependency that the creation's did not": bad(
        *CREATED, merged(message=DEPENDS), check()
    ),
    "a merge with an unknown message": bad(*CREATED, merged(message=None), check()),
    "a rebase at submit of a change on an open one": bad(updated(), STACKED, voted(), NEXT, LAST, check()),
    "a rebase by a person, then the merge": bad(
        updated(), STACKED, voted(), created(2, 6, made=REBASE), merged(2, made=REBASE), check()
    ),
    "a rebase by the submitter within the second of the merge": bad(
        updated(), STACKED, created(2, 9, made={"kind": "TRIVIAL_REBASE", "uploader": account("cleo")}), LAST, check()
    ),
    "a rebase by a person, and a first patch set that nobody read": bad(
        *CREATED, created(2, 6, made=REBASE), merged(2, made=REBASE), check()
    ),
    "a patch set two before the merged one": bad(*CREATED, created(2, 2), merged(3, by_submit=True), check()),
    "a merge by an unknown submitter of a patch set by an unknown uploader": bad(
        *CREATED, merged(2, by_submit=True, made={"uploader": {}}, submitter={}), check()
    ),
    "a rebase at submit, where no event shows the patch set before": bad(updated(), NEXT, LAST, check()),
    "a rebase at submit of a change that is blocked on the patch set before": bad(
        *CREATED, voted(minute=3, value="-2", by="dan"), NEXT, LAST, check()
    ),
    "a merge of another patch set": bad(created(), created(2, 2), merged(2), check()),
    "a forged merge": bad(created(), Sent(merged(), auth=""), check()),
    "a merge into another branch": bad(updated(), created(branch="eve"), merged(branch="eve"), check()),
    "an approval before the change was moved to main": bad(
        updated(), created(branch="eve"), voted(branch="eve"), check()
    ),
    "an approval after the move, on a commit of Eve's branch": bad(
        updated(), updated(MINE, name="refs/heads/eve"), created(branch="eve", parents=[MINE]), voted(), check()
    ),
    "a run before the move, on Eve's branch": bad(updated(), created(branch="eve"), voted(), check(change=IN_EVE)),
    "a merge after the move, and a run before it": bad(created(branch="eve"), merged(), check(change=IN_EVE)),
    "a merge into the author's own branch, and a run there": bad(
        updated(name="refs/heads/eve"), created(branch="eve"), merged(branch="eve"), check(change=IN_EVE)
    ),
    "an approval in the author's own branch, and a run there": bad(
        updated(name="refs/heads/eve"), created(branch="eve"), voted(branch="eve"), check(change=IN_EVE)
    ),
    **{
        f"a {name} of the author's own branch": bad(check(pipeline=name, change=IN_EVE))
        for name in ("gate", "post", "release")
    },
    "a gate of a branch below stable/1": bad(check(pipeline="gate", change={"branch": "stable/1/eve"})),
    "a cherry-pick to another branch, which is another change": bad(*CREATED, voted(number=9, branch="main"), check()),
}
