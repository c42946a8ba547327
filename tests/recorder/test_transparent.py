"""A recorded command is the bare command: streams, arguments, environment, exit status, signals, terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.recorder.recorded import environment, record, recorder, wait_for
from tests.tier import tries

#: Echoes its input, then its environment; its arguments to standard error; ends with a code or by a signal.
ECHO = """cat; env -0; printf '%s\\0' "$@" >&2; eval "$ENDING" """
NO_NUL = st.binary(max_size=40).map(lambda data: data.replace(b"\0", b"\xff"))
CODES = st.integers(0, 255).map(lambda code: f"exit {code}")
DEATHS = st.sampled_from(["KILL", "TERM", "INT", "HUP", "SEGV", "ABRT", "PIPE", "USR1", "ALRM"]).map(
    lambda name: f"kill -{name} $$"
)
#: A recorder that also records the output of the command passes it on, and is as transparent.
EACH_RECORDER = pytest.mark.parametrize("output", [(), ("--output",)], ids=["log", "log and output"])


def recording(folder: Path, *options: str) -> list[str | bytes]:
    """The command line of a recorder that stores the log in a folder, up to the command."""
    return recorder(folder / "spool", "-q", "--log-dir", str(folder / "logs"), "--job", "job", *options)


def ended(argv: list[Any], folder: Path, **more: Any) -> tuple[int, bytes, bytes]:
    """(exit status, standard output, standard error); the environment in the output sorted."""
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False, cwd=folder, **more)
    return done.returncode, b"\0".join(sorted(done.stdout.split(b"\0"))), done.stderr


@EACH_RECORDER
@settings(max_examples=tries(8), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ending=CODES | DEATHS,
    stdin=st.binary(max_size=100_000),
    arguments=st.lists(NO_NUL, max_size=4),
    variables=st.dictionaries(st.from_regex(r"\A[A-Z]{1,8}_X\Z").map(str.encode), NO_NUL, max_size=3),
)
def test_a_recorded_command_is_the_bare_one(
    tmp_path: Path,
    output: tuple[str, ...],
    ending: str,
    stdin: bytes,
    arguments: list[bytes],
    variables: dict[bytes, bytes],
) -> None:
    command = ["sh", "-c", ECHO, "sh", *arguments]
    env = {b"PATH": os.environb[b"PATH"], b"PYTHONPATH": os.fsencode(environment()["PYTHONPATH"]), **variables}
    env[b"ENDING"] = ending.encode()
    bare = ended(command, tmp_path, input=stdin, env=env)
    assert ended([*recording(tmp_path, *output), *command], tmp_path, input=stdin, env=env) == bare


@pytest.mark.parametrize(
    ("command", "code", "reported"),
    [
        (["no-such-program"], 127, "no-such-program: No such file or directory"),
        (["/no/such/program"], 127, "/no/such/program: No such file or directory"),
        ([""], 127, ": No such file or directory"),
        (["/"], 126, "/: Permission denied"),
    ],
)
def test_what_cannot_be_started_ends_as_in_a_shell(
    tmp_path: Path, command: list[str], code: int, reported: str
) -> None:
    done = record(tmp_path / "spool", command=command)
    assert done.returncode == code
    assert f"ciml record: {reported}\n" in done.stderr


def test_a_script_without_an_interpreter_is_run_by_sh(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo $1; exit 3\n")
    script.chmod(0o755)
    done = record(tmp_path / "spool", command=["script", "x"], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert (done.returncode, done.stdout) == (3, "x\n")


LOOK = """
import os
for one in os.listdir("/proc/self/fd"):
    try:
        print(one, os.readlink(f"/proc/self/fd/{one}").partition(":")[0])
    except FileNotFoundError:
        pass  # that of the listing
print(*[line for line in open("/proc/self/status") if line.startswith(("SigIgn", "SigBlk"))])
"""


def test_descriptors_ignored_signals_and_the_mask_are_inherited(tmp_path: Path) -> None:
    """As ``make`` gives its jobs a pipe, ``nohup`` an ignored SIGHUP, and some shells a blocked signal."""
    look = [sys.executable, "-c", LOOK]

    def prepare() -> None:
        for number in (signal.SIGINT, signal.SIGQUIT):  # a shell's background jobs, such as these tests, ignore them
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})

    reading, writing = os.pipe()
    more: dict[str, Any] = {"preexec_fn": prepare, "pass_fds": (reading, writing), "env": environment()}
    bare = ended(look, tmp_path, **more)
    ignored = int(re.findall(rb"SigIgn:\t([0-9a-f]{16})", bare[1])[0], 16)  # and perhaps others
    asked = {signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ}  # Python ignores the last two
    assert {number for number in asked if ignored >> (number - 1) & 1} == asked
    assert ended([*recorder(tmp_path / "spool", "-q"), *look], tmp_path, **more) == bare


TELLS_SIGNALS = """
import signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    signal.signal(number, lambda number, frame: print(number, flush=True))
print("ready", flush=True)
for line in sys.stdin:
    break
"""


@EACH_RECORDER
def test_each_signal_comes_once_to_one_process_or_to_the_group(tmp_path: Path, output: tuple[str, ...]) -> None:
    process = subprocess.Popen(
        [*recording(tmp_path, *output), sys.executable, "-c", TELLS_SIGNALS],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    names = "INT TERM HUP USR1 USR2 WINCH QUIT CONT ALRM PIPE TSTP RTMIN"
    numbers = [signal.Signals[f"SIG{name}"] for name in names.split()]
    numbers_read = []
    for number in numbers:
        for send in (os.kill, os.killpg):
            send(process.pid, number)
            numbers_read.append(int(process.stdout.readline()))
    rest, _ = process.communicate("end\n", timeout=30)
    assert numbers_read == [number for number in numbers for _ in range(2)]
    assert rest == ""
    assert process.returncode == 0


STARTS_UNDER_A_SIGNAL = """
import os, signal, sys
from ciml.recorder import command
mask, ignored = command.block_signals()
if sys.argv[2] == "before":
    os.kill(os.getpid(), int(sys.argv[1]))
fork = os.fork
def fork_and_signal():
    pid = fork()
    if pid == 0 and sys.argv[2] == "after":
        os.kill(os.getpid(), int(sys.argv[1]))
    return pid
os.fork = fork_and_signal
print(os.waitstatus_to_exitcode(os.waitpid(command.start(["sleep", "60"], mask, ignored), 0)[1]))
"""


@pytest.mark.parametrize("time", ["before", "after"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_command_is_executed_ends_it(number: signal.Signals, time: str) -> None:
    """A shell that gets SIGINT alone would wait for its own command, and Python's handler would take the signal."""
    started = [sys.executable, "-c", STARTS_UNDER_A_SIGNAL, str(int(number)), time]
    done = subprocess.run(started, capture_output=True, text=True, env=environment(), timeout=30)
    assert done.stdout == f"{-number}\n", done.stderr


@EACH_RECORDER
@pytest.mark.parametrize(
    ("target", "result"),
    [("recorder", "ABORTED"), ("command, then recorder", "ABORTED"), ("command", "FAILURE")],
)
def test_a_signal_ends_the_command_and_then_the_recorder(
    tmp_path: Path, target: str, result: str, output: tuple[str, ...]
) -> None:
    """A CI system may signal the processes of a job one after another, the command first."""
    process = subprocess.Popen(
        [*recording(tmp_path, *output), "sh", "-c", "echo $$; exec sleep 60"],
        stdout=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    command = int(process.stdout.readline())
    if "command" in target:
        os.kill(command, signal.SIGTERM)
        wait_for(lambda: not psutil.pid_exists(command))
    if "recorder" in target:
        process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    (listed,) = (tmp_path / "logs").glob("*/*/run.json")
    assert json.loads(listed.read_text())["result"] == result


def test_a_command_that_overruns_its_time_is_ended(tmp_path: Path) -> None:
    done = record(
        tmp_path / "spool", "-q", "--timeout", "200ms", "--log-dir", str(tmp_path / "logs"), command=["sleep", "60"]
    )
    assert done.returncode == -signal.SIGTERM
    (listed,) = (tmp_path / "logs").glob("*/*/run.json")
    assert '"result": "TIMED_OUT"' in listed.read_text()


#: What a shell with job control does with a job in the foreground that is stopped, and then with ``fg``.
SHELL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
_, status = os.waitpid(job, os.WUNTRACED)
os.tcsetpgrp(0, os.getpgrp())
print("stopped" if os.WIFSTOPPED(status) else status, flush=True)
os.tcsetpgrp(0, job)
os.killpg(job, signal.SIGCONT)
_, status = os.waitpid(job, 0)
os.tcsetpgrp(0, os.getpgrp())
print("ended with", os.waitstatus_to_exitcode(status), flush=True)
"""


def test_a_terminal_stays_one_and_stops_and_continues_both(tmp_path: Path) -> None:
    job = [*recorder(tmp_path / "spool", "-q"), "sh", "-c", "test -t 0 && test -t 2 && echo tty; read x; exit $x"]
    terminal, side = pty.openpty()
    shell = subprocess.Popen(  # not pty.fork: in a process with gRPC's threads its child may hang
        [sys.executable, "-c", SHELL, *job],
        stdin=side, stdout=side, stderr=side, env=environment(), start_new_session=True,
    )  # fmt: skip
    os.close(side)
    reported = b""

    def hear(word: bytes) -> None:
        nonlocal reported
        while word not in reported:
            reported += os.read(terminal, 100)

    hear(b"tty\r\n")
    os.write(terminal, b"\x1a")
    hear(b"stopped\r\n")
    os.write(terminal, b"5\n")
    hear(b"ended with 5\r\n")
    assert shell.wait(30) == 0
    os.close(terminal)


def test_a_command_that_is_stopped_alone_stops_no_other_process(tmp_path: Path) -> None:
    """As cpulimit does, again and again: the recorder would stay stopped for ever."""
    process = subprocess.Popen(
        [*recorder(tmp_path / "spool", "-q"), "sh", "-c", "echo $$; read x; exit 4"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    command = int(process.stdout.readline())
    for _ in range(3):
        os.kill(command, signal.SIGSTOP)
        wait_for(lambda: "T (stopped)" in Path(f"/proc/{command}/status").read_text())
        os.kill(command, signal.SIGCONT)
    process.communicate("x\n", timeout=30)
    assert process.returncode == 4
