"""The receiver of Gerrit's events: the stream, its faults, and the gaps that the REST API fills."""

from __future__ import annotations

import json
import time
from pathlib import Path

import asyncssh
import pytest

from ciml.errors import CimlError
from ciml.integrations.config import load_receivers
from ciml.kafka import KafkaOptions
from ciml.limits import MAX_STREAM_LINE_BYTES
from ciml.services.receivers import GerritService
from tests.integrations.gerrit.samples import CLEO, change, event, numbers, person, source, vote
from tests.integrations.gerrit.server import FakeGerrit
from tests.integrations.receivers.kept import connected, running, wait

pytestmark = pytest.mark.timeout(120)


def test_a_line_becomes_a_delivery(gerrit: FakeGerrit) -> None:
    long = b'{"x": "' + b"x" * MAX_STREAM_LINE_BYTES + b'"}'
    with connected(gerrit.session()) as kept:
        gerrit.wait_for_stream()
        gerrit.write(event("change-merged", 1, 5), b"", b"no JSON", long, event("patchset-created", 2, 6))
        wait(lambda: len(kept.values) == 3, "a line is missing")
        assert json.loads(kept.values[0]) == event("change-merged", 1, 5)
        assert kept.values[1] == b"no JSON"  # which ingest makes a dead letter
        assert kept.headers[0] == {"ciml_adapter": b"gerrit", "ciml_source": b"zuul", "ciml_auth": b"ssh"}
        wait(lambda: kept.outcomes == {"accepted": 3, "too_large": 1}, f"{kept.outcomes}")
    assert gerrit.commands[0].startswith("gerrit stream-events -s patchset-created -s comment-added ")


def test_gaps_are_filled_once(gerrit: FakeGerrit) -> None:
    now = int(time.time())
    with connected(gerrit.session()) as kept:
        gerrit.wait_for_stream()
        first = gerrit.position("at")  # nothing before the first start is wanted
        gerrit.write(event("patchset-created", 1, now))
        wait(lambda: kept.values, "the event is missing")
    assert gerrit.asked == []
    labels = {"Code-Review": {"all": [vote(CLEO, 2, now + 2)]}}
    gerrit.changes = [change(2, now + 1, labels=labels), change(1, now - 4000)]
    with connected(gerrit.session()) as kept:
        wait(lambda: len(kept.values) == 2, "a change is missing")
        kinds = [(each["type"], each["change"]["number"]) for each in map(json.loads, kept.values)]
        assert kinds == [("patchset-created", 2), ("comment-added", 2)]
        wait(lambda: gerrit.position("at") > first, "the position does not move")
        asked = len(gerrit.asked)
        gerrit.write({"type": "dropped-output", "eventCreatedOn": now})
        wait(lambda: len(gerrit.asked) > asked, "dropped events are not looked for")
    assert len(kept.values) == 2


def test_a_vote_that_the_stream_has_shown_is_not_produced_again(gerrit: FakeGerrit) -> None:
    now = int(time.time())
    approvals = [{"type": "Code-Review", "value": "2", "oldValue": "0"}, {"type": "Verified", "value": "0"}]
    with connected(gerrit.session()) as kept:
        gerrit.wait_for_stream()
        gerrit.position()
        comment = event("comment-added", 1, now + 3, author=person(CLEO), approvals=approvals)
        gerrit.write(event("patchset-created", 1, now + 1), comment)
        wait(lambda: kept.outcomes.get("accepted") == 2, "events are missing")
        labels = {"Code-Review": {"all": [vote(CLEO, 2, now + 2)]}, "Workflow": {"all": [vote(CLEO, 1, now + 4)]}}
        gerrit.changes = [change(1, now, labels=labels)]
        gerrit.write({"type": "dropped-output"})
        wait(lambda: len(kept.values) == 3, "the vote is missing")
        assert json.loads(kept.values[2])["approvals"] == [{"type": "Workflow", "value": "1", "oldValue": "0"}]
        before = gerrit.position("at")
        gerrit.write({"type": "dropped-output"})
        wait(lambda: gerrit.position("at") > before, "the API is not asked again")
        assert len(kept.values) == 3


def test_many_changes_come_in_pages(gerrit: FakeGerrit) -> None:
    now = int(time.time())
    gerrit.changes = [change(number, now) for number in range(1, 251)]
    gerrit.changes[7] = {"_number": 8}
    with connected(gerrit.session({"after": now - 100})) as kept:
        wait(lambda: kept.outcomes == {"accepted": 249, "rejected": 1}, f"{kept.outcomes}")
        assert sorted(numbers(kept.values)) == [*range(1, 8), *range(9, 251)]
    assert [(each["S"], each["n"]) for each in gerrit.asked] == [([start], ["100"]) for start in ("0", "100", "200")]
    assert gerrit.asked[0]["q"][0].startswith('after:"20')


def test_a_lost_stream_is_connected_again(gerrit: FakeGerrit) -> None:
    session = gerrit.session()
    with connected(session) as kept:
        gerrit.wait_for_stream()
        gerrit.position()
        gerrit.stop()
        wait(lambda: session.problem, "the loss is not noticed")
        assert f"ssh://ci@127.0.0.1:{gerrit.ssh}" in session.problem
        gerrit.changes = [change(3, int(time.time()))]
        gerrit.start()
        wait(lambda: kept.values, "the change is missing")
        assert numbers(kept.values) == [3]


def test_an_api_that_refuses_is_reported_and_the_stream_goes_on(gerrit: FakeGerrit, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("a wrong HTTP password")
    session = gerrit.session(secret_file="wrong")
    with running(session) as kept:
        gerrit.wait_for_stream()
        refused = f"http://127.0.0.1:{gerrit.rest} rejects the credentials: check user ci and its HTTP password"
        wait(lambda: session.problem == refused, session.problem)
        gerrit.write(event("change-merged", 1, 5))
        wait(lambda: kept.values, "the stream stands still")
    assert not (tmp_path / "state").exists()


def test_a_host_key_is_pinned_and_a_key_may_be_refused(gerrit: FakeGerrit, tmp_path: Path) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519")
    other.write_private_key(str(tmp_path / "other"))
    (tmp_path / "other").chmod(0o600)
    public = " ".join(other.export_public_key().decode().split()[:2])
    (tmp_path / "hosts").write_text(f"[127.0.0.1]:{gerrit.ssh} {public}\n")
    for changes, said in (
        ({"known_hosts_file": "hosts"}, "its host key is not in known_hosts_file hosts"),
        ({"key_file": "other"}, "refuses key_file other; add its public key to the account's SSH keys"),
    ):
        session = gerrit.session(**changes)
        with running(session):
            wait(lambda session=session, said=said: said in session.problem, session.problem)
    assert gerrit.commands == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key_file": "missing"}, "source zuul: key_file FOLDER/missing: No such file or directory"),
        ({"key_file": "receivers.toml"}, "source zuul: key_file FOLDER/receivers.toml: "),
        ({"known_hosts_file": "missing"}, "source zuul: known_hosts_file FOLDER/missing: No such file or directory"),
        ({"ssh": "ssh://127.0.0.1"}, "source zuul: ssh: 'ssh://127.0.0.1' names no user; want ssh://USER@HOST:29418"),
        ({"ssh": "http://ci@x"}, "source zuul: ssh: 'http://ci@x' is not ssh://USER@HOST:29418"),
        ({"rest": "ftp://x"}, "source zuul: rest: 'ftp://x' is not an address such as https://review.example.org"),
        ({"rest": ""}, "source zuul: secret_file and secret_env are the HTTP password of rest, which is missing"),
        ({"check_s": 0.5}, "source zuul: check_s: 0.5 is not between 1 and 86400"),
        ({"in_flight": 5000}, "source zuul: in_flight: 5000 is not between 1 and 1024"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    gerrit = FakeGerrit(tmp_path / "gerrit")  # which need not listen
    config = tmp_path / "receivers.toml"
    config.write_text(source(gerrit.folder, gerrit.ssh, gerrit.rest, **changes))
    gerrit.close()
    with pytest.raises(CimlError) as caught:
        GerritService(load_receivers(config), KafkaOptions("127.0.0.1:1"), "events")
    assert said.replace("FOLDER", str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)
