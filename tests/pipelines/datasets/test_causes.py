"""Causes in data sets: reruns and reviewers say why a run failed, before its span is sealed and after."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.datasets.state import DatasetState
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.build import build_dataset
from ciml.pipelines.datasets.update import update_dataset, verify_dataset
from ciml.runs.causes import Causes
from ciml.runs.run_log import StoredRunLog
from ciml.transforms.examples import changes
from ciml.transforms.examples.spans import read_span
from ciml.verdicts.feedback.truths import Correction, add_corrections
from tests.pipelines.datasets.dataset_scenes import define, resolved_of, telemetry
from tests.runs.scenes import TRUSTED, UNTRUSTED, RawStore
from tests.tier import tries
from tests.transforms.samples import make_facts

CAUSE: dict[str, Any] = {"class_label": "cause", "span_runs": 4}


def run(number: int, outcome: str, change: int, **facts: Any) -> tuple[RunFacts, pa.Table]:
    """A run of a change; attempts of a change begin in the order of their numbers."""
    keys: dict[str, Any] = {"project": "nova", "change": str(change), "patchset": "1", **facts}
    return make_facts(number, outcome=outcome, start_us=1_000_000 * number, **keys), telemetry(number)


def labels(state: DatasetState) -> list[dict[str, str]]:
    """The class, or the reason without one, of each run by its number, span by span."""
    return [
        {
            **{each.run_id.split("~")[1]: each.label_name for each in span.runs},
            **{each["run_id"].split("~")[1]: each["reason"] for each in span.excluded},
        }
        for span in state.latest()
    ]


def say(data: DataRoot, *causes: tuple[str, Literal["code", "machine"]], time_us: int = 1) -> None:
    add_corrections(data, [Correction(run_id, cause, "gerrit:7", time_us) for run_id, cause in causes])


FIRST = [run(1, "failure", 1), run(2, "failure", 2), run(3, "success", 1), run(4, "failure", 3)]
LATER = [run(5, "failure", 2), run(6, "success", 3), run(7, "success", 8), run(8, "failure", 8)]


def test_runs_that_failed_have_a_cause_by_reruns_or_their_own_event(data: DataRoot, raw: RawStore) -> None:
    own = run(2, "failure", 2, labels={"cause": "code"})
    passed = run(4, "success", 4, labels={"cause": "code"})  # a broken change that no test noticed
    raw.add([FIRST[0], own, FIRST[2], passed])
    define(data, **CAUSE)
    (span,) = update_dataset(data.dataset("cpu")).sealed
    state = data.dataset("cpu").state()
    assert labels(state) == [{"1": "machine", "2": "code", "3": "no_label", "4": "no_label"}]
    assert resolved_of(state).classes == ("code", "machine")
    assert state.causes == {"zuul~1~1": "machine"}
    rows = read_span(data.dataset("cpu").store, span, columns=["run_id", "label", "labels"]).to_pylist()
    assert {row["run_id"]: (row["label"], row["labels"]) for row in rows} == {
        "zuul~1~1": (1, [("cause", "machine")]),
        "zuul~2~1": (0, [("cause", "code")]),
    }
    assert verify_dataset(data.dataset("cpu")) == []


def update(data: DataRoot) -> list[tuple[int, int]]:
    """Return the sealed spans and versions."""
    return [(span.span, span.version) for span in update_dataset(data.dataset("cpu")).sealed]


def test_a_rerun_after_its_span_was_sealed_makes_a_new_version(data: DataRoot, raw: RawStore) -> None:
    raw.add(FIRST)
    define(data, **CAUSE)
    assert update(data) == [(1, 1)]
    root = data.dataset("cpu").store
    before = {path: root.read(path) for path in root.list("span-1/version-1")}
    raw.add(LATER[:1])
    assert update(data) == [(1, 2)]
    assert labels(data.dataset("cpu").state()) == [{"1": "machine", "2": "code", "3": "no_label", "4": "no_label"}]
    assert ManifestLog(root).read(3)["causes"] == [{"run_id": "zuul~2~1", "cause": "code"}]
    assert update(data) == []
    raw.add(LATER[1:2])
    assert update(data) == [(1, 3)]
    assert labels(data.dataset("cpu").state()) == [{"1": "machine", "2": "code", "3": "no_label", "4": "machine"}]
    assert {path: root.read(path) for path in root.list("span-1/version-1")} == before
    assert verify_dataset(data.dataset("cpu")) == []


def test_a_cause_that_is_not_known_any_more_is_no_label(data: DataRoot, raw: RawStore) -> None:
    raw.add(FIRST)
    define(data, **CAUSE)
    update(data)
    corrected = FIRST[2][0].replace(outcome="error")  # the rerun did not pass after all
    raw.add(corrections=[corrected], trust=UNTRUSTED)
    assert update(data) == []
    raw.add(corrections=[corrected])
    assert update(data) == [(1, 2)]
    state = data.dataset("cpu").state()
    assert (state.latest()[0].runs, state.causes) == ((), {"zuul~1~1": ""})
    assert update(data) == []
    raw.add([run(5, "success", 1)])
    assert update(data) == [(1, 3)]
    assert labels(data.dataset("cpu").state())[0]["1"] == "machine"


def test_a_reviewer_changes_a_cause(data: DataRoot, raw: RawStore) -> None:
    raw.add(FIRST)
    define(data, **CAUSE)
    update(data)
    say(data, ("zuul~1~1", "code"), ("zuul~4~1", "code"), ("zuul~3~1", "machine"), ("other~1~1", "code"))
    assert update(data) == [(1, 2)]
    assert labels(data.dataset("cpu").state()) == [{"1": "code", "2": "no_label", "3": "no_label", "4": "code"}]
    assert update(data) == []
    say(data, ("zuul~1~1", "machine"), time_us=2)
    raw.add([run(5, "success", 3)])  # the reviewer of run 4 knows more than its rerun
    assert update(data) == [(1, 3)]
    now = [{"1": "machine", "2": "no_label", "3": "no_label", "4": "code"}]
    assert labels(data.dataset("cpu").state()) == now
    assert labels(build_dataset(data, data, DatasetDefinition.from_json({"name": "again", **CAUSE})).state)[:1] == now


@pytest.mark.parametrize("span_runs", [2, 3, 8])
def test_when_updates_happen_makes_no_difference_to_causes(tmp_path: Path, span_runs: int) -> None:
    found = []
    for often in (False, True):
        data = DataRoot.open(tmp_path / str(often))
        raw = RawStore(data)
        define(data, **{**CAUSE, "span_runs": span_runs})
        for at in range(0, 8, 2):
            raw.add([*FIRST, *LATER][at : at + 2])
            if often:
                update_dataset(data.dataset("cpu"))
        state = update_dataset(data.dataset("cpu"), seal=True).state
        assert update_dataset(data.dataset("cpu"), seal=True).sealed == ()
        assert verify_dataset(data.dataset("cpu")) == []
        found.append([{**span.to_json(), "version": 0, "files": 0} for span in state.latest()])
        merged = {number: label for span in labels(state) for number, label in span.items()}
        assert merged == {
            "1": "machine", "2": "code", "3": "no_label", "4": "machine",
            "5": "code", "6": "no_label", "7": "no_label", "8": "no_label",
        }  # fmt: skip
    assert found[0] == found[1]


def test_a_slice_has_the_causes_that_its_raw_version_knows(data: DataRoot, raw: RawStore, tmp_path: Path) -> None:
    raw.add(FIRST)
    raw.add(LATER[:1])
    raw.add(LATER[1:])
    definition = DatasetDefinition.from_json({"name": "cut", **CAUSE, "slicer": ":4", "max_windows": 4})
    state = build_dataset(data, data, definition.replace(raw_version=2)).state
    assert labels(state) == [{"1": "machine", "2": "code", "3": "no_label", "4": "no_label"}]
    state = build_dataset(data, DataRoot.open(tmp_path / "later"), definition).state
    assert labels(state) == [{"1": "machine", "2": "code", "3": "no_label", "4": "machine"}]
    assert state.causes == {"zuul~1~1": "machine", "zuul~2~1": "code", "zuul~4~1": "machine"}


def test_other_data_sets_store_no_causes(data: DataRoot, raw: RawStore) -> None:
    raw.add([*FIRST, *LATER])
    define(data)
    update_dataset(data.dataset("cpu"))
    assert all("causes" not in delta for _, delta in data.dataset("cpu").log.since(0))


@pytest.mark.parametrize("seed", range(tries(4)))
def test_an_update_that_continues_from_a_bookmark_commits_the_same(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reruns, corrections and reclaims, of trusted and untrusted runs; the data set asks for neighbours too."""
    chance, committed, read = random.Random(seed), [], list[int]()
    runs = [
        run(number, chance.choice(["failure", "success", "timeout"]), chance.randrange(6), provider="north")
        for number in range(1, 41)
    ]
    late = [chance.randrange(40) for _ in range(10)]
    since = StoredRunLog.since

    def counted(self: StoredRunLog, version: int) -> Any:
        read.append(version)
        return since(self, version)

    monkeypatch.setattr(StoredRunLog, "since", counted)
    for kept in (False, True):
        monkeypatch.setattr(changes, "_BOOKMARK_RUNS", 1 if kept else 10**9)
        data = DataRoot.open(tmp_path / str(kept))
        raw = RawStore(data)
        define(data, **{**CAUSE, "span_runs": 5, "context": ["neighbours"]})
        for at in range(10):
            fixed = [runs[late[at]][0].replace(outcome="success")] if 4 * at > late[at] else []
            again = [(runs[4 * at - 1][0], telemetry(99))] if at % 3 == 0 and at else []  # of an untrusted run
            trust = UNTRUSTED if at % 3 == 2 else TRUSTED
            raw.add(runs[4 * at : 4 * at + 4], corrections=fixed, trust=trust, reclaims=again)
            read.clear()
            update_dataset(data.dataset("cpu"), now_us=1)
        assert (data.dataset("cpu").store.exists("_replay"), max(read) > 4) == (kept, kept)
        committed.append([delta for _, delta in data.dataset("cpu").log.since(1)])
        assert verify_dataset(data.dataset("cpu")) == []
    assert committed[0] == committed[1]


def test_a_damaged_bookmark_leaves_the_history_empty(
    data: DataRoot, raw: RawStore, caplog: pytest.LogCaptureFixture
) -> None:
    """All deltas are added again after it."""
    raw.add(FIRST)
    raw.add(LATER)
    definition = DatasetDefinition.from_json({"name": "cpu", **CAUSE, "context": ["neighbours"]})
    log = StoredRunLog(ManifestLog(data.raw), lambda _: TRUSTED)
    bookmarks = changes.bookmarks_of(definition, data.dataset("cpu").store, log)
    causes = Causes(definition.selects)
    for _, delta in log.since(0):
        causes.add(delta)
    assert causes.of("zuul~1~1") == "machine"
    bookmarks.save(2, msgspec.msgpack.encode((causes.encode(), b"\xc1")))
    history = changes.History(definition, bookmarks=bookmarks)
    assert history.resume(2) == 0
    assert history.cause_of("zuul~1~1") == ""
    assert "the bookmark of the raw manifest cannot be read" in caplog.text
