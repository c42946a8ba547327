"""Sampling of the machine once a second into a log: by dool, or from /proc if dool is not installed or fails.

`Recorder` writes the log. `Sampler` reads /proc in dool's columns, units and notation.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ciml.limits import MAX_RECORDER_LOG_BYTES
from ciml.recorder import report
from ciml.recorder.command import EVERY_SIGNAL
from ciml.version import __version__

#: The columns of `Sampler`, by groups.
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
#: The plugins of dool for these groups.
_PLUGINS = ("epoch", "cpu", "load", "mem", "disk", "io", "net", "page", "sys", "proc")
#: Partitions and mapped devices: their disk already counts their activity.
_PARTS = re.compile(r"([hsv]d[a-z]+\d+|cciss/c\d+d\d+p\d+|dm-\d+|md\d+|mmcblk\d+p\d0|VxVM\d+|nvme\d+n\d+p\d+)")
_NO_NETWORK = re.compile(r"lo|bond\d+|face|.+\.\d+")
_SECTOR = 512
_PAGE = os.sysconf("SC_PAGESIZE")
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_SILENT_S = 5.0  # dool is replaced if the log has not grown for this time
_END_BYTES = 1 << 16  # of the log's end, where its last lines are


def find_dool() -> str | None:
    """Return the path of dool: ``$CIML_DOOL`` ("" for none), next to this interpreter, or on the PATH."""
    configured = os.environ.get("CIML_DOOL")
    if configured is not None:
        return shutil.which(configured) if configured else None
    neighbour = Path(sys.executable).with_name("dool")
    return str(neighbour) if os.access(neighbour, os.X_OK) else shutil.which("dool")


class Recorder:
    """Appends a sample per second to a log. It reports the first of several failures in a row, and tries again.

    Args:
      log: the log, which is appended to.
      dool: path of the program, or None to read /proc.

    Attributes:
      source: the origin of the samples, for a message.
    """

    def __init__(self, log: Path, dool: str | None) -> None:
        self._log = log
        self._dool: subprocess.Popen | None = None
        self._file: int | None = None
        self._sampler: Sampler | None = None
        self._is_failing = False  # the last sample could not be recorded, which was reported
        self._is_full = False  # the log has reached its limit
        self._is_ended = False
        self._size = 0  # of the log at the last change by dool, and the time of that change
        self._grew_s = time.monotonic()
        self.source = "/proc: dool not found"
        if dool is not None:
            try:
                self._dool = _start_dool(dool, log)
                self.source = dool
            except OSError as error:
                report(f"cannot start {dool} ({error.strerror}); reading /proc instead")

    def tick(self) -> None:
        """Take a sample, or check that dool does. Call this once a second."""
        if self._is_full:
            return
        size = self._log.stat().st_size if self._log.exists() else 0
        if size > MAX_RECORDER_LOG_BYTES:
            self._is_full = True
            report(f"the log has {size >> 20} MiB, the limit; recording stops")
            self.end()
            return
        if self._dool is None:
            self._sample()
        elif self._dool.poll() is not None:
            report(f"dool exited (code {self._dool.returncode}); reading /proc instead")
            self._dool = None
            self._sample()
        elif size != self._size:
            self._size = size
            self._grew_s = time.monotonic()
        elif time.monotonic() - self._grew_s > _SILENT_S:
            report("dool writes nothing; reading /proc instead")
            self._stop_dool()
            self._sample()

    def end(self) -> None:
        """Stop dool. A run too short for dool gets one sample from /proc."""
        if self._is_ended:
            return
        self._is_ended = True
        self._stop_dool()
        if not self._is_full and not _has_sample(self._log):
            self._sample()
        if self._file is not None:
            os.close(self._file)

    def _stop_dool(self) -> None:
        if self._dool is None:
            return
        self._dool.terminate()
        try:
            self._dool.wait(1.0)
        except subprocess.TimeoutExpired:
            self._dool.kill()
            self._dool.wait()
        self._dool = None

    def _sample(self) -> None:
        try:
            if self._file is None:
                repair(self._log)
                self._file = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if self._sampler is None:
                sampler = Sampler()
                gap = "\n" if os.fstat(self._file).st_size else ""
                _append(self._file, gap + header(time.time()) + sampler.sample())
                self._sampler = sampler
            else:
                _append(self._file, self._sampler.sample())
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                self._is_failing = True
                report(f"cannot record a sample: {error.filename or self._log}: {error.strerror}; retrying")


def _start_dool(dool: str, log: Path) -> subprocess.Popen:
    """Start dool; it ends with this process. Raises `OSError`."""
    libc = ctypes.CDLL(None)  # before the fork
    recorder_pid = os.getpid()

    def set_death_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != recorder_pid:  # it ended before prctl
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, EVERY_SIGNAL)

    repair(log)
    # Bytes, as in dstat: dool's default is bits, for disks too.
    arguments = [*(f"--{name}" for name in _PLUGINS), "--bytes", "--noheaders", "--nocolor", "--noupdate"]
    return subprocess.Popen(
        [dool, *arguments, "--output", str(log), "1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "DOOL_OPTS": "", "DOOL_TIMEFMT": ""},
        cwd="/",
        preexec_fn=set_death_signal,
    )


def _append(log: int, text: str) -> None:
    """Append to an open log, whole or not at all. Raises `OSError`."""
    size = os.fstat(log).st_size
    data = text.encode()
    try:
        if os.write(log, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(log, size)
        raise


def repair(log: Path) -> None:
    """Remove a truncated last line, left by a killed recorder or a full disk. Raises `OSError`."""
    if not log.exists():
        return
    with log.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END_BYTES))
        tail = file.read()
        complete = tail.rfind(b"\n") + 1
        if complete < len(tail):
            file.truncate(size - len(tail) + complete)


def _has_sample(log: Path) -> bool:
    """Return whether the last `_END_BYTES` of a log contain a sample."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
            return any(line[:1].isdigit() for line in file.read().split(b"\n")[:-1])
    except OSError:
        return False


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
        self._counters: Mapping[str, Sequence[int]] | None = None
        self._sampled_s = 0.0  # since boot

    def sample(self) -> str:
        """Return one row of the log, with its line feed.

        Raises:
          OSError: /proc cannot be read.
        """
        epoch_s = time.time()
        boottime_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        stat = _read_values("/proc/stat")
        counters = _read_counters(stat)
        steps = counters
        if self._counters is not None:
            steps = {
                name: [now - before for now, before in zip(counters[name], self._counters[name])] for name in counters
            }
        elapsed_s = max(boottime_s - self._sampled_s, 1e-3)
        rates = {name: [step / elapsed_s for step in steps[name]] for name in steps}
        if self._counters is None:
            rates["net"] = [0.0, 0.0]  # dool does not average the network since boot
        self._counters = counters
        self._sampled_s = boottime_s

        ticks = sum(steps["cpu"])
        with open("/proc/loadavg") as file:
            load = [float(cell) for cell in file.read().split()[:3]]
        values = [
            epoch_s,
            *(100 * step / ticks if ticks > 0 else 0.0 for step in steps["cpu"]),
            *load,
            *_read_memory(),
            *rates["disk"],
            *rates["io"],
            *rates["net"],
            *rates["paging"],
            *rates["system"],
            int(stat["procs_running"][0]) - 1,  # without this process
            int(stat["procs_blocked"][0]),
            *rates["new"],
        ]
        return ",".join(_format_number(value) for value in values) + "\n"


def _read_counters(stat: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Return the kernel's counters since boot, by group: CPU ticks, bytes, operations, events.

    Args:
      stat: the values in /proc/stat by name.
    """
    user, nice, system, idle, waiting, irq, softirq, stolen = map(int, stat["cpu"][:8])
    sectors_read, sectors_written, *operations = _sum_devices("/proc/diskstats", 2, _PARTS.fullmatch, (5, 9, 3, 7))
    vmstat = _read_values("/proc/vmstat")
    return {
        "cpu": [user + nice + irq + softirq, system, idle, waiting, stolen],
        "disk": [sectors_read * _SECTOR, sectors_written * _SECTOR],
        "io": operations,
        "net": _sum_devices("/proc/net/dev", 0, _NO_NETWORK.fullmatch, (1, 9)),
        "paging": [int(vmstat[name][0]) * _PAGE for name in ("pswpin", "pswpout")],
        "system": [int(stat[name][0]) for name in ("intr", "ctxt")],
        "new": [int(stat["processes"][0])],
    }


def _read_memory() -> list[int]:
    """Return the used, free, cached and available bytes of memory."""
    sizes = {name: int(value[0]) * 1024 for name, value in _read_values("/proc/meminfo", ":").items()}
    unused = sizes["MemFree"] + sizes["Cached"] + sizes.get("SReclaimable", 0)
    return [sizes["MemTotal"] - unused, sizes["MemFree"], sizes["Cached"], sizes.get("MemAvailable", 0)]


def _read_values(path: str, colon: str = "") -> dict[str, list[str]]:
    """Parse a file of lines, each a name and its values. If a name repeats, its first line counts."""
    values: dict[str, list[str]] = {}
    with open(path) as file:
        for line in file:
            name, *cells = line.split(None, 9)  # the line of interrupts is long
            values.setdefault(name.rstrip(colon), cells)
    return values


def _sum_devices(path: str, name_cell: int, is_skipped: Callable[[str], object], counters: Sequence[int]) -> list[int]:
    """Add up the counters of all devices of a file, one device per line; 0 if there is no file.

    Args:
      path: the file.
      name_cell: the index of a device's name in its line.
      is_skipped: returns whether a device, given by its name, does not count.
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


def _format_number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.3f}"
