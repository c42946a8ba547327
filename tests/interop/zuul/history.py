"""Runs of the job unit that were recorded on this machine, with the causes of their failures: what the model learns.

They are recorded once by ``ciml record``, which takes five minutes, and kept in the folder of the real Zuul. Zuul does
not run them, so each has only what an operator's listing of judged runs would have.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.interop.zuul.loop import EDITS, TESTS, edited
from tests.interop.zuul.trouble import Trouble, end_hogs, start_hogs, strike

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
#: Of the tests of a run, s: they take eight.
_TIMEOUT_S = 25
_NO_EDIT = ("", "")


@dataclass(frozen=True)
class Planned:
    """A run that is to be recorded: an edit of totals.py, what happens to its machine, and after how many seconds."""

    name: str
    edit: tuple[str, str] = _NO_EDIT
    trouble: Trouble = "none"
    after_s: float = 0.0

    @property
    def cause(self) -> str:
        """The cause of its failure; "" of a run that passes."""
        return "code" if self.edit[0] else "machine" if self.trouble != "none" else ""


def recorded(folder: Path) -> Path:
    """Return the folder with the listing ``builds.jsonl`` and its logs; record the runs if they are not there yet."""
    sources = [*sorted((HERE / "app").glob("*.py")), Path(__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    target = folder / f"history-{digest}"
    if not target.is_dir():
        with tempfile.TemporaryDirectory(prefix=".history-", dir=folder) as work:
            _record_all(Path(work))
            os.rename(work, target)
            Path(work).mkdir()  # for the end of the block
    return target


def _plans() -> list[tuple[int, list[Planned]]]:
    """Return groups of runs, and how many of a group run at once. Starved runs would disturb others."""
    random_s = random.Random(1)
    passing = [Planned(f"passing-{number}") for number in range(24)]
    code = [Planned(f"code-{number}", EDITS[number % len(EDITS)]) for number in range(30)]
    troubles: tuple[Trouble, ...] = ("killed", "starved", "stopped")
    killed, starved, stopped = (
        [Planned(f"{trouble}-{number}", _NO_EDIT, trouble, random_s.uniform(1, 6)) for number in range(10)]
        for trouble in troubles
    )
    return [(2, [*passing, *code, *killed]), (2, starved), (5, stopped)]


def _record_all(folder: Path) -> None:
    lines = []
    for at_once, group in _plans():
        with ThreadPoolExecutor(at_once) as pool:
            lines += pool.map(lambda one: _record(folder, one), group)
    (folder / "builds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _record(folder: Path, planned: Planned) -> dict[str, Any]:
    """Record a run. Return its line of the listing."""
    with tempfile.TemporaryDirectory() as work:
        app = shutil.copytree(HERE / "app", Path(work, "app"))
        for path, text in edited(planned.edit).items():
            (app / path).write_text(text)
        command = [
            sys.executable, "-m", "cli.main", "record", "--log-dir", str(folder / "logs"), "--spool", f"{work}/spool",
            "--job", "unit", "--run-id", planned.name, "--timeout", f"{_TIMEOUT_S}s", "--", sys.executable, *TESTS,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        recorder = subprocess.Popen(
            command, cwd=app, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _disturb(recorder.pid, planned)
        recorder.wait(4 * _TIMEOUT_S)
    (found,) = (folder / "logs").glob(f"unit/*{planned.name}~1/run.json")
    line: dict[str, Any] = json.loads(found.read_text())
    assert (line["result"] == "SUCCESS") == (planned.cause == ""), (planned, line)
    # Of how the tests ended, a CI system tells no more than the result.
    line["labels"] = {"cause": planned.cause} if planned.cause else {}
    return {**line, "change": planned.name, "log_path": f"logs/{line['log_path']}"}


def _disturb(recorder: int, planned: Planned) -> None:
    """Let happen to the tests of a recorder what is planned."""
    if planned.trouble == "none":
        return
    tests = None
    while tests is None:
        time.sleep(0.1)
        tests = next((one for one in psutil.Process(recorder).children() if one.cmdline()[1:] == TESTS), None)
    time.sleep(planned.after_s)
    strike(tests.pid, planned.trouble)
    while planned.trouble == "starved" and tests.is_running() and tests.status() != psutil.STATUS_ZOMBIE:
        hogs = start_hogs()
        with contextlib.suppress(psutil.TimeoutExpired):
            tests.wait(8)
        end_hogs(hogs)
