"""The client of GitHub with a GitHub on loopback: every request and answer is checked against GitHub's description."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import CimlError, EngineError
from ciml.integrations import http
from ciml.integrations.http import UNAUTHORIZED, Busy, Unsettled
from ciml.integrations.review import ChangeRef, Head, Reaction, Reactions, ReviewClient, time_us
from tests.integrations.receivers.kept import wait
from tests.verdicts.feedback.github_stub import APP, OWN, TOKEN, GitHubServer
from tests.verdicts.feedback.reviewing import MARKER, NEXT_SHA, SHA, github_client, message, ref, rejected
from tests.verdicts.feedback.stub import ACCEPTED_THEN_HANG, ACCEPTED_THEN_RESET, CUT, HANG, RESET, Fault, in_turn, says

pytestmark = pytest.mark.engines


@pytest.fixture
def commenting(github_server: GitHubServer, tmp_path: Path) -> ReviewClient:
    return github_client(github_server.url, tmp_path)


@pytest.fixture
def checking(github_server: GitHubServer, tmp_path: Path) -> ReviewClient:
    return github_client(github_server.url, tmp_path, github_server.key, app=APP)


def test_an_own_comment_is_edited_in_place_and_found_among_hundreds_and_no_impostor_is(
    github_server: GitHubServer, commenting: ReviewClient
) -> None:
    assert commenting.find(ref(), MARKER) is None
    for number in range(150):
        github_server.says(7, f"comment {number}")
    posted = commenting.post(ref(), message("first"))
    url = f"{github_server.url}/octo/widget/pull/7#issuecomment-{posted.id}"
    assert (posted.body, posted.url) == (message("first").body, url)
    for number in range(60):
        github_server.says(7, f"I quote: {MARKER} {number}", login="eve")
    github_server.says(7, "without the marker", login=OWN)
    assert commenting.find(ref(), MARKER) == posted
    assert commenting.find(ref(), "ciml:fedcba9876543210") is None
    edited = commenting.edit(posted, message("second"))
    assert (edited.id, edited.body) == (posted.id, message("second").body)
    assert github_server.messages(7) == [message("second").body, "without the marker"]
    assert [one.method for one in github_server.effects] == ["POST", "PATCH"]
    assert commenting.post(ref(), message("a second one")) == commenting.find(ref(), MARKER)


def test_a_check_run_is_posted_found_and_edited_on_its_commit(
    github_server: GitHubServer, checking: ReviewClient
) -> None:
    assert checking.find(ref(), MARKER) is None
    posted = checking.post(ref(), message("first"))
    (run,) = github_server.checks
    assert (run["name"], run["head_sha"], run["status"], run["conclusion"]) == ("ciml", SHA, "completed", "neutral")
    assert run["output"]["title"] == message().title
    assert checking.find(ref(), MARKER) == posted
    later = checking.post(ref(), message("another"))
    github_server.checks.append({**run, "id": 10**6, "app": {**run["app"], "id": APP + 1}})  # of another App
    assert checking.find(ref(), MARKER) == later
    del github_server.checks[1:]
    assert checking.edit(posted, message("second")).id == posted.id
    github_server.pull(7, NEXT_SHA)
    assert checking.find(ref(head=NEXT_SHA), MARKER) is None  # a run of an earlier commit is not its message
    assert [one["output"]["summary"] for one in github_server.checks] == [message("second").body]


def test_an_app_asks_for_no_more_than_it_needs_and_once(
    github_server: GitHubServer, checking: ReviewClient, tmp_path: Path
) -> None:
    for number in range(3):
        checking.post(ref(), message(str(number)))
    ((_, rights),) = github_server.tokens.values()
    assert rights == {"checks": "write", "pull_requests": "read", "metadata": "read"}
    app_comments = github_client(github_server.url, tmp_path, github_server.key, app=APP, report="comment")
    posted = app_comments.post(ref(), message("by the App"))
    assert app_comments.find(ref(), MARKER) == posted
    github_server.says(7, f"{MARKER} of the account of the token", login=OWN)
    assert app_comments.find(ref(), MARKER) == posted
    assert list(github_server.tokens.values())[-1][1] == {"pull_requests": "write", "metadata": "read"}


def test_a_token_of_an_installation_is_renewed_before_it_ends_and_after_a_new_installation(
    github_server: GitHubServer, checking: ReviewClient
) -> None:
    github_server.token_s = 200.0  # less than the client trusts
    checking.post(ref(), message("first"))
    github_server.token_s = 3600.0
    checking.post(ref(), message("second"))
    assert len(github_server.tokens) == 2
    github_server.installation, github_server.tokens = 0, {}
    with rejected(UNAUTHORIZED):  # it is tried again
        checking.post(ref(), message("third"))
    for call in (checking.head, lambda change: checking.find(change, MARKER)):
        with rejected("forbidden", f"the App {APP} is not installed on octo/widget: install it"):
            call(ref())
    github_server.installation = 99
    checking.post(ref(), message("third"))
    assert len(github_server.messages(7)) == 3


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
    for missing in (of_commit("f" * 40), of_commit(""), ref("9")):
        assert commenting.head(missing) == Head("missing")
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
    github_server.pull(7, SHA, state="closed", merged=True)
    closed = of_commit(SHA, "octo/widget")
    assert commenting.head(closed) == Head("missing")
    with rejected("not_found", "no pull request has the number or commit"):
        commenting.post(closed, message())


def test_reactions_are_those_of_others_since_the_message(
    github_server: GitHubServer, commenting: ReviewClient, checking: ReviewClient
) -> None:
    early = github_server.says(7, "not helpful", login="early")
    posted, run = commenting.post(ref(), message()), checking.post(ref(), message())
    assert (commenting.reactions(posted), checking.reactions(run)) == (Reactions(), Reactions())
    comment = github_server.comments[-1]
    early.at = comment.at  # it was edited since
    comment.reactions += [("+1", "ann"), ("-1", "bob"), ("heart", "cleo"), ("-1", "dan"), ("+1", "ann")]
    eve = github_server.says(7, "Thanks.\n\nNot helpful.", login="eve")
    github_server.says(7, "> not helpful\n\nI disagree", login="fay")
    github_server.says(7, "not helpful", login="another[bot]", app=1)
    not_helpful = (Reaction("eve", time_us(eve.at)),)
    assert checking.reactions(run) == Reactions(not_helpful=not_helpful)
    github_server.says(7, "not helpful", login=OWN)
    at_us = time_us(comment.at)  # of all emojis
    thumbs = [Reaction(account, at_us) for account in ("ann", "bob", "dan")]
    assert commenting.reactions(posted) == Reactions((thumbs[0],), (*thumbs[1:],), not_helpful)


def exhausted() -> Fault:
    """Say that the limit of requests is reached for 3000 s from now."""
    reset_s = int(time.time()) + 3000
    return says(403, "API rate limit exceeded.", {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(reset_s)})


SECONDARY = "You have exceeded a secondary rate limit. Please wait a few minutes."


@pytest.mark.parametrize(
    ("fault", "least_s", "most_s"),
    [
        (exhausted, 61, 3000), (lambda: says(429, "", {"Retry-After": "7"}), 7, 7),
        (lambda: says(429, "", {"Retry-After": "9999999"}), 3600, 3600),
        (lambda: says(403, SECONDARY), http.LIMITED_S, http.LIMITED_S),
    ],
)  # fmt: skip
def test_a_limit_is_kept_and_nothing_was_changed(
    github_server: GitHubServer, commenting: ReviewClient, fault: Callable[[], Fault], least_s: float, most_s: float
) -> None:
    for call in (lambda: commenting.post(ref(), message()), lambda: commenting.head(ref())):
        github_server.plan = in_turn(fault(), writes=False)
        with pytest.raises(Busy) as caught:
            call()
        assert least_s <= caught.value.retry_after_s <= most_s
        assert github_server.effects == []


@pytest.mark.parametrize("fault", [ACCEPTED_THEN_HANG, HANG, ACCEPTED_THEN_RESET, RESET, CUT, says(502, after=True)])
def test_a_failed_read_has_changed_nothing_and_an_unknown_outcome_is_settled_by_reading(
    github_server: GitHubServer, commenting: ReviewClient, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    assert commenting.find(ref(), MARKER) is None
    with monkeypatch.context() as short:
        short.setattr(http.Rest, "call_s", 0.5 if fault.kind == "hang" else 30.0)
        github_server.plan = in_turn(fault, writes=False)
        with pytest.raises(EngineError) as caught:
            commenting.head(ref())
        assert not isinstance(caught.value, (Busy, Unsettled))
        github_server.plan = in_turn(fault)
        with pytest.raises(Unsettled, match="the request may have taken effect"):
            commenting.post(ref(), message())
    if fault.after:
        wait(lambda: github_server.effects, "it has not done what was asked")
    found = commenting.find(ref(), MARKER)
    assert github_server.messages(7) == [message().body] * fault.after
    assert (found.body if found else "") == message().body * fault.after


def test_an_unknown_outcome_of_a_check_run_is_settled_by_reading(
    github_server: GitHubServer, checking: ReviewClient
) -> None:
    assert checking.find(ref(), MARKER) is None  # the App's token is there already
    for fault, number in ((RESET, 0), (ACCEPTED_THEN_RESET, 1)):
        github_server.plan = in_turn(fault)
        with pytest.raises(Unsettled):
            checking.post(ref(), message())
        assert (checking.find(ref(), MARKER) is not None, len(github_server.messages(7))) == (bool(number), number)


def test_what_github_rejects_is_never_asked_again(
    github_server: GitHubServer, commenting: ReviewClient, checking: ReviewClient
) -> None:
    github_server.pull(8, NEXT_SHA, locked=True)
    cases = [
        (commenting, ref("8"), message(), "forbidden", "issue is locked"),
        (commenting, ref(), message("x" * 70_000), "invalid", "too long"),
        (commenting, ref(project="octo/other"), message(), "not_found", "answers 404: Not Found"),
        (commenting, ref(project="no-repository"), message(), "invalid", "is not a name"),
        (commenting, ref(project="octo/.."), message(), "invalid", r"'\.\.' is not a name"),
        (commenting, ref("7/../8"), message(), "invalid", "is not the number of a change"),
        (checking, ref(head="e" * 40), message(), "invalid", "No commit found"),
        (checking, ref(), message("ü" * 33_000), "invalid", "65535"),
    ]
    cases += [
        (commenting, ref(project=project), message(), "not_found", "Not Found")
        for project in ("octo/widget/../../user", "octo/wid?get", "octo/#", "octo/%2e%2e")
    ]
    for client, change, text, reason, detail in cases:
        with rejected(reason, detail):
            client.post(change, text)
    assert github_server.effects == []
    comments = [asked.path for asked in github_server.asked if asked.path.endswith("comments")]
    assert {path.count("/") for path in comments} == {"/repos/octo/x/issues/7/comments".count("/")}


def test_an_app_without_the_right_or_the_installation_says_so(
    github_server: GitHubServer, checking: ReviewClient, tmp_path: Path
) -> None:
    github_server.rights = {"pull_requests": "read"}
    with rejected("invalid", "not granted to this installation"):
        checking.post(ref(), message())
    other = github_client(github_server.url, tmp_path, github_server.key, app=APP + 1)
    with rejected(UNAUTHORIZED, "rejects the credentials: check the App and its rights: Checks: write"):
        other.post(ref(), message())


def test_no_error_has_a_secret_of_an_app(github_server: GitHubServer, checking: ReviewClient) -> None:
    shown = [repr(checking)]
    for _ in range(2):
        github_server.plan = lambda asked: says(422, f"you said {asked.headers.get('authorization')}")
        with pytest.raises(CimlError, match="answers 422") as caught:  # the first time, that of the App itself
            checking.post(ref(), message())
        shown += [str(caught.value), repr(caught.value)]
        github_server.plan = in_turn()
        checking.find(ref(), MARKER)
    secrets = (*github_server.tokens, "PRIVATE KEY", "eyJ")
    assert not [text for text in shown for secret in secrets if secret in text]


def test_a_token_is_read_again_when_its_file_changes(
    github_server: GitHubServer, commenting: ReviewClient, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("ghp_an-expired-token")
    with rejected(UNAUTHORIZED, "rejects the credentials: check the token and its rights: Pull requests: write"):
        commenting.post(ref(), message())
    (tmp_path / "secret").write_text(TOKEN)
    posted = commenting.post(ref(), message())
    assert (posted.body, commenting.find(ref(), MARKER)) == (message().body, posted)
    github_server.accounts["ghp_of-another-account"] = ("another-robot", 7002)
    (tmp_path / "secret").write_text("ghp_of-another-account")
    assert commenting.find(ref(), MARKER) is None
