"""A library leaves its caller's process as it was, also if it fails; a process of ciml gets its settings."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ciml.tensorflow import keep_settings


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_block_changes_in_its_process_is_restored(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    for name in ("CIML_KEPT", "CIML_REMOVED"):
        monkeypatch.setenv(name, "old")
    monkeypatch.delenv("CIML_NEW", raising=False)
    environment, state, handlers = dict(os.environ), random.getstate(), logging.root.handlers[:]
    tensorflow = logging.getLogger("tensorflow")
    filters = tensorflow.filters[:]
    try:
        with keep_settings():
            os.environ.update(CIML_NEW="new", CIML_KEPT="new")
            del os.environ["CIML_REMOVED"]
            random.seed(1)
            logging.root.addHandler(logging.NullHandler())
            records = [tensorflow.makeRecord("tensorflow", level, "", 0, "", (), None) for level in (30, 40)]
            assert [bool(tensorflow.filter(record)) for record in records] == [False, True]
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert (dict(os.environ), random.getstate(), logging.root.handlers) == (environment, state, handlers)
    assert tensorflow.filters == filters


def test_blocks_that_overlap_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested ones, and those of two threads, of which the first to begin is the first to end."""
    monkeypatch.delenv("CIML_NEW", raising=False)
    tensorflow = logging.getLogger("tensorflow")
    warning = tensorflow.makeRecord("tensorflow", logging.WARNING, "", 0, "", (), None)
    first = keep_settings()
    second = keep_settings()
    with first:
        second.__enter__()
        with keep_settings():
            os.environ["CIML_NEW"] = "new"
        assert not tensorflow.filter(warning)
    assert not tensorflow.filter(warning)
    second.__exit__(None, None, None)
    assert tensorflow.filter(warning)
    assert "CIML_NEW" not in os.environ


#: A module in place of TensorFlow, which prints what TensorFlow prints on a machine without a GPU.
_FAKE = r"""
import logging, os, time
from contextlib import suppress
from types import SimpleNamespace as Names
def write(message):
    with suppress(OSError):  # as the libraries do
        os.write(2, message)
write(b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n")
write(b"I0000 00:00:1796069835.356028    6249 cudart_stub.cc:31] Could not find cuda drivers on your machine\n")
threads = 0
def set_threads(number):
    global threads
    threads = number
def list_physical_devices():
    time.sleep(0.25)
    write(b"E0000 00:00:1796069848.417325    6249 cuda_platform.cc:52] failed call to cuInit: INTERNAL\n")
threading = Names(set_inter_op_parallelism_threads=set_threads, set_intra_op_parallelism_threads=set_threads)
experimental = Names(enable_op_determinism=lambda: None)
config = Names(list_physical_devices=list_physical_devices, threading=threading, experimental=experimental)
get_logger = logging.getLogger
time.sleep(0.25)
"""
_DECLARE = "import sys, threading, time; from ciml import tensorflow as t; t.declare_own_process(threads=3)\n"


def run_with_fake(code: str, folder: Path, shell: str = "") -> subprocess.CompletedProcess[str]:
    """Run code in a process of ciml that imports the fake."""
    (folder / "tensorflow.py").write_text(_FAKE)
    command = ("sh", "-c", f'exec "$0" "$@" {shell}', sys.executable, "-c", _DECLARE + code)
    path = os.pathsep.join((str(folder), os.getcwd()))
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("given", "policy"), [("", "passive"), ("active", "active")])
def test_threads_of_openmp_sleep_while_they_wait_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, policy: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY")  # of this process
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    assert run_with_fake("import os; print(os.environ['OMP_WAIT_POLICY'])", tmp_path).stdout == f"{policy}\n"


def test_no_thread_uses_tensorflow_before_its_settings_are_applied(tmp_path: Path) -> None:
    code = """
first = threading.Thread(target=t.load_tensorflow)
first.start()
while "tensorflow" not in sys.modules:
    time.sleep(0.001)
print(t.load_tensorflow().threads)
"""
    assert run_with_fake(code, tmp_path).stdout == "3\n"


def test_lines_that_others_print_during_the_import_are_not_lost(tmp_path: Path) -> None:
    code = """
first = threading.Thread(target=t.load_tensorflow)
first.start()
for number in range(8):
    print("line", number, file=sys.stderr)
    time.sleep(0.1)
first.join()
"""
    lines = run_with_fake(code, tmp_path).stderr.splitlines()
    assert lines == [f"line {number}" for number in range(8)]


@pytest.mark.parametrize(
    ("code", "shell"),
    [("", "2>&-"), ("import os; os.close(2)\n", ""), ("import tempfile; tempfile.tempdir = '/missing'\n", "")],
    ids=["closed at the start", "closed since", "no place for a file"],
)
def test_tensorflow_is_imported_without_standard_error(code: str, shell: str, tmp_path: Path) -> None:
    process = run_with_fake(code + "print(t.load_tensorflow().threads)", tmp_path, shell)
    assert (process.stdout, process.returncode) == ("3\n", 0)
