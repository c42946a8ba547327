"""No run is lost when processes of the recorder are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from ciml.transforms.parse.logs import Log, parse_logs
from tests.recorder.recorded import environment, record, recorder, wait_for, worker_of


def start(tmp_path: Path, *command: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*recorder(tmp_path / "spool", "--log-dir", str(tmp_path / "logs"), "--job", "job"), *command],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**env),
    )  # fmt: skip


def logs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "spool").glob("*/dstat-csv_log.txt"))


def rows(path: Path) -> int:
    return sum(line[:1].isdigit() for line in path.read_text().splitlines()) if path.exists() else 0


def listed(tmp_path: Path) -> dict[str, Any]:
    """The only listing beside a log."""
    (path,) = (tmp_path / "logs").glob("job/*/run.json")
    line: dict[str, Any] = json.loads(path.read_text())
    return line


def table_of(tmp_path: Path, line: dict[str, Any]) -> pa.Table:
    (table,) = parse_logs([Log((tmp_path / "logs" / line["log_path"]).read_bytes())])
    assert isinstance(table, pa.Table), table
    return table


def test_a_killed_recorder_kills_the_command_and_the_run_is_published(tmp_path: Path) -> None:
    process = start(tmp_path, "sh", "-c", "echo $$; exec sleep 60")
    assert process.stdout is not None
    command = psutil.Process(int(process.stdout.readline()))
    wait_for(lambda: logs(tmp_path) and rows(logs(tmp_path)[0]))
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    command.wait(10)
    wait_for(lambda: list((tmp_path / "logs").glob("*/*/run.json")) and not list((tmp_path / "spool").iterdir()))
    line = listed(tmp_path)
    assert (line["result"], line["labels"]) == ("ABORTED", {"recorder": "killed"})
    assert table_of(tmp_path, line).num_rows >= 1
    process.communicate()


def test_what_is_left_when_all_is_killed_comes_in_with_the_next(tmp_path: Path) -> None:
    process = start(tmp_path, "sleep", "60")
    worker = worker_of(process.pid)
    (log,) = wait_for(lambda: [each for each in logs(tmp_path) if rows(each)])
    process.send_signal(signal.SIGSTOP)  # so that it does nothing about the worker's death
    worker.kill()
    process.kill()
    process.communicate()
    kept = wait_for(lambda: rows(log))
    assert not (tmp_path / "logs").exists()
    done = record(tmp_path / "spool", "--send", command=[])
    assert done.returncode == 0, done.stderr
    line = listed(tmp_path)
    assert (line["result"], line["labels"]) == ("ABORTED", {"recorder": "killed", "recording": "unsealed"})
    assert table_of(tmp_path, line).num_rows == kept
    assert list((tmp_path / "spool").iterdir()) == []


def test_proc_goes_on_where_dool_dies_and_a_worker_that_is_killed_is_started_again(tmp_path: Path) -> None:
    process = start(tmp_path, "sh", "-c", "read x; exit 5")
    (log,) = wait_for(lambda: [each for each in logs(tmp_path) if rows(each)])
    (dool,) = worker_of(process.pid).children()
    dool.kill()
    wait_for(lambda: "ciml-record" in log.read_text())
    before = wait_for(lambda: rows(log))
    worker_of(process.pid).kill()
    wait_for(lambda: rows(log) > before + 1)
    _, reported = process.communicate("x\n", timeout=30)
    assert process.returncode == 5
    assert "dool exited (code -9); reading /proc instead" in reported
    assert "the recorder exited; restarting it" in reported
    table = table_of(tmp_path, listed(tmp_path))
    assert table.num_columns == 2 + 25
    assert sum(table.column("boot").to_pylist()) == 3
    assert table.schema.metadata[b"starts"] == b"3"


def test_without_a_spool_the_command_runs_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = record(tmp_path / "file" / "spool", command=["sh", "-c", "echo x; exit 9"])
    assert (done.returncode, done.stdout) == (9, "x\n")
    assert done.stderr == f"ciml record: not recording: {tmp_path / 'file' / 'spool'}: Not a directory\n"


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """No process and no open pipe is left, so a reader of the output is not blocked."""
    done = record(tmp_path / "spool", command=["sh", "-c", "echo $PPID"])
    assert not psutil.pid_exists(int(done.stdout))
    assert [each.pid for each in psutil.process_iter(["environ", "cmdline"])
            if str(tmp_path) in " ".join(each.info["cmdline"] or ())] == []  # fmt: skip


def test_a_second_signal_does_not_wait_for_what_is_unsent(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    process = subprocess.Popen(
        [*recorder(spool, "--kafka", "127.0.0.1:9", "--flush", "10min"), "sh", "-c", "echo ready; read x"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("x\n")
    process.stdin.close()
    wait_for(lambda: list(spool.glob("*/end.json")))
    os.kill(process.pid, signal.SIGTERM)
    assert process.stderr is not None
    assert "not everything was sent: kept in" in process.stderr.read()
    assert process.wait(30) == 0
    assert len(list(spool.iterdir())) == 1
