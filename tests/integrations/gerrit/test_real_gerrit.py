"""The receiver with a real Gerrit: the stream, and what happened while the receiver was away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ciml.integrations.registry import read_event
from tests.integrations.gerrit.real import Gerrit
from tests.integrations.gerrit.test_gerrit import position, receiving
from tests.integrations.mqtt.test_mqtt import stored, wait

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


def events_in(kafka: str, topic: str, number: str) -> list[tuple[Any, ...]]:
    """Type, votes and what the adapter makes of them, of the events of a change in their order."""
    found = []
    for message in stored(kafka, topic):
        event = json.loads(message.value or b"")
        if "change" in event and str(event["change"]["number"]) == number:
            updates = read_event(message).updates
            facts = [{name: fact for name, fact in each.facts.items() if name != "parents"} for each in updates]
            votes = [
                (each["type"], each["value"]) for each in event.get("approvals", []) if each["type"] == "Code-Review"
            ]
            found.append((event["type"], votes, facts))
    return found


def test_stream_and_api_say_the_same(kafka: str, topic: Callable[..., str], tmp_path: Path, gerrit: Gerrit) -> None:
    name = topic()
    with receiving(tmp_path, kafka, name, gerrit.source):
        position(tmp_path)
        streamed = live(gerrit, "while the receiver listens")
        wait(lambda: len(events_in(kafka, name, streamed)) >= 5, f"{events_in(kafka, name, streamed)}")
    by_stream = events_in(kafka, name, streamed)
    assert [(kind, votes) for kind, votes, _ in by_stream] == [
        ("patchset-created", []), ("comment-added", [("Code-Review", "2")]), ("comment-added", [("Code-Review", "0")]),
        ("comment-added", [("Code-Review", "2")]), ("change-merged", []),
    ]  # fmt: skip
    away = live(gerrit, "while the receiver is away")
    with receiving(tmp_path, kafka, name, gerrit.source):
        wait(lambda: len(events_in(kafka, name, away)) >= 4, f"{events_in(kafka, name, away)}")
        wait(lambda: "change-merged" in str(events_in(kafka, name, away)), "the merge is missing")
    # The API shows a vote that stands and one that was taken back, not the first of two equal ones.
    assert [each for each in events_in(kafka, name, away) if each[0] != "comment-added"] == [by_stream[0], by_stream[4]]
    assert sorted(facts[0]["review"] for kind, _, facts in events_in(kafka, name, away) if kind == "comment-added") == [
        "dismissed", "partly_approved"
    ]  # fmt: skip
    ids = [read_event(message).id for message in stored(kafka, name)]
    merged_again = len(ids) - len(set(ids))
    print(f"{len(ids)} events, {merged_again} repeats")


def reviews_in(kafka: str, topic: str, change: str) -> set[tuple[str, str]]:
    """Patch set and review of each update of a change's runs."""
    number = change.partition("~")[2]
    updates = [update for message in stored(kafka, topic) for update in read_event(message).updates]
    subjects = {(each.subject, each.facts["review"]) for each in updates if "review" in each.facts}
    return {(name[2], said) for name, said in ((each.split("/"), said) for each, said in subjects) if name[1] == number}


def test_a_vote_on_a_patch_set_says_nothing_of_the_next(
    kafka: str, topic: Callable[..., str], tmp_path: Path, gerrit: Gerrit
) -> None:
    """Gerrit copies the vote to the next patch set; a comment there, and the API with a new time, show it again."""
    gerrit.copy_all_votes()
    name = topic()
    with receiving(tmp_path, kafka, name, gerrit.source):
        position(tmp_path)
        streamed = gerrit.change("voted while the receiver listens")
        gerrit.vote(streamed, 2)
        gerrit.patch(streamed)
        gerrit.comment(streamed, "I do not like the new code")
        wait(lambda: len(events_in(kafka, name, streamed.partition("~")[2])) >= 4, "events are missing")
    away = gerrit.change("voted while the receiver is away")
    gerrit.vote(away, 2)
    gerrit.patch(away)
    listed = gerrit.ask("GET", f"/changes/{away}/detail")["labels"]["Code-Review"]["all"]
    assert [each["value"] for each in listed if each.get("value")] == [2]  # on the second patch set
    gerrit.comment(away, "nor this one")
    before = position(tmp_path)
    with receiving(tmp_path, kafka, name, gerrit.source):
        wait(lambda: len(events_in(kafka, name, away.partition("~")[2])) >= 2, "events are missing")
        wait(lambda: position(tmp_path) > before, "the position stays")
    assert reviews_in(kafka, name, streamed) == {("1", "partly_approved")}
    assert reviews_in(kafka, name, away) == set()  # that on the first patch set is listed nowhere
