"""The outputs of runs are stored with them; an output that is missing, broken or hostile affects nothing but itself."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import EngineError
from ciml.events.records import Batch, Outcome, OutputFile, PendingRun
from ciml.runs.outputs import read_output
from ciml.storage import Store, open_store
from ciml.transforms.fetch.policy import LOG_PATHS, OUTPUT_PATHS, FetchPolicy
from ciml.transforms.ingest import outputs as module
from ciml.transforms.ingest.run_stages import settle, take_logs
from ciml.trust import TrustPolicy
from tests.pipelines.backfill.tables import log_of
from tests.transforms.fetch.fetching import NOW, allow, pending
from tests.transforms.fetch.log_server import LogServer, bomb, serving

LOG = log_of(1)
TEXT = b"collecting\ntoken=hunter2\n1 failed\n"
STORED = b"collecting\ntoken=REDACTED\n1 failed\n"


@pytest.fixture
def server() -> Iterator[LogServer]:
    with serving() as server:
        server.answers["/log"] = (200, LOG, {})
        yield server


@pytest.fixture
def raw(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "raw"))


def folder(server: LogServer, name: str = "run") -> str:
    """A folder with a log."""
    server.answers[f"/{name}/{LOG_PATHS[0]}"] = (200, LOG, {})
    return f"{server.url}/{name}/"


def take(policy: FetchPolicy, raw: Store, *runs: PendingRun) -> list[Outcome]:
    settled = take_logs(Batch(None, pending_runs=list(runs)), policy, raw, NOW).settled
    assert [outcome.kind for outcome in settled] == ["run"] * len(runs)
    return settled


def text_of(raw: Store, outcome: Outcome) -> bytes | str:
    assert outcome.mention is not None
    assert outcome.file is not None
    read = read_output(raw, outcome.output)
    return read if isinstance(read, str) else read.data


@pytest.mark.parametrize("path", OUTPUT_PATHS)
def test_the_output_is_next_to_the_log(server: LogServer, raw: Store, path: str) -> None:
    url = folder(server)
    server.answers[f"/run/{path}"] = (200, gzip.compress(TEXT) if path.endswith(".gz") else TEXT, {})
    (outcome,) = take(allow(server), raw, pending(url))
    assert text_of(raw, outcome) == STORED
    assert outcome.output is not None
    assert outcome.output.name == path.removesuffix(".gz")
    assert list(server.asked)[1:] == [f"/run/{each}" for each in OUTPUT_PATHS[: OUTPUT_PATHS.index(path) + 1]]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, b"", {}), "log_not_found"),
        ((403, b"", {}), "log_forbidden"),
        ((500, b"", {}), "log_unavailable"),
        ((200, TEXT[:5], {"Content-Length": "99"}), "log_cut"),
        ((200, gzip.compress(TEXT)[:-5], {}), "corrupt_gzip"),
        ((200, TEXT, {"Content-Length": str(2 << 30)}), "log_too_large"),
        ((200, TEXT, {"Content-Encoding": "br"}), "log_encoding"),
        ((302, b"", {"Location": "https://elsewhere.test/"}), "address_not_allowed"),
    ],
)
def test_a_row_says_why_its_output_is_missing(server: LogServer, raw: Store, answer: Any, reason: str) -> None:
    url = folder(server)
    server.answers[f"/run/{OUTPUT_PATHS[0]}"] = answer
    (outcome,) = take(allow(server), raw, pending(url))
    assert outcome.output == OutputFile(missing=reason)
    assert text_of(raw, outcome) == reason
    assert not raw.list("outputs")


def test_a_bomb_is_an_output_that_is_too_large(server: LogServer, raw: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ciml.transforms.logs.prepare.MAX_OUTPUT_UNPACKED_BYTES", 8 << 20)
    url = folder(server)
    server.answers[f"/run/{OUTPUT_PATHS[0]}"] = (200, bomb(16 << 20), {})
    (outcome,) = take(allow(server), raw, pending(url))
    assert outcome.output == OutputFile(missing="log_too_large")


def test_runs_with_the_address_of_a_file_have_no_output(server: LogServer, raw: Store) -> None:
    (outcome,) = take(allow(server), raw, pending(f"{server.url}/log"))
    assert (outcome.output, list(server.asked)) == (None, ["/log"])
    assert "output" not in outcome.to_json()


@pytest.mark.parametrize(
    ("without", "is_taken"),
    [("*", False), ("zuul", False), ("zuul/org/*", False), ("zuul/other", True), ("git*", True)],
)
def test_outputs_are_turned_off_by_source_and_project(
    server: LogServer, raw: Store, without: str, is_taken: bool
) -> None:
    url = folder(server)
    server.answers[f"/run/{OUTPUT_PATHS[0]}"] = (200, TEXT, {})
    run = pending(url)
    run.mention = run.mention.replace(project="org/app")
    (outcome,) = take(allow(server, without_output=(without,)), raw, run)
    assert (outcome.output is not None) is is_taken
    assert len(server.asked) == 1 + is_taken


def test_an_input_may_name_the_output(server: LogServer, raw: Store) -> None:
    server.answers["/elsewhere"] = (200, TEXT, {})
    run = pending(f"{server.url}/log", output_address=f"{server.url}/elsewhere")
    bad = pending(f"{server.url}/log", number=1, output_address="https://elsewhere.test/")
    good, rejected = take(allow(server), raw, run, bad)
    assert text_of(raw, good) == STORED
    assert rejected.output == OutputFile(missing="address_not_allowed")


def test_outputs_of_files_and_listings(raw: Store, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / LOG_PATHS[1]).write_bytes(LOG)
    (tmp_path / "logs" / "a" / OUTPUT_PATHS[1]).write_bytes(TEXT)
    policy = FetchPolicy(file_roots=(str(tmp_path / "logs"),))
    runs = [pending(f"{tmp_path}/logs/{name}/", number=number) for number, name in enumerate("ab")]
    (batch,) = settle([Batch(None, pending_runs=runs)], TrustPolicy.load(), policy, raw)
    first, second = batch.settled
    assert text_of(raw, first) == STORED
    assert second.output == OutputFile(missing="log_not_found")


def test_repeats_of_an_event_share_an_output(server: LogServer, raw: Store) -> None:
    url = folder(server)
    server.answers[f"/run/{OUTPUT_PATHS[0]}"] = (200, TEXT, {})
    runs = [pending(url, number=1) for _ in range(3)]
    outcomes = take(allow(server), raw, *runs)
    assert server.asked[f"/run/{OUTPUT_PATHS[0]}"] == 1
    assert len({outcome.output for outcome in outcomes}) == 1
    assert len(raw.list("outputs")) == 2


def test_an_unexpected_error_is_the_reason_of_one_output(
    server: LogServer, raw: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(outputs: Any) -> Any:
        prepared = prepare_small(outputs)
        return 1 / 0 if any(each.file.lines > 10 for each in prepared) else prepared

    prepare_small = module.prepare_small
    monkeypatch.setattr(module, "prepare_small", prepare)
    urls = [folder(server, name) for name in ("a", "b")]
    server.answers[f"/a/{OUTPUT_PATHS[0]}"] = (200, TEXT * 10, {})
    server.answers[f"/b/{OUTPUT_PATHS[0]}"] = (200, TEXT, {})
    broken, good = take(allow(server), raw, *(pending(url, number=number) for number, url in enumerate(urls)))
    assert broken.output == OutputFile(missing="internal_error")
    assert text_of(raw, good) == STORED


@pytest.mark.parametrize("large_bytes", [1, 1 << 20])
def test_a_store_that_does_not_answer_is_no_fault_of_an_output(
    server: LogServer, raw: Store, monkeypatch: pytest.MonkeyPatch, large_bytes: int
) -> None:
    def fail(*_: Any) -> OutputFile:
        raise EngineError("the store does not answer")

    monkeypatch.setattr(module, "store_output", fail)
    for limit in ("LARGE_OUTPUT_BYTES", "SMALL_OUTPUT_BYTES"):
        monkeypatch.setattr(module, limit, large_bytes)
    url = folder(server)
    server.answers[f"/run/{OUTPUT_PATHS[0]}"] = (200, TEXT, {})
    with pytest.raises(EngineError):
        take(allow(server), raw, pending(url))
    assert not module._large_output_lock.locked()  # the next large output has its turn


def test_no_output_is_started_after_the_time_of_the_batch(server: LogServer, raw: Store) -> None:
    url = folder(server)
    server.answers[f"/run/{OUTPUT_PATHS[0]}"] = (200, TEXT, {})
    stored = take(allow(server, without_output=("*",)), raw, pending(url))
    by_key = {(stored[0].origin, stored[0].run_id): pending(url)}
    (outcome,) = module.with_outputs(stored, by_key, allow(server), raw, -1.0)
    assert outcome.output == OutputFile(missing="batch_full")


def test_large_outputs_are_prepared_one_at_a_time(
    server: LogServer, raw: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    in_work = 0
    lock = threading.Lock()
    store_output = module.store_output

    def store(*arguments: Any) -> OutputFile:
        nonlocal most, in_work
        with lock:
            in_work += 1
            most = max(most, in_work)
        try:
            threading.Event().wait(0.05)
            return store_output(*arguments)
        finally:
            with lock:
                in_work -= 1

    monkeypatch.setattr(module, "store_output", store)
    monkeypatch.setattr(module, "LARGE_OUTPUT_BYTES", 1)
    monkeypatch.setattr(module, "SMALL_OUTPUT_BYTES", 1)
    urls = [folder(server, f"run{number}") for number in range(4)]
    for number in range(4):
        server.answers[f"/run{number}/{OUTPUT_PATHS[0]}"] = (200, TEXT, {})
    outcomes = take(allow(server), raw, *(pending(url, number=number) for number, url in enumerate(urls)))
    assert [text_of(raw, outcome) for outcome in outcomes] == [STORED] * 4
    assert most == 1
