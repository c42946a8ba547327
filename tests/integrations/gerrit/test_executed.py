"""A real Gerrit: what its stream says of a change makes no run trusted that executed more than what was reviewed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ciml.integrations.registry import read_event
from ciml.runs.known_subjects import Subjects
from ciml.trust import TrustPolicy, evaluate
from tests.integrations.deliveries import message_of
from tests.integrations.gerrit.real import AUTHOR, GERRIT_ADMIN, Gerrit
from tests.integrations.samples import delivery, zuul_build, zuul_message

pytestmark = [pytest.mark.engines, pytest.mark.timeout(300)]

POLICY = Path(__file__).parents[3] / "integrations/trust_zuul.toml"


class Stream:
    """The events of a Gerrit's stream."""

    def __init__(self, gerrit: Gerrit) -> None:
        key, hosts = gerrit.folder / "key", gerrit.folder / "known_hosts"
        command = ["ssh", "-F", "none", "-i", str(key), "-o", f"UserKnownHostsFile={hosts}", "-p", str(gerrit.ssh)]
        command += ["ci@127.0.0.1", "gerrit stream-events"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._events: list[dict[str, Any]] = []

    def until(self, kind: str, change: str) -> list[dict[str, Any]]:
        """Return all events up to the next of a type and a change (or project)."""
        while not self._events or (self._events[-1]["type"], _subject(self._events[-1])) != (kind, change):
            self._events.append(self._next())
        return list(self._events)

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        event: dict[str, Any] = json.loads(self._process.stdout.readline())
        return event

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _subject(event: dict[str, Any]) -> str:
    change = event.get("change")
    return f"{change['project']}~{change['number']}" if change else str(event.get("projectName", ""))


class Server:
    """A Gerrit, its stream, and a project for each test."""

    def __init__(self, folder: Path) -> None:
        self.gerrit = Gerrit(folder)
        self.stream = Stream(self.gerrit)
        self._projects = 0

    def project(self, submit_type: str) -> str:
        """Create a project; the first one shows that the stream is connected."""
        self._projects += 1
        name = f"app-{self._projects}"
        self.gerrit.project(name, submit_type)
        return name

    def merge(self, change: str) -> None:
        """Merge a change that the reviewer approved or approves."""
        self.gerrit.vote(change, 2)
        self.gerrit.submit(change)

    def rules(self, change: str, patchsets: int, *, last: str = "change-merged", votes: bool = True) -> list[str]:
        """Return the rules that decide about runs of check of each patch set of a change.

        Args:
          change: its id.
          patchsets: their number.
          last: the type of the change's last event.
          votes: whether comments are read.
        """
        events = self.stream.until(last, change)
        subjects = Subjects()
        for event in events:
            if votes or event["type"] != "comment-added":
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
    made.stream.close()
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
    assert server.rules(second, 3, votes=False) == ["no rule", "reviewed", "reviewed"]


def test_an_approval_of_a_stacked_change_counts_once_its_parent_is_merged(server: Server) -> None:
    project = server.project("FAST_FORWARD_ONLY")
    parent = server.gerrit.propose(project, "parent")
    change = server.gerrit.propose(project, "stacked", base=parent)
    server.gerrit.vote(change, 2)
    assert server.rules(change, 2, last="comment-added") == ["no rule", "no rule"]
    server.merge(parent)
    server.stream.until("change-merged", parent)
    server.gerrit.comment(change, "merged below")
    assert server.rules(change, 2, last="comment-added") == ["no rule", "reviewed"]


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
    assert server.rules(change, 2, last="comment-added") == ["no rule", "no rule"]


def test_a_block_stands_beside_a_later_approval_until_the_merge(server: Server) -> None:
    project = server.project("MERGE_IF_NECESSARY")
    change = server.gerrit.propose(project, "disputed")
    server.gerrit.vote(change, -2, GERRIT_ADMIN)
    server.gerrit.vote(change, 2)
    assert server.rules(change, 2, last="comment-added") == ["no rule", "no rule"]
    server.gerrit.vote(change, 0, GERRIT_ADMIN)
    server.merge(change)
    assert server.rules(change, 2) == ["no rule", "reviewed"]
