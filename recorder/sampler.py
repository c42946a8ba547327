"""The sampler: dool where it is installed, else this process; both append to the same log.

Samples from /proc in dool's columns, units and notation, for machines without dool.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

from ciml.limits import MAX_RECORDER_LOG_BYTES
from ciml.recorder.command import EVERY_SIGNAL
from ciml.recorder.settings import report
from ciml.version import __version__

GROUPS = (
    ("epoch", ("epoch",)),
    ("total cpu usage", ("usr", "sys", "idl", "wai", "stl")),
    ("load avg", ("1m", "5m", "15m")),
    ("memory usage", ("used", "free", "cach", "avai")),
    ("dsk/total", ("read", "writ")),
    ("io/total", ("read", "writ")),
    ("net/total", ("recv", "send")),
    ("paging", ("in", "out")),
    ("system", ("int", "csw")),
    ("procs", ("run", "blk", "new")),
)
#: Partitions and mapped devices: their disk already counts their activity.
_PARTS = re.compile(r"([hsv]d[a-z]+\d+|cciss/c\d+d\d+p\d+|dm-\d+|md\d+|mmcblk\d+p\d0|VxVM\d+|nvme\d+n\d+p\d+)")
_NO_NETWORK = re.compile(r"lo|bond\d+|face|.+\.\d+")
_SECTOR = 512
_PAGE = os.sysconf("SC_PAGESIZE")
_PLUGINS = ("epoch", "cpu", "load", "mem", "disk", "io", "net", "page", "sys", "proc")
_PR_SET_PDEATHSIG = 1
_SILENT_S = 5.0


def header(moment: float) -> str:
    """Return the lines above the samples of one start of the recorder.

    Args:
      moment: start time, epoch seconds.
    """
    date = time.strftime("%d %b %Y %H:%M:%S UTC", time.gmtime(moment))
    groups = ",".join(f'"{group}"' + "," * (len(names) - 1) for group, names in GROUPS)
    names = ",".join(f'"{name}"' for _, names in GROUPS for name in names)
    return (
        f'"ciml-record {__version__} CSV output"\n"Host:","{os.uname().nodename}",,,,"User:",""\n'
        f'"Cmdline:","ciml record 1",,,,"Date:","{date}"\n{groups}\n{names}\n'
    )


class Sampler:
    """Reads /proc; each sample is the average since the previous one, the first since boot."""

    def __init__(self) -> None:
        self._before: Sequence[int] = ()
        self._at = 0.0

    def sample(self) -> str:
        """Return one row of the log, with its line feed.

        Raises:
          OSError: /proc cannot be read.
        """
        epoch = time.time()
        boottime_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        stat = _named("/proc/stat")
        memory = {name: int(value[0]) * 1024 for name, value in _named("/proc/meminfo", ":").items()}
        paging = _named("/proc/vmstat")
        user, nice, system, idle, waiting, irq, softirq, stolen = map(int, stat["cpu"][:8])
        sectors_read, sectors_written, *operations = _totals("/proc/diskstats", 2, _PARTS.fullmatch, (5, 9, 3, 7))
        counters = [
            *(user + nice + irq + softirq, system, idle, waiting, stolen),
            *(sectors_read * _SECTOR, sectors_written * _SECTOR, *operations),
            *_totals("/proc/net/dev", 0, _NO_NETWORK.fullmatch, (1, 9)),
            *(int(paging[name][0]) * _PAGE for name in ("pswpin", "pswpout")),
            *(int(stat[name][0]) for name in ("intr", "ctxt", "processes")),
        ]
        steps = [now - before for now, before in zip_longest(counters, self._before, fillvalue=0)]
        first = not self._before
        elapsed = max(boottime_s - self._at, 1e-3)
        self._before = counters
        self._at = boottime_s

        ticks = sum(steps[:5])
        rates = [step / elapsed for step in steps[5:]]
        if first:
            rates[4:6] = 0.0, 0.0  # dool does not average the network since boot
        used = memory["MemFree"] + memory["Cached"] + memory.get("SReclaimable", 0)
        with open("/proc/loadavg") as file:
            load = [float(cell) for cell in file.read().split()[:3]]
        values = [
            epoch,
            *(100 * step / ticks if ticks > 0 else 0.0 for step in steps[:5]),
            *load,
            memory["MemTotal"] - used,
            memory["MemFree"],
            memory["Cached"],
            memory.get("MemAvailable", 0),
            *rates[:10],
            int(stat["procs_running"][0]) - 1,
            int(stat["procs_blocked"][0]),
            rates[10],
        ]
        return ",".join(_number(value) for value in values) + "\n"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.3f}"


def _named(path: str, colon: str = "") -> dict[str, list[str]]:
    """Parse a file of lines, each a name and its values. The first line of a name counts."""
    values: dict[str, list[str]] = {}
    with open(path) as file:
        for line in file:
            name, *cells = line.split(None, 9)  # the line of interrupts is long
            values.setdefault(name.rstrip(colon), cells)
    return values


def _totals(path: str, name_cell: int, is_skipped: Callable[[str], object], counters: Sequence[int]) -> list[int]:
    """Add up the counters of all devices of a file, one a line. None exist where there is no file.

    Args:
      path: the file.
      name_cell: the index of a device's name in its line.
      is_skipped: says of a device's name whether the device does not count.
      counters: the indices of the counters.
    """
    totals = [0] * len(counters)
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        for line in file:
            cells = line.replace(":", " ").split()
            is_device = len(cells) > max(counters) and cells[max(counters)].isdigit()
            if is_device and not is_skipped(cells[name_cell]):
                totals = [total + int(cells[index]) for total, index in zip(totals, counters)]
    return totals


def find_dool() -> str | None:
    """Find dool: ``$CIML_DOOL`` ("" for none), beside this interpreter, or on the PATH."""
    named = os.environ.get("CIML_DOOL")
    if named is not None:
        return shutil.which(named) if named else None
    beside = Path(sys.executable).with_name("dool")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("dool")


class Recorder:
    """Appends a sample per second to a log. On a failure it reports once and continues as far as possible.

    Args:
      log: the log, which is appended to.
      dool: the program, or None to read /proc.
    """

    def __init__(self, log: Path, dool: str | None) -> None:
        self._log = log
        self._program: subprocess.Popen | None = None
        self._file: int | None = None
        self._sampler: Sampler | None = None
        self._failing = False
        self._full = False
        self._ended = False
        self._size = 0
        self._grew_at = time.monotonic()
        self.what = "/proc: dool not found"
        if dool is not None:
            try:
                self._program = self._start(dool)
                self.what = dool
            except OSError as error:
                report(f"cannot start {dool} ({error.strerror}); reading /proc instead")

    def _start(self, dool: str) -> subprocess.Popen:
        libc = ctypes.CDLL(None)  # before the fork
        me = os.getpid()

        def set_death_signal() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != me:
                os._exit(1)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, EVERY_SIGNAL)

        _repair(self._log)
        # Bytes, as in dstat: dool's default is bits, for disks too.
        arguments = [*(f"--{name}" for name in _PLUGINS), "--bytes", "--noheaders", "--nocolor", "--noupdate"]
        return subprocess.Popen(
            [dool, *arguments, "--output", str(self._log), "1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "DOOL_OPTS": "", "DOOL_TIMEFMT": ""},
            cwd="/",
            preexec_fn=set_death_signal,
        )

    def tick(self) -> None:
        """Take a sample, or check that dool does; call it once a second."""
        if self._full:
            return
        size = self._log.stat().st_size if self._log.exists() else 0
        if size > MAX_RECORDER_LOG_BYTES:
            self._full = True
            report(f"the log has {size >> 20} MiB, the limit; recording stops")
            self.end()
            return
        if self._program is None:
            self._sample()
        elif self._program.poll() is not None:
            report(f"dool exited (code {self._program.returncode}); reading /proc instead")
            self._program = None
            self._sample()
        elif size != self._size:
            self._size = size
            self._grew_at = time.monotonic()
        elif time.monotonic() - self._grew_at > _SILENT_S:
            report("dool writes nothing; reading /proc instead")
            self._stop_dool()
            self._sample()

    def end(self) -> None:
        """Stop dool. A run too short for dool gets one sample from /proc."""
        if self._ended:
            return
        self._ended = True
        self._stop_dool()
        if not self._full and not _has_sample(self._log):
            self._sample()
        if self._file is not None:
            os.close(self._file)

    def _stop_dool(self) -> None:
        if self._program is None:
            return
        self._program.terminate()
        try:
            self._program.wait(1.0)
        except subprocess.TimeoutExpired:
            self._program.kill()
            self._program.wait()
        self._program = None

    def _sample(self) -> None:
        try:
            if self._file is None:
                _repair(self._log)
                self._file = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if self._sampler is None:
                sampler = Sampler()
                gap = "\n" if os.fstat(self._file).st_size else ""
                self._append(gap + header(time.time()) + sampler.sample())
                self._sampler = sampler
            else:
                self._append(self._sampler.sample())
            self._failing = False
        except OSError as error:
            if not self._failing:
                self._failing = True
                report(f"cannot record a sample: {error.filename or self._log}: {error.strerror}; retrying")

    def _append(self, text: str) -> None:
        """Append to the log, whole or not at all."""
        assert self._file is not None
        size = os.fstat(self._file).st_size
        data = text.encode()
        try:
            if os.write(self._file, data) == len(data):
                return
            raise OSError(28, os.strerror(28))
        except OSError:
            os.ftruncate(self._file, size)
            raise


def _repair(log: Path) -> None:
    """Remove a truncated last line, left by a killed recorder or a full disk. Raises `OSError`."""
    if not log.exists():
        return
    with log.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 16)))
        tail = file.read()
        complete = tail.rfind(b"\n") + 1
        if complete < len(tail):
            file.truncate(size - len(tail) + complete)


def _has_sample(log: Path) -> bool:
    """Return whether a log ends with a sample."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
            return any(line[:1].isdigit() for line in file.read().split(b"\n")[:-1])
    except OSError:
        return False
