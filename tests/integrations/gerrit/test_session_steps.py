"""The position of a Gerrit is stored after Kafka has all events before it, and nothing is missed behind it."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from ciml.integrations.gerrit import session as module
from ciml.integrations.gerrit.stream import StoredEvents
from ciml.integrations.producer import DeliveryProducer, ReceiverMetrics
from ciml.integrations.sessions import Inbox
from ciml.limits import MAX_STREAM_LINE_BYTES
from tests.integrations.gerrit.samples import CLEO, change, event, numbers, person
from tests.integrations.gerrit.server import FakeGerrit
from tests.integrations.receivers.kept import Kept, running, wait

pytestmark = pytest.mark.timeout(120)


def test_order_of_the_steps_of_a_comparison(gerrit: FakeGerrit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every event is produced, Kafka acknowledges the last of them, and only then the position moves."""
    steps: list[str] = []
    write_json = module.write_json

    def record(path: Path, value: Any) -> None:
        steps.append("store position")
        write_json(path, value)

    monkeypatch.setattr(module, "write_json", record)
    now_s = int(time.time())
    gerrit.changes = [change(number, now_s) for number in (3, 2, 1)]
    with running(gerrit.session({"after": now_s - 100}), acknowledges=False) as kept:
        wait(lambda: len(kept.values) == 3, "events are missing")
        for event_number in range(3):
            time.sleep(0.1)  # some turns of the loop
            steps.append(f"acknowledge {event_number}")
            kept.waiting.pop(0).set_result(None)
        kept.acknowledges = True
        wait(lambda: "store position" in steps, "no position is stored")
    assert steps[:4] == ["acknowledge 0", "acknowledge 1", "acknowledge 2", "store position"]


def test_the_position_is_the_time_before_the_query_and_the_query_begins_a_minute_earlier(gerrit: FakeGerrit) -> None:
    """What happens during a comparison is part of the next one."""
    now_s = int(time.time())
    gerrit.date = now_s

    def tick(path: str) -> None:
        if path.endswith("/changes/"):
            gerrit.date = now_s + 50  # the clock of all later answers

    gerrit.answer = tick
    session = gerrit.session({"after": now_s - 1000, "at": now_s - 1000})
    with running(session):
        wait(lambda: not session.problem, f"it says {session.problem!r}")
        wait(lambda: gerrit.position() != now_s - 1000, "no position is stored")
    assert gerrit.position() == now_s
    begin_s = datetime.strptime(gerrit.asked[0]["q"][0], 'after:"%Y-%m-%d %H:%M:%S"').replace(tzinfo=UTC).timestamp()
    assert begin_s == pytest.approx(now_s - 1060, abs=10)


def test_an_event_that_kafka_did_not_acknowledge_before_a_loss_is_produced_again(gerrit: FakeGerrit) -> None:
    now_s = int(time.time())
    with running(gerrit.session({"after": now_s - 100}), acknowledges=False) as kept:
        gerrit.wait_for_stream()
        wait(lambda: gerrit.asked, "the API is not asked")
        gerrit.write(event("patchset-created", 1, now_s))
        wait(lambda: kept.values, "the event is missing")
        gerrit.changes = [change(1, now_s)]
        gerrit.end_streams()
        wait(lambda: len(kept.values) == 2, "the event is lost")
        kept.acknowledge()
    assert numbers(kept.values) == [1, 1]


def test_the_comparison_after_a_line_that_is_too_long_finds_its_event(gerrit: FakeGerrit) -> None:
    """It does not wait for ``check_s``."""
    now_s = int(time.time())
    with running(gerrit.session(check_s=86_400)) as kept:
        gerrit.wait_for_stream()
        gerrit.position()
        gerrit.changes = [change(7, now_s + 1)]
        gerrit.write(b'{"x": "' + b"x" * MAX_STREAM_LINE_BYTES + b'"}')
        wait(lambda: kept.values, "the event is missed")
    assert numbers(kept.values) == [7]


def test_the_other_password_is_tried_while_one_replaces_the_other(gerrit: FakeGerrit) -> None:
    (gerrit.folder / "old").write_text("an earlier HTTP password")
    names = [str(gerrit.folder / name) for name in ("old", "password")]
    session = gerrit.session(secret_file=names)
    with running(session):
        gerrit.position()
    assert session.problem == ""


@pytest.mark.parametrize(
    ("stream_s", "api_s", "is_shown"),
    [(100, 100, True), (103, 100, True), (160, 100, True), (161, 100, False), (99, 100, False), (40, 100, False)],
)
def test_a_later_vote_of_the_same_value_is_another(stream_s: int, api_s: int, is_shown: bool) -> None:
    """The time of a vote in the stream is up to a minute later than in the API, and never earlier."""
    approvals = [{"type": "Code-Review", "value": "2"}]
    shown = StoredEvents()
    shown.add(event("comment-added", 1, stream_s, author=person(CLEO), approvals=approvals))
    assert (event("comment-added", 1, api_s, author=person(CLEO), approvals=approvals) in shown) == is_shown


def test_an_event_that_waits_for_kafka_survives_a_loss_of_the_connection(gerrit: FakeGerrit) -> None:
    """Gerrit repeats nothing, and its API does not report updates of branches."""
    stored = threading.Event()
    inbox = Inbox("zuul", cast(DeliveryProducer, Kept(acknowledges=False)), ReceiverMetrics("test"), 64)
    inbox.put(b"an update of a branch", (), stored.set)
    stop = threading.Event()
    thread = threading.Thread(target=gerrit.session().serve, args=(inbox, stop), daemon=True)
    thread.start()
    gerrit.wait_for_stream()
    assert len(inbox) == 1
    cast(Kept, inbox.producer).acknowledge()
    wait(stored.is_set, "the event is lost")
    stop.set()
    thread.join(30)


def test_an_event_that_waits_for_kafka_survives_a_stop_without_a_connection(gerrit: FakeGerrit) -> None:
    now_s = int(time.time())
    session = gerrit.session()
    with running(session, acknowledges=False) as kept:
        gerrit.wait_for_stream()
        gerrit.write(event("change-merged", 1, now_s))
        wait(lambda: kept.values, "the event is missing")
        gerrit.stop()
        wait(lambda: session.problem, "the loss is not noticed")
        threading.Timer(1.0, kept.acknowledge).start()
    assert kept.outcomes == {"accepted": 1}


def test_both_times_of_a_position_are_of_the_same_moment(gerrit: FakeGerrit) -> None:
    """The next comparison begins early enough, however long this one takes, and wherever the server's clock jumps."""
    now_s = int(time.time())
    gerrit.changes = [change(1, now_s)]
    with running(gerrit.session({"after": now_s - 100}), acknowledges=False) as kept:
        wait(lambda: kept.values, "the event is missing")
        time.sleep(1.5)
        before_s = time.time()
        kept.acknowledge()
        assert gerrit.position("at") < before_s - 1


def test_a_session_that_is_connecting_is_stopped(gerrit: FakeGerrit) -> None:
    gerrit.freeze()
    with running(gerrit.session()):
        time.sleep(0.5)
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 10
    gerrit.thaw()


def test_an_event_without_keys_is_not_stored() -> None:
    stored = StoredEvents()
    stored.add({})
    assert {} not in stored
