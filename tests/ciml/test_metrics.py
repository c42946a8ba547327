"""Metrics of the raw manifest: what they count, what outlives a replay and a checkpoint, and the bounds of labels."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from ciml.digest import canonical_json
from ciml.errors import EngineError, IntegrityError
from ciml.events.records import UNJUDGED, Batch, OffsetRange, Origin, Outcome, OutputFile, RawFile, RunFacts, Trust
from ciml.manifest.id_index import IdTable, PartFiles
from ciml.metrics import Board, Family, metric, registry_of, serve_metrics
from ciml.runs.accounting import reconcile
from ciml.runs.known_ids import TABLES
from ciml.runs.state import MOST_SOURCES, NO_SOURCE, OTHER_SOURCES, RawState
from ciml.services.ingest import raw_families
from ciml.storage import LocalStore
from ciml.version import __version__, commit
from tests.scraping import Samples, collected, scrape


def outcome(offset: int, source: str, kind: str, reason: str = "", **more: object) -> Outcome:
    run_id = f"{source}~{offset}~1"
    facts = RunFacts(run_id, str(offset), "job", outcome="success", source=source) if source else None
    file = RawFile(f"runs/{offset}", f"digest-{offset}", 1, 1) if kind == "run" else None
    trust = Trust(offset % 2 == 0, "gated" if offset % 2 == 0 else "otherwise", "p") if facts else UNJUDGED
    made = Outcome(kind, Origin("t", 0, offset), f"e{offset}", facts, reason, trust=trust, file=file)  # type: ignore[arg-type]
    return made.replace(**more)


def state_of(*deliveries: Batch) -> RawState:
    state = RawState()
    for batch in deliveries:
        delta = reconcile(state, [batch], 7_000_000)
        assert delta is not None
        state.apply(state.version + 1, {**delta, "version": state.version + 1})
    return state


def messages(*outcomes: Outcome) -> Batch:
    offsets = [each.origin.offset for each in outcomes]
    return Batch(OffsetRange("t", "T", 0, min(offsets), max(offsets) + 1), settled=list(outcomes))


def shown(state: RawState) -> Samples:
    board = Board()
    board.put("raw", raw_families(state))
    return collected(board)


def mixed(*, with_outputs: bool = False) -> RawState:
    output = OutputFile("p", "d", size=100, lines=9, dropped_bytes=40) if with_outputs else None
    late = outcome(3, "b", "deferred", "log_not_found", not_before_us=90_000_000)
    return state_of(
        messages(
            outcome(0, "a", "run", output=output), outcome(1, "a", "run"),
            outcome(2, "b", "ignored", "cancelled"), late,
            outcome(4, "a", "dead_letter", "corrupt_gzip", payload={}), outcome(5, "", "dead_letter", "tombstone"),
            outcome(6, "b", "dead_letter", "corrupt_gzip", payload={}),
        )
    )  # fmt: skip


def test_each_settled_one_is_counted_by_source_and_outcome() -> None:
    found = shown(mixed())
    assert not any("~" in value for samples in found.values() for labels in samples for value in labels)  # no run id
    assert found["ciml_events_total"] == {
        ("run", "a"): 2, ("ignored", "b"): 1, ("dead_letter", "a"): 1, ("dead_letter", "b"): 1,
        ("dead_letter", NO_SOURCE): 1,
    }  # fmt: skip
    assert found["ciml_runs_total"] == {("gated", "true"): 1, ("otherwise", "false"): 1}
    assert found["ciml_ignored_total"] == {("cancelled",): 1}
    assert (
        found["ciml_dead_letter_total"] == found["ciml_dead_letters_open"] == {("corrupt_gzip",): 2, ("tombstone",): 1}
    )
    assert found["ciml_deferred_logs"] == {("log_not_found",): 1}
    assert found["ciml_deferred_next_try_timestamp_seconds"] == {(): 90.0}
    assert found["ciml_manifest_commit_timestamp_seconds"] == {("raw",): 7.0}
    assert found["ciml_manifest_version"] == {("raw",): 1}


def test_closed_records_stay_counted() -> None:
    """Settle a deferred log and replay a dead letter: totals only grow, open counts shrink."""
    state = mixed()
    settled = [outcome(3, "b", "run", attempts=2), outcome(4, "a", "run", attempts=2)]
    delta = reconcile(state, [Batch(None, settled=settled)], 8_000_000)
    assert delta is not None
    state.apply(2, {**delta, "version": 2})
    found = shown(state)
    counts = [found["ciml_events_total"][key] for key in (("run", "a"), ("run", "b"), ("dead_letter", "a"))]
    assert counts == [3, 1, 1]
    assert found["ciml_dead_letter_total"] == {("corrupt_gzip",): 2, ("tombstone",): 1}
    assert found["ciml_dead_letters_open"] == {("corrupt_gzip",): 1, ("tombstone",): 1}
    assert "ciml_deferred_logs" not in found
    assert "ciml_deferred_next_try_timestamp_seconds" not in found
    # all outcomes, and the closed dead letters
    assert sum(found["ciml_events_total"].values()) == state.counts.total() + 1


def test_outputs_are_counted_by_what_became_of_them() -> None:
    stored = OutputFile("p", "d", size=100, lines=9, head_lines=2, dropped_lines=3, dropped_bytes=40)
    outputs = [stored, stored, OutputFile(missing="log_not_found"), None]
    rows = [outcome(number, "a", "run", output=output) for number, output in enumerate(outputs)]
    found = shown(state_of(messages(*rows[:2]), messages(*rows[2:])))
    assert found["ciml_outputs_total"] == {("stored",): 2, ("log_not_found",): 1}
    assert found["ciml_output_bytes_total"] == {(): 200}
    assert found["ciml_output_dropped_bytes_total"] == {(): 80}


def test_any_number_of_sources_makes_few_series() -> None:
    events = [outcome(number, f"s{number}", "ignored", "cancelled") for number in range(3 * MOST_SOURCES)]
    state = state_of(*(messages(*events[at : at + 7]) for at in range(0, len(events), 7)))
    again = state_of(*(messages(*events[at : at + 50]) for at in range(0, len(events), 50)))
    found = shown(state)["ciml_events_total"]
    assert found == shown(again)["ciml_events_total"]  # for any commits
    assert found.pop(("ignored", OTHER_SOURCES)) == 2 * MOST_SOURCES
    assert found == {("ignored", f"s{number}"): 1 for number in range(MOST_SOURCES)}


def test_a_checkpoint_keeps_the_totals(tmp_path: Path) -> None:
    state, files = mixed(with_outputs=True), PartFiles(LocalStore(tmp_path), "index")
    tables = {name: IdTable(kind, (), files) for name, kind in TABLES.items()}
    value = json.loads(canonical_json(state.snapshot()))
    before, after = shown(state), shown(RawState.restored_from(1, value, tables))
    ages = [found.pop("ciml_manifest_deltas_since_checkpoint") for found in (before, after)]
    assert ages == [{("raw",): 1}, {("raw",): 0}]
    assert after == before
    del value["recorded"]
    with pytest.raises(IntegrityError, match="of an older ciml"):
        RawState.restored_from(1, value, tables)


def test_the_endpoint_serves_the_board_and_keeps_its_port() -> None:
    board = Board()
    board.put("raw", raw_families(mixed()))
    with serve_metrics(registry_of(board), 0) as url:
        found = scrape(url)
        assert found["ciml_runs_total"] == {("gated", "true"): 1, ("otherwise", "false"): 1}
        assert found["ciml_build_info"].keys() == {(commit() or "", __version__)}
        assert found["process_resident_memory_bytes"][()] > 2**20
        assert scrape(url)["ciml_runs_total"] == found["ciml_runs_total"]
        port = int(url.rpartition(":")[2].removesuffix("/metrics"))
        error = rf"cannot listen on 127\.0\.0\.1:{port}: .*; choose another --metrics-port"
        with pytest.raises(EngineError, match=error), serve_metrics(registry_of(board), port):
            pass
    with socket.socket() as one, pytest.raises(OSError, match="refused"):
        one.connect(("127.0.0.1", port))
    with serve_metrics(registry_of(board), None) as none:
        assert none == ""


def test_an_unknown_value_is_none_and_a_read_has_its_time() -> None:
    board = Board()
    board.put_observed(raw_families(RawState()))
    values = collected(board)
    assert values.get("ciml_deferred_next_try_timestamp_seconds", {}) == {}
    assert values["ciml_last_look_timestamp_seconds"][()] == pytest.approx(time.time(), abs=60)


def test_a_gauge_of_this_process_is_in_its_registry_alone() -> None:
    registry = CollectorRegistry()
    metric("ciml_events_total").gauge(registry)
    assert [family.name for family in registry.collect()] == ["ciml_events_total"]
    assert all(family.name != "ciml_events_total" for family in REGISTRY.collect())


def test_the_buckets_of_a_histogram_are_cumulative() -> None:
    board = Board()
    board.put("x", [metric("ciml_feedback_seconds", (1.0, 5.0)).distribution({("a",): ([2, 3, 4], 99.5)})])
    values = collected(board)
    assert values["ciml_feedback_seconds_bucket"] == {("1.0", "a"): 2, ("5.0", "a"): 5, ("+Inf", "a"): 9}
    assert (values["ciml_feedback_seconds_count"], values["ciml_feedback_seconds_sum"]) == ({("a",): 9}, {("a",): 99.5})


def test_the_endpoint_has_a_limited_number_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ciml.metrics.MAX_METRICS_CONNECTIONS", 2)
    with serve_metrics(registry_of(Board()), 0) as url, ExitStack() as stack:
        address = ("127.0.0.1", int(url.rpartition(":")[2].removesuffix("/metrics")))
        idle = [stack.enter_context(socket.create_connection(address)) for _ in range(2)]
        for connection in idle:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert scrape(url)
        assert select.select(idle, [], [], 30.0)[0], "no idle connection made room"


def test_a_failed_scrape_logs_one_line_and_the_next_one_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Board):
        error: Exception | None = None

        def collect(self) -> Iterator[Family]:
            if self.error is not None:
                raise self.error
            return super().collect()

    board = Failing()
    with serve_metrics(registry_of(board), 0) as url:
        board.error = ValueError("a file of a worker is cut off")
        with pytest.raises(HTTPError, match="500"):
            scrape(url)
        board.error = None
        assert scrape(url)
    (record,) = [record for record in caplog.records if record.name.startswith("ciml")]
    assert record.getMessage() == "a scrape of the metrics failed: ValueError: a file of a worker is cut off"
    assert record.exc_info is None
