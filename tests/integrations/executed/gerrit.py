"""Gerrit and Zuul: what a run of check executed, and who reviewed it.

The change is 7 of demo/app, to main: Ada owns it, Bob uploads it, Eve wrote the commits. Cleo and Dan review. The tip
of main is `TIP`. Change 8 is another one, with the commit `OPEN`, which nobody reviewed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ciml.integrations.adapter import Delivery
from tests.integrations.executed import Scenario, Sent
from tests.integrations.samples import account, delivery, ref_update, vote, zuul_build, zuul_message

TIP, OPEN, OLD_TIP, MINE = "1" * 40, "8" * 40, "0" * 39 + "1", "d" * 40
REVISIONS = {1: "a" * 40, 2: "b" * 40, 3: "c" * 40}
MESSAGE = "A change\n\nChange-Id: I7\n"
DEPENDS = f"{MESSAGE}Depends-On: https://review.example/c/demo/app/+/8\n"
Given = Sequence[Delivery | Sent]


def event(kind: str, minute: int, patchset: int = 1, **fields: Any) -> Delivery:
    """Return an event about a patch set.

    Args:
      kind: its type.
      minute: of the event's own time.
      patchset: its number.
      fields: of the event; but ``parents`` and ``made`` of the patch set, ``branch``, ``number``, ``message``,
        ``project`` and ``status`` of the change.
    """
    change = {
        "project": fields.pop("project", "demo/app"),
        "branch": fields.pop("branch", "main"),
        "number": fields.pop("number", 7),
        "status": fields.pop("status", "NEW"),
        "owner": account("ada"),
        "commitMessage": fields.pop("message", MESSAGE),
    }
    made = {
        "number": patchset,
        "revision": REVISIONS.get(patchset, TIP),
        "parents": list(fields.pop("parents", [TIP])),
        "uploader": account("bob"),
        "author": account("eve"),
        "createdOn": at(0),
        "kind": "REWORK",
        **fields.pop("made", {}),
    }
    body = {
        "type": kind,
        "change": change,
        "patchSet": made,
        "project": change["project"],
        "eventCreatedOn": at(minute),
    }
    return delivery(body | fields)


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
    """Return Zuul's report of a build of a patch set; ``change`` and ``message`` are merged into theirs."""
    change = {"project": "demo/app", "branch": "main", "change": "7", "patchset": str(patchset), "owner": "ada"}
    change |= fields.pop("change", {})
    message = fields.pop("message", {})
    build = zuul_build(change=change, **fields)
    return Sent(delivery(zuul_message(build, pipeline=pipeline, **change, **message)), "zuul", "mqtt-user")


SAMPLE = "integrations/trust_zuul.toml"


def story(name: str, trusted: bool, executed: str, reviewed: str, sent: Given) -> Scenario:
    return Scenario(name, sent, executed, reviewed, trusted, SAMPLE, "gerrit", "ssh", "zuul", "b1")


def good(
    name: str, sent: Given, executed: str = "patch set 1 on main", reviewed: str = "Cleo: patch set 1"
) -> Scenario:
    return story(name, True, executed, reviewed, sent)


def bad(name: str, sent: Given, executed: str = "patch set 1 on main", reviewed: str = "nobody") -> Scenario:
    return story(name, False, executed, reviewed, sent)


ON_OPEN = "patch set 1 on the unreviewed commit of change 8"
CLEO = "Cleo: patch set 1 alone"
MERGED_2 = "Cleo: patch set 2, by the merge"
STACKED = created(parents=[OPEN])
NEXT = updated(MINE, TIP)  # main has another tip
LAST = merged(2, parents=[MINE], by_submit=True)  # patch set 2 is patch set 1 on that tip
OF_8 = {"number": 8, "made": {"revision": OPEN}}

SCENARIOS = [
    # An approval, and the parents of its patch set.
    good("an approval on the tip of the branch", [updated(), created(), voted(), check()]),
    good("an approval on the tip before the last", [updated(MINE, TIP), created(), voted(), check()]),
    good("an approval by Workflow", [updated(), created(), voted(votes=[vote("Workflow", "1", "0")]), check()]),
    good(
        "a second approval, after one was taken back",
        [updated(), created(), voted(), voted(minute=6, value="0", before="2"), voted(minute=7), check()],
    ),
    good("an approval after the owner's own vote", [updated(), created(), voted(by="ada"), voted(minute=6), check()]),
    good(
        "an approval on a change that was merged before, as it was",
        [merged(**OF_8, minute=0, newRev=OPEN), STACKED, voted(), check()],
        "patch set 1 on change 8",
        "Cleo: both",
    ),
    good(
        "an approval on a change that is merged later, as it was",
        [STACKED, voted(), check(), merged(**OF_8, newRev=OPEN)],
        "patch set 1 on change 8",
        "Cleo: both",
    ),
    good(
        "an approval on the merge commit of another change",
        [merged(**OF_8, minute=0, newRev=TIP), created(), voted(), check()],
    ),
    good(
        "an approval of a merge of two commits of the branch",
        [updated(MINE, TIP), created(parents=[TIP, MINE]), voted(parents=[TIP, MINE]), check()],
    ),
    good(
        "an approval in a project whose commits have SHA-256",
        [updated("f" * 64), created(parents=["f" * 64]), voted(), check()],
    ),
    good(
        "an approval of the second patch set by itself",
        [updated(), created(), created(2, 2), voted(2), check(2)],
        "patch set 2 on main",
        "Cleo: patch set 2",
    ),
    good(
        "a retried build of an approved patch set",
        [updated(), created(), voted(), check(result="RETRY_LIMIT", buildset={})],
    ),
    bad("no review", [updated(), created(), check()]),
    bad("an approval on an open change", [updated(), STACKED, voted(), check()], ON_OPEN, CLEO),
    bad(
        "an approval on an approved, open change",
        [updated(), STACKED, voted(), created(number=8, made={"revision": OPEN}), voted(number=8, minute=6), check()],
        "patch set 1 on change 8",
        "Cleo: both, of which one is not merged",
    ),
    bad(
        "an approval on a change that was merged as another commit",
        [updated(), STACKED, voted(), merged(2, number=8, made={"revision": MINE}, newRev=MINE), check()],
        ON_OPEN,
        CLEO,
    ),
    bad(
        "an approval on an abandoned change",
        [updated(), STACKED, voted(), event("change-abandoned", 6, **OF_8), check()],
        ON_OPEN,
        CLEO,
    ),
    bad("an approval on a tip that no event shows", [created(), voted(), check()], reviewed=CLEO),
    bad("an approval of a patch set whose creation no event shows", [updated(), voted(), check()], reviewed=CLEO),
    bad(
        "an approval of a patch set without known parents",
        [updated(), created(parents=[]), voted(), check()],
        reviewed=CLEO,
    ),
    bad(
        "an approval of a patch set whose parent is no commit",
        [updated(), created(parents=["main"]), voted(), check()],
        reviewed=CLEO,
    ),
    bad(
        "an approval of a merge of which one parent is not merged",
        [updated(), created(parents=[TIP, OPEN]), voted(), check()],
        "patch set 1, main and change 8",
        CLEO,
    ),
    bad(
        "an approval of a merge of another branch",
        [updated(), updated(MINE, name="refs/heads/eve"), created(parents=[TIP, MINE]), voted(), check()],
        "patch set 1, main and Eve's branch",
        CLEO,
    ),
    bad(
        "an approval of a merge of nine commits",
        [updated(f"{n:040x}") for n in range(1, 10)]
        + [created(parents=[f"{n:040x}" for n in range(1, 10)]), voted(), check()],
        "nine parents",
        CLEO,
    ),
    bad(
        "a parent that is the tip of a tag",
        [updated(name="refs/tags/v1"), created(), voted(), check()],
        "patch set 1 on a tag's commit",
        CLEO,
    ),
    bad(
        "a parent that is a change's ref",
        [updated(OPEN, name="refs/changes/08/8/1"), STACKED, voted(), check()],
        ON_OPEN,
        CLEO,
    ),
    bad(
        "a parent that is in a branch called as main with another name",
        [updated(name="refs/heads/refs/heads/main"), created(), voted(), check()],
        "Eve's branch",
        CLEO,
    ),
    bad(
        "a parent of another project's main",
        [updated(project="eve/app"), created(), voted(), check()],
        "patch set 1 on a commit of another project",
        CLEO,
    ),
    bad(
        "a parent of a project whose name looks the same",
        [updated(project="demo%2Fapp"), created(), voted(), check()],
        "patch set 1 on a commit of another project",
        CLEO,
    ),
    bad(
        "a parent merged into another branch",
        [merged(**OF_8, minute=0, branch="eve", newRev=OPEN), STACKED, voted(), check()],
        ON_OPEN,
        CLEO,
    ),
    bad(
        "a parent whose merge nobody proved",
        [Sent(updated(), auth=""), created(), voted(), check()],
        reviewed="Cleo, on a parent that anybody may have named",
    ),
    bad("parents that nobody proved", [updated(), Sent(created(), auth=""), voted(), check()], reviewed=CLEO),
    bad("an approval that nobody proved", [updated(), created(), Sent(voted(), auth=""), check()]),
    bad(
        "parents that a forged event replaces",
        [updated(), STACKED, Sent(created(minute=9), auth=""), voted(), check()],
        ON_OPEN,
        CLEO,
    ),
    bad(
        "parents of the first patch set, and an approval of the second",
        [updated(), created(), created(2, 2, parents=[OPEN]), voted(2), check(2)],
        "patch set 2 on the unreviewed commit of change 8",
        "Cleo: patch set 2 alone",
    ),
    # Who votes, and on what.
    bad("an approval by the owner", [updated(), created(), voted(by="ada"), check()], reviewed="Ada, the owner"),
    bad("an approval by the uploader", [updated(), created(), voted(by="bob"), check()], reviewed="Bob, the uploader"),
    bad("an approval by the author", [updated(), created(), voted(by="eve"), check()], reviewed="Eve, the author"),
    bad(
        "an approval by the author's second account, with the same address",
        [updated(), created(), voted(author={"username": "eve2", "email": "eve@example.org"}), check()],
        reviewed="Eve, the author",
    ),
    bad("an approval by an account without a name", [updated(), created(), voted(author={}), check()]),
    bad(
        "an approval of another patch set",
        [updated(), created(), created(2, 2), voted(), check(2)],
        "patch set 2 on main",
        "Cleo: patch set 1",
    ),
    bad(
        "an approval that Gerrit copied to the next patch set",
        [updated(), created(), voted(), created(2, 6), voted(2, 7, before=None), check(2)],
        "patch set 2 on main",
        "Cleo: patch set 1",
    ),
    bad(
        "an approval that Gerrit copied to a rebased patch set",
        [
            updated(),
            created(),
            voted(),
            created(2, 6, made={"kind": "TRIVIAL_REBASE"}),
            voted(2, 7, before=None),
            check(2),
        ],
        "patch set 2 on main",
        "Cleo: patch set 1",
    ),
    bad(
        "a vote of the CI system",
        [updated(), created(), voted(votes=[vote("Verified", "2", "0")]), check()],
        reviewed="Zuul",
    ),
    bad("a vote of +1", [updated(), created(), voted(value="1"), check()], reviewed="Cleo, without approving"),
    bad("an approval of another change", [updated(), created(), voted(number=70), check()], reviewed="Cleo: change 70"),
    bad(
        "an approval of the change of another project",
        [updated(), created(), voted(project="demo"), check()],
        reviewed="Cleo: another project",
    ),
    bad(
        "an approval of project demo, change app/7",
        [updated(), created(), voted(project="demo/app/7", number=1), check()],
        reviewed="Cleo: another project",
    ),
    bad(
        "an approval that was taken back",
        [updated(), created(), voted(), voted(minute=6, value="0", before="2"), check()],
    ),
    bad("an approval that was deleted", [updated(), created(), voted(), deleted(), check()]),
    bad(
        "an approval by which the change was closed already", [updated(), created(), voted(status="ABANDONED"), check()]
    ),
    bad(
        "a block after an approval",
        [updated(), created(), voted(), voted(minute=6, value="-2", by="dan"), check()],
        reviewed="Dan blocks it",
    ),
    bad(
        "a block before an approval",
        [updated(), created(), voted(minute=4, value="-2", by="dan"), voted(), check()],
        reviewed="Dan blocks it",
    ),
    bad(
        "a block of the patch set before, which Gerrit keeps",
        [updated(), created(), voted(minute=2, value="-2", by="dan"), created(2, 3), voted(2), check(2)],
        "patch set 2 on main",
        "Dan blocks it",
    ),
    bad(
        "a block of a later patch set",
        [updated(), created(), voted(), voted(2, 6, "-2", by="dan"), check()],
        reviewed="Dan blocks the change",
    ),
]
