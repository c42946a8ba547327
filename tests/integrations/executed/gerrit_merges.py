"""Gerrit and Zuul: what a patch set depends on, merges, and changes that are moved to another branch."""

from __future__ import annotations

from tests.integrations.executed import Sent
from tests.integrations.executed.gerrit import (
    CLEO,
    DEPENDS,
    LAST,
    MERGED_2,
    MESSAGE,
    MINE,
    NEXT,
    OF_8,
    ON_OPEN,
    OPEN,
    REVISIONS,
    STACKED,
    at,
    bad,
    check,
    created,
    deleted,
    good,
    merged,
    updated,
    voted,
)
from tests.integrations.samples import account

SCENARIOS = [
    # What a patch set depends on.
    bad(
        "an approval of a change that depends on an open one",
        [updated(), created(message=DEPENDS), voted(message=DEPENDS), check()],
        "patch set 1 and change 8",
        CLEO,
    ),
    bad(
        "a merge of a change that depended on another",
        [updated(), created(message=DEPENDS), voted(), merged(message=DEPENDS), check()],
        "patch set 1 and a patch set of change 8",
        "Cleo: patch set 1; of change 8 what was merged",
    ),
    bad(
        "a dependency in other letters",
        [updated(), created(message=f"{MESSAGE}depends-on:https://review.example/8"), voted(), check()],
        "patch set 1 and change 8",
        CLEO,
    ),
    bad(
        "a dependency on the first line",
        [updated(), created(message="Depends-On: https://review.example/8"), voted(), check()],
        "patch set 1 and change 8",
        CLEO,
    ),
    bad(
        "a dependency that the next patch set lacks",
        [updated(), created(message=DEPENDS), created(2, 2), voted(1), voted(2, 6), merged(2), check()],
        "patch set 1 and change 8",
        "Cleo: both patch sets",
    ),
    bad(
        "a dependency that Gerrit's submit left out of the last patch set",
        [updated(), created(message=DEPENDS), merged(2, by_submit=True, made={"kind": "NO_CODE_CHANGE"}), check()],
        "patch set 1 and change 8",
        MERGED_2,
    ),
    bad(
        "an unknown message", [updated(), created(message=None), voted(), check()], "patch set 1, perhaps others", CLEO
    ),
    bad(
        "a merge whose message names a dependency that the creation's did not",
        [updated(), created(), merged(message=DEPENDS), check()],
        "patch set 1 and change 8",
        CLEO,
    ),
    bad(
        "a merge with an unknown message",
        [updated(), created(), merged(message=None), check()],
        "patch set 1, perhaps others",
        CLEO,
    ),
    good(
        "a dependency of an earlier patch set",
        [updated(), created(message=DEPENDS), created(2, 2), voted(2, 6), check(2)],
        "patch set 2 on main",
        "Cleo: patch set 2",
    ),
    # Merges.
    good("a merge of the patch set", [created(), merged(), check()], reviewed="Cleo, by the merge"),
    good(
        "a merge together with its parent",
        [STACKED, merged(**OF_8, newRev=REVISIONS[1]), merged(parents=[OPEN]), check()],
        "patch set 1 on change 8",
        "Cleo: both, by the merges",
    ),
    good(
        "a merge after a block",
        [created(), voted(minute=3, value="-2", by="dan"), merged(), check()],
        reviewed="Cleo and Dan, by the merge",
    ),
    good("a merge by a merge commit", [created(), merged(newRev=MINE), check()], reviewed="Cleo, by the merge"),
    good(
        "a vote that was deleted after the merge",
        [created(), merged(), deleted(minute=10, status="MERGED"), check()],
        reviewed="Cleo, by the merge",
    ),
    good("a rebase at submit", [updated(), created(), NEXT, LAST, check()], reviewed=MERGED_2),
    good("a rebase at submit, of a patch set that was approved", [updated(), created(), voted(), NEXT, LAST, check()]),
    good(
        "a cherry-pick at submit, on the same parent",
        [updated(), created(), merged(2, by_submit=True, made={"kind": "NO_CODE_CHANGE"}), check()],
        reviewed=MERGED_2,
    ),
    good(
        "the patch set that a rebase at submit made",
        [updated(), created(), NEXT, LAST, check(2)],
        "patch set 2 on main",
        MERGED_2,
    ),
    bad(
        "a rebase at submit of a change on an open one",
        [updated(), STACKED, voted(), NEXT, LAST, check()],
        ON_OPEN,
        MERGED_2,
    ),
    bad(
        "a rebase by a person, then the merge",
        [
            updated(),
            STACKED,
            voted(),
            created(2, 6, made={"kind": "TRIVIAL_REBASE"}),
            merged(2, made={"kind": "TRIVIAL_REBASE"}),
            check(),
        ],
        ON_OPEN,
        MERGED_2,
    ),
    bad(
        "a rebase by the submitter within the second of the merge",
        [
            updated(),
            STACKED,
            created(2, 9, made={"kind": "TRIVIAL_REBASE", "uploader": account("cleo")}),
            LAST,
            check(),
        ],
        ON_OPEN,
        MERGED_2,
    ),
    bad(
        "a rebase by a person, and a first patch set that nobody read",
        [
            updated(),
            created(),
            created(2, 6, made={"kind": "TRIVIAL_REBASE"}),
            merged(2, made={"kind": "TRIVIAL_REBASE"}),
            check(),
        ],
        reviewed=MERGED_2,
    ),
    bad(
        "a patch set two before the merged one",
        [updated(), created(), created(2, 2), merged(3, by_submit=True), check()],
        reviewed="Cleo: patch set 3",
    ),
    bad(
        "a merge of other code than that before",
        [updated(), created(), merged(2, by_submit=True, made={"kind": "REWORK"}), check()],
        reviewed=MERGED_2,
    ),
    bad(
        "a merge whose patch set was made minutes before the submit",
        [updated(), created(), merged(2, by_submit=True, made={"createdOn": at(7)}), check()],
        reviewed=MERGED_2,
    ),
    bad(
        "a merge whose patch set another person uploaded",
        [updated(), created(), merged(2, by_submit=True, made={"uploader": account("dan")}), check()],
        reviewed=MERGED_2,
    ),
    bad(
        "a merge by an unknown submitter of a patch set by an unknown uploader",
        [updated(), created(), merged(2, by_submit=True, made={"uploader": {}}, submitter={}), check()],
        reviewed=MERGED_2,
    ),
    bad(
        "a rebase at submit, where no event shows the patch set before",
        [updated(), NEXT, LAST, check()],
        reviewed=MERGED_2,
    ),
    bad(
        "a rebase at submit of a change that is blocked on the patch set before",
        [updated(), created(), voted(minute=3, value="-2", by="dan"), NEXT, LAST, check()],
        reviewed=MERGED_2,
    ),
    bad("a merge of another patch set", [created(), created(2, 2), merged(2), check()], reviewed=MERGED_2),
    bad("a forged merge", [created(), Sent(merged(), auth=""), check()]),
    bad(
        "a merge into another branch",
        [updated(), created(branch="eve"), merged(branch="eve"), check()],
        reviewed="Eve, in her own branch",
    ),
    bad(
        "an approval before the change was moved to main",
        [updated(), created(branch="eve"), voted(branch="eve"), check()],
        reviewed="Cleo: for another branch",
    ),
    bad(
        "an approval after the move, on a commit of Eve's branch",
        [updated(), updated(MINE, name="refs/heads/eve"), created(branch="eve", parents=[MINE]), voted(), check()],
        "patch set 1 on Eve's branch",
        CLEO,
    ),
    good(
        "an approval after the move, on a commit that both branches have",
        [updated(), created(branch="eve"), voted(), check()],
    ),
    bad(
        "a run before the move, on Eve's branch",
        [updated(), created(branch="eve"), voted(), check(change={"branch": "eve"})],
        "patch set 1 on Eve's branch",
        CLEO,
    ),
    bad(
        "a merge after the move, and a run before it",
        [created(branch="eve"), merged(), check(change={"branch": "eve"})],
        "patch set 1 on Eve's branch",
        MERGED_2,
    ),
    bad(
        "a merge into the author's own branch, and a run there",
        [updated(name="refs/heads/eve"), created(branch="eve"), merged(branch="eve"), check(change={"branch": "eve"})],
        "patch set 1 on Eve's branch",
        "Eve, in her own branch",
    ),
    bad(
        "an approval in the author's own branch, and a run there",
        [updated(name="refs/heads/eve"), created(branch="eve"), voted(branch="eve"), check(change={"branch": "eve"})],
        "patch set 1 on Eve's branch",
        CLEO,
    ),
    bad("a gate of the author's own branch", [check(pipeline="gate", change={"branch": "eve"})]),
    bad("a post of the author's own branch", [check(pipeline="post", change={"branch": "eve"})]),
    bad("a release of the author's own branch", [check(pipeline="release", change={"branch": "eve"})]),
    bad("a gate of a branch below stable/1", [check(pipeline="gate", change={"branch": "stable/1/eve"})]),
    bad(
        "a cherry-pick to another branch, which is another change",
        [updated(), created(), voted(number=9, branch="main"), check()],
        reviewed="Cleo: change 9",
    ),
]
