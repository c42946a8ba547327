"""A real Gerrit: what its stream says of a change makes no run trusted that executed more than what was reviewed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ciml.integrations.config import GerritSource, load_receivers
from ciml.integrations.gerrit.session import GerritSession
from ciml.integrations.registry import read_event
from ciml.runs.known_subjects import Subjects
from ciml.trust import TrustPolicy, evaluate
from tests.integrations.deliveries import message_of
from tests.integrations.gerrit.real import AUTHOR, GERRIT_ADMIN, Gerrit
from tests.integrations.receivers.kept import Kept, connected, wait
from tests.integrations.samples import delivery, zuul_build, zuul_message

pytestmark = [pytest.mark.engines, pytest.mark.timeout(300)]

POLICY = Path(__file__).parents[3] / "integrations/trust_zuul.toml"


class Server:
    """A Gerrit with its stream, as the account ``ci`` reads it."""

    def __init__(self, folder: Path) -> None:
        self.gerrit = Gerrit(folder)
        key, hosts = self.gerrit.folder / "key", self.gerrit.folder / "known_hosts"
        command = ["ssh", "-F", "none", "-i", str(key), "-o", f"UserKnownHostsFile={hosts}", "-p"]
        command += [str(self.gerrit.ssh), "ci@127.0.0.1", "gerrit stream-events"]
        self.stream = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._events: list[dict[str, Any]] = []
        self._projects = 0

    def project(self, submit_type: str) -> str:
        self._projects += 1
        name = f"app-{self._projects}"
        self.gerrit.project(name, submit_type)
        return name

    def merge(self, change: str) -> None:
        """Merge a change that the reviewer approves."""
        self.gerrit.vote(change, 2)
        self.gerrit.submit(change)

    def until(self, kind: str, change: str) -> None:
        """Read events up to the next of a type and a change."""
        assert self.stream.stdout is not None
        about: tuple[str, str] | None = None
        while about != (kind, change):
            event = json.loads(self.stream.stdout.readline())
            self._events.append(event)
            of = event.get("change", {"project": "", "number": 0})
            about = (event["type"], f"{of['project']}~{of['number']}")

    def rules(self, change: str, patchsets: int, last: str = "change-merged") -> list[str]:
        """Return the rules that decide about runs of check of each patch set, once the last event has come."""
        self.until(last, change)
        return self._rules(change, patchsets, self._events)

    def rules_without_votes(self, change: str, patchsets: int) -> list[str]:
        return self._rules(change, patchsets, [event for event in self._events if event["type"] != "comment-added"])

    def _rules(self, change: str, patchsets: int, events: list[dict[str, Any]]) -> list[str]:
        subjects = Subjects()
        for event in events:
            read = read_event(message_of("gerrit", delivery(event), "zuul", "ssh"))
            for update in read.updates:
                subjects.add_update(update, read.key)
        policy = TrustPolicy.load(POLICY)
        return [evaluate(policy, subjects.join(_check(change, number))).rule for number in range(1, patchsets + 1)]


def _check(change: str, patchset: int) -> Any:
    """Return the facts of a run of check of a patch set, as Zuul reports it."""
    project, number = change.split("~")
    build = zuul_build(change={"project": project, "branch": "main", "change": number, "patchset": str(patchset)})
    return read_event(message_of("zuul", delivery(zuul_message(build)), "zuul", "mqtt-user")).run_facts[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("gerrit"))
    yield made
    made.stream.kill()
    made.stream.communicate()
    made.gerrit.kill()


def test_a_rebase_by_a_person_trusts_no_run_on_the_unreviewed_parent(server: Server) -> None:
    """The attack: a change is stacked on unreviewed code, approved, rebased without it, and merged."""
    project = server.project("MERGE_IF_NECESSARY")
    evil = server.gerrit.propose(project, "evil")
    change = server.gerrit.propose(project, "innocent", base=evil)
    server.gerrit.vote(change, 2)
    server.gerrit.ask("POST", f"/changes/{change}/rebase", {"base": ""}, AUTHOR)
    server.merge(change)
    assert server.rules(change, 3) == ["no rule", "no rule", "reviewed"]


def test_a_rebase_at_submit_keeps_the_run_on_merged_code_trusted(server: Server) -> None:
    project = server.project("REBASE_IF_NECESSARY")
    first, second = server.gerrit.propose(project, "first"), server.gerrit.propose(project, "second")
    server.merge(first)
    server.merge(second)
    assert server.rules(second, 3) == ["no rule", "reviewed", "reviewed"]
    assert server.rules_without_votes(second, 3) == ["no rule", "reviewed", "reviewed"]


def test_an_approval_of_a_stacked_change_counts_once_its_parent_is_merged(server: Server) -> None:
    project = server.project("FAST_FORWARD_ONLY")
    parent = server.gerrit.propose(project, "parent")
    change = server.gerrit.propose(project, "stacked", base=parent)
    server.gerrit.vote(change, 2)
    assert server.rules(change, 2, "comment-added") == ["no rule", "no rule"]
    server.merge(parent)
    server.until("change-merged", parent)
    server.gerrit.comment(change, "merged below")
    assert server.rules(change, 2, "comment-added") == ["no rule", "reviewed"]


def test_a_cherry_pick_at_submit_trusts_no_run_on_the_unreviewed_parent(server: Server) -> None:
    project = server.project("CHERRY_PICK")
    evil = server.gerrit.propose(project, "evil")
    change = server.gerrit.propose(project, "innocent", base=evil)
    server.merge(change)
    assert server.rules(change, 3) == ["no rule", "no rule", "reviewed"]


def test_an_edited_message_trusts_no_run_of_the_dependency_that_it_no_longer_names(server: Server) -> None:
    project = server.project("MERGE_IF_NECESSARY")
    evil = server.gerrit.propose(project, "evil")
    number = evil.partition("~")[2]
    change = server.gerrit.propose(project, f"innocent\n\nDepends-On: http://gerrit.example/c/{project}/+/{number}")
    server.gerrit.vote(change, 2)
    message = server.gerrit.ask("GET", f"/changes/{change}/message")["full_message"]
    edited = "\n".join(line for line in message.splitlines() if not line.startswith("Depends-On"))
    server.gerrit.ask("PUT", f"/changes/{change}/message", {"message": edited}, GERRIT_ADMIN)
    server.merge(change)
    assert server.rules(change, 3) == ["no rule", "no rule", "reviewed"]


def test_an_approval_after_a_move_counts_for_the_parents_of_the_new_branch(server: Server) -> None:
    """The author's own branch has code that nobody read; the change that was made there is moved to main."""
    project = server.project("REBASE_IF_NECESSARY")
    evil = server.gerrit.propose(project, "evil", branch="sandbox")
    server.merge(evil)
    change = server.gerrit.propose(project, "innocent", branch="sandbox")
    server.gerrit.ask("POST", f"/changes/{change}/move", {"destination_branch": "main"}, AUTHOR)
    server.gerrit.vote(change, 2)
    assert server.rules(change, 2, "comment-added") == ["no rule", "no rule"]


def test_a_block_stands_beside_a_later_approval_until_the_merge(server: Server) -> None:
    project = server.project("MERGE_IF_NECESSARY")
    change = server.gerrit.propose(project, "disputed")
    server.gerrit.vote(change, -2, GERRIT_ADMIN)
    server.gerrit.vote(change, 2)
    assert server.rules(change, 2, "comment-added") == ["no rule", "no rule"]
    server.gerrit.vote(change, 0, GERRIT_ADMIN)
    server.merge(change)
    assert server.rules(change, 2) == ["no rule", "reviewed"]


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


def test_stream_and_api_say_the_same(tmp_path: Path, server: Server) -> None:
    with receiving(tmp_path, server.gerrit) as kept:
        streamed = live(server.gerrit, "while the receiver listens")
        wait(lambda: len(events_in(kept, streamed)) >= 5, "events are missing")
    by_stream = events_in(kept, streamed)
    assert [(kind, votes) for kind, votes, _ in by_stream] == [
        ("patchset-created", []), ("comment-added", ["2"]), ("comment-added", ["0"]), ("comment-added", ["2"]),
        ("change-merged", []),
    ]  # fmt: skip
    away = live(server.gerrit, "while the receiver is away")
    with receiving(tmp_path, server.gerrit) as kept:
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


def test_a_vote_on_a_patch_set_says_nothing_of_the_next(tmp_path: Path, server: Server) -> None:
    """Gerrit copies the vote to the next patch set; a comment there, and the API with a new time, show it again."""
    gerrit = server.gerrit
    gerrit.copy_all_votes()
    with receiving(tmp_path, gerrit) as kept:
        streamed = gerrit.change("voted while the receiver listens")
        gerrit.vote(streamed, 2)
        gerrit.patch(streamed)
        gerrit.comment(streamed, "I do not like the new code")
        wait(lambda: len(events_in(kept, streamed.partition("~")[2])) >= 4, "events are missing")
    assert reviews_in(kept, streamed) == {("1", "partly_approved")}
    away = gerrit.change("voted while the receiver is away")
    gerrit.vote(away, 2)
    gerrit.patch(away)
    listed = gerrit.ask("GET", f"/changes/{away}/detail")["labels"]["Code-Review"]["all"]
    assert [each["value"] for each in listed if each.get("value")] == [2]  # on the second patch set
    gerrit.comment(away, "nor this one")
    position = (tmp_path / "state" / "gerrit-zuul.json").read_text()
    with receiving(tmp_path, gerrit) as kept:
        wait(lambda: len(events_in(kept, away.partition("~")[2])) >= 2, "events are missing")
        wait(lambda: (tmp_path / "state" / "gerrit-zuul.json").read_text() != position, "the position stays")
    assert reviews_in(kept, away) == set()  # that on the first patch set is listed nowhere
