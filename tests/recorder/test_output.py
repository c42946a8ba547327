"""The recorded output of a command: the command runs as without it, and its output is next to its log."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.recorder import output as module
from ciml.recorder.output import Output, kept_pieces
from ciml.runs.latest_runs import latest_runs
from ciml.runs.outputs import KeptOutput, read_output
from ciml.runs.state import open_raw
from tests.recorder.recorded import environment, record, wait_for
from tests.recorder.test_transparent import recording
from tests.tier import tries


def start(tmp_path: Path, *command: str, **more: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*recording(tmp_path, "--output"), *command], env=environment(), **more)  # type: ignore[call-overload,no-any-return]


def recorded(tmp_path: Path) -> bytes:
    """The recorded output of the only run."""
    (path,) = (tmp_path / "logs").glob("job/*/job-output.txt.gz")
    return gzip.decompress(path.read_bytes())


def copiers(recorder: int) -> list[psutil.Process]:
    """The processes that pass the output on: they have its file open, no other of the recording, and their own session.

    A process that was just forked, such as the command before its exec, closes the recording's lock and the output's
    file one after the other.
    """
    found = []
    for child in psutil.Process(recorder).children():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            names = {Path(file.path).name for file in child.open_files()}
            if "job-output.txt" in names and "lock" not in names and os.getsid(child.pid) == child.pid:
                found.append(child)
    return found


def test_both_streams_are_recorded_in_their_order_if_they_are_one(tmp_path: Path) -> None:
    script = "for n in $(seq 500); do echo out $n; echo err $n >&2; done; printf 'no line feed'"
    done = subprocess.run(
        [*recording(tmp_path, "--output"), "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment(), check=True, timeout=60,
    )  # fmt: skip
    lines = [f"{stream} {number}\n" for number in range(1, 501) for stream in ("out", "err")]
    assert done.stdout == recorded(tmp_path) == "".join([*lines, "no line feed"]).encode()


def test_what_a_command_prints_comes_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, "sh", "-c", "printf prompt:; read x; echo $x", stdin=-1, stdout=-1)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.read(7) == b"prompt:"
    process.stdin.write(b"answer\n")
    assert process.communicate(timeout=30)[0] == b"answer\n"
    assert recorded(tmp_path) == b"prompt:answer\n"


#: Prints a line for each one that it reads.
ANSWERS = "import sys\nfor line in sys.stdin:\n    print(line.strip() * 300, flush=True)"


def kill_copier(recorder: int) -> None:
    """Kill the first copier in a moment in which it waits, and wait for the one in its place."""
    before = wait_for(lambda: copiers(recorder))
    copier = before[0]
    wait_for(lambda: copier.status() == psutil.STATUS_SLEEPING)
    time.sleep(0.05)  # it waits: for the command, which waits for us, or for a reader
    copier.kill()
    wait_for(lambda: copier not in (present := copiers(recorder)) and len(present) >= len(before))


def test_a_copier_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, sys.executable, "-c", ANSWERS, stdin=-1, stdout=-1, stderr=-1)
    assert process.stdin is not None
    assert process.stdout is not None
    for number in range(10):
        process.stdin.write(b"%d\n" % number)
        process.stdin.flush()
        assert process.stdout.readline() == b"%d" % number * 300 + b"\n"
        kill_copier(process.pid)
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 0
    assert recorded(tmp_path) == b"".join(b"%d" % number * 300 + b"\n" for number in range(10))


def test_a_copier_that_is_killed_while_its_reader_waits_continues_within_its_piece(tmp_path: Path) -> None:
    """A write that waits has written a part, which the next copier must not repeat."""
    printed = b"".join(b"%d\n" % number for number in range(100_000))
    (tmp_path / "printed").write_bytes(printed)
    process = start(tmp_path, "cat", str(tmp_path / "printed"), stdout=-1)
    assert process.stdout is not None
    passed_on = b""
    for _ in range(5):
        kill_copier(process.pid)
        passed_on += process.stdout.read1(30_000)  # type: ignore[attr-defined]
    assert passed_on + process.communicate(timeout=60)[0] == printed == recorded(tmp_path)


def test_a_command_whose_reader_ends_gets_sigpipe(tmp_path: Path) -> None:
    """As the bare command does, also if only one of its streams has no reader."""
    for streams in ({"stdout": -1, "stderr": -1}, {"stdout": -1, "stderr": subprocess.STDOUT}):
        process = start(tmp_path, "yes", **streams)
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(30) == -signal.SIGPIPE


def test_a_reader_that_waits_stops_the_command(tmp_path: Path) -> None:
    """Nothing is buffered in its place: what is not read is not recorded, either."""
    process = start(tmp_path, "head", "-c", "20000000", "/dev/zero", stdout=-1)
    (file,) = wait_for(lambda: list((tmp_path / "spool").glob("*/job-output.txt")))
    time.sleep(1.5)
    assert file.stat().st_size <= 64 << 10
    assert process.poll() is None
    assert process.communicate(timeout=30)[0] == bytes(20_000_000) == recorded(tmp_path)


def test_a_signal_ends_a_recorder_whose_reader_waits(tmp_path: Path) -> None:
    process = start(tmp_path, "sh", "-c", "head -c 100000 /dev/zero; echo $$ >&2", stdout=-1, stderr=-1)
    assert process.stderr is not None
    command = int(process.stderr.readline())
    wait_for(lambda: not psutil.pid_exists(command))
    time.sleep(0.1)
    process.terminate()
    assert process.wait(30) == 0


def test_children_that_outlive_the_command_keep_their_streams(tmp_path: Path) -> None:
    script = "echo early; (until [ -e go ]; do sleep 0.1; done; echo late) & exit 3"
    process = start(tmp_path, "sh", "-c", script, stdout=-1, cwd=tmp_path)
    assert process.wait(60) == 3
    (tmp_path / "go").touch()
    assert process.communicate(timeout=30)[0] == b"early\nlate\n"
    assert recorded(tmp_path) == b"early\n"


def test_a_terminal_stays_one_of_its_size(tmp_path: Path) -> None:
    terminal, side = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, b"\x21\x00\x5b\x00\x00\x00\x00\x00")
    script = "trap 'stty size <&1; exit 4' WINCH; test -t 1 && test -t 2 && stty size <&1; while :; do sleep 0.1; done"
    process = start(tmp_path, "sh", "-c", script, stdout=side, stderr=side)
    os.close(side)
    assert os.read(terminal, 100) == b"33 91\r\n"
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, b"\x05\x00\x06\x00\x00\x00\x00\x00")
    process.send_signal(signal.SIGWINCH)  # of a terminal that is not its own
    assert os.read(terminal, 100) == b"5 6\r\n"
    assert process.wait(30) == 4
    assert recorded(tmp_path) == b"33 91\n5 6\n"


def test_a_killed_recorder_leaves_the_output(tmp_path: Path) -> None:
    """Of processes that all are killed, the next recorder stores what the spool has."""
    process = start(tmp_path, "sh", "-c", "echo printed; exec sleep 60", stdout=-1)
    assert process.stdout is not None
    assert process.stdout.readline() == b"printed\n"
    (file,) = (tmp_path / "spool").glob("*/job-output.txt")
    wait_for(lambda: file.read_bytes() == b"printed\n")
    process.send_signal(signal.SIGSTOP)  # it starts no further process
    children = psutil.Process(process.pid).children(recursive=True)
    for child in children:
        child.kill()
    process.kill()
    process.communicate(timeout=30)
    _, alive = psutil.wait_procs(children, timeout=30)  # each of them holds the lock of the recording
    assert alive == []
    done = record(tmp_path / "spool", "--send", command=[])
    assert done.returncode == 0, done.stderr
    assert recorded(tmp_path) == b"printed\n"


def test_an_output_needs_a_place(tmp_path: Path) -> None:
    done = record(tmp_path / "spool", "--output", command=["echo", "x"])
    assert (done.returncode, done.stdout) == (2, "")
    assert "--output needs a command and --log-dir" in done.stderr


def test_a_recorded_output_is_found_by_its_listing(tmp_path: Path) -> None:
    script = "echo token=hunter2hunter2; echo failed; sleep 1.2; exit 1"
    assert start(tmp_path, "sh", "-c", script, stdout=-1).wait(30) == 1
    (line,) = (tmp_path / "logs").glob("*/*/run.json")
    assert json.loads(line.read_bytes())["output_path"].endswith("/job-output.txt.gz")
    listing, logs = str(line.rename(tmp_path / "builds.jsonl")), str(tmp_path / "logs")
    for words in (["backfill", listing, "--logs", logs], ["load", logs, "--results", listing]):
        done = CliRunner().invoke(cli, [*words, "--data-path", str(tmp_path / words[0])])
        assert done.exit_code == 0, done.output
        raw = DataRoot.open(tmp_path / words[0]).raw
        (run,) = latest_runs(*open_raw(raw))
        assert read_output(raw, run.output) == KeptOutput(b"token=REDACTED\nfailed\n", 3)


@settings(max_examples=tries(200), deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=60), max_size=12), st.integers(2, 60))
def test_the_file_has_the_head_and_the_latest_bytes(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], limit: int
) -> None:
    path = tmp_path_factory.mktemp("kept") / "file"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    kept = module._Kept(file, limit, memoryview(bytearray(64)).cast("Q"))
    for piece in pieces:
        kept.add(memoryview(piece))
    data = path.read_bytes()
    os.close(file)
    read = b"".join(kept_pieces(lambda offset, count: data[offset : offset + count], len(data), limit))
    printed = b"".join(pieces)
    assert len(data) <= limit + 8
    if len(printed) <= limit:
        assert read == printed
        return
    half = limit // 2
    gap = f"\n[ciml record: {len(printed) - limit:,} bytes are left out]\n".encode()
    assert read == printed[:half] + gap + printed[len(printed) - (limit - half) :]


def test_a_file_that_cannot_be_written_ends_the_recording_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = os.open(tmp_path / "file", os.O_RDONLY)
    output = Output(file)
    output._streams[0]._kept.add(memoryview(b"x"))
    assert output._numbers[module._IS_FAILED]
    output.close()
    os.close(file)
