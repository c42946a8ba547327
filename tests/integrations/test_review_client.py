"""Review clients: accounts, credentials and messages, of which there may be a second one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import httpcore
import msgspec
import pytest

from ciml.errors import CimlError
from ciml.http.outgoing import tls_context
from ciml.integrations.gerrit.review import TAG, Gerrit
from ciml.integrations.github import review as github_module
from ciml.integrations.github.review import AppRest, Comments
from ciml.integrations.http import Answer, Busy, Refused, Rest, Unsettled
from ciml.integrations.review import MAX_REACTIONS, ChangeRef, Head, Note, Posted, Rendered, ReviewClient, time_us

TLS = tls_context("")
CHANGE = ChangeRef("octo/widget", "7", head="a" * 40)


class System(Rest):
    """The API of a system in memory.

    Attributes:
      answers: status, headers and JSON by path; of the secret that asks.
      asked: method, path and secret of the requests.
    """

    def __init__(self, secrets: list[bytes]) -> None:
        self.secrets = secrets
        self.asked: list[tuple[str, str]] = []
        self.answers: dict[str, tuple[int, Mapping[str, str], Any]] = {}
        super().__init__("https://reviews", TLS, lambda: self.secrets[0], "check it", lambda key: {})

    def forget(self) -> None:
        self.asked.append(("forget", ""))

    def answer(self, method: str, path: str, body: bytes | None = None, *, changes: bool = False) -> Answer:
        self.asked.append((method, path))
        status, headers, value = self.answers.get(f"{self.secrets[0].decode()}{path}") or self.answers[path]
        fields = [(name.encode(), text.encode()) for name, text in headers.items()]
        answer = Answer(httpcore.Response(status, headers=fields), msgspec.json.encode(value))
        if status >= 300:
            raise self._status_error(answer, {}, changes)
        return answer


class _Account(msgspec.Struct):
    id: int


class Client(ReviewClient):
    """A client whose notes are set."""

    format = "github"

    def __init__(self, rest: Rest, notes: Iterable[Note]) -> None:
        super().__init__(rest)
        self.made = list(notes)

    def head(self, change: ChangeRef) -> Head:
        return Head("open", "7")

    def own_id(self) -> int:
        return self.rest.own_id("/user", _Account)

    def notes(self, change: ChangeRef) -> Iterable[Note]:
        return self.made

    def create_note(self, change: ChangeRef, message: Rendered) -> Note:
        raise NotImplementedError

    def replace_note(self, change: ChangeRef, note_id: str, message: Rendered) -> Note:
        raise NotImplementedError

    def replies(self, posted: Posted) -> Iterable[Note]:
        return self.made

    def emojis(self, posted: Posted) -> Iterable[Note]:
        return self.made


def system(own_id: int = 7) -> System:
    rest = System([b"one"])
    rest.answers["/user"] = (200, {}, {"id": own_id})
    return rest


def test_each_account_reacts_once_and_we_do_not() -> None:
    accounts = (("ada", 1), ("bob", 2), ("ada", 1), ("ciml", 7))
    notes = [Note("", text, author, maker, created_us=when_us)
             for when_us, (author, maker) in enumerate(accounts)
             for text in ("thumbsup", "thumbsdown", "Not helpful.", "+1_tone3", "> not helpful", "heart")]  # fmt: skip
    quotes = [Note("", "> not helpful", "dan", 4), Note("", "not helpful at all", "eve", 5)]
    reactions = Client(system(), [*notes, *quotes]).reactions(Posted(CHANGE, "1"))
    assert (reactions.up, reactions.down, reactions.not_helpful) == ((("ada", 2), ("bob", 1)),) * 3  # the last
    crowd = [Note("", "+1", f"account{number}", number + 10) for number in range(MAX_REACTIONS + 1)]
    assert len(Client(system(), crowd).reactions(Posted(CHANGE, "1")).up) == MAX_REACTIONS


@pytest.mark.parametrize("own_id", [0, 7])
def test_a_message_of_an_unknown_account_is_not_ours(own_id: int) -> None:
    notes = [Note("3", "marker", "eve", 0), Note("2", "marker", "eve", 8), Note("1", "marker", "ciml", 7)]
    found = Client(system(own_id), notes).find(CHANGE, "marker")
    assert (found.id if found else None) == ("1" if own_id else None)


def test_another_secret_may_be_of_another_account() -> None:
    rest = system()
    rest.answers |= {"two/user": (200, {}, {"id": 8})}
    ids = []
    for secret in (b"one", b"one", b"two", b"two", b"one"):
        rest.secrets = [secret]
        ids.append(rest.own_id("/user", _Account))
    assert ids == [7, 7, 8, 8, 7]
    assert len(rest.asked) == 3


@pytest.mark.parametrize(
    ("status", "after", "changes", "error"),
    [
        (503, "9", False, Busy),
        (503, "9", True, Unsettled),
        (503, "", False, CimlError),
        (500, "", True, Unsettled),
        (429, "", True, Busy),
        (403, "9", True, Busy),
        (403, "", True, Refused),
        (401, "9", True, Refused),
        (404, "", True, Refused),
        (408, "", True, Unsettled),
    ],
)
def test_an_outcome_is_unsettled_where_something_may_have_changed(
    status: int, after: str, changes: bool, error: type[CimlError]
) -> None:
    rest = system()
    rest.answers["/x"] = (status, {"Retry-After": after} if after else {}, {})
    with pytest.raises(error) as caught:
        rest.send("POST", "/x", dict[str, str], {}, changes=changes)
    assert isinstance(caught.value, Unsettled) == (error is Unsettled)
    assert (("forget", "") in rest.asked) == (status == 401)  # what was derived from the secret


@pytest.mark.parametrize(("count", "is_read"), [(1, True), (3, True), (4, False)])
def test_as_many_pages_as_the_limit_are_read_and_more_are_refused(count: int, is_read: bool) -> None:
    rest = system()
    for number in range(1, count + 1):
        link = {"Link": '<x>; rel="next"'} if number < count else {}
        rest.answers[f"/x?page={number}"] = (200, link, [number])
    pages = rest.pages("/x", list[int], {}, 3)
    if is_read:
        assert list(pages) == [[number] for number in range(1, count + 1)]
    else:
        with pytest.raises(Refused, match="more than 3 pages"):
            list(pages)


def test_a_token_of_an_app_is_of_one_repository_and_renewed_before_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1_800_000_000.0]
    monkeypatch.setattr(github_module.time, "time", lambda: clock[0])
    rest = AppRest("https://api", TLS, lambda: b"key", "check it", 5, {})
    made: list[str] = []

    def new_token(repository: str) -> str:
        made.append(repository)
        rest._tokens[repository] = (f"token-{len(made)}", clock[0] + 3600)
        return f"token-{len(made)}"

    monkeypatch.setattr(rest, "_new_token", new_token)

    def token(repository: str) -> str:
        return rest.auth(f"/repos/{repository}/pulls/1")["Authorization"].removeprefix("Bearer ")

    assert [token(name) for name in ("a/x", "a/y", "b/x", "a/x", "a/y")] == [
        "token-1", "token-2", "token-3", "token-1", "token-2"
    ]  # fmt: skip
    clock[0] += 3600 - github_module._SPARE_S - 1
    assert token("a/x") == "token-1"
    clock[0] += 2
    assert token("a/x") == "token-4"
    rest.forget()
    assert token("b/x") == "token-5"


@pytest.mark.parametrize(("numbers", "head"), [((8,), "8"), ((8, 9), ""), ((), "")])
def test_the_only_pull_request_of_a_commit_is_that_of_a_run(numbers: tuple[int, ...], head: str) -> None:
    commit = "b" * 40
    branch = {"sha": commit, "ref": "fix", "repo": {"full_name": "forker/widget"}}
    base = {"sha": "c" * 40, "repo": {"full_name": "octo/widget"}}
    pulls = [{"number": number, "state": "open", "title": "", "head": branch, "base": base} for number in numbers]
    rest = system()
    rest.answers[f"/repos/octo/widget/commits/{commit}/pulls?per_page=50"] = (200, {}, pulls)
    recent = "/repos/octo/widget/pulls?state=open&sort=updated&direction=desc&per_page=50&page=1"
    rest.answers[recent] = (200, {}, [])
    head_of_change = Comments(rest, 0).head(ChangeRef("octo/widget", "", "", commit, "forker/widget", "fix"))
    assert (head_of_change.state, head_of_change.change) == ("open" if head else "missing", head)


@pytest.mark.parametrize("status", [200, 404, 500])
def test_a_message_of_gerrit_that_was_posted_and_is_not_read_is_unsettled(status: int) -> None:
    rest = system()
    rest.answers["/changes/octo%2Fwidget~7/revisions/" + "a" * 40 + "/review"] = (200, {}, {})
    rest.answers["/changes/octo%2Fwidget~7/messages"] = (status, {}, [])
    with pytest.raises(Unsettled, match="was posted"):
        Gerrit(rest, "OWNER").post(CHANGE, Rendered("", "text", "marker", "stamp"))


@pytest.mark.parametrize(
    ("text", "is_objection"),
    [
        ("Patch Set 3: Code-Review-1\n\nnot helpful", True),
        ("Abandoned\n\n> Patch Set 3: x\n\nnot helpful", True),
        ("Patch Set 3:\n\n> not helpful", False),
    ],
)
def test_only_the_first_line_of_a_gerrit_message_is_removed(text: str, is_objection: bool) -> None:
    rest = system()
    rest.answers["/accounts/self"] = (200, {}, {"_account_id": 7})
    ours = {"id": "1", "message": "ours", "date": "2026-11-30 10:00:00.0", "tag": TAG}
    reply = {"id": "2", "message": text, "date": "2026-11-30 10:01:00.0", "author": {"_account_id": 8, "name": "ada"}}
    rest.answers["/changes/octo%2Fwidget~7/messages"] = (200, {}, [ours, reply])
    rest.answers["/changes/octo%2Fwidget~7/comments"] = (200, {}, {})
    reactions = Gerrit(rest, "OWNER").reactions(Posted(CHANGE, "1"))
    assert reactions.not_helpful == ((("ada", time_us("2026-11-30T10:01:00Z")),) if is_objection else ())


@pytest.mark.parametrize(
    "text", ["2026-11-30T10:01:00Z", "2026-11-30T10:01:00.000Z", "2026-11-30 10:01:00.000000000", "", "noon", "9" * 99]
)
def test_times_of_all_systems_are_read(text: str) -> None:
    assert time_us(text) == (1_796_032_860_000_000 if ":" in text else 0)
