"""What a commit, a start and the upkeep of a manifest cost with many ids known. Printed; run by `make bench`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ciml.events.records import Batch, OffsetRange, Origin, Outcome, RawFile, RunFacts, Trust
from ciml.manifest.checkpoints import Checkpoint, Checkpoints
from ciml.manifest.id_index import IdTable, Part, PartFiles, Rows, SortedRun
from ciml.manifest.log import ManifestLog
from ciml.manifest.segments import Segment
from ciml.pipelines.ingest.committer import Committer
from ciml.runs.accounting import reconcile
from ciml.runs.known_ids import TABLES, KnownRun
from ciml.runs.state import RAW, RawState
from ciml.storage import LocalStore, Store, open_store
from tests.bench.measuring import seconds

pytestmark = pytest.mark.bench

RUNS_A_COMMIT = 50


def index_part(files: PartFiles, rng: np.random.Generator, rows: int, piece: int = 0, pieces: int = 1,
               runs: bool = True) -> Part:  # fmt: skip
    """Write a part of an index: random ids in the given piece of their range, with the values of runs."""
    width = (1 << 64) // pieces
    high = np.sort(rng.integers(0, width - 1, rows, np.uint64)) + np.uint64(piece * width)
    values: dict[str, Any] = {"high": high, "low": rng.integers(0, 1 << 63, rows, np.uint64)}
    if runs:
        values["outcome"] = pa.array(np.ones(rows, np.uint8))
        values["digest"] = pa.array([b"\0" + rng.bytes(32) for _ in range(rows)], pa.binary())
    return files.write(Rows(pa.RecordBatch.from_pydict(values)))


def history(raw: Store, runs: int) -> None:
    """A manifest with a checkpoint that knows as many runs, and three times as many events.

    Its index has the shape that merges give it: sorted runs of levels up to where all fits.
    """
    log, rng, tables = ManifestLog(raw), np.random.default_rng(runs), {}
    files = PartFiles(raw, f"{log.folder}/index", None)
    for name, count in (("events", 3 * runs), ("runs", runs), ("letters", 0)):
        table = IdTable(TABLES[name], (), files)
        for level, size in cut(count):
            pieces = max(1, -(-size // 900_000))
            parts = [index_part(files, rng, size // pieces, at, pieces, name == "runs") for at in range(pieces)]
            table = IdTable(TABLES[name], [*table.runs, SortedRun(level, tuple(parts))], files)
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
    while count > 0:
        level = len(sizes) // 7
        sizes.append((level, min(5000 * 8**level, count)))
        count -= sizes[-1][1]
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


@pytest.fixture(params=["folder", "s3"])
def stores(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """Two empty stores."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "folder":
        return [LocalStore(tmp_path / str(number)) for number in range(2)]
    s3: Any = request.getfixturevalue("s3")
    return [open_store(f"{s3.bucket()}/raw") for _ in range(2)]


def test_a_commit_with_a_million_ids_known_against_ten_thousand(stores: list[Store]) -> None:
    for store, runs in zip(stores, (2_500, 250_000), strict=True):  # with their events, 10,000 and 1,000,000 ids
        history(store, runs)
    few, many = commits([Committer(store) for store in stores])
    print(
        f"\na commit of 100 (event, run), store in {stores[0].root}: {many * 1e3:.1f} ms with 1,000,000 ids known, "
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


def test_start_up_with_many_deltas_since_the_checkpoint(stores: list[Store]) -> None:
    history(stores[0], 2_500)
    ours = Committer(stores[0])
    for number in range(400):
        ours.commit([batch(number * 1000)])

    def start() -> None:
        with Committer(stores[0]).state() as state:
            assert state.version == 401

    print(f"\nstart with 400 deltas of 100 records since the checkpoint, {stores[0].root}: {seconds(start):.2f} s")


def test_a_checkpoint_and_what_it_costs(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    history(raw, 250_000)
    ours = Committer(raw)
    for number in range(501):
        ours.commit([batch(number * 1000)])
    idle = Committer(raw)
    idle.maintain()
    steps = []
    more = [True]
    while more[-1]:
        steps.append(seconds(lambda: more.append(ours.maintain(budget_s=0.2))))
    version = ManifestLog(raw).checkpoints()[-1]
    singles = sum(path.stat().st_size for path in (tmp_path / "_manifest").glob("*.json"))
    segment = (tmp_path / ManifestLog(raw).archive.path(version)).stat().st_size
    nothing = seconds(ours.maintain, 100)
    print(
        f"\na checkpoint of {version - 1} commits with {100 * (version - 1):,} records: {sum(steps):.2f} s, "
        f"the longest call {max(steps):.2f} s; {singles / 2**20:.1f} MB of deltas in a segment of "
        f"{segment / 2**20:.1f} MB; maintain() with nothing due: {nothing * 1e6:.0f} µs"
    )


def test_merging(tmp_path: Path) -> None:
    files = PartFiles(LocalStore(tmp_path), "index")
    rng = np.random.default_rng(1)
    runs = [SortedRun(2, (index_part(files, rng, 400_000),)) for _ in range(8)]
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
