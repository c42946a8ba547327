"""The outbox: one message a patch set, whatever fails in between, and none where the change wants none."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import EngineError
from ciml.integrations.http import Busy
from ciml.integrations.review import ChangeRef, Head, Posted, Reaction, Reactions
from ciml.limits import MAX_RETRY_AFTER_S
from ciml.verdicts.feedback.config import Feedback
from ciml.verdicts.feedback.outbox import SETTLE_S, silence
from ciml.verdicts.feedback.reactions import derive_corrections
from ciml.verdicts.signatures.notes import Note
from tests.durable import Died
from tests.tier import tries
from tests.verdicts.feedback.reviews import NOW_S, Review, feedback, prediction
from tests.verdicts.feedback.worlds import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "data", feedback())


def test_a_verdict_becomes_one_message(world: World) -> None:
    world.say(prediction())
    assert len(world.bodies) == 1
    assert "“unit” failed, probably because of the machine" in world.bodies[0]
    assert "- From minute 3 steal was 41 %." in world.bodies[0]
    assert world.review.calls == ["head", "find", "post"]
    assert world.outcomes == {"posted": 1}
    (entry,) = world.entries()
    assert (entry.posted is not None, entry.is_open) == (True, False)
    assert [(text.causes, text.runs) for text in entry.texts] == [("machine", ("zuul~1~1",))]
    world.work()
    assert world.review.calls == ["head", "find", "post"]


@pytest.mark.parametrize("can_edit", [True, False])
def test_a_reaction_is_to_the_cause_that_an_operator_named(world: World, can_edit: bool) -> None:
    """Without an edit, a system gets another message only if the stated cause differs."""
    world.review.can_edit = can_edit
    world.note = Note("5d5efe4cbf26", "ada", cause="code")
    world.say(prediction())
    (entry,) = world.entries()
    assert (entry.texts[-1].causes, [item.cause for item in entry.items.values()]) == ("code", ["machine"])
    thumb = Reactions(up=(Reaction("rita", int(world.now_s * 1e6)),))
    corrections = derive_corrections("review", [entry], thumb, ["review:rita"])
    assert [correction.cause for correction in corrections] == ["code"]
    world.say(prediction(2))
    assert len(world.review.messages) == 1
    world.note = None
    world.say(prediction(3))
    assert len(world.review.messages) == (1 if can_edit else 2)
    (entry,) = world.entries()
    assert entry.texts[-1].causes == "machine"


UNSURE = {"cause": "unknown", "set": ["code", "machine"]}


def test_a_note_on_a_failure_without_a_verdict_is_one_message(world: World) -> None:
    world.say(prediction(verdict=UNSURE))
    assert world.bodies == []
    world.note = Note("5d5efe4cbf26", "ada", "mirror down", "machine", "recheck after 14:00")
    world.say(prediction(2, verdict=UNSURE))
    (body,) = world.bodies
    assert body.startswith("**“unit” failed; “ada” named the cause: the machine**.")


def test_a_note_that_is_gone_when_its_message_is_due_sends_nothing(world: World) -> None:
    world.note = Note("5d5efe4cbf26", "ada", text="recheck after 14:00")
    world.take(prediction(verdict=UNSURE))
    world.note = None
    world.work()
    assert (world.bodies, world.outcomes) == ([], {"no_note": 1})


@pytest.mark.parametrize("active", [(), ("*",)])
def test_a_model_in_shadow_sends_no_note(tmp_path: Path, active: tuple[str, ...]) -> None:
    world = World(tmp_path, config=feedback(active_models=active))
    world.note = Note("5d5efe4cbf26", "ada", text="recheck after 14:00")
    world.say(prediction(verdict=UNSURE))
    assert len(world.bodies) == len(active)


@pytest.mark.parametrize(("jobs", "waits_s", "text"), [(3, 10.0, "3 jobs failed: 3 probably"), (6, 0.0, "jobs failed")])
def test_jobs_of_a_patch_set_become_one_message_that_does_not_wait_for_ever(
    tmp_path: Path, jobs: int, waits_s: float, text: str
) -> None:
    world = World(tmp_path, feedback(settle_s=30.0, settle_most_s=100.0))
    for number in range(jobs):
        assert world.bodies == []
        world.say(prediction(number, build_name=f"job-{number}"))
        world.now_s += 20.0
    world.now_s += waits_s
    world.work()
    (body,) = world.bodies
    assert text in body


def test_an_older_patch_set_gets_no_message_and_the_next_one_edits_it_in_place(world: World) -> None:
    world.say(prediction(1))
    world.review.heads["org/project", "12"] = Head("open", "12", "4", "b2" * 20)
    world.say(prediction(2, build_name="late"), prediction(3, patchset="4", head="b2" * 20))
    (message,) = world.review.messages
    assert "patch set 3" in message.texts[0]
    assert "patch set 4" in message.texts[1]
    assert len(message.texts) == 2
    assert world.outcomes == {"posted": 1, "outdated": 1, "edited": 1}


def test_where_no_edit_is_possible_a_new_message_comes_only_with_another_verdict(tmp_path: Path) -> None:
    world = World(tmp_path, feedback(), Review("gerrit", can_edit=False))
    world.say(prediction(1))
    world.say(prediction(2, build_name="other"))
    assert len(world.bodies) == 1
    world.say(prediction(3, build_name="lint", verdict={"cause": "code"}))
    assert ["code+machine" in body for body in world.bodies] == [False, True]
    assert world.outcomes == {"posted": 2, "said": 1}


@pytest.mark.parametrize(
    ("head", "outcome"),
    [
        (Head("merged", "12", "3", "a1" * 20), "merged"),
        (Head("abandoned", "12", "3", "a1" * 20), "abandoned"),
        (Head("missing"), "missing"),
        (Head("open", "12", "3", "a1" * 20, "Fix it [CIML-quiet]"), "muted"),
        (Head("open", "12", "3", "a1" * 20, "Fix it", ("wip", " ciml-quiet")), "muted"),
        (Head("open", "12", "4", "b2" * 20), "outdated"),
        (Head("open", "12", "4"), "outdated"),
    ],
)
def test_a_change_that_wants_no_message_gets_none(world: World, head: Head, outcome: str) -> None:
    world.review.heads["org/project", "12"] = head
    world.say(prediction())
    assert (world.bodies, world.review.calls, world.outcomes) == ([], ["head"], {outcome: 1})


def test_a_patch_set_is_compared_by_commit_where_both_are_known() -> None:
    at = Head("open", "12", "3", "a1" * 20)
    assert silence(ChangeRef("p", "12", "3", "a1" * 20), at, "ciml-quiet") is None
    assert silence(ChangeRef("p", "12", "3"), at, "ciml-quiet") is None
    assert silence(ChangeRef("p", "12", "a1" * 20), at, "ciml-quiet") is None
    assert silence(ChangeRef("p", "12", "3", "b2" * 20), at, "ciml-quiet") == "outdated"
    assert silence(ChangeRef("p", "12", "2"), at, "ciml-quiet") == "outdated"
    assert silence(ChangeRef("p", "12", "", "a1" * 20), Head("open", "12", "3"), "ciml-quiet") == "outdated"


def test_a_change_without_number_is_found_by_its_commit_and_has_one_message(world: World) -> None:
    world.review.by_commit["a1" * 20] = "12"
    world.take(prediction(1, change=""), prediction(2, build_name="lint"), prediction(3, build_name="doc", change=""))
    world.settle()
    (message,) = world.review.messages
    assert message.change == "12"
    assert [message.texts[-1].count(f"“{job}”") for job in ("unit", "lint", "doc")] == [1, 1, 1]
    world.take(prediction(4, build_name="late", change=""))
    world.settle()
    assert "“late”" in world.review.messages[0].texts[-1]
    assert len(world.review.messages) == 1
    other = {"head": "b2" * 20}
    world.review.by_commit["b2" * 20] = "13"
    world.say(prediction(5, change="13", **other))
    world.take(prediction(6, build_name="doc", change="", **other))
    world.settle()
    assert [text.count("“doc”") for text in world.review.messages[1].texts] == [0, 1]


def test_the_same_prediction_twice_is_one(world: World) -> None:
    world.say(prediction(), prediction())
    world.say(prediction())
    assert world.review.calls == ["head", "find", "post"]
    with world.committing.state() as state:
        assert state.verdicts == {"taken": 1, "repeat": 2}
    for record in (again := [prediction(2), prediction(3), prediction(3)]):
        del record["id"]  # of a producer that gives none
    world.say(*again)
    with world.committing.state() as state:
        assert state.verdicts == {"taken": 3, "repeat": 3}


def test_an_older_run_of_a_job_does_not_replace_a_newer_one(world: World) -> None:
    world.take(prediction(1), prediction(2, end_us=int((NOW_S - 3000) * 1e6)))
    with world.committing.state() as state:
        assert state.verdicts == {"taken": 1, "superseded": 1}
        assert [entry.items["unit"].run_id for entry in state.entries.values()] == ["zuul~1~1"]


ONCE = ["head", "find", "post"]
READ = [*ONCE, "find"]


@pytest.mark.parametrize(
    ("fault", "calls", "outcomes"),
    [
        ("lost", READ, {"posted": 1}),
        ("killed after", READ, {"posted": 1}),
        ("vanished", READ + ONCE, {"not_found": 1, "posted": 1}),
        ("killed", READ + ONCE, {"not_found": 1, "posted": 1}),
        ("busy", ONCE + ONCE, {"not_sent": 1, "posted": 1}),
        ("refused", ONCE, {"refused": 1}),
    ],
)
def test_a_fault_around_the_call_sends_nothing_twice(
    world: World, fault: str, calls: list[str], outcomes: dict[str, int]
) -> None:
    world.review.script = ["", "", fault]
    world.take(prediction())
    with contextlib.suppress(Died):
        world.work()
    world.restart()
    if calls[3:4] == ["find"]:
        world.now_s += SETTLE_S - 1
        world.work()
        assert world.review.calls == ONCE  # a late request could still arrive
        world.now_s += 1
    world.settle()
    assert (world.review.calls, world.outcomes) == (calls, outcomes)
    assert len(world.bodies) == outcomes.get("posted", 0)
    assert (world.entries()[0].detail == "invalid: 422") is (fault == "refused")


def test_a_system_that_asks_to_wait_is_not_called_meanwhile_not_even_after_a_restart(world: World) -> None:
    world.review.script = ["busy"]
    world.say(prediction())
    world.restart()
    world.now_s += 6.0
    world.work()
    assert world.review.calls == ["head"]
    world.now_s += 1.1
    world.work()
    assert len(world.bodies) == 1


def test_rejected_credentials_lose_no_message(world: World) -> None:
    world.review.script = ["unauthorized"]
    world.say(prediction())
    world.work()
    assert (world.review.calls, world.outcomes) == (["head"], {})
    world.restart()
    world.settle()
    assert world.outcomes == {"posted": 1}


@pytest.mark.parametrize(
    ("faults", "pauses"),
    [
        (["away"] * 10, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]),
        # Those in succession count; the third call finds the change.
        (["away", "away", "", "away", "away"], [2, 4, 2, 2, 4]),
        # Also those of one message: the seventh call settles a message of unknown outcome.
        (["", "away", "away", "", "", "vanished", "", "away", "away"], [2, 2, 4, 46, 2, 2, 4]),
    ],
)
def test_an_unreachable_system_is_asked_less_and_less_often(world: World, faults: list[str], pauses: list[int]) -> None:
    world.review.by_commit["a1" * 20] = "12"
    world.review.script = [*faults]
    world.take(prediction(change=""))
    times = []
    while len(times) <= len(pauses):
        called = len(world.review.calls)
        world.work()
        times += [world.now_s] * (len(world.review.calls) > called)
        world.now_s += 2.0
    assert [int(after - before) for before, after in itertools.pairwise(times)] == pauses


@pytest.mark.parametrize(("fault", "calls"), [("away", 1), ("busy", 1), ("unauthorized", 1), ("refused", 2)])
def test_a_system_that_fails_is_not_called_for_the_other_messages(world: World, fault: str, calls: int) -> None:
    world.review.script = [fault] * 2
    world.take(prediction(1, change="1"), prediction(2, change="2"))
    world.work()
    assert len(world.review.calls) == calls


@pytest.mark.parametrize(("asked_s", "wait_s"), [(-5.0, 1.0), (7.0, 7.0), (1e9, MAX_RETRY_AFTER_S)])
def test_a_system_may_ask_to_wait_for_an_hour_at_most(world: World, asked_s: float, wait_s: float) -> None:
    def busy(change: ChangeRef) -> Head:
        raise Busy("429", asked_s)

    world.review.head = busy  # type: ignore[method-assign]
    world.say(prediction())
    with world.committing.state() as state:
        assert state.paused["review"] == int((world.now_s + wait_s) * 1e6)


def test_a_verdict_that_could_not_be_said_for_long_is_not_said(tmp_path: Path) -> None:
    world = World(tmp_path, feedback(max_age_s=600.0))
    world.review.script = ["away"] * 1000
    world.take(prediction())
    for _ in range(100):
        world.work()
        world.now_s += 10.0
    assert (world.bodies, world.outcomes) == ([], {"late": 1})


def test_between_two_messages_is_the_least_gap(tmp_path: Path) -> None:
    config = feedback()
    config = Feedback(config.file, config.policy, (config.systems[0].replace(gap_s=3.0),))
    world = World(tmp_path, config)
    world.say(prediction(1, change="1"), prediction(2, change="2"), prediction(3, change="3"))
    assert len(world.bodies) == 3
    assert world.slept == pytest.approx([3.0, 3.0, 3.0], abs=0.1)  # an earlier process may just have written


def test_a_dry_run_shows_the_message_and_calls_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, feedback(dry_run=True))
    world.say(prediction())
    assert ["“unit” failed" in body for body in world.shown] == [True]
    assert (world.review.calls, world.outcomes) == ([], {"dry_run": 1})
    loud = World(tmp_path, feedback(), offset=world.offset)
    loud.work()
    assert loud.review.calls == []


def test_a_dry_run_leaves_a_call_of_unknown_outcome_open_and_waits(tmp_path: Path) -> None:
    world = World(tmp_path, feedback())
    world.review.script = ["", "", "killed after"]
    with pytest.raises(Died):
        world.say(prediction())
    quiet = World(tmp_path, feedback(dry_run=True), offset=world.offset)
    quiet.now_s = world.now_s + 3600
    assert quiet.outbox.due() == []
    world.restart()
    world.now_s += 3600
    world.work()
    assert world.outcomes == {"posted": 1}


def test_a_project_that_is_muted_gets_no_waiting_message(tmp_path: Path) -> None:
    world = World(tmp_path, feedback(settle_s=30.0, settle_most_s=30.0))
    world.take(prediction())
    world.mute("org/*")
    world.now_s += 30.0
    world.work()
    assert (world.review.calls, world.outcomes) == ([], {"muted": 1})


def test_a_message_of_unknown_outcome_is_settled_though_its_project_was_muted_meanwhile(world: World) -> None:
    world.review.script = ["", "", "lost"]
    world.say(prediction())
    world.mute("org/*")
    world.settle()
    assert world.outcomes == {"posted": 1}
    assert world.entries()[0].posted is not None


def test_evidence_that_is_away_delays_a_message(world: World) -> None:
    world.take(prediction())
    world.away = True
    with pytest.raises(EngineError, match="the store does not answer"):
        world.work()
    world.away = False
    world.now_s += 10.0
    world.work()
    assert len(world.bodies) == 1


def test_a_client_that_fails_costs_only_its_own_message(world: World) -> None:
    world.review.script = ["broken"]
    world.say(prediction(1, change="1"), prediction(2, change="2"))
    assert [each.change for each in world.review.messages] == ["2"]


def test_a_process_that_was_suspended_before_its_call_does_not_send_it(world: World) -> None:
    world.take(prediction())
    append, outbox = world.committing.append, world.outbox

    def slow(build: Any) -> Any:
        done = append(build)
        world.now_s += SETTLE_S / 3 + 1
        return done

    outbox.replica = type("Slow", (), {"append": staticmethod(slow), "state": world.committing.state})()  # type: ignore[assignment]
    outbox.answer(outbox.due()[0])
    assert world.review.calls == ["head", "find"]


def test_two_processes_send_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = World(tmp_path, feedback())
    first.take(prediction())
    second = World(tmp_path, feedback(), first.review, offset=first.offset)
    key, post = first.outbox.due()[0], first.review.post

    def slow(change: Any, message: Any) -> Any:
        monkeypatch.undo()
        second.outbox.answer(key)  # while the first one waits for its answer
        return post(change, message)

    monkeypatch.setattr(first.review, "post", slow)
    first.outbox.answer(key)
    assert len(first.bodies) == 1


def test_a_message_that_another_process_has_closed_meanwhile_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = World(tmp_path, feedback())
    first.take(prediction())
    second = World(tmp_path, feedback(muted_projects=("org/*",)), Review(), offset=first.offset)
    key, find = first.outbox.due()[0], first.review.find

    def slow(change: ChangeRef, marker: str) -> Posted | None:
        second.outbox.answer(key)
        return find(change, marker)

    monkeypatch.setattr(first.review, "find", slow)
    first.outbox.answer(key)
    assert (first.bodies, first.outcomes) == ([], {"muted": 1})


@pytest.mark.parametrize("markup", ["github", "gerrit"])
@pytest.mark.parametrize("seed", range(tries(3)))
def test_two_hundred_verdicts_on_twenty_changes_are_twenty_messages(tmp_path: Path, seed: int, markup: Any) -> None:
    """Through kills, timeouts after and before acceptance, rate limits and outages at any call."""
    chance = random.Random(seed)
    review = Review(markup, can_edit=markup == "github", chance=chance, rate=0.3)
    world = World(tmp_path, feedback(max_age_s=10 * 86400.0, max_jobs=20, max_bytes=10_000), review)
    todo = [
        prediction(change * 10 + job, change=str(change), head=f"{change:040x}", build_name=f"job-{job}")
        for change in range(20)
        for job in range(10)
    ]
    chance.shuffle(todo)
    while todo:
        some = [todo.pop() for _ in range(min(chance.randrange(1, 60), len(todo)))]
        world.take(*some)
        try:
            world.work()
        except Died:
            world.restart()
        world.now_s += chance.uniform(0.0, 120.0)
    world.settle(3000)
    counts = Counter(each.change for each in review.messages)
    assert counts == {str(change): 1 for change in range(20)}
    assert review.calls.count("post") > 20
    if markup == "github":
        for message in review.messages:
            assert all(f"“job-{job}”" in message.texts[-1] for job in range(10)), message.texts[-1]
    with world.committing.state() as state:
        assert state.verdicts == {"taken": 200}
        assert state.version > 20
    before = len(review.calls)
    world.restart()
    world.work()
    assert len(review.calls) == before
