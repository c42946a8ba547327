"""Strategies of telemetry logs: hostile ones by kind, and near-valid ones that structure and bytes were changed in."""

from __future__ import annotations

import gzip

from hypothesis import strategies as st

from tests.fuzz.strategies.hostile_logs import CELLS, DATES, EPOCHS, KINDS, TIMES, ZONES, hostile_log
from tests.golden import make_logs

GOLDEN = tuple(make().data for make in make_logs.SMALL)

#: A log of any kind of `hostile_logs`: the seed is what a failure is remembered by.
hostile = st.integers(0, 1000 * len(KINDS)).map(hostile_log)

numbers = st.one_of(
    st.floats().map(repr), st.floats(0, 100).map("{:.3f}".format), st.sampled_from(["1e400", "-0", "+3"])
)
cells = st.one_of(
    st.sampled_from(CELLS),
    st.floats().map(repr),
    st.floats(0, 100).map("{:.3f}".format),
    st.text(max_size=6),
)
names = st.one_of(
    st.sampled_from(["usr", "1m", "a", "a#2", "", "time", "epoch", "cpu process", "é", "x:y"]), st.text(max_size=9)
)


@st.composite
def headers(draw: st.DrawFn) -> tuple[str, int]:
    """A header with any of its lines left out, and the number of its columns."""
    columns = draw(st.lists(names.map(lambda name: name.replace('"', "").replace("\n", "")), min_size=1, max_size=8))
    first = draw(st.sampled_from(["time", "time", "epoch", "usr"]))
    lines = [
        draw(
            st.sampled_from(["", '"Dstat 0.7.4 CSV output"\n', '"dool 1.3.8 CSV output"\n', '"pcp-dstat CSV Output"\n'])
        ),
        draw(st.sampled_from(["", '"Author:","x",,,,"URL:","y"\n'])),
    ]
    if draw(st.booleans()):
        zone = draw(st.one_of(st.sampled_from(["UTC", "CET", "-03", "EST", "Europe/Berlin"]), st.sampled_from(ZONES)))
        date = f"{draw(st.sampled_from(DATES))} {zone}".strip()
        delay = draw(st.sampled_from(["", " 5", " 0.5", " 999999", ' "quoted, 3"']))
        lines.append(f'"Cmdline:","dstat -tcl{delay}",,,,"Date:","{date}"\n{draw(st.sampled_from(["", chr(10)]))}')
    groups = draw(st.lists(names.map(lambda name: name.replace('"', "").replace("\n", "")), min_size=1, max_size=8))
    lines.append(",".join(f'"{group}"' for group in ["system", *groups]) + "\n")
    lines.append(",".join(f'"{name}"' for name in [first, *columns]) + "\n")
    return "".join(lines), 1 + len(columns)


#: Cells of the time, of each form with any digits.
times = st.one_of(
    st.sampled_from(TIMES),
    st.sampled_from(EPOCHS),
    *(
        st.from_regex(form, fullmatch=True)
        for form in (
            r"[0-3][0-9]-[01][0-9] [0-2][0-9]:[0-6][0-9]:[0-6][0-9]",
            r"(Jan|Feb|Dec|Foo)-[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9]",
            r"[0-9]{4}-[01][0-9]-[0-3][0-9][ T][0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?"
            r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)?",
            r"[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?",
            r"[0-9]{9,13}",
            r"[0-9]{10}\.[0-9]{1,9}",
        )
    ),
)


@st.composite
def rows(draw: st.DrawFn, width: int) -> str:
    """Rows of which most have the right number of cells; or all of them, of numbers only."""
    plain = draw(st.booleans())
    second = st.integers(0, 3599).map(lambda at: f"24-11 12:{at // 60:02d}:{at % 60:02d}")
    out = []
    for _ in range(draw(st.integers(0, 6))):
        count = width - 1 if plain else draw(st.sampled_from([width - 1] * 6 + [0, width, width + 3]))
        first = draw(st.one_of(second, times))
        out.append(",".join([first, *(draw(numbers if plain else cells) for _ in range(count))]))
    ends = st.just("\n") if plain else st.sampled_from(["\n", "\n", "\n", "\r\n", "\n\n"])
    return "".join(row + draw(ends) for row in out)


@st.composite
def built(draw: st.DrawFn) -> bytes:
    """A log of up to five starts of a recorder, none of them surely valid."""
    text = ""
    for _ in range(draw(st.integers(1, 5))):
        header, width = draw(headers())
        text += header + draw(rows(width))
    return text.encode("utf-8", "surrogatepass")


@st.composite
def changed(draw: st.DrawFn, base: st.SearchStrategy[bytes]) -> bytes:
    """A log with lines and bytes deleted, doubled, swapped, overwritten, or taken from another log."""
    data = bytearray(draw(base))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.integers(0, 5))
        if change == 0:
            data[at : at + 1] = draw(st.binary(max_size=3))
        elif change == 1:
            del data[at : at + draw(st.integers(1, 200))]
        elif change == 2:
            data[at:at] = data[at : at + draw(st.integers(1, 400))]
        elif change == 3:
            data[at:at] = draw(base)[: draw(st.integers(1, 2000))]
        elif change == 4:
            data[at:at] = draw(st.sampled_from([b"\n", b"\r", b'"', b",", b"\x00", b"\n\n\n", b',"', b"\xef\xbb\xbf"]))
        else:
            lines = bytes(data).split(b"\n")
            data = bytearray(b"\n".join(draw(st.permutations(lines)) if len(lines) < 40 else lines[::-1]))
    return bytes(data)


@st.composite
def delivered(draw: st.DrawFn, base: st.SearchStrategy[bytes]) -> bytes:
    """A log as it comes: as it is, as gzip, in two members, within gzip, or cut."""
    data = draw(base)
    kind = draw(st.integers(0, 5))
    if kind == 1:
        return gzip.compress(data, 1, mtime=0)
    if kind == 2:
        cut = draw(st.integers(0, len(data)))
        return gzip.compress(data[:cut], 1, mtime=0) + gzip.compress(data[cut:], 1, mtime=0)
    if kind == 3:
        return gzip.compress(gzip.compress(data, 1, mtime=0), 1, mtime=0)
    if kind == 4:
        packed = gzip.compress(data, 1, mtime=0)
        return packed[: draw(st.integers(0, len(packed)))]
    return data


#: Any log: hostile by kind, or near-valid and changed, packed or not.
logs = st.one_of(hostile, delivered(changed(st.one_of(st.sampled_from(GOLDEN), built()))))

#: What an event says of its run's start and end, µs UTC; also what no event may say.
_NOON_US = make_logs.instant("2026-11-24T12:00:00Z")
moments = st.one_of(
    st.none(),
    st.integers(_NOON_US - 86_400_000_000, _NOON_US + 86_400_000_000),
    st.integers(-(1 << 63), (1 << 63) - 1),
)
