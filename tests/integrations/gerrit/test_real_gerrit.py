"""The receiver with a real Gerrit: the stream, and what happened while the receiver was away."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ciml.integrations.config import GerritSource, load_receivers
from ciml.integrations.gerrit.session import GerritSession
from ciml.integrations.registry import read_event
from tests.integrations.gerrit.real import Gerrit
from tests.integrations.gerrit.test_executed import rules
from tests.integrations.receivers.kept import Kept, connected, wait

pytestmark = [pytest.mark.engines, pytest.mark.interop, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def gerrit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gerrit]:
    server = Gerrit(tmp_path_factory.mktemp("gerrit"))
    yield server
    server.kill()


def live(gerrit: Gerrit, subject: str) -> str:
    """A change that is created, approved, disapproved, approved again and merged; its number."""
    change = gerrit.change(subject)
    for value in (2, 0, 2):
        gerrit.vote(change, value)
    gerrit.submit(change)
    return change.partition("~")[2]


def events_in(kept: Kept, number: str) -> list[tuple[str, list[str], list[dict[str, str]]]]:
    """Type, votes and what the adapter makes of them, of the events of a change in their order."""
    rows = []
    for message in kept.messages:
        event = json.loads(message.value or b"")
        if "change" in event and str(event["change"]["number"]) == number:
            updates = read_event(message).updates
            facts = [{name: fact for name, fact in each.facts.items() if name != "parents"} for each in updates]
            votes = [each["value"] for each in event.get("approvals", []) if each["type"] == "Code-Review"]
            rows.append((event["type"], votes, facts))
    return rows


@contextmanager
def receiving(folder: Path, gerrit: Gerrit) -> Iterator[Kept]:
    """Run a session that has compared its position with the API, and continues an earlier one."""
    (folder / "receivers.toml").write_text(gerrit.source)
    receivers = load_receivers(folder / "receivers.toml")
    with connected(GerritSession(receivers, receivers.of(GerritSource)[0])) as kept:
        wait((folder / "state" / "gerrit-zuul.json").exists, "no position is stored")
        yield kept


def test_stream_and_api_say_the_same(tmp_path: Path, gerrit: Gerrit) -> None:
    with receiving(tmp_path, gerrit) as kept:
        streamed = live(gerrit, "while the receiver listens")
        wait(lambda: len(events_in(kept, streamed)) >= 5, "events are missing")
    by_stream = events_in(kept, streamed)
    assert [(kind, votes) for kind, votes, _ in by_stream] == [
        ("patchset-created", []), ("comment-added", ["2"]), ("comment-added", ["0"]), ("comment-added", ["2"]),
        ("change-merged", []),
    ]  # fmt: skip
    away = live(gerrit, "while the receiver is away")
    with receiving(tmp_path, gerrit) as kept:
        wait(lambda: len(events_in(kept, away)) >= 4, "events are missing")
        by_api = events_in(kept, away)
    # The API shows a vote that stands and one that was taken back, not the first of two equal ones.
    assert [each for each in by_api if each[0] != "comment-added"] == [by_stream[0], by_stream[4]]
    reviews = sorted(facts[0]["review"] for kind, _, facts in by_api if kind == "comment-added")
    assert reviews == ["dismissed", "partly_approved"]


def reviews_in(kept: Kept, change: str) -> set[tuple[str, str]]:
    """Patch set and review of each update of a change's runs."""
    number = change.partition("~")[2]
    updates = [update for message in kept.messages for update in read_event(message).updates]
    subjects = [(each.subject.split("/"), each.facts["review"]) for each in updates if "review" in each.facts]
    return {(name[2], review) for name, review in subjects if name[1] == number}


def test_a_vote_on_a_patch_set_says_nothing_of_the_next(tmp_path: Path, gerrit: Gerrit) -> None:
    """Gerrit copies the vote to the next patch set; a comment there, and the API with a new time, show it again."""
    gerrit.copy_all_votes()
    with receiving(tmp_path, gerrit) as kept:
        streamed = gerrit.change("voted while the receiver listens")
        gerrit.vote(streamed, 2)
        time.sleep(1.1)  # the copy has another time than the vote
        gerrit.patch(streamed)
        gerrit.comment(streamed, "I do not like the new code")
        wait(lambda: len(events_in(kept, streamed.partition("~")[2])) >= 4, "events are missing")
    assert reviews_in(kept, streamed) == {("1", "partly_approved")}
    away = gerrit.change("voted while the receiver is away")
    gerrit.vote(away, 2)
    time.sleep(1.1)  # Gerrit lists the copy with its own time, in whole seconds
    gerrit.patch(away)
    listed = gerrit.ask("GET", f"/changes/{away}/detail")["labels"]["Code-Review"]["all"]
    assert [each["value"] for each in listed if each.get("value")] == [2]  # on the second patch set
    gerrit.comment(away, "nor this one")
    position = (tmp_path / "state" / "gerrit-zuul.json").read_text()
    with receiving(tmp_path, gerrit) as kept:
        wait(lambda: len(events_in(kept, away.partition("~")[2])) >= 2, "events are missing")
        wait(lambda: (tmp_path / "state" / "gerrit-zuul.json").read_text() != position, "the position stays")
    assert reviews_in(kept, away) == set()  # that on the first patch set is listed nowhere


def test_a_rebase_at_submit_keeps_the_run_on_merged_code_trusted(tmp_path: Path, gerrit: Gerrit) -> None:
    """As in the recorded stories."""
    gerrit.project("app", "REBASE_IF_NECESSARY")
    with receiving(tmp_path, gerrit) as kept:
        changes = [gerrit.propose("app", subject) for subject in ("first", "second")]
        for change in changes:
            gerrit.vote(change, 2)
            gerrit.submit(change)
        number = change.partition("~")[2]
        wait(lambda: "change-merged" in str(events_in(kept, number)), "the merge is missing")
    assert rules(map(json.loads, kept.values), change, 3) == ["no rule", "reviewed", "reviewed"]
