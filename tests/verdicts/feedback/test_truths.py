"""What settles a verdict: reruns of trusted runs, and reviewers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from ciml.data_root import DataRoot
from ciml.events.records import Message, OffsetRange, RunFacts
from ciml.pipelines.feedback import Judge, delta_of_truths, feedback_replica
from ciml.verdicts.feedback import truths as truths_module
from ciml.verdicts.feedback.standing import RERUNS, REVIEWER
from ciml.verdicts.feedback.truths import OPEN, Correction, Truth, Truths, add_corrections
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

    def publish(number: int, cause: str = "machine") -> None:
        facts = run(number, "failure", change=str(number))[0].to_json() | {"end_us": now_us}
        record = prediction(number, verdict={"cause": cause}, **facts) | {"run_id": id_of(number)}
        covers = OffsetRange("predictions", "", 0, number, number + 1)
        take(committing, covers, [Message(number, orjson.dumps(record))], judge, now_us)

    codes = [run(100 + number, "failure", change=str(100 + number)) for number in range(30)]
    RawStore(data).add(runs=[*codes, *(run(number, "failure", change=str(number)) for number in range(22))])
    truths.read()
    for number in range(20):
        publish(number)
    for number in range(100, 130):
        publish(number, "unknown")
    with committing.state() as state:
        assert dict(state.verdicts) == {"shadow": 20, "unknown": 30}
        assert state.entries == {}
        assert {verdict.trusted for verdict in state.history} == {True}
    assert committing.append(lambda state: delta_of_truths(state, truths, now_us)) is None
    passed = [run(200 + number, "success", 60, change=str(number)) for number in range(20)]
    RawStore(data).add(runs=passed)
    truths.read()
    assert committing.append(lambda state: delta_of_truths(state, truths, now_us)) is not None
    assert committing.append(lambda state: delta_of_truths(state, truths, now_us)) is None
    publish(20)
    with committing.state() as state:
        assert dict(state.verdicts)["precision"] == 1  # all settled runs were the machine's: nobody needs the verdict
    again = [run(300 + number, "failure", 60, change=str(100 + number)) for number in range(30)]
    RawStore(data).add(runs=again)
    truths.read()
    assert committing.append(lambda state: delta_of_truths(state, truths, now_us)) is not None
    publish(21)
    with committing.state() as state:
        assert dict(state.verdicts) == {"precision": 1, "shadow": 20, "taken": 1, "unknown": 30}
        (entry,) = state.entries.values()
        (item,) = entry.items.values()
        assert (item.right, item.settled, item.passed, item.reruns) == (20, 20, 20, 20)
