"""The client of GitHub with a GitHub on loopback: every request and answer is checked against GitHub's description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ciml.errors import CimlError, EngineError
from ciml.integrations import http
from ciml.integrations.http import UNAUTHORIZED, Busy, Refused, Unsettled
from ciml.integrations.review import ChangeRef, Head, Reactions, ReviewClient
from tests.verdicts.feedback.github_stub import APP, OWN, TOKEN, GitHubServer, limited, secondary
from tests.verdicts.feedback.reviewing import MARKER, NEXT_SHA, SHA, github_client, message, ref
from tests.verdicts.feedback.stub import (
    ACCEPTED_THEN_HANG,
    ACCEPTED_THEN_RESET,
    CUT,
    HANG,
    HUGE,
    RESET,
    Fault,
    in_turn,
    says,
)

pytestmark = pytest.mark.engines


@pytest.fixture
def commenting(github_server: GitHubServer, tmp_path: Path) -> ReviewClient:
    return github_client(github_server.url, tmp_path)


@pytest.fixture
def checking(github_server: GitHubServer, tmp_path: Path) -> ReviewClient:
    return github_client(github_server.url, tmp_path, github_server.key, app=APP)


def test_a_comment_is_posted_found_and_edited_in_place(github_server: GitHubServer, commenting: ReviewClient) -> None:
    assert commenting.find(ref(), MARKER) is None
    posted = commenting.post(ref(), message("first"))
    assert (posted.body, posted.url) == (
        message("first").body,
        f"{github_server.url}/octo/widget/pull/7#issuecomment-{posted.id}",
    )
    assert commenting.find(ref(), MARKER) == posted
    edited = commenting.edit(posted, message("second"))
    assert (edited.id, edited.body) == (posted.id, message("second").body)
    assert github_server.messages(7) == [message("second").body]
    assert [one.method for one in github_server.effects] == ["POST", "PATCH"]


def test_an_own_comment_is_found_among_hundreds_and_no_impostor_is(
    github_server: GitHubServer, commenting: ReviewClient
) -> None:
    for number in range(150):
        github_server.says(7, f"comment {number}")
    posted = commenting.post(ref(), message())
    for number in range(60):
        github_server.says(7, f"I quote: {MARKER} {number}", login="eve")
    github_server.says(7, "without the marker", login=OWN)
    assert commenting.find(ref(), MARKER) == posted
    assert commenting.find(ref(), "ciml:fedcba9876543210") is None
    assert commenting.post(ref(), message("a second one")) == commenting.find(ref(), MARKER)


def test_a_check_run_is_posted_found_and_edited_on_its_commit(
    github_server: GitHubServer, checking: ReviewClient
) -> None:
    assert checking.find(ref(), MARKER) is None
    posted = checking.post(ref(), message("first"))
    (run,) = github_server.repositories["octo/widget"].checks
    assert (run["name"], run["head_sha"], run["status"], run["conclusion"]) == ("ciml", SHA, "completed", "neutral")
    assert run["output"]["title"] == message().title
    assert checking.find(ref(), MARKER) == posted
    later = checking.post(ref(), message("another"))
    assert checking.find(ref(), MARKER) == later
    checks = github_server.repositories["octo/widget"].checks
    checks.append({**checks[-1], "id": 10**6, "app": {**checks[-1]["app"], "id": APP + 1}})  # of another App
    assert checking.find(ref(), MARKER) == later
    del checks[1:]
    assert checking.edit(posted, message("second")).id == posted.id
    github_server.pull(7, NEXT_SHA)
    assert checking.find(ref(head=NEXT_SHA), MARKER) is None  # a run of an earlier commit is not its message
    assert [one["output"]["summary"] for one in github_server.repositories["octo/widget"].checks] == [
        message("second").body
    ]


def test_an_app_asks_for_no_more_than_it_needs_and_once(
    github_server: GitHubServer, checking: ReviewClient, tmp_path: Path
) -> None:
    for number in range(3):
        checking.post(ref(), message(str(number)))
    assert [dict(rights) for _, rights in github_server.tokens.values()] == [
        {"checks": "write", "pull_requests": "read", "metadata": "read"}
    ]
    app_comments = github_client(github_server.url, tmp_path, github_server.key, app=APP, report="comment")
    posted = app_comments.post(ref(), message("by the App"))
    assert app_comments.find(ref(), MARKER) == posted
    github_server.says(7, f"{MARKER} of the account of the token", login=OWN)
    assert app_comments.find(ref(), MARKER) == posted
    assert list(github_server.tokens.values())[-1][1] == {"pull_requests": "write", "metadata": "read"}


def test_a_token_of_an_installation_is_renewed_before_it_ends(
    github_server: GitHubServer, checking: ReviewClient
) -> None:
    github_server.token_s = 200.0  # less than the client trusts
    checking.post(ref(), message("first"))
    checking.post(ref(), message("second"))
    assert len(github_server.tokens) == 2


def test_an_app_that_was_removed_and_installed_again_is_asked_for_its_token(
    github_server: GitHubServer, checking: ReviewClient
) -> None:
    checking.post(ref(), message("first"))
    github_server.installation, github_server.tokens = 0, {}
    with pytest.raises(Refused) as caught:
        checking.post(ref(), message("second"))
    assert caught.value.reason == UNAUTHORIZED  # it is tried again
    for call in (checking.head, lambda change: checking.find(change, MARKER)):
        with pytest.raises(Refused, match=f"the App {APP} is not installed on octo/widget: install it") as caught:
            call(ref())
        assert caught.value.reason == "forbidden"
    github_server.installation = 99
    checking.post(ref(), message("third"))
    assert len(github_server.messages(7)) == 2


@pytest.mark.parametrize(
    ("pull", "state"),
    [({}, "open"), ({"state": "closed", "merged": True}, "merged"), ({"state": "closed"}, "abandoned")],
)
def test_the_state_of_a_pull_request(
    github_server: GitHubServer, commenting: ReviewClient, pull: dict[str, Any], state: str
) -> None:
    github_server.pull(8, NEXT_SHA, title="Fix it [ciml mute]", labels=["quiet", "bug"], **pull)
    found = commenting.head(ref("8"))
    assert found == Head(state, "8", "", NEXT_SHA, "Fix it [ciml mute]", ("quiet", "bug"))  # type: ignore[arg-type]
    assert not found.is_at(ref("8", SHA))


def of_commit(sha: str, project: str = "forker/widget", branch: str = "fix") -> ChangeRef:
    """A change whose number the run's events did not name."""
    return ChangeRef("octo/widget", "", "", sha, project, branch)


def test_a_pull_request_is_found_by_its_commit_also_where_it_comes_from_a_fork(
    github_server: GitHubServer, commenting: ReviewClient, checking: ReviewClient
) -> None:
    for number in range(100, 160):
        github_server.pull(number, f"{number:040x}", state="closed" if number % 2 else "open")
    github_server.pull(8, NEXT_SHA, fork="forker/widget")
    github_server.pull(3, NEXT_SHA, base="other/widget")  # GitHub lists it, too
    assert commenting.head(of_commit(SHA, "octo/widget")).change == "7"
    assert commenting.head(of_commit(NEXT_SHA, "Forker/Widget")) == commenting.head(ref("8", NEXT_SHA))
    assert commenting.head(of_commit("f" * 40)) == Head("missing")
    assert commenting.head(ref("9")) == Head("missing")
    assert commenting.head(of_commit("")) == Head("missing")
    posted = commenting.post(of_commit(NEXT_SHA), message())
    assert (posted.change.change, github_server.messages(8)) == ("8", [message().body])
    assert checking.post(ref("7", ""), message()).change.head == SHA


def test_another_persons_pull_request_of_the_same_commit_gets_no_message(
    github_server: GitHubServer, commenting: ReviewClient
) -> None:
    github_server.pull(2, NEXT_SHA, branch="copy")  # the oldest one, from a branch of the repository itself
    github_server.pull(3, NEXT_SHA, fork="mallory/widget")
    github_server.pull(4, NEXT_SHA, fork="forker/widget", branch="other")
    assert commenting.head(of_commit(NEXT_SHA)) == Head("missing")
    github_server.pull(8, NEXT_SHA, fork="forker/widget")
    assert commenting.post(of_commit(NEXT_SHA), message()).change.change == "8"
    assert [github_server.messages(number) for number in (2, 3, 4)] == [[], [], []]
    for unknown in (of_commit(NEXT_SHA, ""), of_commit(NEXT_SHA, branch=""), ref("", NEXT_SHA)):
        assert commenting.head(unknown) == Head("missing")
    github_server.pull(9, NEXT_SHA, fork="forker/widget")  # into another base: either may be the run's
    assert commenting.head(of_commit(NEXT_SHA)) == Head("missing")


def test_a_pull_request_that_is_closed_is_not_found_by_its_commit(
    github_server: GitHubServer, commenting: ReviewClient
) -> None:
    github_server.pull(7, SHA, state="closed", merged=True)
    closed = of_commit(SHA, "octo/widget")
    assert commenting.head(closed) == Head("missing")
    with pytest.raises(Refused, match="no pull request has the number or commit") as caught:
        commenting.post(closed, message())
    assert caught.value.reason == "not_found"


def test_reactions_are_those_of_others(github_server: GitHubServer, commenting: ReviewClient) -> None:
    early = github_server.says(7, "not helpful", login="early")
    posted = commenting.post(ref(), message())
    comment = github_server.repositories["octo/widget"].comments[-1]
    early.at = comment.at  # it was edited since
    comment.reactions += [("+1", "ann"), ("-1", "bob"), ("heart", "cleo"), ("-1", "dan"), ("+1", "ann")]
    github_server.says(7, "Thanks.\n\nNot helpful.", login="eve")
    github_server.says(7, "> not helpful\n\nI disagree", login="fay")
    github_server.says(7, "not helpful", login=OWN)
    github_server.says(7, "not helpful", login="another[bot]").app = 1
    assert commenting.reactions(posted) == Reactions(("ann",), ("bob", "dan"), ("eve",))


def test_a_comment_on_the_pull_request_says_of_a_check_run_that_it_is_not_helpful(
    github_server: GitHubServer, checking: ReviewClient
) -> None:
    github_server.says(7, "not helpful", login="early")
    posted = checking.post(ref(), message())
    assert checking.reactions(posted) == Reactions()
    github_server.says(7, "I like it", login="ann")
    github_server.says(7, "not helpful", login="eve")
    github_server.says(7, "not helpful", login="another[bot]").app = 1
    assert checking.reactions(posted) == Reactions(not_helpful=("eve",))


LIMITS = [
    (limited(7), 7, 7), (limited(), 1, 3), (limited(status=403), 1, 3), (secondary(9), 9, 9),
    (secondary(), http.LIMITED_S, http.LIMITED_S), (says(429, "slow down"), http.LIMITED_S, http.LIMITED_S),
    (limited(10**9), 3600, 3600),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "least_s", "most_s"), LIMITS)
def test_a_limit_is_kept_and_nothing_was_changed(
    github_server: GitHubServer, commenting: ReviewClient, fault: Fault, least_s: float, most_s: float
) -> None:
    github_server.plan = in_turn(fault)
    with pytest.raises(Busy) as caught:
        commenting.post(ref(), message())
    assert least_s <= caught.value.retry_after_s <= most_s
    assert github_server.effects == []
    github_server.plan = in_turn(fault, writes=False)
    with pytest.raises(Busy):
        commenting.head(ref())


UNKNOWN = [
    (ACCEPTED_THEN_HANG, True), (HANG, False), (ACCEPTED_THEN_RESET, True), (RESET, False), (CUT, True), (HUGE, True),
    (says(502, after=True), True), (says(502), False), (says(500, after=True), True),
    (says(503, headers={"Retry-After": "3"}), False), (Fault("drip", after=True, pause_s=0.02), True),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "accepted"), UNKNOWN)
@pytest.mark.parametrize("way", ["comment", "check"])
def test_an_unknown_outcome_is_settled_by_reading(
    github_server: GitHubServer, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fault: Fault,
    accepted: bool, way: str,
) -> None:  # fmt: skip
    client = request.getfixturevalue("checking" if way == "check" else "commenting")
    assert client.find(ref(), MARKER) is None  # the App's token is there already
    github_server.plan = in_turn(fault)
    with monkeypatch.context() as short:
        short.setattr(http.Rest, "call_s", 1.0)
        with pytest.raises(Unsettled, match="it may have done what was asked"):
            client.post(ref(), message())
    found = client.find(ref(), MARKER)
    assert (found is not None) is accepted
    assert len(github_server.messages(7)) == accepted
    assert found is None or found.body == message().body


@pytest.mark.parametrize("fault", [one for one, _ in UNKNOWN if one != says(503, headers={"Retry-After": "3"})])
def test_a_read_that_fails_has_changed_nothing(
    github_server: GitHubServer, commenting: ReviewClient, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    github_server.plan = in_turn(fault, writes=False)
    with monkeypatch.context() as short:
        short.setattr(http.Rest, "call_s", 0.3)
        with pytest.raises(EngineError) as caught:
            commenting.head(ref())
    assert not isinstance(caught.value, Unsettled)
    assert commenting.head(ref()).state == "open"


def test_a_server_that_is_not_reached_has_not_got_the_message(tmp_path: Path) -> None:
    client = github_client("http://127.0.0.1:9", tmp_path)
    with pytest.raises(EngineError, match=r"^http://127\.0\.0\.1:9 is not reached: ") as caught:
        client.post(ref(), message())
    assert not isinstance(caught.value, Unsettled | Busy)


def test_what_github_rejects_is_never_asked_again(
    github_server: GitHubServer, commenting: ReviewClient, checking: ReviewClient
) -> None:
    github_server.pull(8, NEXT_SHA, locked=True)
    cases = [
        (commenting, ref("8"), message(), "forbidden", "issue is locked"),
        (commenting, ref(), message("x" * 70_000), "invalid", "too long"),
        (commenting, ref(project="octo/other"), message(), "not_found", "answers 404: Not Found"),
        (commenting, ref(project="no-repository"), message(), "invalid", "is no name"),
        (commenting, ref(project="octo/.."), message(), "invalid", r"'\.\.' is no name"),
        (commenting, ref("7/../8"), message(), "invalid", "is no number of a change"),
        (checking, ref(head="e" * 40), message(), "invalid", "No commit found"),
        (checking, ref(), message("ü" * 33_000), "invalid", "65535"),
    ]
    for client, change, text, reason, detail in cases:
        with pytest.raises(Refused, match=detail) as caught:
            client.post(change, text)
        assert caught.value.reason == reason
    assert github_server.effects == []


def test_a_name_of_a_project_leads_to_no_other_address(github_server: GitHubServer, commenting: ReviewClient) -> None:
    for project in ("octo/widget/../../user", "octo/wid?get", "octo/#", "octo/%2e%2e"):
        with pytest.raises(Refused) as caught:
            commenting.post(ref(project=project), message())
        assert caught.value.reason == "not_found"
    assert {len(one.path.split("/")) for one in github_server.asked} == {
        len(["", "repos", "octo", "x", "issues", "7", "comments"])
    }


def test_an_app_without_the_right_or_the_installation_says_so(
    github_server: GitHubServer, checking: ReviewClient, tmp_path: Path
) -> None:
    github_server.rights = {"pull_requests": "read"}
    with pytest.raises(Refused, match="not granted to this installation") as caught:
        checking.post(ref(), message())
    assert caught.value.reason == "invalid"
    other = github_client(github_server.url, tmp_path, github_server.key, app=APP + 1)
    with pytest.raises(Refused, match="rejects the credentials: check the App and its rights: Checks: write") as caught:
        other.post(ref(), message())
    assert caught.value.reason == UNAUTHORIZED


def test_no_error_has_a_secret(
    github_server: GitHubServer, commenting: ReviewClient, checking: ReviewClient, tmp_path: Path
) -> None:
    shown: list[str] = []

    def echo(asked: Any) -> Fault:
        return says(422, f"you said {asked.headers.get('authorization')}")

    for client in (commenting, checking):
        github_server.plan = echo
        with pytest.raises(CimlError) as caught:
            client.post(ref(), message())
        shown += [str(caught.value), repr(caught.value)]
    github_server.plan = in_turn(None, None)
    checking.find(ref(), MARKER)
    (made,) = github_server.tokens
    github_server.plan = echo
    with pytest.raises(CimlError) as caught:
        checking.post(ref(), message())
    shown += [str(caught.value), repr(caught.value), repr(commenting), repr(checking)]
    wrong = github_client(github_server.url, tmp_path, "ghp_a-token-that-is-not-known")
    github_server.plan = in_turn()
    with pytest.raises(Refused) as error:
        wrong.find(ref(), MARKER)
    shown.append(str(error.value))
    assert not [text for text in shown for secret in (TOKEN, made, "PRIVATE KEY", "eyJ", "not-known") if secret in text]
    assert "422" in shown[0]


def test_a_token_is_read_again_when_its_file_changes(
    github_server: GitHubServer, commenting: ReviewClient, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("ghp_an-expired-token")
    with pytest.raises(Refused, match="rejects the credentials: check the token and its rights: Pull requests: write"):
        commenting.post(ref(), message())
    (tmp_path / "secret").write_text(TOKEN)
    posted = commenting.post(ref(), message())
    assert (posted.body, commenting.find(ref(), MARKER)) == (message().body, posted)
    github_server.accounts["ghp_of-another-account"] = ("another-robot", 7002)
    (tmp_path / "secret").write_text("ghp_of-another-account")
    assert commenting.find(ref(), MARKER) is None
