"""The vocabulary of the recorders: names of columns and months, the form of numbers, civil times. Imports no Arrow."""

from __future__ import annotations

import datetime as dt

from ciml import limits

TIME_CELLS = frozenset({"time", "time-adv"})
EPOCH_CELLS = frozenset({"epoch", "epoch-adv"})
_MONTH_NAMES = b"jan feb mar apr may jun jul aug sep oct nov dec".split()
MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
EARLIEST, LATEST = limits.EARLIEST_US, limits.LATEST_US
#: Times without a zone that may be instants of `EARLIEST` to `LATEST`. No other is ever converted.
FIRST_LOCAL, END_LOCAL = EARLIEST - DAY, LATEST + DAY
#: A number as the recorders write them, excluding other forms that some parser accepts (1_000, 0x10, ٣). The pattern is
#: unambiguous, so nothing is tried again.
NUMBER = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"

#: Columns that the recorders write, ``group:name``.
RECORDED_COLUMNS = frozenset(
    f"{group}:{name}"
    for group, names in {
        "total cpu usage": "usr sys idl wai hiq siq stl",
        "total usage": "usr sys idl wai hiq siq stl",
        "load avg": "1m 5m 15m",
        "memory usage": "used free buff cach avai",
        "dsk/total": "read writ",
        "io/total": "read writ",
        "net/total": "recv send",
        "swap": "used free",
        "paging": "in out",
        "procs": "run blk new",
        "system": "int csw",
        "tcp sockets": "lis act syn tim clo",
        "filesystem": "files inodes",
        "file locks": "pos lck rea wri",
        "sysv ipc": "msg sem shm",
        "unix sockets": "dgm str lis act",
        "virtual memory": "majpf minpf alloc free",
    }.items()
    for name in names.split()
)


def epoch_us(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int | None:
    """Return a civil time as µs since 1970 without a zone; None for an invalid time.

    Second 60 is the next minute.
    """
    try:
        days = (dt.date(year, month, day) - dt.date(1970, 1, 1)).days
    except ValueError:
        return None
    if hour > 23 or minute > 59 or second > 60:
        return None
    return (days * 86400 + hour * 3600 + minute * 60 + second) * SECOND
