"""What settles a verdict: reruns of trusted runs, and reviewers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.events.records import Message, OffsetRange, RunFacts
from ciml.pipelines.feedback import Judge, delta_of_truths, feedback_replica
from ciml.verdicts.feedback import truths as truths_module
from ciml.verdicts.feedback.standing import RERUNS, REVIEWER
from ciml.verdicts.feedback.truths import (
    OPEN,
    Correction,
    Truth,
    Truths,
    add_corrections,
    corrections_log,
    corrections_of,
)
from tests.runs.scenes import UNTRUSTED, RawStore
from tests.transforms.profiles.tables import START_US, USR, facts_of, table_of
from tests.verdicts.feedback.reviews import NOW_S, feedback, prediction
from tests.verdicts.feedback.worlds import take

TABLE = table_of({USR: [1.0] * 20})


def run(number: int, outcome: str, at_s: int = 0, change: str = "7", **more: Any) -> tuple[RunFacts, Any]:
    facts = facts_of(outcome=outcome, number=number).replace(
        source="zuul", pipeline="gate", project="org/project", change=change, patchset="1",
        start_us=START_US + at_s * 1_000_000, end_us=START_US + (at_s + 20) * 1_000_000, **more,
    )  # fmt: skip
    return facts, TABLE


def id_of(number: int) -> str:
    return facts_of(number=number).run_id


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot.open(tmp_path / "data")


def test_a_later_rerun_settles_the_cause_and_a_reviewer_counts_more(data: DataRoot) -> None:
    truths = Truths(data)
    assert truths.of(id_of(1)) == OPEN
    RawStore(data).add(runs=[run(1, "failure"), run(2, "failure", change="8")])
    assert truths.read()
    assert not truths.read()
    assert truths.of(id_of(1)) == OPEN
    RawStore(data).add(runs=[run(3, "success", 60), run(4, "failure", 60, change="8")])
    assert truths.read()
    assert truths.of(id_of(1)) == Truth("machine", RERUNS)
    assert truths.of(id_of(2)) == Truth("code", RERUNS)
    add_corrections(data, [Correction(id_of(2), "machine", "review:alice", 5)])
    assert truths.read()
    assert truths.of(id_of(2)) == Truth("machine", REVIEWER)


def test_untrusted_runs_settle_nothing_unless_the_policy_says_so(data: DataRoot) -> None:
    RawStore(data).add(runs=[run(1, "failure"), run(2, "success", 60)], trust=UNTRUSTED)
    truths, open_farm = Truths(data), Truths(data, settle_untrusted=True)
    for one in (truths, open_farm):
        one.read()
        assert not one.is_trusted(id_of(1))
    assert truths.of(id_of(1)) == OPEN
    assert open_farm.of(id_of(1)) == Truth("machine", RERUNS)
    add_corrections(data, [Correction(id_of(1), "code", "review:alice", 5)])
    truths.read()
    assert truths.of(id_of(1)) == Truth("code", REVIEWER)


def test_it_continues_from_a_bookmark(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truths_module, "_BOOKMARK_RUNS", 2)
    RawStore(data).add(runs=[run(1, "failure"), run(2, "success", 60)])
    Truths(data).read()
    assert data.feedback.read("_causes")
    again = Truths(data)
    assert not again.read()  # nothing is new
    assert again.of(id_of(1)) == Truth("machine", RERUNS)
    data.feedback.replace("_causes", b"damaged")
    other = Truths(data)
    other.read()
    assert other.of(id_of(1)) == Truth("machine", RERUNS)


def test_a_verdict_on_a_run_whose_cause_is_known_already_is_no_evidence(data: DataRoot) -> None:
    """A new model predicts the runs that it learned, too. Their labels must not lead it out of shadow."""
    learned = [run(number, "failure", change=str(number)) for number in range(40)]
    labelled = run(50, "failure", change="50", labels={"cause": "code"})
    RawStore(data).add(runs=[*learned, labelled, run(60, "failure", change="60")])
    RawStore(data).add(runs=[run(100 + number, "success", 60, change=str(number)) for number in range(40)])
    untrusted = [run(70, "failure", change="70"), run(71, "success", 60, change="70")]
    RawStore(data).add(runs=untrusted, trust=UNTRUSTED)
    add_corrections(data, [Correction(id_of(80), "code", "review:alice", 5)])
    committing, truths, now_us = feedback_replica(data, lambda: NOW_S), Truths(data), int(NOW_S * 1e6)
    truths.read()
    judge = Judge(feedback(active_models=()), is_trusted=truths.is_trusted, is_known=truths.is_known)
    for offset, number in enumerate([*range(40), 50, 60, 70, 80]):
        record = prediction(number, change=str(number)) | {"run_id": id_of(number)}
        covers = OffsetRange("predictions", "", 0, offset, offset + 1)
        take(committing, covers, [Message(offset, orjson.dumps(record))], judge, now_us)
    with committing.state() as state:
        assert [verdict.run_id for verdict in state.history] == [id_of(60)]
        assert dict(state.verdicts) == {"shadow": 44}


def test_reruns_lead_a_model_out_of_shadow(data: DataRoot) -> None:
    """Twenty changes fail, their verdict is recorded, their reruns pass; the verdict on the next change is said."""
    config = feedback(active_models=(), min_settled=20)
    committing, truths, now_us = feedback_replica(data, lambda: NOW_S), Truths(data), int(NOW_S * 1e6)
    judge = Judge(config, is_trusted=truths.is_trusted, is_known=truths.is_known)

    def store(numbers: range, outcome: str, at_s: int = 0, first: int = 0) -> None:
        runs = [run(first + number, outcome, at_s, change=str(number)) for number in numbers]
        RawStore(data).add(runs=runs)
        truths.read()

    def publish(number: int, cause: str = "machine") -> dict[str, int]:
        facts = run(number, "failure", change=str(number))[0].to_json() | {"end_us": now_us}
        record = prediction(number, verdict={"cause": cause}, **facts) | {"run_id": id_of(number)}
        covers = OffsetRange("predictions", "", 0, number, number + 1)
        take(committing, covers, [Message(number, orjson.dumps(record))], judge, now_us)
        with committing.state() as state:
            return dict(state.verdicts)

    def settle() -> bool:
        return committing.append(lambda state: delta_of_truths(state, truths, now_us)) is not None

    store(range(100, 130), "failure")
    store(range(22), "failure")
    for number in range(20):
        publish(number)
    for number in range(100, 130):
        verdicts = publish(number, "unknown")
    assert verdicts == {"shadow": 20, "unknown": 30}
    with committing.state() as state:
        assert (state.entries, {verdict.trusted for verdict in state.history}) == ({}, {True})
    assert not settle()
    store(range(20), "success", 60, first=200)
    assert (settle(), settle()) == (True, False)
    assert publish(20)["precision"] == 1  # all settled runs were the machine's: nobody needs the verdict
    store(range(100, 130), "failure", 60, first=300)
    assert settle()
    assert publish(21) == {"precision": 1, "shadow": 20, "taken": 1, "unknown": 30}
    with committing.state() as state:
        (item,) = (item for entry in state.entries.values() for item in entry.items.values())
        assert (item.right, item.settled, item.passed, item.reruns) == (20, 20, 20, 20)


def test_a_data_root_without_feedback_has_no_corrections(data: DataRoot) -> None:
    assert corrections_of(data) == {}


def test_of_several_reviewers_the_last_reaction_counts(data: DataRoot) -> None:
    first = Correction("zuul~1~1", "code", "review:alice", 10)
    second = Correction("zuul~1~1", "machine", "review:bob", 20)
    other = Correction("zuul~2~1", "code", "review:bob", 20)
    assert add_corrections(data, [second, other]) == 2
    assert add_corrections(data, [first]) == 1
    later = other.replace(by="review:alice", cause="machine", time_us=30)
    assert add_corrections(data, [later]) == 1
    assert corrections_of(data) == {"zuul~1~1": second, "zuul~2~1": later}  # in either order of the reading


def test_a_reviewer_may_change_their_mind_and_a_repeat_is_stored_once(data: DataRoot) -> None:
    once = Correction("zuul~1~1", "code", "review:alice", 10)
    assert [add_corrections(data, [once]), add_corrections(data, [once.replace(time_us=11)])] == [1, 0]
    assert corrections_log(data).end() == 1
    assert add_corrections(data, [once.replace(cause="machine", time_us=12)]) == 1
    assert corrections_of(data)["zuul~1~1"].cause == "machine"


def test_a_damaged_record_is_an_error(data: DataRoot) -> None:
    corrections_log(data).try_append(1, {"corrections": [{"run_id": "a", "cause": "weather", "by": "b", "time_us": 1}]})
    with pytest.raises(IntegrityError, match=r"version 1: malformed record: Invalid enum value 'weather'"):
        corrections_of(data)
