"""The samples that are sent are those of the log as it is parsed, value for value and time for time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.events.records import RunFacts
from ciml.events.samples import Samples, decode, to_table
from ciml.recorder import sampler as proc
from ciml.recorder.sampler import find_dool
from ciml.recorder.spool.delivery import encode_piece
from ciml.recorder.spool.recording import Plan, Recording
from ciml.recorder.tail import Piece, Start, Tail
from ciml.transforms.parse.logs import Log, parse_logs
from tests.recorder.recorded import record, shell_until

T0 = 1795600000


def reading(log: Path) -> Callable[[int, int], bytes]:
    """Reads a log that grows; it may not be there yet."""

    def read(offset: int, count: int) -> bytes:
        if not log.exists():
            return b""
        with log.open("rb") as file:
            return os.pread(file.fileno(), count, offset)

    return read


def messages(log: Path, starts: list[Start], reread: bool = False) -> Iterator[Samples]:
    """The messages that a log becomes; with ``reread`` each twice, from a mark."""
    tail = Tail(reading(log), starts)

    def encoded(piece: Piece) -> Samples:
        message = decode(encode_piece("zuul~1~1", piece, tail.first_us or 0))
        assert isinstance(message, Samples)
        return message

    while True:
        mark = tail.mark
        piece = tail.read()
        if piece is None:
            return
        yield encoded(piece)
        if reread:
            tail.mark = mark
            again = tail.read()
            assert again is not None
            yield encoded(again)


def assert_same(found: pa.Table, wanted: pa.Table) -> None:
    assert found.column_names == wanted.column_names
    assert found.column("time").equals(wanted.column("time"))
    assert found.equals(wanted.replace_schema_metadata(None))


def parsed(data: bytes) -> pa.Table:
    (table,) = parse_logs([Log(data)])
    assert isinstance(table, pa.Table), table
    return table


def record_both(folder: Path, rows: int) -> dict[str, Path]:
    """Record so many samples by dool and by /proc, and return the logs."""
    dool = find_dool()
    assert dool is not None, "dool is among the development's dependencies"
    logs = {}
    for name, program in (("dool", dool), ("/proc", "")):
        spool = folder / name.strip("/")
        counted = f"grep -c '^[0-9]' {spool}/*/dstat-csv_log.txt"
        done = record(spool, command=shell_until(f'[ "$({counted})" -ge {rows} ]'), env={"CIML_DOOL": program})
        assert f"sampling with {program or '/proc'}" in done.stderr
        (logs[name],) = spool.glob("*/dstat-csv_log.txt")  # it has no destination, so it is still there
    return logs


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return record_both(tmp_path_factory.mktemp("recorded"), 3)


@pytest.mark.parametrize("program", ["dool", "/proc"])
def test_what_a_recorder_writes(recorded: dict[str, Path], program: str) -> None:
    log = recorded[program]
    table = parsed(log.read_bytes())
    assert table.column("boot").to_pylist() == [True, *[False] * (table.num_rows - 1)]
    assert table.num_rows >= 3
    assert table.column_names[2:] == [f"{group}:{name}" for group, names in proc.GROUPS[1:] for name in names]
    assert_same(to_table(list(messages(log, [Start(0, T0 * 10**6)]))), table)


def test_proc_is_read_as_dool_reads_it(recorded: dict[str, Path], tmp_path: Path) -> None:
    """The first samples, since boot, are the same for both in one of five pairs: each is taken at its own time."""
    unequal = unequal_columns(recorded)
    for number in range(4):
        if unequal:
            (tmp_path / str(number)).mkdir()
            unequal = unequal_columns(record_both(tmp_path / str(number), 1))
    assert unequal == []


def unequal_columns(logs: dict[str, Path]) -> list[str]:
    """Return the columns in which the first samples differ by more than a quarter."""
    ours, theirs = (parsed(logs[program].read_bytes()) for program in ("/proc", "dool"))
    since_boot = [
        f"{group}:{name}" for group in ("total cpu usage", "dsk/total", "io/total", "net/total", "system")
        for name in dict(proc.GROUPS)[group]
    ]  # fmt: skip
    memory = [f"memory usage:{name}" for name in ("used", "free", "cach", "avai")]
    return [
        name for name in since_boot + memory
        if ours.column(name)[0].as_py() != pytest.approx(theirs.column(name)[0].as_py(), rel=0.25, abs=1.0)
    ]  # fmt: skip


CELL = (
    st.floats(allow_nan=True, allow_infinity=True).map(repr)
    | st.integers(-(10**15), 10**15).map(str)
    | st.sampled_from(["", "-", "nan", "1_0", "0x1", " 3", "1e400", "+4.", ".5", "12k", "2.50"])
)


@st.composite
def logs(draw: st.DrawFn) -> tuple[bytes, list[Start]]:
    """A log of up to three starts of a recorder, with rows that are no samples, and where each start begins."""
    data, starts, clock = b"", [], T0
    for number in range(draw(st.integers(1, 3))):
        starts.append(Start(len(data), (T0 + number) * 10**6))
        for _ in range(draw(st.integers(1, 2))):  # dool, and then /proc, in one start
            names = draw(st.lists(st.sampled_from(["usr", "sys", "1m", "read"]), min_size=1, max_size=4))
            if data:
                data += b"\n\n"
            data += b'"dool 1.3.8 CSV output"\n"Host:","vm",,,,"User:","root"\n'
            data += f'"epoch","group"{"," * (len(names) - 1)}\n'.encode()
            data += ",".join(f'"{name}"' for name in ("epoch", *names)).encode() + b"\n"
            for _ in range(draw(st.integers(0, 6))):
                clock += draw(st.integers(-2, 5))
                cells = draw(st.lists(CELL, min_size=len(names), max_size=len(names)))
                row = [f"{clock}.{draw(st.integers(0, 999)):03}", *cells]
                if draw(st.integers(0, 9)) == 0:
                    row.pop()  # cut, and then mended
                data += ",".join(row).encode() + b"\n"
    return data, starts


@given(logs())
def test_any_log_of_a_recorder(tmp_path_factory: pytest.TempPathFactory, log: tuple[bytes, list[Start]]) -> None:
    data, starts = log
    path = tmp_path_factory.mktemp("logs") / "log"
    path.write_bytes(data)
    (table,) = parse_logs([Log(data)])
    found = list(messages(path, starts, reread=True))
    if isinstance(table, pa.Table):
        # The parser leaves out columns without samples' rows, and a column that is null in all of them stays.
        got = to_table(found)
        for name in got.column_names:
            assert_equal_columns(got.column(name), table.column(name))
        assert got.num_rows == table.num_rows
    else:
        assert all(np.isnan(message.values).all() for message in found)


def assert_equal_columns(found: pa.ChunkedArray, wanted: pa.ChunkedArray) -> None:
    assert found.combine_chunks().equals(wanted.combine_chunks())


def test_a_line_is_taken_once_it_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tail = Tail(reading(log), [Start(0, 7)])
    assert tail.read() is None  # there is none yet
    with log.open("w") as file:
        for text in ('"epoch","load avg",,\n"epoch","1m","5m","15m"\n1795600000.5,1,2', ",3\n1795600001.5,4,"):
            file.write(text)
            file.flush()
            piece = tail.read()
    assert piece == Piece(7, 0, ("load avg:1m", "load avg:5m", "load avg:15m"),
                          [1795600000500000], [True], [[1.0, 2.0, 3.0]])  # fmt: skip
    assert (tail.first_us, tail.counts) == (1795600000500000, {7: 1})


#: The start of a recording, epoch microseconds.
T0_US = 1_780_000_000_000_000


@pytest.mark.parametrize("cut", [1, 220, 250])
def test_a_start_after_a_cut_line_has_all_of_its_samples(tmp_path: Path, cut: int) -> None:
    """A recorder that was killed within a line is started again."""
    recording = Recording.create(
        tmp_path / "spool", Plan(RunFacts("github~1~1", "1", "job", start_us=T0_US), log_dir="x")
    )
    for second, ticks in ((0, 3), (9, 5)):
        recording.add_start(T0_US + second * 1_000_000)
        recorder = proc.Recorder(recording.log, None)
        for _ in range(ticks):
            recorder.tick()
        with recording.log.open("a") as log:
            log.write(f"{proc.Sampler().sample().rstrip()}{',' * 300}"[:cut])
    tail = Tail(recording.read_log, recording.starts())
    while tail.read():
        pass
    assert list(tail.counts.values()) == [3, 5]


def test_messages_are_small_however_long_the_log_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    row = b"1795600000.123," + b",".join([b"12.345"] * 25) + b"\n"
    with log.open("wb") as file:
        file.write(proc.header(T0).encode())
        file.write(row * 40_000)
    tail = Tail(reading(log), [Start(0, T0 * 10**6)])
    sizes = []
    while piece := tail.read():
        sizes.append(len(encode_piece("zuul~1~1", piece, T0 * 10**6)))
    assert tail.counts == {T0 * 10**6: 40_000}
    assert max(sizes) < 100_000
    assert os.path.getsize(log) > 7_000_000
