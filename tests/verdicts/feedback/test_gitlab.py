"""The client of GitLab with a GitLab on loopback that does what GitLab's documents say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ciml.integrations.http import UNAUTHORIZED, Unsettled
from ciml.integrations.review import ChangeRef, Head, Reaction, Reactions, ReviewClient, time_us
from tests.verdicts.feedback.gitlab_stub import OWN, PROJECT, TOKEN, GitLabServer
from tests.verdicts.feedback.reviewing import MARKER, NEXT_SHA, SHA, gitlab_client, message, rejected
from tests.verdicts.feedback.stub import ACCEPTED_THEN_RESET, RESET, in_turn, serving

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


def test_an_own_note_is_edited_in_place_and_found_among_hundreds_and_no_impostor_is(
    server: GitLabServer, client: ReviewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.find(CHANGE, MARKER) is None
    posted = client.post(CHANGE, message("first"))
    assert posted.url == f"{server.url}/{PROJECT}/-/merge_requests/7#note_{posted.id}"
    for number in range(230):
        server.says(7, f"{MARKER} {number}", login="eve")
    server.says(7, "without the marker", login=OWN)
    server.says(7, f"{MARKER} as a note of the system", login=OWN, system=True)
    assert client.find(CHANGE, MARKER) == posted
    assert client.find(CHANGE, "ciml:fedcba9876543210") is None
    assert client.edit(posted, message("second")).id == posted.id
    assert server.messages(7)[0] == message("second").body
    assert [one.method for one in server.effects] == ["POST", "PUT"]
    monkeypatch.setattr("ciml.integrations.gitlab.review.MAX_COMMENT_PAGES", 2)
    with rejected("invalid", "has more than 2 pages"):
        client.find(CHANGE, MARKER)
    assert client.post(CHANGE, message("a second one")) == client.find(CHANGE, MARKER)


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
    with rejected("not_found", "no open merge request has the commit"):
        client.post(ChangeRef(PROJECT, "", "", "f" * 40), message())
    assert (server.messages(8), server.messages(7), server.messages(3)) == ([message().body], [], [])
    server.request(10, NEXT_SHA)
    assert client.head(ChangeRef(PROJECT, "", "", NEXT_SHA)) == Head("missing")


def test_reactions_are_those_of_others_since_the_message(server: GitLabServer, client: ReviewClient) -> None:
    server.says(7, "not helpful", login="early")
    posted = client.post(CHANGE, message())
    server.awards[int(posted.id)] = [
        ("thumbsup", "ann"), ("thumbsdown", "bob"), ("thumbsdown_tone2", "cleo"), ("rocket", "dan"), ("thumbsup", OWN),
    ]  # fmt: skip
    server.says(7, "Not helpful.", login="eve")
    server.says(7, "> not helpful", login="fay")
    server.says(7, "not helpful", login=OWN)
    times = [time_us(f"2026-11-30T10:00:{second:02}Z") for second in range(4)]
    assert client.reactions(posted) == Reactions(
        (Reaction("ann", times[1]),),
        (Reaction("bob", times[2]), Reaction("cleo", times[3])),
        (Reaction("eve", time_us("2026-11-30T11:02:00Z")),),
    )


def test_what_gitlab_rejects_is_told_apart(server: GitLabServer, client: ReviewClient, tmp_path: Path) -> None:
    server.request(8, NEXT_SHA, locked=True)
    cases = [
        (ChangeRef(PROJECT, "8"), message(), "forbidden"), (ChangeRef(PROJECT, "9"), message(), "not_found"),
        (ChangeRef("group/other", "7"), message(), "not_found"), (CHANGE, message("x" * 1_000_001), "invalid"),
        (ChangeRef("5", "7"), message(), "invalid"), (ChangeRef(PROJECT, "7/notes"), message(), "invalid"),
        (ChangeRef("group/../..", "7"), message(), "not_found"),
    ]  # fmt: skip
    for change, text, reason in cases:
        with rejected(reason):
            client.post(change, text)
    server.scope = "read_api"
    with rejected("forbidden", "insufficient_scope; check the token: scope api"):
        client.post(CHANGE, message())
    with rejected(UNAUTHORIZED, r"^((?!another).)*$"):
        gitlab_client(server.url, tmp_path, "glpat-another-token").find(CHANGE, MARKER)
    assert server.effects == []


def test_an_unknown_outcome_is_settled_by_reading(server: GitLabServer, client: ReviewClient) -> None:
    posted = client.post(CHANGE, message("first"))
    calls = {"edited": lambda text: client.edit(posted, text), "posted": lambda text: client.post(CHANGE, text)}
    for name, call in calls.items():
        for fault in (RESET, ACCEPTED_THEN_RESET):
            server.plan = in_turn(fault)
            with pytest.raises(Unsettled):
                call(message(name))
            found = client.find(CHANGE, MARKER)
            assert found is not None
            assert (message(name).stamp in found.body) is fault.after
    assert len(server.messages(7)) == 2


def test_a_new_token_of_a_project_is_a_new_account(server: GitLabServer, client: ReviewClient, tmp_path: Path) -> None:
    old = client.post(CHANGE, message("by the old account"))
    assert client.find(CHANGE, MARKER) == old
    server.token, server.account = "glpat-a-new-one", ("project_5_bot_2", 501)
    (tmp_path / "secret").write_text(server.token)
    assert client.find(CHANGE, MARKER) is None
    with rejected("forbidden", "403 Forbidden"):
        client.edit(old, message("by the new one"))
    new = client.post(CHANGE, message("by the new one"))
    assert client.find(CHANGE, MARKER) == new


def test_the_stub_carries_out_quick_actions(server: GitLabServer, client: ReviewClient) -> None:
    client.post(CHANGE, message("fine / not a command\n/close\ntext"))
    assert server.commands == ["close"]
