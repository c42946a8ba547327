"""Samples from /proc in dool's columns, units and notation, for machines without dool."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence

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
_SECTOR, _PAGE = 512, os.sysconf("SC_PAGESIZE")


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
        self._before: Sequence[float] = ()
        self._at = 0.0

    def sample(self) -> str:
        """Return one row of the log, with its line feed.

        Raises:
          OSError: /proc cannot be read.
        """
        epoch, at = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
        stat = _named("/proc/stat")
        memory = {name: int(value[0]) * 1024 for name, value in _named("/proc/meminfo", ":").items()}
        paging = _named("/proc/vmstat")
        cpu = [int(each) for each in stat["cpu"][:8]]
        counters = [
            float(each)
            for each in (
                cpu[0] + cpu[1] + cpu[5] + cpu[6], *cpu[2:5], cpu[7], *_disks(), *_network(),
                int(paging["pswpin"][0]) * _PAGE, int(paging["pswpout"][0]) * _PAGE, int(stat["intr"][0]),
                int(stat["ctxt"][0]), int(stat["processes"][0]),
            )
        ]  # fmt: skip
        before = self._before or [0.0] * len(counters)
        steps = [now - then for now, then in zip(counters, before, strict=True)]
        before_at = self._at
        elapsed = max(at - before_at, 1e-3)
        self._before, self._at = counters, at

        ticks = sum(steps[:5])
        rates = [step / elapsed for step in steps[5:]]
        if not before_at:
            rates[4:6] = 0.0, 0.0  # dool does not average the network since boot
        used = memory["MemFree"] + memory["Cached"] + memory.get("SReclaimable", 0)
        with open("/proc/loadavg") as file:
            load = [float(each) for each in file.read().split()[:3]]
        values = [
            epoch,
            *(100 * step / ticks if ticks > 0 else 0.0 for step in steps[:5]),
            *load,
            memory["MemTotal"] - used, memory["MemFree"], memory["Cached"], memory.get("MemAvailable", 0),
            *rates[:10],
            int(stat["procs_running"][0]) - 1, int(stat["procs_blocked"][0]), rates[10],
        ]  # fmt: skip
        return ",".join(_number(value) for value in values) + "\n"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.3f}"


def _named(path: str, colon: str = "") -> dict[str, list[str]]:
    """Parse a file of lines, each a name and its values. The first line of a name counts."""
    found: dict[str, list[str]] = {}
    with open(path) as file:
        for line in file:
            name, *rest = line.split(None, 9)  # the line of interrupts is long
            found.setdefault(name.rstrip(colon), rest)
    return found


def _disks() -> tuple[int, int, int, int]:
    """Return bytes read and written, and reads and writes, of all disks."""
    total = [0, 0, 0, 0]
    try:
        with open("/proc/diskstats") as file:
            for line in file:
                cells = line.split()
                if len(cells) >= 13 and not _PARTS.fullmatch(cells[2]):
                    for index, cell in enumerate((5, 9, 3, 7)):
                        total[index] += int(cells[cell])
    except FileNotFoundError:
        pass
    return total[0] * _SECTOR, total[1] * _SECTOR, total[2], total[3]


def _network() -> tuple[int, int]:
    """Return bytes received and sent by all interfaces except the loopback."""
    received = sent = 0
    with open("/proc/net/dev") as file:
        for line in file:
            name, colon, rest = line.partition(":")
            cells = rest.split()
            if colon and len(cells) >= 16 and not _NO_NETWORK.fullmatch(name.strip()):
                received, sent = received + int(cells[0]), sent + int(cells[8])
    return received, sent
