"""A process that crashes while it tests fails one test, and no other test is lost, repeated or waited for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.distribution import WITH_TENSORFLOW, FilesByEngine, next_scope

ROOT = Path(__file__).parents[2]
PASSES = "def test_first(): pass\ndef test_second(): pass\ndef test_third(): pass\n"
CRASHES = "import os\ndef test_before(): pass\ndef test_crash(): os.kill(os.getpid(), 9)\n"
#: The scheduler of these tests. Only the process that distributes makes one. It says where it waits if it never ends,
#: and is slow, so that a process has often crashed before it is given more.
SCHEDULES = """
import faulthandler, time

def pytest_xdist_make_scheduler(config, log):
    from tests.distribution import FilesByEngine

    class Slow(FilesByEngine):
        def _assign_work_unit(self, node):
            time.sleep(SECONDS)
            super()._assign_work_unit(node)

    faulthandler.dump_traceback_later(100, exit=True)
    return Slow(config, log)
"""


@pytest.mark.parametrize(
    ("place", "processes", "name"),
    [
        (0, 1, "tests/training/test_b.py"),
        (0, 4, "tests/training/test_b.py"),
        (1, 4, "flink"),
        (1, 5, "tests/training/test_b.py"),
        (2, 5, "flink"),
    ],
)
def test_few_processes_prefer_files_with_tensorflow(place: int, processes: int, name: str) -> None:
    names = ["flink", "tests/training/test_b.py", "tests/test_a.py", "tests/training/test_a.py"]
    assert next_scope(names, place, processes) == name
    assert next_scope(names[2:3], place, processes) == names[2]
    assert next_scope(names[3:], place, processes) == names[3]


def test_files_with_tensorflow_exist() -> None:
    assert [name for name in WITH_TENSORFLOW if not (ROOT / name).exists()] == []


ALL = ([PASSES, PASSES, CRASHES, PASSES, CRASHES + "def test_after(): pass\n"], 12, 2)
PARTS = [
    ([PASSES, CRASHES], 4, 1),
    ([CRASHES, "def test_last(): pass\n"], 2, 1),
    ([CRASHES + "def test_after(): pass\n"], 2, 1),
]
#: Files, how many of their tests pass and fail, how many processes test, and the seconds before one is given more.
RUNS = [(*ALL, 1, 0.3), (*ALL, 1, 0), (*ALL, 2, 0), *((*part, 1, 0.3) for part in PARTS)]


@pytest.mark.parametrize(
    ("files", "passed", "failed", "processes", "seconds"),
    [RUNS[0], *(pytest.param(*run, marks=pytest.mark.whole) for run in RUNS[1:])],
)
def test_a_crash_fails_one_test_and_ends(
    files: list[str], passed: int, failed: int, processes: int, seconds: float, tmp_path: Path
) -> None:
    for number, text in enumerate(files):
        (tmp_path / f"test_{number}.py").write_text(text)
    (tmp_path / "conftest.py").write_text(SCHEDULES.replace("SECONDS", str(seconds)))
    words = ["-n", str(processes), "--dist", "loadfile", "--no-loadscope-reorder", "-p", "no:cacheprovider"]
    words += ["-p", "xdist.plugin", "-s"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "--rootdir", tmp_path, tmp_path],
        capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path,
    )  # fmt: skip
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed)", result.stdout.splitlines()[-1])}
    assert counts == {"passed": passed, "failed": failed}, result.stdout + result.stderr


def test_a_process_that_has_not_collected_yet_is_given_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes crash at once: the first replacement is ready before the second has collected."""
    given: list[object] = []
    monkeypatch.setattr(LoadFileScheduling, "_reschedule", lambda self, node: given.append(node))
    scheduler = object.__new__(FilesByEngine)
    ready, late = object(), object()
    scheduler.registered_collections = {ready: ["a.py::test"]}  # type: ignore[dict-item]
    for node in (ready, late):
        scheduler._reschedule(node)  # type: ignore[arg-type]
    assert given == [ready]
