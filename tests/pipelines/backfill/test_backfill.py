"""Backfill: whatever runs it and whatever dies, each line is settled once, and a run is what it is by events."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.events.cloudevents import finished_event
from ciml.events.listing import Listing, Reading, open_listing
from ciml.events.payloads import message_of
from ciml.events.run_facts import facts_from_listing
from ciml.pipelines import processor
from ciml.pipelines.backfill.backfill import backfill, plan_backfill
from ciml.pipelines.backfill.plan import Tally, Work
from ciml.pipelines.backfill.survey import survey
from ciml.pipelines.backfill.work_queue import WorkQueue
from ciml.runs.verify import verify_raw
from ciml.transforms.beam import run_here
from ciml.transforms.fetch.policy import FetchPolicy
from tests.durable import Steps, each_step
from tests.pipelines.backfill.backfilling import Listed, config, corpus_lines, listed, rows_of
from tests.pipelines.ingest.ingesting import Place, account, raw_rows


def run(made: Listed, data: Path, **how: Any) -> Tally:
    changes = how.pop("changes", {})
    return backfill(made.config(data, **changes), open_listing(str(made.path)), **how)


def test_each_line_is_settled_once_directly(tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=60)
    tallies: list[int] = []
    tally = run(made, tmp_path / "data", changes={"commit_lines": 20}, report=lambda t: tallies.append(t.settled))
    rows_of(made, tmp_path / "data")
    assert tally.complete
    assert tally.counts == made.expected
    assert (tally.lines, tally.before, tally.handled, tally.settled) == (75, 0, 75, 75)
    assert tallies == sorted(tallies)
    again = run(made, tmp_path / "data")
    assert (again.before, again.handled, again.counts, again.complete) == (75, 0, {}, True)
    state, deltas = account(DataRoot.open(tmp_path / "data").raw)
    assert state.version == 1  # one block: it is committed once
    dead_letters = [dead_letter for delta in deltas for dead_letter in delta["dead_letters"]]
    for dead_letter in dead_letters:  # each holds its line
        number = dead_letter["origin"][2]
        message = message_of(dead_letter["payload"], number)
        assert message.value == made.lines[number]
        assert Reading.of(message.headers) == Reading("backfill", "zuul", str(made.folder))
    assert {("broken_json", ""), ("log_not_found", "zuul~gone~1"), ("bad_field", "zuul~%2E.%2Fx~1")} <= {
        (dead_letter["reason"], dead_letter.get("mention", {}).get("run_id", "")) for dead_letter in dead_letters
    }


def stream(made: Listed, folder: Path, pipeline: str = "gate") -> Place:
    """Take the good lines of a listing as events of the CI system zuul, into ``folder/data``."""
    place = Place(folder)
    events = []
    for line in made.lines:
        with suppress(Exception):  # the odd ones
            facts = facts_from_listing(json.loads(line), "https://zuul.example.org", str(made.folder), "zuul")
            if facts.run_id in made.runs and facts.outcome == "success":
                events.append(finished_event(facts.replace(event="gate", pipeline=pipeline)))
    fetch = FetchPolicy(file_roots=(str(made.folder),))
    place.take(*events, fetch=fetch, names={"https://zuul.example.org": "zuul"})
    return place


def test_beam_and_events_give_the_same_rows(tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=60)
    run(made, tmp_path / "direct")
    direct = rows_of(made, tmp_path / "direct")
    tally = run(made, tmp_path / "beam", runner="fnapi")
    assert (tally.complete, tally.counts) == (True, made.expected)
    assert rows_of(made, tmp_path / "beam") == direct
    streamed = raw_rows(account(stream(made, tmp_path / "streamed").raw)[1])
    assert {run_id: file.digest for run_id, file in streamed.items()} == direct


def test_a_run_that_comes_by_both_ways_is_one_row(tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=12, tricks=False)
    place = stream(made, tmp_path)
    rows = raw_rows(account(place.raw)[1])
    assert rows.keys() == made.runs
    # The listing knows better of one run, and of another that its log is another one.
    lines = [json.loads(line) for line in made.lines]
    lines[3]["result"] = "TIMED_OUT"
    lines[5]["log_path"] = lines[6]["log_path"]
    made.lines = [json.dumps(line).encode() for line in lines]
    tally = run(made, tmp_path / "data")
    assert tally.counts == {("repeat", "run"): 10, ("correction", "outcome"): 1, ("repeat", "other_log"): 1}
    state, deltas = account(place.raw)
    assert raw_rows(deltas) == rows
    assert state.index.run(f"zuul~{lines[3]['build_uuid']}~1").outcome == "timeout"  # type: ignore[union-attr]


def test_a_trusted_listing_reclaims_the_runs_of_untrusted_events(tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=6, tricks=False)
    place = stream(made, tmp_path, pipeline="check")
    assert run(made, tmp_path / "data", changes={"skip_known": True}).counts == {("reclaim", ""): 6}
    state, deltas = account(place.raw)
    assert state.trust == {(False, "no rule"): 6, (True, "listing"): 6}
    assert {row["mention"]["run_id"] for delta in deltas for row in delta.get("reclaims", ())} == made.runs
    assert verify_raw(place.raw).findings == []


@pytest.mark.parametrize("runner", [None, "fnapi"])
def test_jobs_and_limits_leave_the_other_lines_for_another_time(tmp_path: Path, runner: str | None) -> None:
    made = listed(tmp_path / "logs", runs=60, tricks=False)
    jobs = [json.loads(line)["build_name"] for line in made.lines]
    job = max(jobs, key=jobs.count)
    listing = open_listing(str(made.path))
    data = tmp_path / "data"
    some = backfill(made.config(data, selection=(job,), limit=2), listing, runner=runner)
    assert (some.counts, some.handled) == ({("run", ""): 2}, 60)
    rest = backfill(made.config(data, selection=(f"{job[:-1]}?",)), listing, runner=runner)
    assert rest.counts == {("run", ""): jobs.count(job) - 2}
    one = backfill(made.config(data, limit=1), listing, runner=runner)
    assert one.counts == {("run", ""): 1}
    backfill(made.config(data), listing, runner=runner)
    rows_of(made, data)


def test_a_survey_says_what_would_come(tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=60)
    listing, ours = open_listing(str(made.path)), made.config(tmp_path / "data")
    found = survey(ours, listing)
    assert not (tmp_path / "data").exists()
    fetched = sum(n for (kind, reason), n in made.expected.items() if kind in ("run", "repeat", "correction"))
    later = ("address_not_allowed", "log_not_found", "corrupt_gzip")
    fetched += sum(made.expected["dead_letter", reason] for reason in later)
    assert sum(found.take.values()) == fetched
    assert found.trust == {(True, "listing"): fetched}
    assert found.ignored == {"cancelled": 1, "node_lost": 1}
    assert found.bad == {
        reason: n for (kind, reason), n in made.expected.items() if kind == "dead_letter" and reason not in later
    }
    assert (found.lines, found.settled, found.blank, found.known, found.others) == (75, 0, 1, 0, 0)
    assert found.faults[0][:2] == (5, "broken_json")
    backfill(made.config(tmp_path / "data", limit=10), listing)
    after = survey(replace(ours, limit=20), listing)
    assert (after.settled, after.others, after.known) == (10, 75 - 30, 0)
    other = survey(replace(ours, reading=replace(ours.reading, source="found-somewhere")), listing)
    assert {trusted for trusted, _ in other.trust} == {False}


def test_a_wrong_folder_is_noticed_before_anything_is_settled(tmp_path: Path) -> None:
    few = listed(tmp_path / "few", runs=9, tricks=False)  # so many missing logs may be a coincidence
    tally = backfill(config(tmp_path, tmp_path / "other"), open_listing(str(few.path)))
    assert tally.counts == {("dead_letter", "log_not_found"): 9}
    made = listed(tmp_path / "logs", runs=10, tricks=False)
    wrong = config(tmp_path, tmp_path / "data")
    with pytest.raises(CimlError, match=r"none of the first 10 logs exists .* check --logs"):
        backfill(wrong, open_listing(str(made.path)))
    assert account(DataRoot.open(tmp_path / "data").raw)[0].version == 0
    tally = backfill(replace(wrong, take_missing=True), open_listing(str(made.path)))
    assert tally.counts == {("dead_letter", "log_not_found"): 10}


def test_work_is_committed_in_order_as_soon_as_it_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ciml.events.listing.BLOCK_LINES", 5)
    made = listed(tmp_path / "logs", runs=40, tricks=False)
    run(made, tmp_path / "data", changes={"commit_lines": 10, "commit_s": 600.0})
    deltas = account(DataRoot.open(tmp_path / "data").raw)[1]
    ranges = [topic["partitions"]["0"] for delta in deltas for topic in delta["offsets"].values()]
    assert ranges == [[[start, start + 10]] for start in range(0, 40, 10)]
    ours = made.config(tmp_path / "other", commit_lines=10, commit_s=600.0)
    listing = open_listing(str(made.path))
    versions: list[int] = []  # after each commit
    queue = WorkQueue(ours, listing, lambda: versions.append(account(ours.raw)[0].version))
    for block in listing.blocks:
        queue.put(Work(block, ((block.start, block.end),)))
    queue.end()
    assert versions == [1, 2, 3, 4]
    files = psutil.Process().num_fds()
    known = survey(made.config(tmp_path / "data"), open_listing(str(grown(made).path)), check_logs=True)
    assert (known.known, known.missing, sum(known.take.values())) == (40, [], 45)
    assert psutil.Process().num_fds() <= files + 2  # the listing, and not each log


def grown(made: Listed) -> Listed:
    """The same listing with five further lines, whose logs exist."""
    lines = [{**line, "build_uuid": f"{line['build_uuid']}.more"} for line in corpus_lines(5)]
    return Listed(made.folder, [*made.lines, *(json.dumps(line).encode() for line in lines)])


def test_logs_that_are_too_large_together_are_all_read(tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=20, tricks=False)
    fetch = FetchPolicy(file_roots=(str(made.folder),), max_bytes=30_000, max_batch_bytes=30_000)
    tally = run(made, tmp_path / "data", changes={"fetch": fetch})
    assert tally.counts.keys() <= {("run", ""), ("dead_letter", "log_too_large")}
    assert tally.counts.total() == 20
    run(made, tmp_path / "whole")
    assert tally.counts["run", ""] > 10
    ours, whole = (raw_rows(account(DataRoot.open(tmp_path / name).raw)[1]) for name in ("data", "whole"))
    assert ours.items() <= whole.items()


def test_a_stopped_backfill_continues_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ciml.events.listing.BLOCK_LINES", 5)
    made = listed(tmp_path / "logs", runs=60)
    stop = threading.Event()

    def report(tally: Tally) -> None:
        if tally.settled >= 10:
            stop.set()

    first = run(made, tmp_path / "data", changes={"commit_lines": 5}, stop=stop, report=report)
    assert not first.complete
    assert 10 <= first.settled < first.lines
    second = run(made, tmp_path / "data")
    assert (second.before, second.handled, second.complete) == (first.settled, 75 - first.settled, True)
    assert first.counts + second.counts == made.expected
    rows_of(made, tmp_path / "data")


def test_a_backfill_that_dies_before_any_step_continues_by_the_manifest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objects of a block are created before its commit. Another backfill at the same time changes nothing."""
    monkeypatch.setattr("ciml.events.listing.BLOCK_LINES", 5)
    made = listed(tmp_path / "logs", runs=8)
    whole = tmp_path / "whole"
    with Steps(str(whole)).recording() as steps:
        run(made, whole, changes={"commit_lines": 5})
    commits = [number for number, step in enumerate(steps.steps) if step.startswith("append raw")]
    assert (len(commits), commits[-1]) == (2, len(steps.steps) - 1)
    expected = rows_of(made, whole)
    for other in (False, True):
        for index in each_step(len(steps.steps), few=True):
            data = tmp_path / f"{other}-{index}"
            event = partial(run, made, data) if other else None
            with Steps(str(data), index, event).recording():
                run(made, data, changes={"commit_lines": 5})
            processor._replicas._objects.clear()  # as in another process
            run(made, data)
            assert rows_of(made, data) == expected


def test_a_listing_that_changes_under_a_worker_stops_it(tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=2, tricks=False)
    listing: Listing = open_listing(str(made.path))
    made.lines[1] = json.dumps({**corpus_lines(2)[1], "result": "FAILURE"}).encode()
    assert made.path
    for runner in (None, "fnapi"):
        with pytest.raises(CimlError, match="changed while it was read"):
            backfill(made.config(tmp_path / "data"), listing, runner=runner)


def test_a_planned_pipeline_settles_each_line_once(tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=24)
    some = made.config(tmp_path / "data", limit=10)
    backfill(some, open_listing(str(made.path)))
    ours = made.config(tmp_path / "data")
    planned = plan_backfill(ours, open_listing(str(made.path)))
    assert planned.lines == len(made.lines) - 10
    run_here(planned.build)
    rows = rows_of(made, tmp_path / "data")
    run_here(planned.build)  # as a template that is run again
    assert rows_of(made, tmp_path / "data") == rows
    nothing = plan_backfill(ours, open_listing(str(made.path)))
    assert (nothing.works, nothing.lines) == ((), 0)
