"""Packs against single objects: reading speed as a ratio in one run, and the bytes of the store. By `make bench`."""

from __future__ import annotations

import hashlib
import resource
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pytest

from ciml.digest import telemetry_digest
from ciml.events.records import Origin, Outcome, RawFile, RunFacts
from ciml.manifest.log import ManifestLog
from ciml.runs import reader as raw_reader
from ciml.runs.compact import compact
from ciml.runs.pack_index import pack_state, split_path
from ciml.runs.reader import read_run, read_runs
from ciml.runs.verify import Verification, verify_raw
from ciml.runs.writer import run_path, write_run
from ciml.storage import LocalStore, Store, open_store
from tests.bench.measuring import real_runs, seconds

pytestmark = pytest.mark.bench

JOBS, DAYS = 4, 2
WANTED = ["time", "boot", "total cpu usage:usr", "load avg:1m"]


def copied_runs(copies: int) -> Iterator[tuple[RunFacts, pa.Table]]:
    """The real runs under new ids, spread over a few jobs and days."""
    mentions, tables = real_runs()
    for copy in range(copies):
        for number, (about, table) in enumerate(zip(mentions, tables, strict=True)):
            native = f"{copy}-{about.build_uuid}"
            day_us = (number % DAYS) * 86_400_000_000
            yield (
                about.replace(
                    run_id=f"zuul~{native}~1", build_uuid=native, build_name=f"job-{number % JOBS}",
                    start_us=1_600_000_000_000_000 + day_us,
                ),
                table,
            )  # fmt: skip


def fill(raw: Store, runs: Iterator[tuple[RunFacts, pa.Table]], *, a_delta: int = 500) -> list[RawFile]:
    """Stores and commits runs, without the syncing that a commit pays for."""
    files: list[RawFile] = []
    log, outcomes = ManifestLog(raw), list[Outcome]()

    def commit() -> None:
        start = len(files) - len(outcomes)
        parts = {"0": [[start, len(files)]]}
        lists = ("repeats", "corrections", "ignored", "dead_letters", "deferred", "closes")
        delta: dict[str, Any] = {"time_us": 0, "offsets": {"bench": {"id": "", "partitions": parts}}}
        delta |= {"runs": [outcome.to_json() for outcome in outcomes], **{name: [] for name in lists}}
        assert log.try_append(1 + start // a_delta, delta)
        outcomes.clear()

    for about, table in runs:
        digest = telemetry_digest(about.run_id, table)
        path = run_path(about, table, digest)
        data = write_run(table, path)
        if isinstance(raw, LocalStore):
            target = Path(raw.root, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        else:
            raw.create(path, data)
        files.append(RawFile(path, digest, table.num_rows, len(data)))
        outcomes.append(Outcome("run", Origin("bench", 0, len(files) - 1), f"e {len(files)}", about, file=files[-1]))
        if len(outcomes) == a_delta:
            commit()
    if outcomes:
        commit()
    return files


def cpu_seconds(work: Callable[[], object]) -> float:
    return seconds(work, clock=time.process_time)


def forget() -> None:
    """As in a process that has read nothing yet."""
    raw_reader._cache.__init__()  # type: ignore[misc]


def stored(raw: Store) -> tuple[int, int]:
    """(objects, bytes) of runs, whether single or packed, with the packs' manifests."""
    sizes = [entry.size for prefix in ("runs", "packs") for entry in raw.entries(prefix)]
    return len(sizes), sum(sizes)


@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.engines)])
def test_reading_from_packs_against_single_objects(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    raw = open_store(tmp_path if where == "local" else request.getfixturevalue("s3").bucket())
    files = fill(raw, copied_runs(4 if where == "local" else 1))
    before = stored(raw)
    rounds = 3 if where == "local" else 1

    def read(columns: Sequence[str] | None) -> Callable[[], list[pa.Table]]:
        return lambda: read_runs(raw, files, columns=columns)

    forget()
    wanted = read(None)()
    single, single_some = seconds(read(None), rounds), seconds(read(WANTED), rounds)
    began = time.perf_counter()
    done = compact(raw, min_runs=1, grace_s=0)
    compacting = time.perf_counter() - began
    assert (done.packing.runs, done.swept.objects, done.packing.faults) == (len(files), len(files), [])

    def cold(columns: Sequence[str] | None) -> Callable[[], None]:
        def work() -> None:
            forget()
            read(columns)()

        return work

    packed, packed_some = seconds(cold(None), rounds), seconds(cold(WANTED), rounds)
    for number, (got, expected) in enumerate(zip(read(None)(), wanted, strict=True)):
        assert got.equals(expected, check_metadata=True), number
    one = [seconds(lambda file=file: read_run(raw, file), 3) for file in files[:20]]  # type: ignore[misc]
    after = stored(raw)
    print(
        f"\n{where}: {len(files)} runs, all columns: packs {packed * 1e3:.0f} ms, objects {single * 1e3:.0f} ms, "
        f"{single / packed:.1f} times as fast; {len(WANTED)} columns: {packed_some * 1e3:.0f} ms, "
        f"{single_some * 1e3:.0f} ms, {single_some / packed_some:.1f} times; one run of a known pack "
        f"{median(one) * 1e3:.1f} ms\n"
        f"{where}: {before[0]} objects of {before[1]:,} bytes became {after[0]} of {after[1]:,}: "
        f"{before[1] / after[1]:.2f} times as small; compaction {compacting:.1f} s, "
        f"{len(files) / compacting:.0f} runs/s"
    )
    assert after[1] < before[1] / 2


class _Unchecked:
    """Equal to any checksum."""

    def __ne__(self, other: object) -> bool:
        return False


def test_reading_with_checks_against_reading_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = open_store(tmp_path)
    files = fill(raw, copied_runs(1))

    def measure(what: str, without: Callable[[pytest.MonkeyPatch], None]) -> None:
        for columns in (None, WANTED):
            seconds: dict[bool, list[float]] = {True: [], False: []}
            for turn in range(18):
                checks = turn % 4 in (0, 3)  # each is as often the first of a pair
                with monkeypatch.context() as patch:
                    if not checks:
                        without(patch)
                    seconds[checks].append(cpu_seconds(lambda: read_runs(raw, files, columns=columns)))  # noqa: B023
            ratio = min(seconds[True]) / min(seconds[False])
            print(
                f"\n{what}, {len(columns or ()) or 'all'} columns, with checks: {ratio:.3f} times the CPU time", end=""
            )

    measure("objects", lambda patch: patch.setattr(raw_reader, "is_sealed", lambda *_: True))
    compact(raw, min_runs=1, grace_s=0)
    forget()
    measure("packs", lambda patch: patch.setattr(zlib, "crc32", lambda _: _Unchecked()))
    print()


@pytest.mark.parametrize("length", [35, 5500], ids=["short", "long"])
def test_what_a_week_of_compaction_takes(length: int, tmp_path: Path) -> None:
    """A part of a week, by which the whole is sized: as many runs a folder as 100 jobs have with 100,000 a week."""
    folders, runs = 3 if length > 1000 else 15, 143
    _, tables = real_runs()
    long = sorted(tables, key=lambda table: -table.num_rows)[:60]
    raw = open_store(tmp_path)

    def made() -> Iterator[tuple[RunFacts, pa.Table]]:
        for number in range(folders * runs):
            table = tables[number % len(tables)]
            if length > 1000:  # real samples, one run after the other, with times of their own
                parts = [long[(number + at) % len(long)] for at in range(60)]
                table = pa.concat_tables(parts).slice(0, length)
                times = pa.array([second * 1_000_000 for second in range(table.num_rows)], pa.timestamp("us", tz="UTC"))
                table = table.set_column(0, table.schema.field(0), times)
            native = hashlib.sha256(str(number).encode()).hexdigest()[:32]
            about = RunFacts(
                run_id=f"zuul~{native}~1", build_uuid=native, build_name=f"job-{number % folders}", start_us=0
            )
            yield about, table

    files = fill(raw, made())
    rows = sum(file.rows for file in files)
    before = stored(raw)
    packing = cpu_seconds(lambda: compact(raw, min_runs=1, grace_s=10**10))
    removing = cpu_seconds(lambda: compact(raw, min_runs=1, grace_s=0))
    after = stored(raw)
    found: list[Verification] = []
    verifying = cpu_seconds(lambda: found.append(verify_raw(raw)))
    assert (found[0].number, found[0].packed, found[0].single) == (0, len(files), 0)
    packs = [file for folder in sorted({split_path(f.path)[0] for f in files})  # type: ignore[index]
             for file in pack_state(raw, folder).packs.values()]  # fmt: skip
    print(
        f"\n{len(files)} runs of {rows / len(files):.0f} samples in {folders} folders, {len(packs)} packs: "
        f"{before[1] / len(files):,.0f} bytes a run as objects, {after[1] / len(files):,.0f} packed, of which "
        f"{packs[0].footer / packs[0].runs:,.0f} describe it\nin CPU time: packing {len(files) / packing:.0f} runs/s "
        f"({rows / packing:,.0f} samples/s), removing {len(files) / removing:.0f} runs/s, verifying "
        f"{len(files) / verifying:.0f} runs/s; at most "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB in memory"
    )
