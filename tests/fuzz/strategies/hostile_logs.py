"""Logs that an attacker, a broken recorder or a broken disk may deliver: plain Python, the same bytes for a seed.

A log of each kind that has ever hurt the parser, and of each that might: some of them are refused, some are telemetry
of which some rows or cells are lost, and none may cost more than itself. `tests.fuzz.strategies.logs` makes them part
of hypothesis strategies.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable

#: Two groups, the time and three columns: the header of most kinds.
_GROUPS, _NAMES = '"system","load avg",,', '"time","1m","5m","15m"'
DATES = (
    "31 Dec 9999 23:59:59", "01 Jan 0001 00:00:00", "01 Jan 0000 00:00:00", "01 Jan 1970 00:00:00",
    "31 Dec 1999 23:59:59", "01 Jan 2000 00:00:00", "31 Dec 2099 23:59:59", "01 Jan 2100 00:00:00",
    "19 Jan 2038 03:14:08", "29 Feb 2023 00:00:00", "31 Feb 2026 00:00:00", "29 Feb 2100 12:00:00",
    "24 Nov 2026 24:00:00", "24 Nov 2026 23:59:60", "24 Nov 2026 99:99:99", "00 Foo 2026 00:00:00",
    "24 Nov 9990 00:00:00", "24 Nov 2026 12:00:00",
)  # fmt: skip
ZONES = (
    "", "UTC", "CET", "CEST", "IST", "CST", "-03", "+0530", "+14:00", "-14", "+99", "+0060", "-1500", "JST", "XYZ",
    "Europe/Berlin", "Europe/", "America/Nuuk", "../../etc/passwd", "/etc/localtime", "posix/Europe/Berlin", "a/" * 19,
    "\u202eTEC", "Z", "Etc/GMT+12", "%Z", "+٠٣", "tzdata.zi/x",
)  # fmt: skip
TIMES = (
    "24-11 12:00:00", "Nov-24 12:00:00", "29-02 00:00:00", "31-04 00:00:00", "00-00 00:00:00", "24-11 23:59:60",
    "24-11 24:00:00", "9999-12-31 23:59:59", "0001-01-01 00:00:00", "0000-00-00 00:00:00", "2026-11-24T12:00:00Z",
    "2026-11-24T12:00:00+14:00", "9999-12-31T23:59:59-1400", "0001-01-01T00:00:00+14", "1999-12-31 23:59:59",
    "2100-01-01 00:00:00", "12:00:00", "23:59:59.999999999", "00:00:00", "9999999999", "0000000000", "9999999999999",
    "1795528584", "1795528584.123456789", "-1", "", "nan", "24-11 12:00:00.", "24-11 12:00:00.0000000001",
)  # fmt: skip
CELLS = (
    "0", "1.5", "-3", "", " ", "nan", "-inf", "1e400", "-1e400", "1e-400", "1e308", "1_000", "0x10", "12k", "+3", "--5",
    "1.2.3", "9" * 400, "0." + "0" * 400 + "1", "Infinity", "NULL", "٣", "\x00", "\x1b[2J", "é", '"', '"a,b"', '""',
    "\ufeff1", "1 2", "1;2", "{}", "\x0b", "\u2028",
)  # fmt: skip
EPOCHS = (
    "0", "-1", "1e18", "-1e18", "1e308", "nan", "inf", "9223372036854775807", "-9223372036854775808", "1795528584",
    "1795528584123", "99999999999", "100000000000", "4102444800", "946684799.999999", "1e11", "1e-300",
)  # fmt: skip


def log(date: str, *rows: str, groups: str = _GROUPS, names: str = _NAMES, cmdline: str = "dstat -tl") -> bytes:
    """A log with one header and these rows."""
    head = f'"Dstat 0.7.4 CSV output"\n"Cmdline:","{cmdline}",,,,"Date:","{date}"\n{groups}\n{names}\n'
    return (head + "".join(f"{row}\n" for row in rows)).encode("utf-8", "surrogatepass")


def _rows(chance: random.Random, most: int = 40) -> list[str]:
    second = chance.randrange(3600)
    return [
        f"24-11 12:{at // 60 % 60:02d}:{at % 60:02d},{chance.random():.2f},{chance.randrange(9)},3"
        for at in range(second, second + chance.randint(1, most))
    ]


def good_log(chance: random.Random, most: int = 40) -> bytes:
    """A log that nothing is wrong with, of at most so many rows."""
    return log("24 Nov 2026 12:00:00 UTC", *_rows(chance, most))


def _odd_date(chance: random.Random) -> bytes:
    return log(f"{chance.choice(DATES)} {chance.choice(ZONES)}", *_rows(chance))


def _date_far_from_rows(chance: random.Random) -> bytes:
    date = f"{chance.randint(1, 28):02d} Nov {chance.randint(0, 9999):04d} 12:00:00 {chance.choice(ZONES)}"
    return log(date, *(f"2026-11-24 12:00:{at:02d},1,2,3" for at in range(chance.randint(1, 60))))


def _odd_times(chance: random.Random) -> bytes:
    date = f"24 Nov 2026 12:00:00 {chance.choice(ZONES)}"
    return log(date, *(f"{chance.choice(TIMES)},{at},2,3" for at in range(chance.randint(1, 40))))


def _times_out_of_order(chance: random.Random) -> bytes:
    form = chance.choice(
        ("{day:02d}-{month:02d} {hour:02d}:00:00", "{hour:02d}:59:59", "20{day:02d}-{month:02d}-01 {hour:02d}:00:00")
    )
    rows = (
        form.format(day=chance.randint(1, 31), month=chance.randint(1, 12), hour=chance.randint(0, 23)) + ",1,2,3"
        for _ in range(chance.randint(1, 400))
    )
    return log(f"24 Nov 2026 12:00:00 {chance.choice(ZONES)}", *rows)


def _odd_epochs(chance: random.Random) -> bytes:
    rows = (f"{chance.choice(EPOCHS)},{chance.choice(CELLS)}" for _ in range(chance.randint(1, 40)))
    return log(f"{chance.choice(DATES)} UTC", *rows, groups='"epoch","x"', names='"epoch","y"')


def _no_time(chance: random.Random) -> bytes:
    delay = chance.choice(("0", "999999", "0.000001", "999999.999999", "1e9", "-1", "٣", "1" * 300, "-C", "--output"))
    return log(
        f"{chance.choice(DATES)} {chance.choice(ZONES)}", *("1,2,3" for _ in range(chance.randint(1, 300))),
        groups='"load avg",,', names='"1m","5m","15m"', cmdline=f"dstat -l {delay}",
    )  # fmt: skip


def _command_lines(chance: random.Random) -> bytes:
    piece = chance.choice(
        ('"Cmdline:","', '",', '"Date:"', '","Date:","', '"Cmdline:","x",,,"Date', '"' * 3, " -C", ",,,")
    )
    return log("24 Nov 2026 12:00:00 UTC", *_rows(chance), cmdline=piece * chance.randint(1, 8000))


def _restarts_with_new_columns(chance: random.Random) -> bytes:
    starts, wide = chance.randint(2, 120), chance.randint(1, 40)
    parts = [
        log(
            "24 Nov 2026 12:00:00 UTC", *(["24-11 12:00:00," + ",".join("1" * wide)] * chance.randint(1, 20)),
            groups='"system","g"' + "," * (wide - 1), names='"time",' + ",".join(f'"c{at}.{n}"' for n in range(wide)),
        )
        for at in range(starts)
    ]  # fmt: skip
    return b"".join(parts)


def _very_many_restarts_with_new_columns(chance: random.Random) -> bytes:
    wide, starts = chance.randint(20, 60), chance.randint(500, 999)
    names = (",".join(f'"{at}.{n}"' for n in range(wide)) for at in range(starts))
    parts = [f'"system","g"\n"time",{each}\n24-11 12:00:00,1{"," * (wide - 1)}\n' for each in names]
    return gzip.compress(good_log(chance) + "".join(parts).encode(), 1, mtime=0)


def _restarts(chance: random.Random) -> bytes:
    again = good_log(chance, 3) if chance.random() < 0.5 else b'"a"\n"b"\n' + b"1\n" * chance.randint(0, 2)
    return good_log(chance) + again * chance.choice((2, 10, 100, 999, 1500))


def _wide(chance: random.Random) -> bytes:
    columns = chance.choice((500, 1024, 4000, 5000, 12_000))
    names = '"time",' + ",".join(f'"{at}"' for at in range(columns))
    row = "24-11 12:00:00," + ",".join("1" * columns)
    return gzip.compress(log("24 Nov 2026 12:00:00 UTC", row, row, groups='"system","g"', names=names), 1, mtime=0)


def _wide_and_long(chance: random.Random) -> bytes:
    """Nothing but commas: the most cells that a byte can make."""
    columns = chance.choice((100, 1000, 4000))
    names = '"time",' + ",".join(f'"{at}"' for at in range(columns))
    rows = [b"24-11 12:00:00,1" + b"," * (columns - 1) + b"\n"] * (chance.choice((100_000, 1_000_000)) // columns)
    head = log("24 Nov 2026 12:00:00 UTC", groups='"system","g"', names=names)
    return gzip.compress(head + b"".join(rows), 1, mtime=0)


def _long_names(chance: random.Random) -> bytes:
    name = chance.choice("aé\u202e#:") * chance.choice((100, 128, 129, 5000, 70_000))
    return log(
        "24 Nov 2026 12:00:00 UTC", *_rows(chance), groups=f'"system","{name}",,', names=f'"time","{name}","b","c"'
    )


def _odd_names(chance: random.Random) -> bytes:
    odd = (
        "",
        ":",
        "time",
        "boot",
        "a#2",
        "a",
        "\t",
        "\x07",
        "\u202e",
        "../../x",
        "é",
        "\ud800",
        "a,b",
        " ",
        "process",
        "#3",
    )
    names = ",".join(f'"{chance.choice(odd)}"' for _ in range(chance.randint(1, 40)))
    groups = ",".join(f'"{chance.choice(odd)}"' for _ in range(chance.randint(1, 40)))
    row = "24-11 12:00:00," + ",".join("1" * (names.count('","') + 1))
    return log("24 Nov 2026 12:00:00 UTC", row, row, groups='"system",' + groups, names='"time",' + names)


def _repeated_names(chance: random.Random) -> bytes:
    columns = chance.randint(2, 3000)
    names = ",".join(chance.choice(('"a"', '"a#2"', '"a#3"', f'"a#{at}"')) for at in range(columns))
    return log(
        "24 Nov 2026 12:00:00 UTC", "24-11 12:00:00" + ",1" * columns, groups='"system","g"', names='"time",' + names
    )


def _one_long_line(chance: random.Random) -> bytes:
    line = chance.choice((b"1", b",", b'"', b"\x00", b" ", b"a", b'","', b"\r", b"\x85", b"9")) * chance.choice(
        (5000, 300_000)
    )
    return good_log(chance) + line + chance.choice((b"", b"\n")) + b"24-11 12:59:59,7,8,9\n"


def _many_short_lines(chance: random.Random) -> bytes:
    line = chance.choice(
        (b"\n", b"\r", b"\r\n", b"x\n", b'"\n', b",\n", b'"a",1\n', b" \n", b"\x0b\n", b"\x00\n", b"1,2,3\r")
    )
    return gzip.compress(
        good_log(chance) + line * chance.choice((100, 20_000, 300_000)) + b"24-11 12:59:59,7,8,9\n", 1, mtime=0
    )


def _odd_cells(chance: random.Random) -> bytes:
    rows = (
        chance.choice(TIMES[:1] * 5 + TIMES)
        + ","
        + ",".join(chance.choice(CELLS) for _ in range(chance.choice((3, 3, 3, 2, 4, 60))))
        for _ in range(chance.randint(1, 60))
    )
    return log("24 Nov 2026 12:00:00 UTC", *rows)


def _words_with_commas(chance: random.Random) -> bytes:
    words = ("a, b, c", '"a,b"', '"a', 'a"', ",,,,,,", "java -cp x,y:1,2", "")
    rows = (f"24-11 12:00:00,{chance.choice(words)},{chance.choice(words)},3" for _ in range(chance.randint(1, 60)))
    return log(
        "24 Nov 2026 12:00:00 UTC",
        *rows,
        groups='"system","most expensive",,',
        names='"time","cpu process","i/o process","15m"',
    )


def _no_rows(chance: random.Random) -> bytes:
    return log("24 Nov 2026 12:00:00 UTC") + chance.choice(
        (b"", b"\n", b"x", b"nan,nan,nan,nan\n", b"24-11 12:00:00,,,\n")
    )


def _no_header(chance: random.Random) -> bytes:
    return b"".join(good_log(chance).splitlines(keepends=True)[chance.randint(1, 4) :])


def _almost_headers(chance: random.Random) -> bytes:
    piece = chance.choice(
        (b'"a","b",', b'"a"\n', b'"a"\n\n\n\r\r"b', b'"a",\n"b",x\n', b'"', b'"a":\n', b'"x:"\n"a"\n')
    )
    return good_log(chance) + piece * chance.choice((1, 100, 20_000))


def _not_a_log(chance: random.Random) -> bytes:
    return chance.choice((
        b"", b"\n", b"\x00" * 5000, b"<html><body>404 Not Found</body></html>", b'{"a":' * 5000, b"[" * 50_000,
        b"PK\x03\x04" + chance.randbytes(300), b"\x7fELF" + chance.randbytes(300), b"%PDF-1.7", b"\xef\xbb\xbf", b'"',
        b"\x1f\x8b", "null".encode("utf-16"), b"-----BEGIN PRIVATE KEY-----\n",
    ))  # fmt: skip


def _noise(chance: random.Random) -> bytes:
    return chance.choice((b"", b"\x1f\x8b\x08", b"\xef\xbb\xbf", good_log(chance))) + chance.randbytes(
        chance.randint(0, 3000)
    )


def _other_encoding(chance: random.Random) -> bytes:
    return (
        good_log(chance)
        .decode()
        .encode(chance.choice(("utf-16", "utf-16-be", "utf-32", "utf-8-sig", "cp037", "utf-7")))
    )


def _byte_order_marks(chance: random.Random) -> bytes:
    lines = good_log(chance).splitlines(keepends=True)
    lines.insert(
        chance.randint(0, len(lines)), b"\xef\xbb\xbf" + chance.choice((b"", b"\n", b"24-11 12:00:00,1,2,3\n"))
    )
    return b"".join(lines)


def _line_ends(chance: random.Random) -> bytes:
    return good_log(chance).replace(
        b"\n", chance.choice((b"\r\n", b"\r", b"\n\r", b"\n\n", b"\x85", b"\x00\n", b"\\\n"))
    )


def _cut(chance: random.Random) -> bytes:
    data = good_log(chance)
    return data[: chance.randint(0, len(data))]


def _cut_gzip(chance: random.Random) -> bytes:
    data = gzip.compress(good_log(chance, 400), mtime=0)
    return data[: chance.randint(2, len(data))]


def _flipped_gzip(chance: random.Random) -> bytes:
    data = bytearray(gzip.compress(good_log(chance, 400), mtime=0))
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _bomb(chance: random.Random) -> bytes:
    return gzip.compress(
        good_log(chance) + chance.choice((b"\x00", b"\n", b"1,")) * (chance.choice((1, 8)) << 20), 1, mtime=0
    )


def _layers(chance: random.Random) -> bytes:
    data = good_log(chance)
    for _ in range(chance.randint(1, 5)):
        data = gzip.compress(data, mtime=0)
    return data


def _members(chance: random.Random) -> bytes:
    empty = gzip.compress(b"", mtime=0)
    return (
        gzip.compress(good_log(chance), mtime=0)
        + empty * chance.choice((1, 100, 10_001))
        + bytes(chance.randint(0, 600))
    )


def _changed_bytes(chance: random.Random) -> bytes:
    data = bytearray(good_log(chance))
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data) or 1)
        change = chance.randrange(4)
        if change == 0:
            data[at : at + 1] = chance.randbytes(chance.randint(0, 3))
        elif change == 1:
            del data[at : at + chance.randint(1, 200)]
        elif change == 2:
            data[at:at] = data[at : at + chance.randint(1, 400)]
        else:
            data[at:at] = chance.choice((b"\n", b"\r", b'"', b",", b"\x00", b"\n\n\n", b',"', b"\xff", b'"\n"'))
    return bytes(data)


def _changed_lines(chance: random.Random) -> bytes:
    lines = good_log(chance).split(b"\n")
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(lines) or 1)
        change = chance.randrange(5)
        if change == 0:
            lines[at : at + 1] = []
        elif change == 1:
            lines.insert(at, chance.choice(lines or [b""]))
        elif change == 2 and lines:
            lines[at] = b",".join(chance.sample(lines[at].split(b","), lines[at].count(b",") + 1))
        elif change == 3 and lines:
            lines[at] += b"," * chance.randint(1, 300)
        else:
            lines.reverse()
    return b"\n".join(lines)


def _several_recorders(chance: random.Random) -> bytes:
    makers = (_odd_date, _no_time, _odd_epochs, _odd_names, _words_with_commas, _odd_cells, good_log)
    return b"".join(chance.choice(makers)(chance) for _ in range(chance.randint(2, 8)))


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    maker.__name__.lstrip("_"): maker
    for maker in (
        _odd_date, _date_far_from_rows, _odd_times, _times_out_of_order, _odd_epochs, _no_time, _command_lines,
        _restarts_with_new_columns, _very_many_restarts_with_new_columns, _restarts, _wide, _wide_and_long,
        _long_names, _odd_names, _repeated_names, _one_long_line, _many_short_lines, _odd_cells, _words_with_commas,
        _no_rows, _no_header, _almost_headers, _not_a_log, _noise, _other_encoding, _byte_order_marks, _line_ends,
        _cut, _cut_gzip, _flipped_gzip, _bomb, _layers, _members, _changed_bytes, _changed_lines, _several_recorders,
    )
}  # fmt: skip


def kind_of(seed: int) -> str:
    """The kind of a seed's log: consecutive seeds go through all `KINDS`."""
    return list(KINDS)[seed % len(KINDS)]


def hostile_log(seed: int) -> bytes:
    """The log of a seed: at most some 100 KiB as it is delivered, at most 9 MiB unpacked but for some bombs."""
    return KINDS[kind_of(seed)](random.Random(seed))
