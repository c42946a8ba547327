"""Reactions: when they are read, what is counted, and whose correct a label."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.errors import EngineError
from ciml.integrations.http import UNAUTHORIZED, Busy, Refused
from ciml.integrations.review import Head, Reaction, Reactions
from ciml.limits import MAX_RETRY_AFTER_S
from ciml.verdicts.feedback.reactions import Reader, derive_corrections, new_reactions, next_reading_s
from ciml.verdicts.feedback.state import FeedbackState
from ciml.verdicts.feedback.truths import Correction, add_corrections, corrections_of
from tests.durable import Steps
from tests.verdicts.feedback.reviews import NOW_S, ReviewSystem, feedback, prediction
from tests.verdicts.feedback.worlds import World


class Said(World):
    """A world with a message, and a reader of its reactions."""

    def restart(self) -> None:
        super().restart()
        data = DataRoot.open(self.folder)
        self.reader = Reader(
            "review", self.committing, self.review, ["review:alice", "review:bob"],
            lambda corrections: add_corrections(data, corrections), lambda: self.now_s,
        )  # fmt: skip

    def read(self) -> None:
        for key in self.reader.due():
            if not self.reader.read(key):
                return

    def react(self, kind: str, *accounts: str, time_us: int | None = None) -> None:
        """Let accounts react to the message, now by default."""
        now_us = int(self.now_s * 1e6) if time_us is None else time_us
        reactions = self.review.reacted.setdefault("1", Reactions())
        earlier = {each.account: each for each in getattr(reactions, kind)}
        new = {account: Reaction(account, now_us) for account in accounts}
        self.review.reacted["1"] = replace(reactions, **{kind: tuple((earlier | new).values())})

    def reads(self, after_s: float = 300.0, **reactions: tuple[str, ...]) -> None:
        """Let accounts react, unless they did before, and read the reactions after a time."""
        for kind, accounts in reactions.items():
            known = {each.account for each in getattr(self.review.reacted.get("1", Reactions()), kind)}
            self.react(kind, *(account for account in accounts if account not in known))
        self.now_s += after_s
        self.read()

    @property
    def counted(self) -> dict[str, int]:
        with self.committing.state() as state:
            return {kind: number for (_, kind), number in sorted(state.reacted.items()) if number}

    @property
    def corrected(self) -> dict[str, Correction]:
        return corrections_of(DataRoot.open(self.folder))

    @property
    def causes(self) -> dict[str, str]:
        """The corrected causes by the number of the run."""
        return {run.split("~")[1]: one.cause for run, one in sorted(self.corrected.items())}


def test_a_client_that_fails_costs_only_its_own_message(tmp_path: Path) -> None:
    world = Said(tmp_path / "data", feedback())
    world.say(prediction(1, change="1"), prediction(2, change="2"))
    world.review.script = ["broken"]
    world.now_s += 300.0
    world.read()
    assert world.reader.due() == []


@pytest.fixture
def world(tmp_path: Path) -> Said:
    one = Said(tmp_path / "data", feedback())
    one.say(prediction(1), prediction(2, build_name="lint"))
    return one


def test_reactions_are_read_after_five_minutes_then_at_double_ages() -> None:
    times, read_s = [], 0.0
    for _ in range(6):
        read_s = next_reading_s(1000.0, read_s)
        times.append(read_s - 1000.0)
    assert times == [300.0, 600.0, 1200.0, 2400.0, 4800.0, 9600.0]
    assert next_reading_s(1000.0, 900.0) == 1300.0  # it was edited after the last reading


def test_reactions_of_all_are_counted_once_and_those_of_reviewers_correct_labels(world: Said) -> None:
    reactions = {"up": ("mallory", "alice"), "not_helpful": ("eve",)}
    world.reads(0.0, **reactions)
    assert (world.counted, world.corrected) == ({}, {})  # too early
    for after_s in (300.0, 10_000.0):
        world.reads(after_s, **reactions)
        assert world.counted == {"not_helpful": 1, "up": 2}
        corrections = {run: (one.cause, one.by) for run, one in world.corrected.items()}
        assert corrections == dict.fromkeys(("zuul~1~1", "zuul~2~1"), ("machine", "review:alice"))


def test_a_thumb_down_names_the_other_cause(world: Said) -> None:
    world.reads(down=("bob",))
    assert {one.cause for one in world.corrected.values()} == {"code"}


def test_an_account_with_both_thumbs_or_a_message_with_both_causes_corrects_nothing(
    world: Said, tmp_path: Path
) -> None:
    world.reads(up=("bob",), down=("bob",))
    assert (world.counted, world.corrected) == ({"down": 1, "up": 1}, {})
    both = Said(tmp_path / "both", feedback())
    both.say(prediction(1), prediction(2, build_name="lint", verdict={"cause": "code"}))
    both.reads(down=("bob",))
    assert (both.counted, both.corrected) == ({"down": 1}, {})


@pytest.mark.parametrize("days", [0, 4])
def test_what_was_said_of_an_earlier_patch_set_says_nothing_of_the_next(world: Said, days: int) -> None:
    """Not even when the earlier one is forgotten, while the system still lists the reactions to it."""
    world.reads(down=("bob",))
    world.now_s += days * 86_400.0
    world.review.heads["org/project", "12"] = Head("open", "12", "4", "b2" * 20)
    end_us = int(world.now_s * 1e6)
    world.say(prediction(3, patchset="4", head="b2" * 20, end_us=end_us))
    assert len(world.entries()) == (1 if days else 2)
    assert len(world.review.messages) == 1
    world.reads(600.0)
    assert (world.counted, world.causes) == ({"down": 1}, {"1": "code", "2": "code"})
    world.reads(600.0, down=("alice",))
    assert (world.counted, world.causes) == ({"down": 2}, {"1": "code", "2": "code", "3": "code"})


@pytest.mark.parametrize(
    ("later", "shown"),
    [
        (prediction(2, build_name="lint"), {"1", "2"}),
        (prediction(2, build_name="lint", verdict={"cause": "code"}), set()),
        (prediction(2), {"2"}),
        (prediction(2, verdict={"cause": "code"}), {"2"}),
    ],
    ids=["another job", "another cause too", "another run", "another run and cause"],
)
def test_a_reaction_is_to_the_text_that_was_there(tmp_path: Path, later: dict[str, Any], shown: set[str]) -> None:
    """A later text, and a reaction of somebody else, do not change what an earlier one means."""
    world = Said(tmp_path / "data", feedback())
    world.say(prediction(1))
    world.now_s += 600.0
    world.react("down", "bob")
    world.now_s += 200.0
    world.say(later)
    unchanged = later == prediction(2)
    assert world.outcomes == {"posted": 1, "unchanged" if unchanged else "edited": 1}
    world.reads(300.0)
    assert world.causes == {"1": "code"}
    world.reads(600.0, up=("alice",))
    stated = later["verdict"]["cause"]
    assert world.causes == {"1": "code"} | dict.fromkeys(shown, stated)  # of run 1, who spoke last is believed
    assert world.counted == {"down": 1, "up": 1}


def test_jobs_without_a_line_of_their_own_are_not_corrected(tmp_path: Path) -> None:
    world = Said(tmp_path / "data", feedback(max_jobs=2))
    world.say(*(prediction(number, build_name=f"job-{number}") for number in range(1, 5)))
    world.reads(down=("bob",))
    assert world.causes == {"1": "code", "2": "code"}


@pytest.mark.parametrize(
    ("after_s", "causes"), [(-121.0, {"1": "code"}), (-119.0, {}), (119.0, {}), (121.0, {"2": "code"})]
)
def test_a_reaction_near_an_edit_or_without_a_time_corrects_nothing(
    tmp_path: Path, after_s: float, causes: dict[str, str]
) -> None:
    world = Said(tmp_path / "data", feedback())
    world.say(prediction(1))
    world.now_s += 600.0
    world.say(prediction(2, verdict={"probability": 0.95}))
    world.react("down", "bob", time_us=int((world.now_s + after_s) * 1e6))
    world.react("up", "alice", time_us=0)
    world.reads()
    assert world.causes == causes
    assert world.counted == {"down": 1, "up": 1}


@pytest.mark.parametrize(("order", "cause"), [(("up", "down"), "code"), (("down", "up"), "machine")])
def test_of_reviewers_who_disagree_the_last_one_counts(world: Said, order: tuple[str, str], cause: str) -> None:
    """Their reactions are read together. The systems' names of accounts have no upper and lower case."""
    for kind, account in zip(order, ("bob", "Alice"), strict=True):
        world.react(kind, account)
        world.now_s += 10.0
    world.reads(300.0)
    assert set(world.causes.values()) == {cause}


def test_a_reviewer_may_think_again(world: Said) -> None:
    world.reads(up=("bob",))
    assert set(world.causes.values()) == {"machine"}
    world.review.reacted.clear()
    world.reads(300.0, down=("bob",))
    assert set(world.causes.values()) == {"code"}
    world.review.reacted.clear()
    world.reads(1000.0, up=("bob",))
    assert set(world.causes.values()) == {"machine"}


def test_the_text_of_a_call_of_unknown_outcome_is_known_once_it_is_settled(tmp_path: Path) -> None:
    world = Said(tmp_path / "data", feedback())
    world.say(prediction(1))
    world.now_s += 600.0
    world.review.script = ["", "", "lost"]
    world.say(prediction(2, verdict={"probability": 0.95}))
    world.now_s += 250.0
    world.react("down", "bob")
    world.read()
    assert world.causes == {}
    world.restart()
    world.settle()
    world.reads(1000.0)
    assert world.causes == {"2": "code"}


def test_a_message_of_an_earlier_version_corrects_nothing(world: Said) -> None:
    """It did not store which runs its text was about."""
    world.react("down", "bob")
    with world.committing.state() as state:
        snapshot = json.loads(json.dumps(state.snapshot()))
        for entry in snapshot["entries"]:
            del entry["texts"]
        old = FeedbackState.restored_from(state.version, snapshot, {})
    entries = list(old.entries.values())
    reactions = world.review.reacted["1"]
    assert derive_corrections("review", entries, reactions, ["review:bob"]) == []
    assert new_reactions(entries[0], entries, reactions) == [
        {"entry": entries[0].key, "up": [], "down": ["bob"], "not_helpful": []}
    ]


def test_corrections_are_stored_before_reactions_are_counted_and_a_kill_between_them_loses_neither(
    world: Said, tmp_path: Path
) -> None:
    world.reads(0.0, up=("alice",))
    world.now_s += 300.0
    order = ["append data/feedback/corrections: corrections", "append data/feedback: reactions"]
    for steps, index in zip(([], order[:1], order[1:]), (0, 1, 1), strict=True):
        with Steps(str(tmp_path), index).recording() as recorded:
            world.read()
        assert recorded.steps == steps
        assert len(world.corrected) == (0 if steps == [] else 2)  # the third time, they are not stored again
        assert world.counted == ({"up": 1} if steps == order[1:] else {})


def test_an_equal_message_number_of_another_system_is_another_message(world: Said) -> None:
    config = feedback(ReviewSystem(name="other", sources=("github",), gap_s=0.0))
    other = Said(world.folder, config, offset=world.offset)
    other.outbox.name = other.reader.name = "other"
    other.say(prediction(3, source="github"))
    assert [entry.posted.id for entry in other.entries() if entry.posted] == ["1", "1"]
    for one in (world, other):
        one.reads(400.0, up=("mallory",))
    with world.committing.state() as state:
        assert state.reacted["review", "up"] == state.reacted["other", "up"] == 1


@pytest.mark.parametrize(
    ("error", "wait_s"),
    [
        (EngineError("away"), 60.0),
        (Busy("429", 90.0), 90.0),
        (Busy("429", 1e9), MAX_RETRY_AFTER_S),
        (Refused(UNAUTHORIZED, "401"), 60.0),
        (Refused("forbidden", "403"), 300.0),
        (Refused("not_found", "404"), 300.0),
    ],
)
def test_a_system_that_fails_is_read_later(
    world: Said, error: Exception, wait_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(posted: Any) -> Reactions:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.review, "reactions", fails)
        world.reads(up=("alice",))
    assert (str(error) in caplog.text) is (str(error) != "404")  # a deleted message is no failure
    world.now_s += wait_s - 1
    world.read()
    assert world.counted == {}
    world.now_s += 1
    world.read()
    assert world.counted == {"up": 1}


def test_after_a_restart_old_messages_are_not_all_read_at_once(world: Said) -> None:
    for age_s in (40_000.0, 60_000.0, 76_700.0):  # no restart postpones the next reading
        world.now_s = NOW_S + age_s
        world.restart()
        assert world.reader.due() == []
    world.now_s = NOW_S + 300.0 * 2**8
    assert len(world.reader.due()) == 1


def test_the_reactions_to_the_latest_messages_are_read_first(world: Said) -> None:
    for number in (3, 1, 2):
        world.now_s += 60.0
        world.say(prediction(number, change=str(number)))
    with world.committing.state() as state:
        latest = sorted(state.entries, key=lambda key: -state.entries[key].posted_us)
    world.now_s += 300.0
    assert world.reader.due() == latest
