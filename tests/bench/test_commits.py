"""What a commit, a start and the upkeep of a manifest cost with many ids known. Printed; run by `make bench`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ciml.events.records import Batch, OffsetRange, Origin, Outcome, RawFile, RunFacts, Trust
from ciml.manifest.checkpoints import Checkpoint, Checkpoints
from ciml.manifest.id_index import IdTable, PartFiles, Rows, Run
from ciml.manifest.log import ManifestLog
from ciml.manifest.segments import Segment
from ciml.pipelines.ingest.committer import Committer
from ciml.runs.accounting import reconcile
from ciml.runs.known_ids import TABLES, KnownRun
from ciml.runs.state import RAW, RawState
from ciml.storage import LocalStore, Store, open_store

pytestmark = pytest.mark.bench

RUNS_A_COMMIT = 50


def history(raw: Store, runs: int, cache: Path | None = None) -> None:
    """A manifest with a checkpoint that knows as many runs, and three times as many events.

    Its index has the shape that merges give it: sorted runs of levels up to where all fits.
    """
    log = ManifestLog(raw)
    files = PartFiles(raw, f"{log.folder}/index", cache)
    random = np.random.default_rng(runs)
    tables = {}
    for name, count in (("events", 3 * runs), ("runs", runs), ("letters", 0)):
        table = IdTable(TABLES[name], (), files)
        for level, size in cut(count):
            parts, pieces = [], max(1, -(-size // 900_000))
            for piece in range(pieces):
                rows = size // pieces
                width = (1 << 64) // pieces
                high = np.sort(random.integers(0, width - 1, rows, np.uint64)) + np.uint64(piece * width)
                values = {}
                if name == "runs":
                    digests = pa.array([b"\0" + random.bytes(32) for _ in range(rows)], pa.binary())
                    values = {"outcome": pa.array(np.ones(rows, np.uint8)), "digest": digests}
                low = random.integers(0, 1 << 63, rows, np.uint64)
                parts.append(files.write(Rows(pa.RecordBatch.from_pydict({"high": high, "low": low, **values}))))
            table = IdTable(TABLES[name], [*table.runs, Run(level, tuple(parts))], files)
        tables[name] = table.runs
    delta = {name: [] for name in ("runs", "repeats", "corrections", "ignored", "dead_letters", "deferred", "closes")}
    assert log.try_append(1, {"time_us": 1, "offsets": {}, **delta})
    segment = Segment(1, 1, "", (raw.read(log.path(1)),))
    raw.create(log.archive.path(1), segment.encode())
    state = {**RawState().snapshot(), "runs": runs, "counts": [["repeat", "run", 2 * runs], ["run", "", runs]]}
    raw.create(log.checkpoint_path(1), Checkpoint(1, 1, segment.digest, state, tables).encode())


def cut(count: int) -> list[tuple[int, int]]:
    """(level, rows) of sorted runs, the oldest first: seven of 5,000 rows, and so on by eights."""
    sizes: list[tuple[int, int]] = []
    level, size = 0, 5000
    while count > 0 and len(sizes) < 60:
        for _ in range(7):
            if count > 0:
                sizes.append((level, min(size, count)))
                count -= size
        level, size = level + 1, size * 8
    return sizes[::-1]


def batch(start: int) -> Batch:
    """Fifty new runs, and as many events that are not of interest."""
    settled = []
    for offset in range(start, start + 2 * RUNS_A_COMMIT):
        run = f"zuul~{offset:032x}~1"
        mention = RunFacts(
            run_id=run, build_uuid=run, build_name="job", outcome="success", log_url=f"http://logs/{run}"
        )
        kind: Any = "run" if offset % 2 else "ignored"
        file = RawFile(f"runs/job=job/date=2024-01-01/{run}.parquet", f"{offset:064x}", 300, 20_000)
        settled.append(
            Outcome(kind, Origin("t", 0, offset), f"zuul {offset}", mention, "" if offset % 2 else "not_finished",
                    trust=Trust(True, "gated", "p" * 64), file=file if offset % 2 else None)
        )  # fmt: skip
    return Batch(OffsetRange("t", "T", 0, start, start + 2 * RUNS_A_COMMIT), settled=settled)


def commits(committers: Sequence[Committer], rounds: int = 40) -> list[float]:
    """Median seconds of a commit of each, taken in turns."""
    times: list[list[float]] = [[] for _ in committers]
    for number in range(rounds + 3):
        for which, each in enumerate(committers):
            work = batch(number * 1000)
            began = time.perf_counter()
            assert each.commit([work]) == number + 2
            if number >= 3:
                times[which].append(time.perf_counter() - began)
    return [median(each) for each in times]


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_a_commit_with_a_million_ids_known_against_ten_thousand(
    where: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stores: list[Store] = [LocalStore(tmp_path / str(number)) for number in range(2)]
    if where == "s3":
        s3: Any = request.getfixturevalue("s3")
        stores = [open_store(f"{s3.bucket()}/raw") for _ in range(2)]
    for store, runs in zip(stores, (2_500, 250_000), strict=True):  # with their events, 10,000 and 1,000,000 ids
        history(store, runs)
    few, many = commits([Committer(store) for store in stores])
    print(
        f"\na commit of 100 (event, run), store in {where}: {many * 1e3:.1f} ms with 1,000,000 ids known, "
        f"{few * 1e3:.1f} ms with 10,000: {many / few:.2f} times"
    )


@pytest.mark.parametrize("kind", ["in memory", "mapped"])
def test_computing_a_delta_with_a_million_ids_known_against_ten_thousand(kind: str, tmp_path: Path) -> None:
    states = []
    for number, runs in enumerate((2_500, 250_000)):
        if kind == "mapped":
            store = LocalStore(tmp_path / str(number))
            history(store, runs)
            states.append(Checkpoints(ManifestLog(store), RAW).open())
        else:
            state = RawState()
            for one in range(runs):
                state.index.put_run(f"known {one}", KnownRun("success", "d", True))
                for event in range(3):
                    state.index.add_event(f"known {one} {event}", f"known {one}")
            states.append(state)
    times: list[list[float]] = [[], []]
    for number in range(60):
        for which, state in enumerate(states):
            work = batch(number * 1000)
            began = time.process_time()
            delta = reconcile(state, [work], 1)
            assert delta is not None
            state.apply(state.version + 1, {**delta, "version": state.version + 1})
            times[which].append(time.process_time() - began)
    few, many = (median(each[5:]) for each in times)
    print(
        f"\nreconcile and apply 100 (event, run), ids {kind}: {many * 1e3:.2f} ms of CPU with 1,000,000 known, "
        f"{few * 1e3:.2f} ms with 10,000: {many / few:.2f} times"
    )


_START = """
import re, sys, time
from pathlib import Path
from ciml.storage import LocalStore
from ciml.pipelines.ingest.committer import Committer
from tests.bench.test_commits import batch
def memory():
    status = Path("/proc/self/status").read_text()
    return [int(re.search(name + r":\\s+(\\d+) kB", status)[1]) / 1024 for name in ("RssAnon", "RssFile")]
before, _ = memory()
began = time.perf_counter()
committer = Committer(LocalStore(sys.argv[1]))
with committer.state() as state:
    runs = state.index.run_count()
opened = time.perf_counter() - began
began = time.perf_counter()
committer.commit([batch(0)])
first = time.perf_counter() - began
for number in range(1, 30):
    committer.commit([batch(number * 1000)])
own, mapped = memory()
print(f"{runs:,} runs and {3 * runs:,} events: open {opened * 1e3:.0f} ms, first commit {first * 1e3:.0f} ms; "
      f"after 30 commits {own:.0f} MB of memory, {own - before:.0f} more than before, and {mapped:.0f} MB mapped")
"""


@pytest.mark.parametrize("runs", [2_500, 250_000, 2_500_000])
def test_start_up_and_memory(runs: int, tmp_path: Path) -> None:
    history(LocalStore(tmp_path), runs)
    size = sum(path.stat().st_size for path in (tmp_path / "_manifest" / "index").iterdir())
    ran = subprocess.run([sys.executable, "-c", _START, tmp_path], capture_output=True, text=True, cwd=Path.cwd())
    assert ran.returncode == 0, ran.stderr
    print(f"\n{ran.stdout.strip()}; the index has {size / 2**20:.0f} MB")


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_start_up_with_many_deltas_since_the_checkpoint(
    where: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    raw: Store = LocalStore(tmp_path / "raw")
    if where == "s3":
        s3: Any = request.getfixturevalue("s3")
        raw = open_store(f"{s3.bucket()}/raw")
    history(raw, 2_500)
    ours = Committer(raw)
    for number in range(400):
        ours.commit([batch(number * 1000)])
    other = Committer(raw)
    print(
        f"\nstart with 400 deltas of 100 records since the checkpoint, {where}: {seconds(lambda: opened(other)):.2f} s"
    )


def opened(committer: Committer) -> None:
    with committer.state() as state:
        assert state.version == 401


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_a_checkpoint_and_what_it_costs(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    history(raw, 250_000)
    ours = Committer(raw)
    for number in range(501):
        ours.commit([batch(number * 1000)])
    idle = Committer(raw)
    idle.maintain()
    steps = []
    more = True
    while more:
        began = time.perf_counter()
        more = ours.maintain(budget_s=0.2)
        steps.append(time.perf_counter() - began)
    version = ManifestLog(raw).checkpoints()[-1]
    singles = sum(path.stat().st_size for path in (tmp_path / "_manifest").glob("*.json"))
    segment = (tmp_path / ManifestLog(raw).archive.path(version)).stat().st_size
    nothing = seconds(lambda: [ours.maintain() for _ in range(100)]) / 100
    print(
        f"\na checkpoint of {version - 1} commits with {100 * (version - 1):,} records: {sum(steps):.2f} s, "
        f"the longest call {max(steps):.2f} s; {singles / 2**20:.1f} MB of deltas in a segment of "
        f"{segment / 2**20:.1f} MB; maintain() with nothing due: {nothing * 1e6:.0f} µs"
    )


def test_merging(tmp_path: Path) -> None:
    files = PartFiles(LocalStore(tmp_path), "index")
    random = np.random.default_rng(1)
    runs = []
    for _ in range(8):
        rows = 400_000
        high = np.sort(random.integers(0, 1 << 64, rows, np.uint64, endpoint=False))
        values = {
            "outcome": pa.array(np.ones(rows, np.uint8)),
            "digest": pa.array([b"\0" + random.bytes(32) for _ in range(rows)], pa.binary()),
        }
        low = random.integers(0, 1 << 63, rows, np.uint64)
        runs.append(Run(2, (files.write(Rows(pa.RecordBatch.from_pydict({"high": high, "low": low, **values}))),)))
    steps = IdTable(TABLES["runs"], runs, files).merged()
    times = []
    while True:
        began = time.perf_counter()
        try:
            next(steps)
        except StopIteration as end:
            [run] = end.value.runs
            break
        times.append(time.perf_counter() - began)
    print(f"\nmerging {run.rows:,} runs of 8 files: {sum(times):.1f} s, a part (a call of maintain) {max(times):.2f} s")
    assert Checkpoints(ManifestLog(LocalStore(tmp_path)), RAW).open().version == 0
