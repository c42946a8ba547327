"""The watchdog's decisions: a table of observations and actions, and the tracker's sequences of observations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ciml.services.decide import JobStatus, Limits, Observation, ServiceProgress, Tracker, decide

LIMITS = Limits()
NOW = 100_000.0
#: A healthy job: submitted an hour ago, runs since, commits, with nothing to read.
WELL = Observation(NOW, job="running", submitted_s=NOW - 3600, running_s=NOW - 3590, committed=True)
#: One that was just submitted.
FRESH = Observation(NOW, job="running", submitted_s=NOW - 40, running_s=NOW - 20, behind=9, stuck_since_s=NOW - 100)

#: One that was submitted from a savepoint, and restarts.
UNREAD = Observation(NOW, job="restarting", how="bad state", submitted_s=NOW - 70, from_savepoint=True)
#: A healthy one that is to stop.
STOP = replace(WELL, wanted="stop", outage="Flink")


def like(seen: Observation, **changes: Any) -> Observation:
    return replace(seen, **changes)


@pytest.mark.parametrize(
    ("seen", "kind", "health", "why"),
    [
        # no job
        (Observation(NOW), "submit", "starting", "there is no job"),
        (Observation(NOW, job="over", how="it failed", ended_s=NOW), "submit", "starting", "it failed"),
        (Observation(NOW, job="over", how="x", ended_s=NOW - 1, failures=1), "carry_on", "starting", "try after 2 s"),
        (Observation(NOW, job="over", how="x", ended_s=NOW - 2, failures=1), "submit", "starting", "x"),
        (Observation(NOW, job="over", ended_s=NOW - 7, failures=3), "carry_on", "stalled", "next try after 8 s"),
        (Observation(NOW, job="over", ended_s=NOW - 119, failures=50), "carry_on", "stalled", "next try after 120 s"),
        (Observation(NOW, job="over", ended_s=NOW - 120, failures=50), "submit", "stalled", ""),
        # healthy
        (WELL, "carry_on", "running", ""),
        (like(WELL, behind=5, stuck_since_s=NOW - 1), "carry_on", "running", ""),
        # it never starts to read
        (FRESH, "carry_on", "starting", ""),
        (like(FRESH, running_s=NOW - 46), "replace", "stalled", "it has committed nothing for 46 s, with 9 messages"),
        (like(FRESH, running_s=NOW - 46, behind=0, stuck_since_s=None), "carry_on", "running", ""),
        (like(FRESH, running_s=NOW - 46, failures=1), "carry_on", "starting", ""),
        (like(FRESH, running_s=NOW - 91, failures=1), "replace", "stalled", "it has committed nothing for 91 s"),
        (like(FRESH, running_s=NOW - 899, stuck_since_s=NOW - 999, failures=9), "carry_on", "stalled", ""),
        (like(FRESH, running_s=NOW - 901, stuck_since_s=NOW - 901, failures=9), "replace", "stalled", "for 901 s"),
        # it has committed, and makes no progress
        (like(WELL, behind=5, stuck_since_s=NOW - 239), "carry_on", "running", ""),
        (like(WELL, behind=5, stuck_since_s=NOW - 241), "replace", "stalled", "a partition does not move for 241 s"),
        # starting
        (Observation(NOW, job="starting", submitted_s=NOW - 149), "carry_on", "starting", "submitted"),
        (Observation(NOW, job="starting", submitted_s=NOW - 151), "replace", "stalled", "it did not run within 150 s"),
        (Observation(NOW, job="starting", submitted_s=NOW - 151, failures=1), "carry_on", "starting", ""),
        (like(WELL, job="restarting", running_s=None, how="lost a TaskManager"), "carry_on", "starting", "lost a Task"),
        (
            like(WELL, job="restarting", running_s=None, behind=3, stuck_since_s=NOW - 241),
            "replace", "stalled", "does not move for 241 s",
        ),
        # it cannot read its savepoint
        (like(UNREAD, restarting_s=NOW - 59), "carry_on", "starting", "bad state"),
        (like(UNREAD, restarting_s=NOW - 60), "replace", "stalled", "for 60 s from its savepoint and never runs: bad"),
        (like(UNREAD, restarting_s=NOW - 60, from_savepoint=False), "carry_on", "starting", "bad state"),
        (like(UNREAD, restarting_s=NOW - 60, outage="Kafka is away"), "carry_on", "waiting", "Kafka is away"),
        # renewed
        (like(WELL, submitted_s=NOW - 6 * 3600 - 1), "replace", "running", "renewed after 6.0 h"),
        (like(WELL, checkpoint_bytes=5 << 19), "replace", "running", "renewed: its checkpoint has 2.5 MiB"),
        (like(WELL, checkpoint_bytes=3 << 19), "carry_on", "running", ""),
        (like(WELL, checkpoint_bytes=5 << 19, submitted_s=NOW - 899), "carry_on", "running", ""),
        # an outage: waited for without limit, in every state of the job
        (like(WELL, outage="Kafka is away", behind=5, stuck_since_s=NOW - 9e4), "carry_on", "waiting", "Kafka is away"),
        (Observation(NOW, job="over", outage="Kafka does not answer"), "carry_on", "waiting", "Kafka does not answer"),
        (Observation(NOW, outage="Flink", engine_away=True), "carry_on", "waiting", "Flink"),
        # a permanent error
        (like(WELL, fault="recreated"), "cancel", "failed", "recreated"),
        (like(WELL, fault="recreated", outage="Kafka", job="over"), "end", "failed", "recreated"),
        (like(WELL, fault="recreated", engine_away=True), "end", "failed", "recreated"),
        # stopped
        (like(WELL, wanted="stop", wanted_since_s=NOW), "cancel", "stopping", ""),
        (like(WELL, wanted="stop", job="starting", wanted_since_s=NOW), "cancel", "stopping", ""),
        (like(WELL, wanted="stop", job="over"), "end", "stopped", "as asked"),
        (like(WELL, wanted="stop", outage="Kafka", wanted_since_s=NOW), "cancel", "stopping", ""),
        (like(STOP, engine_away=True, wanted_since_s=NOW - 19), "carry_on", "stopping", "Flink"),
        (like(STOP, engine_away=True, wanted_since_s=NOW - 21), "end", "stopped", "keeps run"),
        # with a savepoint
        (like(WELL, wanted="savepoint", wanted_since_s=NOW), "savepoint", "stopping", ""),
        (like(WELL, wanted="savepoint", job="restarting", wanted_since_s=NOW), "carry_on", "stopping", "it has to run"),
        (like(WELL, wanted="savepoint", job="restarting", wanted_since_s=NOW - 91), "cancel", "stopping", ""),
        (like(WELL, wanted="savepoint", wanted_since_s=NOW - 91), "cancel", "stopping", ""),
        (like(WELL, wanted="savepoint", job="missing"), "end", "stopped", "as asked"),
    ],
)  # fmt: skip
def test_each_observation_has_its_action(seen: Observation, kind: str, health: str, why: str) -> None:
    action = decide(seen, LIMITS)
    assert (action.kind, action.health) == (kind, health), action
    assert why in action.why


def test_in_the_foreground_patience_and_replacements_end() -> None:
    limits = replace(LIMITS, patience_s=300.0, most_stalls=3)
    away = like(WELL, outage="Kafka is away", outage_since_s=NOW - 300)
    assert decide(away, limits).kind == "carry_on"
    assert decide(like(away, outage_since_s=NOW - 301), LIMITS).kind == "carry_on"  # a supervisor waits for ever
    ended = decide(like(away, outage_since_s=NOW - 301), limits)
    assert (ended.kind, ended.health, ended.why) == ("cancel", "failed", "Kafka is away")
    assert decide(like(away, outage_since_s=NOW - 301, engine_away=True), limits).kind == "end"
    assert decide(like(away, outage_since_s=None), limits).kind == "carry_on"  # no model is served
    stuck = like(FRESH, running_s=NOW - 901, stuck_since_s=NOW - 901)
    assert decide(like(stuck, failures=2), limits).kind == "replace"
    assert decide(like(stuck, failures=3), limits).kind == "cancel"
    assert decide(like(stuck, failures=3), LIMITS).kind == "replace"


def test_a_service_that_is_not_ready_uses_up_no_patience() -> None:
    tracker = Tracker()
    assert tracker.observe(1, "run", RUNS, None, outage="Kafka").outage_since_s == 1
    assert tracker.observe(5, "run", RUNS, None, outage="Kafka").outage_since_s == 1
    assert tracker.observe(6, "run", RUNS, None, outage="no model", unready=True).outage_since_s is None
    assert tracker.observe(7, "run", RUNS, covered(5, 9)).outage_since_s is None


RUNS = JobStatus("running")


def covered(position: int, end: int, version: int = 1, **more: Any) -> ServiceProgress:
    return ServiceProgress(version, {0: position}, {0: end - position}, **more)


def test_a_commit_advances_the_topic_not_only_the_manifest() -> None:
    tracker = Tracker()
    tracker.observe(0, "run", JobStatus("missing"), covered(5, 9))
    tracker.submitted(1)
    seen = tracker.observe(10, "run", RUNS, covered(5, 9, version=2))  # a backfill has committed
    assert (seen.committed, seen.running_s, seen.stuck_since_s, seen.behind) == (False, 10, 0, 4)
    seen = tracker.observe(20, "run", RUNS, covered(6, 9, version=3))
    assert (seen.committed, seen.running_s, seen.stuck_since_s, seen.behind) == (True, 10, 20, 3)
    seen = tracker.observe(30, "run", RUNS, covered(9, 9, version=4))
    assert (seen.behind, seen.stuck_since_s) == (0, None)
    seen = tracker.observe(90, "run", RUNS, covered(9, 10, version=4))
    assert (seen.behind, seen.stuck_since_s) == (1, 30)  # since the last observation without messages to read
    assert tracker.rate() == pytest.approx((9 - 6) / (90 - 20), rel=0.5)


def test_the_slowest_partition_counts() -> None:
    tracker = Tracker()
    for now, moving in ((0, 1), (100, 2), (241, 3)):
        seen = tracker.observe(now, "run", RUNS, ServiceProgress(now, {0: moving, 1: 7}, {0: 50, 1: 1}))
    assert (seen.stuck_since_s, seen.committed) == (0, True)
    tracker.observe(242, "run", RUNS, ServiceProgress(3, {0: 3, 1: 8}, {0: 50, 1: 0}))
    assert tracker.observe(243, "run", RUNS, ServiceProgress(3, {0: 3, 1: 8}, {0: 50, 1: 0})).stuck_since_s == 241


def test_logs_that_are_long_overdue_count_as_something_to_read() -> None:
    tracker = Tracker()
    tracker.observe(0, "run", RUNS, covered(9, 9))
    seen = tracker.observe(10, "run", RUNS, covered(9, 9, overdue_us=5))
    assert (seen.behind, seen.stuck_since_s) == (1, 10)
    assert tracker.observe(20, "run", RUNS, covered(9, 9, overdue_us=5)).stuck_since_s == 10
    assert tracker.observe(30, "run", RUNS, covered(9, 9, overdue_us=6)).stuck_since_s == 30
    assert tracker.observe(40, "run", RUNS, covered(9, 9)).stuck_since_s is None


def test_after_an_outage_all_time_limits_start_again() -> None:
    tracker = Tracker()
    tracker.observe(0, "run", RUNS, covered(5, 9))
    for now in (10, 500):
        assert tracker.observe(now, "run", RUNS, None, outage="Kafka").outage == "Kafka"
    seen = tracker.observe(1000, "run", RUNS, covered(5, 9))
    assert seen.stuck_since_s == 1000
    assert decide(seen, LIMITS).kind == "carry_on"


def test_fruitless_submissions_are_counted_until_one_commits() -> None:
    tracker = Tracker()
    tracker.observe(0, "run", JobStatus("missing"), covered(5, 9))
    for number, now in enumerate((0, 10, 20)):
        tracker.submitted(now)
        assert tracker.observation.failures == number
        assert tracker.observe(now + 1, "run", JobStatus("over", how="x"), covered(5, 9)).ended_s == now + 1
        assert tracker.observe(now + 2, "run", JobStatus("over", how="x"), covered(5, 9)).ended_s == now + 1
    tracker.observe(30, "run", RUNS, covered(6, 9))
    assert tracker.observation.failures == 0  # it has committed
    tracker.submitted(40)
    assert tracker.observation.failures == 0
    tracker.observe(41, "run", JobStatus("over"), covered(6, 9))
    tracker.submitted(50)
    assert tracker.observation.failures == 1
    tracker.observe(51, "run", RUNS, covered(9, 9))
    tracker.observe(51 + LIMITS.settled_s, "run", RUNS, covered(9, 9))
    assert tracker.observation.failures == 0  # nothing to read, and it has run for a while
    tracker.submitted(200)
    tracker.observe(201, "run", JobStatus("over"), covered(9, 10))
    tracker.submitted(202)
    assert tracker.observation.failures == 1
    tracker.observe(203, "run", JobStatus("over"), covered(10, 11))  # it committed and ended between two observations
    tracker.submitted(204)
    assert tracker.observation.failures == 0


def test_times_begin_with_the_first_observation() -> None:
    tracker = Tracker()
    assert tracker.observe(0, "run", RUNS, covered(5, 9)).running_s == 0
    assert tracker.observe(5, "run", JobStatus("restarting"), covered(5, 9)).running_s is None
    seen = tracker.observe(9, "run", RUNS, covered(5, 9))
    assert (seen.running_s, seen.wanted_since_s) == (9, 0)
    assert tracker.observe(15, "savepoint", RUNS, covered(5, 9)).wanted_since_s == 15
    assert tracker.observe(19, "savepoint", None, None, outage="Flink").wanted_since_s == 15
