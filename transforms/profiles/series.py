"""The series that people know, by the full names of their columns: their words, units, and what counts as noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

#: ``%`` of the machine's processors, ``B`` bytes, ``B/s`` bytes a second, ``/s`` events a second, "" a number.
Unit = Literal["%", "B", "B/s", "/s", ""]

_MB = 1e6


class Series(NamedTuple):
    """A series.

    Attributes:
      words: what people call it.
      unit: of its values.
      noise: how far two runs differ without a reason, in its unit: a smaller departure is none.
      group: series of one group say the same of a run; "" where a series says nothing to people.
    """

    words: str
    unit: Unit
    noise: float
    group: str = ""


#: By full name. Columns of other names are never shown to people: names come from logs, which are hostile.
SERIES: Mapping[str, Series] = {
    "total cpu usage:usr": Series("user CPU", "%", 10.0, "processor"),
    "total cpu usage:sys": Series("system CPU", "%", 10.0, "processor"),
    "total cpu usage:idl": Series("idle CPU", "%", 10.0, "processor"),
    "total cpu usage:wai": Series("waiting for disk", "%", 5.0, "waiting"),
    "total cpu usage:stl": Series("steal", "%", 2.0, "steal"),
    "load avg:1m": Series("load", "", 1.0, "queue"),
    "load avg:5m": Series("load of 5 minutes", "", 1.0),
    "load avg:15m": Series("load of 15 minutes", "", 1.0),
    "memory usage:used": Series("memory used", "B", 300 * _MB, "memory"),
    "memory usage:free": Series("memory free", "B", 300 * _MB),
    "memory usage:buff": Series("buffers", "B", 300 * _MB),
    "memory usage:cach": Series("page cache", "B", 300 * _MB),
    "memory usage:avai": Series("memory available", "B", 300 * _MB),
    "swap:used": Series("swap used", "B", 50 * _MB, "swap"),
    "swap:free": Series("swap free", "B", 50 * _MB),
    "paging:in": Series("swap-in rate", "B/s", _MB, "swap"),
    "paging:out": Series("swap-out rate", "B/s", _MB, "swap"),
    "dsk/total:read": Series("disk read rate", "B/s", 5 * _MB, "disk"),
    "dsk/total:writ": Series("disk write rate", "B/s", 5 * _MB, "disk"),
    "io/total:read": Series("disk reads", "/s", 100.0),
    "io/total:writ": Series("disk writes", "/s", 100.0),
    "net/total:recv": Series("network receive rate", "B/s", _MB, "network"),
    "net/total:send": Series("network send rate", "B/s", _MB, "network"),
    "system:int": Series("interrupts", "/s", 1000.0),
    "system:csw": Series("context switches", "/s", 1000.0),
    "procs:run": Series("the number of runnable processes", "", 2.0, "queue"),
    "procs:blk": Series("the number of blocked processes", "", 1.0, "waiting"),
    "procs:new": Series("new processes", "/s", 20.0),
    "/:used": Series("disk used", "B", 500 * _MB),
    "/:free": Series("free disk", "B", 500 * _MB, "space"),
}
