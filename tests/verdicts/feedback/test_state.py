"""The manifest of feedback: checkpoints, what is forgotten, and what it rejects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.integrations.review import ChangeRef
from ciml.manifest.checkpoints import Limits
from ciml.pipelines.feedback import feedback_replica
from ciml.verdicts.feedback import state as state_module
from ciml.verdicts.feedback.state import Entry, FeedbackState
from tests.growth import assert_linear
from tests.verdicts.feedback.reviews import NOW_S, Review, feedback, prediction
from tests.verdicts.feedback.worlds import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "data", feedback())


def test_a_second_intent_before_the_first_is_settled_is_an_integrity_error(world: World) -> None:
    world.take(prediction())
    with world.committing.state() as state:
        (key,) = state.entries
        intent = {"entry": key, "number": 1, "action": "post", "stamp": "s", "marker": "m", "change": "12"}
        intent |= {"changes": 1, "causes": "machine"}
        state.apply(state.version + 1, {"time_us": 1, "intents": [intent]})
        with pytest.raises(IntegrityError, match="has an intent that is not settled"):
            state.apply(state.version + 1, {"time_us": 2, "intents": [{**intent, "number": 2}]})


def test_a_checkpoint_holds_the_whole_state(world: World) -> None:
    world.review.by_commit["a1" * 20] = "12"
    world.take(prediction(1, change=""), prediction(2, change="13"), prediction(3, outcome="success"))
    world.review.script = ["", "", "", "", "", "lost"]
    world.work()
    with world.committing.state() as state:
        snapshot = json.loads(json.dumps(state.snapshot()))
        again = FeedbackState.restored_from(state.version, snapshot, {})
        assert again.snapshot() == state.snapshot()
        assert again.opened == state.opened
        assert state.opened
        assert vars(again).keys() == vars(state).keys()


def test_entries_are_forgotten_after_three_days_unless_they_wait(world: World) -> None:
    world.take(prediction(1), prediction(2, change="13"))
    world.review.script = ["", "", ""] + ["away"] * 5
    world.work()
    world.now_s += 3 * 86400.0 + 60.0
    world.take(prediction(9, outcome="success"))
    assert [entry.change.change for entry in world.entries()] == ["13"]


def test_after_that_the_message_on_the_change_is_the_memory(tmp_path: Path) -> None:
    world = World(tmp_path, feedback(), Review("gerrit", can_edit=False))
    world.say(prediction(1))
    world.now_s += 4 * 86400.0
    world.take(prediction(9, outcome="success"))
    world.say(prediction(10, build_name="other", end_us=int(world.now_s * 1e6)))
    assert (len(world.bodies), world.outcomes) == (1, {"posted": 1, "said": 1})
    (entry,) = world.entries()
    assert entry.posted is not None  # so that its reactions are read
    assert [(text.causes, text.runs) for text in entry.texts] == [("machine", ())]


def test_one_who_only_watches_learns_of_a_checkpoint_within_a_minute(tmp_path: Path) -> None:
    """A supervisor shows the deltas since the last checkpoint, which its worker makes."""
    now_s = NOW_S
    limits = Limits(deltas=100)
    worker, watcher = (feedback_replica(DataRoot.open(tmp_path), lambda: now_s, limits) for _ in range(2))
    for number in range(150):
        muted = "muted" if number % 2 == 0 else "unmuted"
        worker.append(lambda state, muted=muted: {"time_us": int(now_s * 1e6), muted: ["a/*"]})  # type: ignore[misc]
    with watcher.state() as state:
        assert (state.version, state.restored) == (150, 0)
    while worker.maintain():
        pass
    now_s += 30.0
    with watcher.state() as state:
        assert (state.version, state.restored) == (150, 0)  # it does not list the store at each look
    now_s += 31.0
    with watcher.state() as state:
        assert (state.version, state.restored) == (150, 100)


def jobs(world: World) -> dict[str, str]:
    with world.committing.state() as state:
        return {job: item.run_id for entry in state.entries.values() for job, item in entry.items.items()}


def test_a_run_without_a_proof_replaces_none_with_a_proof(world: World) -> None:
    """Anybody who may send an event can claim a run of the change, under any job and with any end."""
    late = int((NOW_S - 1) * 1e6)
    world.take(prediction(1, auth="mqtt-user"), prediction(2, end_us=late))
    assert jobs(world) == {"unit": "zuul~1~1"}
    world.take(prediction(3, build_name="docs", end_us=late), prediction(4, build_name="docs", auth="mqtt-user"))
    assert jobs(world) == {"unit": "zuul~1~1", "docs": "zuul~4~1"}


def test_runs_without_a_proof_take_no_room_of_those_with_a_proof(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "MAX_FEEDBACK_JOBS", 2)
    world.take(*(prediction(number, build_name=f"fake-{number}") for number in range(3)))
    world.take(*(prediction(10 + number, build_name=f"job-{number}", auth="ssh") for number in range(3)))
    assert jobs(world) == {"job-0": "zuul~10~1", "job-1": "zuul~11~1"}


def test_patch_sets_of_runs_without_a_proof_are_forgotten_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "MAX_FEEDBACK_ENTRIES", 2)
    world.take(prediction(1, auth="ssh"))
    for number in range(2, 6):
        world.take(prediction(number, change=str(100 + number), head=f"{number}b" * 20))
    with world.committing.state() as state:
        assert {entry.change.change for entry in state.entries.values()} == {"12", "105"}
        assert state.messages == {("review", "overflow"): 3}


def _full(size: int) -> dict[str, Any]:
    """Return the snapshot of a state of patch sets, half of them closed."""
    entries = [
        Entry(f"{number}", "review", ChangeRef("p", f"{number}"), changes=int(number >= size // 2))
        for number in range(size)
    ]
    return {**FeedbackState().snapshot(), "entries": [entry.to_json() for entry in entries]}


def test_forgetting_many_patch_sets_takes_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(snapshot: dict[str, Any]) -> FeedbackState:
        state = FeedbackState.restored_from(1, snapshot, {})
        monkeypatch.setattr(state_module, "MAX_FEEDBACK_ENTRIES", len(state.entries) // 4)
        state.apply(2, {"time_us": state_module.KEEP_US + 1})
        return state

    state = forget(_full(100))
    assert list(state.entries) == [str(number) for number in range(75, 100)]
    assert state.messages == {("review", "overflow"): 25}
    assert_linear(_full, forget, 500)


def test_the_jobs_of_two_entries_of_a_patch_set_are_limited_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "MAX_FEEDBACK_JOBS", 2)
    world.review.by_commit["a1" * 20] = "12"
    world.take(prediction(1, build_name="a", auth="ssh"), prediction(2, build_name="b"))
    world.take(prediction(3, build_name="c", change="", auth="ssh"), prediction(4, build_name="d", change=""))
    world.settle()
    assert jobs(world) == {"a": "zuul~1~1", "c": "zuul~3~1"}


def test_projects_are_muted_and_unmuted_one_by_one() -> None:
    state = FeedbackState()
    muted = []
    for version, changes in enumerate(({"muted": ["a/*"]}, {"muted": ["b/*"]}, {"unmuted": ["a/*", "c/*"]}), 1):
        state.apply(version, {"time_us": version, **changes})
        muted.append(state.muted.copy())
    assert muted == [{"a/*"}, {"a/*", "b/*"}, {"b/*"}]


def test_the_messages_of_an_earlier_version_are_the_beginning_of_the_history(world: World) -> None:
    world.take(prediction(1), prediction(2, change="13"))
    with world.committing.state() as state:
        snapshot = json.loads(json.dumps(state.snapshot()))
        recorded = {verdict.id: verdict for verdict in state.history}
        items = [item.to_json() for entry in state.entries.values() for item in entry.items.values()]
    del snapshot["recorded"]
    restored = FeedbackState.restored_from(1, snapshot, {})
    replayed = FeedbackState()
    replayed.apply(1, {"time_us": int(NOW_S * 1e6), "verdicts": items, "silent": {}})  # a delta without "recorded"
    for state in (restored, replayed):
        assert {verdict.id: verdict.replace(time_us=0) for verdict in state.history} == {
            identity: verdict.replace(time_us=0) for identity, verdict in recorded.items()
        }
        assert all(verdict.claim for verdict in state.history)
