"""The client of GitLab with a GitLab on loopback that does what GitLab's documents say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import CimlError, EngineError
from ciml.integrations import http
from ciml.integrations.http import UNAUTHORIZED, Busy, Refused, Unsettled
from ciml.integrations.review import ChangeRef, Head, Reactions, ReviewClient
from tests.verdicts.feedback.gitlab_stub import OWN, PROJECT, TOKEN, GitLabServer, limited
from tests.verdicts.feedback.reviewing import MARKER, NEXT_SHA, SHA, gitlab_client, message
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
    serving,
)

CHANGE = ChangeRef(PROJECT, "7", "", SHA)


@pytest.fixture
def server() -> Iterator[GitLabServer]:
    made = GitLabServer()
    made.request(7, SHA)
    with serving(made):
        yield made
    assert made.violations == []


@pytest.fixture
def client(server: GitLabServer, tmp_path: Path) -> ReviewClient:
    return gitlab_client(server.url, tmp_path, TOKEN)


def test_a_note_is_posted_found_and_edited_in_place(server: GitLabServer, client: ReviewClient) -> None:
    assert client.find(CHANGE, MARKER) is None
    posted = client.post(CHANGE, message("first"))
    assert posted.url == f"{server.url}/{PROJECT}/-/merge_requests/7#note_{posted.id}"
    assert client.find(CHANGE, MARKER) == posted
    assert client.edit(posted, message("second")).id == posted.id
    assert server.messages(7) == [message("second").body]
    assert [one.method for one in server.effects] == ["POST", "PUT"]


def test_an_own_note_is_found_among_hundreds_and_no_impostor_is(server: GitLabServer, client: ReviewClient) -> None:
    posted = client.post(CHANGE, message())
    for number in range(230):
        server.says(7, f"{MARKER} {number}", login="eve")
    server.says(7, "without the marker", login=OWN)
    server.says(7, f"{MARKER} as a note of the system", login=OWN, system=True)
    assert client.find(CHANGE, MARKER) == posted
    assert client.find(CHANGE, "ciml:fedcba9876543210") is None
    assert client.post(CHANGE, message("a second one")) == client.find(CHANGE, MARKER)


def test_too_many_notes_get_no_message(
    server: GitLabServer, client: ReviewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(201):
        server.says(7, f"note {number}")
    monkeypatch.setattr("ciml.integrations.gitlab.review.MAX_COMMENT_PAGES", 2)
    with pytest.raises(Refused, match="has more than 2 pages"):
        client.find(CHANGE, MARKER)


@pytest.mark.parametrize(
    ("state", "word"), [("opened", "open"), ("merged", "merged"), ("locked", "merged"), ("closed", "abandoned")]
)
def test_the_state_of_a_merge_request(server: GitLabServer, client: ReviewClient, state: str, word: Any) -> None:
    server.request(8, NEXT_SHA, title="Draft: ciml-quiet", labels=["bug"], state=state)
    assert client.head(ChangeRef(PROJECT, "8", "", SHA)) == Head(word, "8", "", NEXT_SHA, "Draft: ciml-quiet", ("bug",))


def test_a_merge_request_is_found_by_its_commit(server: GitLabServer, client: ReviewClient) -> None:
    server.request(8, NEXT_SHA)
    server.request(9, "e" * 40, state="closed")
    server.request(3, NEXT_SHA, source=6)  # an older one of a fork, which anybody may open
    assert client.head(ChangeRef(PROJECT, "", "", NEXT_SHA)).change == "8"
    for server.filters in (True, False):
        for commit in ("e" * 40, "f" * 40, "", "main"):
            assert client.head(ChangeRef(PROJECT, "", "", commit)) == Head("missing")
    assert client.head(ChangeRef(PROJECT, "99", "", SHA)) == Head("missing")
    assert client.head(ChangeRef("group/other", "7", "", SHA)) == Head("missing")
    assert client.post(ChangeRef(PROJECT, "", "", NEXT_SHA), message()).change.change == "8"
    with pytest.raises(Refused, match="no open merge request has the commit"):
        client.post(ChangeRef(PROJECT, "", "", "f" * 40), message())
    assert (server.messages(8), server.messages(7), server.messages(3)) == ([message().body], [], [])
    server.request(10, NEXT_SHA)
    assert client.head(ChangeRef(PROJECT, "", "", NEXT_SHA)) == Head("missing")


def test_reactions_are_those_of_others(server: GitLabServer, client: ReviewClient) -> None:
    server.says(7, "not helpful", login="early")
    posted = client.post(CHANGE, message())
    server.awards[int(posted.id)] = [
        ("thumbsup", "ann"), ("thumbsdown", "bob"), ("thumbsdown_tone2", "cleo"), ("rocket", "dan"), ("thumbsup", OWN),
    ]  # fmt: skip
    server.says(7, "Not helpful.", login="eve")
    server.says(7, "> not helpful", login="fay")
    server.says(7, "not helpful", login=OWN)
    assert client.reactions(posted) == Reactions(("ann",), ("bob", "cleo"), ("eve",))


def test_what_gitlab_rejects_is_told_apart(server: GitLabServer, client: ReviewClient, tmp_path: Path) -> None:
    server.request(8, NEXT_SHA, locked=True)
    cases = [
        (ChangeRef(PROJECT, "8"), message(), "forbidden"), (ChangeRef(PROJECT, "9"), message(), "not_found"),
        (ChangeRef("group/other", "7"), message(), "not_found"), (CHANGE, message("x" * 1_000_001), "invalid"),
        (ChangeRef("5", "7"), message(), "invalid"), (ChangeRef(PROJECT, "7/notes"), message(), "invalid"),
        (ChangeRef("group/../..", "7"), message(), "not_found"),
    ]  # fmt: skip
    for change, text, reason in cases:
        with pytest.raises(Refused) as caught:
            client.post(change, text)
        assert caught.value.reason == reason, str(caught.value)
    server.scope = "read_api"
    with pytest.raises(Refused, match="insufficient_scope; check the token: scope api") as caught:
        client.post(CHANGE, message())
    assert caught.value.reason == "forbidden"
    with pytest.raises(Refused) as caught:
        gitlab_client(server.url, tmp_path, "glpat-another-token").find(CHANGE, MARKER)
    assert (caught.value.reason, "another" in str(caught.value)) == (UNAUTHORIZED, False)
    assert server.effects == []


@pytest.mark.parametrize(("fault", "wait_s"), [(limited(9), 9), (limited(None), http.LIMITED_S)])
def test_a_limit_is_kept_and_nothing_was_changed(
    server: GitLabServer, client: ReviewClient, fault: Fault, wait_s: float
) -> None:
    server.plan = in_turn(fault)
    with pytest.raises(Busy) as caught:
        client.post(CHANGE, message())
    assert (caught.value.retry_after_s, server.effects) == (wait_s, [])


@pytest.mark.parametrize(
    ("fault", "accepted"),
    [(ACCEPTED_THEN_HANG, 1), (HANG, 0), (ACCEPTED_THEN_RESET, 1), (RESET, 0), (CUT, 1), (HUGE, 1), (says(500), 0),
     (says(502, after=True), 1)],
)  # fmt: skip
def test_an_unknown_outcome_is_settled_by_reading(
    server: GitLabServer, client: ReviewClient, monkeypatch: pytest.MonkeyPatch, fault: Fault, accepted: int
) -> None:
    posted = client.post(CHANGE, message("first"))
    for text in ("second", "third"):
        server.plan = in_turn(fault)
        with monkeypatch.context() as short:
            short.setattr(http.Rest, "call_s", 1.0)
            with pytest.raises(Unsettled):
                client.edit(posted, message(text)) if text == "second" else client.post(CHANGE, message(text))
        found = client.find(CHANGE, message().marker)
        assert found is not None
        assert (message(text).stamp in found.body) is bool(accepted)
    assert len(server.messages(7)) == 1 + accepted


def test_no_error_has_a_secret(server: GitLabServer, client: ReviewClient) -> None:
    server.plan = lambda asked: says(400, f"your token {asked.headers['private-token']} is nice")
    with pytest.raises(CimlError) as caught:
        client.post(CHANGE, message())
    assert TOKEN not in f"{caught.value}{caught.value!r}{client!r}"
    server.plan = lambda _: says(502)
    with pytest.raises(EngineError, match="answers 502"):
        client.head(CHANGE)


def test_a_new_token_of_a_project_is_a_new_account(server: GitLabServer, client: ReviewClient, tmp_path: Path) -> None:
    old = client.post(CHANGE, message("by the old account"))
    assert client.find(CHANGE, MARKER) == old
    server.token, server.account = "glpat-a-new-one", ("project_5_bot_2", 501)
    (tmp_path / "secret").write_text(server.token)
    assert client.find(CHANGE, MARKER) is None
    with pytest.raises(Refused, match="403 Forbidden"):
        client.edit(old, message("by the new one"))
    new = client.post(CHANGE, message("by the new one"))
    assert client.find(CHANGE, MARKER) == new


def test_the_stub_carries_out_quick_actions(server: GitLabServer, client: ReviewClient) -> None:
    client.post(CHANGE, message("fine / not a command\n/close\ntext"))
    assert server.commands == ["close"]
