"""Decompression: gzip as Python reads it, the log of a zip archive as it was packed, and neither beyond its limit."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tracemalloc
import zipfile
import zlib

import pytest

from ciml.errors import LogUnavailableError, RejectedInput
from ciml.limits import MAX_ARCHIVE_ENTRIES
from ciml.transforms.fetch.decompress import gunzip, is_archive, unzip
from ciml.transforms.fetch.policy import LOG_PATHS
from tests.growth import assert_linear
from tests.transforms.fetch.log_server import LOG, bomb
from tests.transforms.fetch.zips import archive, entry, zeros, zipped

NAME = b"dstat-csv_log.txt"


def read(data: bytes, paths: tuple[str, ...] = LOG_PATHS) -> bytes:
    return b"".join(unzip(io.BytesIO(data), paths))


def refused(data: bytes) -> tuple[str, str]:
    with pytest.raises(RejectedInput) as caught:
        read(data)
    return caught.value.reason, caught.value.detail


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=-15)
    return packer.compress(data) + packer.flush()


def test_the_log_is_chosen_by_path_and_then_by_name() -> None:
    logs = {
        "./controller/logs/dstat-csv.log": b"by path",
        "compute1/logs/dstat-csv.log": b"other host",
        "er/dstat.csv": b"by name",
        "deep/er/dstat.csv": b"deeper",
        "x/dool.csv": b"later name",
    }
    others = {"my-dstat.csv": b"another name", "dstat.csv.sha256": b"another name", "dstat.csv/": b""}
    while logs:
        assert read(zipped({**others, **dict(reversed(logs.items()))})) == next(iter(logs.values()))
        del logs[next(iter(logs))]
    with pytest.raises(LogUnavailableError, match="log_not_found"):
        read(zipped(others))
    assert read(zipped(others), ("a/my-dstat.csv",)) == b"another name"


def test_a_name_is_compared_and_never_used() -> None:
    for name in ("../../etc/cron.d/dstat.csv", "/etc/dstat.csv", "C:\\x/dstat.csv", "a\n/dstat.csv", "é/dstat.csv"):
        assert read(zipped({name: LOG})) == LOG
    with pytest.raises(LogUnavailableError, match="log_not_found"):
        read(zipped({"..\\dstat.csv": LOG}))


def test_what_is_no_archive() -> None:
    assert not is_archive(io.BytesIO(b""))
    assert not is_archive(io.BytesIO(LOG))
    assert is_archive(io.BytesIO(zipped({})))
    with pytest.raises(LogUnavailableError, match="log_not_found"):
        read(zipped({}))
    assert refused(b"PK\3\4") == ("corrupt_archive", "it is cut short")


def good(**changes: int) -> bytes:
    fields = {"size": len(LOG), "crc": zlib.crc32(LOG), **changes}
    return archive([entry(NAME, deflated(LOG), **fields)])


def test_an_archive_that_lies_about_the_log() -> None:
    assert read(good()) == LOG
    for changes in ({"size": len(LOG) - 1}, {"size": len(LOG) + 1}, {"crc": 1}, {"size": 0, "crc": 0}):
        assert refused(good(**changes)) == ("corrupt_archive", "the log is not what its directory says")
    assert refused(good(size=1 << 29))[1] == "a file has more bytes than any that is packed so small"
    data = good()
    for at, size in ((14, 4), (18, 4), (22, 4), (6, 2), (8, 2), (30, 1)):  # in the header alone
        changed = data[:at] + bytes(each ^ 1 for each in data[at : at + size]) + data[at + size :]
        assert refused(changed) == ("corrupt_archive", "a header does not agree with the directory")


@pytest.mark.parametrize(
    ("flags", "method", "detail"),
    [(1, 8, "encrypted"), (0x41, 8, "encrypted"), (0x2000, 8, "encrypted"), (0x20, 8, "packed by method 8"),
     *((0, method, f"packed by method {method}") for method in (9, 12, 14, 99))],
)  # fmt: skip
def test_a_log_that_is_packed_otherwise(flags: int, method: int, detail: str) -> None:
    reason, found = refused(good(flags=flags, method=method))
    assert (reason, detail in found) == ("corrupt_archive", True)
    other = entry(b"other", deflated(b"x"), 1, flags=flags, method=method)
    log = entry(NAME, deflated(LOG), len(LOG), zlib.crc32(LOG))
    assert read(archive([other, log])) == LOG  # it affects only itself


def test_packed_data_that_are_cut_or_longer() -> None:
    whole = deflated(LOG)
    for packed, detail in ((whole[:-5], "the log is cut short"), (whole + b"x", "data follow the log")):
        assert refused(archive([entry(NAME, packed, len(LOG), zlib.crc32(LOG))])) == ("corrupt_archive", detail)
    assert refused(archive([entry(NAME, b"\x06" + whole, len(LOG), zlib.crc32(LOG))]))[0] == "corrupt_archive"


@pytest.mark.parametrize("cut", [1, 10, 22, 40, 60, 200])
def test_an_archive_that_is_cut_or_longer(cut: int) -> None:
    data = good()
    assert refused(data[:-cut])[0] == "corrupt_archive"
    assert refused(data + b"x" * cut)[0] == "corrupt_archive"
    assert refused(b"x" * cut + data)[0] == "corrupt_archive"


def test_files_that_overlap() -> None:
    """As in a bomb of 2019: many files share their packed bytes, so a small archive unpacks to any size."""
    kernel = deflated(bytes(1 << 20))
    header, listed = entry(NAME, kernel, 1 << 20)
    shared = archive(
        [(header, listed), *((b"", entry(b"%d" % number, kernel, 1 << 20, offset=1)[1]) for number in range(9))]
    )
    assert refused(shared) == ("corrupt_archive", "its files overlap")
    quoted = archive([(header + b"x" * 9, listed), (b"", entry(b"a", b"", 0, offset=20)[1])])
    assert refused(quoted) == ("corrupt_archive", "its files overlap")
    longer = bytearray(good())
    longer[28:30] = struct.pack("<H", 60_000)  # the header's further fields reach over the end of the log
    assert refused(bytes(longer)) == ("corrupt_archive", "a header does not agree with the directory")


def test_many_files() -> None:
    most = zipped({NAME.decode(): LOG} | {f"f{number}": b"" for number in range(MAX_ARCHIVE_ENTRIES - 1)})
    assert read(most) == LOG
    too_many = f"an archive of {MAX_ARCHIVE_ENTRIES + 1} files, at most {MAX_ARCHIVE_ENTRIES}"
    files = {f"f{number}": b"" for number in range(MAX_ARCHIVE_ENTRIES + 1)}
    assert refused(zipped(files)) == ("log_too_large", too_many)
    seventy = [entry(b"f%d" % number, b"", 0, method=0) for number in range(70_000)]
    assert refused(archive(seventy, count=0xFFFF))[0] == "log_too_large"  # as zip64 has it
    assert refused(archive(seventy, count=70_000 - 0x10000))[0] == "log_too_large"
    items = [entry(b"f%d" % number, b"", 0, method=0) for number in range(3000)]
    assert refused(archive(items, count=2)) == ("corrupt_archive", "its directory is longer than its entries")
    assert refused(archive(items, count=3001)) == ("corrupt_archive", "its directory is cut short")


def test_the_files_beside_the_log_have_a_limit_together() -> None:
    log = entry(NAME, deflated(LOG), len(LOG), zlib.crc32(LOG))
    other = zeros(500 << 20)
    assert read(archive([log, *(entry(b"%d" % number, other, 500 << 20) for number in range(2))])) == LOG
    most = archive([log, *(entry(b"%d" % number, other, 500 << 20) for number in range(3))])
    size = len(LOG) + 3 * (500 << 20)
    assert refused(most) == ("log_too_large", f"an archive of {size} bytes unpacked, at most {1 << 30}")


def test_a_large_directory() -> None:
    names = {f"{number:03d}{'x' * 60_000}": b"" for number in range(40)}
    reason, detail = refused(zipped(names))
    assert (reason, "bytes of directory" in detail) == ("log_too_large", True)


def test_zip64_is_refused() -> None:
    pipe = io.BytesIO()
    with zipfile.ZipFile(pipe, "w") as made:
        made.writestr(NAME.decode(), LOG)
    data = pipe.getvalue()
    assert read(data) == LOG
    listed, end = data[-22 - 46 - len(NAME) : -22], data[-22:]
    start = len(data) - 22 - len(listed)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(listed), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(listed), 1)
    assert zipfile.ZipFile(io.BytesIO(data[:-22] + record + locator + end)).read(NAME.decode()) == LOG
    assert refused(data[:-22] + record + locator + end)[0] == "corrupt_archive"


@pytest.mark.parametrize(
    ("each", "said", "files", "reason"),
    [
        (4000 << 20, 4000 << 20, 3, "log_too_large"),  # twelve GB, as the directory says
        (1000 << 20, 1000 << 20, 1, "log_too_large"),  # within the sum, and larger than a log
        (4000 << 20, 1 << 20, 1, "corrupt_archive"),  # more than it says
        (4000 << 20, 1 << 20, 3, "corrupt_archive"),
    ],
)
def test_a_bomb_takes_little_memory(each: int, said: int, files: int, reason: str) -> None:
    """An archive of at most 16 MiB that unpacks to up to 12 GB."""
    packed = zeros(each)
    file = io.BytesIO(archive([entry(name, packed, said) for name in (NAME, b"a", b"b")[:files]]))
    assert file.seek(0, 2) < 16 << 20
    tracemalloc.start()
    try:
        with pytest.raises(RejectedInput) as caught:
            gunzip(unzip(file, LOG_PATHS), 40 << 20)
        assert caught.value.reason == reason
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_entries_and_bytes_cost_in_proportion() -> None:
    def work(data: bytes) -> None:
        assert sum(map(len, unzip(io.BytesIO(data), LOG_PATHS))) % (1 << 20) == 0

    assert_linear(lambda number: zipped({NAME.decode(): b""} | {f"f{at}": b"" for at in range(number)}), work, 1000)
    assert_linear(lambda size: zipped({NAME.decode(): bytes(size << 20)}), work, 2)
    assert_linear(
        lambda size: archive([entry(NAME, zeros(size << 20), size << 20, zlib.crc32(bytes(size << 20)))]), work, 2
    )


LIMIT = 1 << 20


def chunks(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def in_gzip(data: bytes) -> bytes:
    """The same bytes at any time: they are part of a test's name."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (in_gzip(os.urandom(5000))[:-1], "the gzip data is cut short"),
        (in_gzip(b"a" * 5000)[:12], "the gzip data is cut short"),
        (b"\x1f\x8b", "the gzip data is cut short"),
        (b"\x1f\x8bno gzip at all", "Error -3"),
        (in_gzip(b"a") + b"tail", "Error -3"),
        (in_gzip(b"a")[:-8] + bytes(8), "Error -3"),
        (in_gzip(in_gzip(in_gzip(b"a"))), "more than 2 layers"),
        (in_gzip(in_gzip(b"a" * 500)[:-9]), "the gzip data is cut short"),
    ],
)
@pytest.mark.parametrize("size", [1, 10_000])
def test_damaged(data: bytes, detail: str, size: int) -> None:
    with pytest.raises(RejectedInput, match=detail) as caught:
        gunzip(chunks(data, size), LIMIT)
    assert caught.value.reason == "corrupt_gzip"


def test_limit_is_exact() -> None:
    packed = gzip.compress(bytes(LIMIT))
    assert len(gunzip([packed], LIMIT)) == LIMIT
    with pytest.raises(RejectedInput, match="log_too_large"):
        gunzip([packed], LIMIT - 1)
    with pytest.raises(RejectedInput, match="log_too_large"):
        gunzip([bytes(LIMIT)] * 2, LIMIT)
    inner = in_gzip(b"a")  # padded by zeros: of each layer the bytes are limited
    assert gunzip([in_gzip(inner.ljust(LIMIT, b"\0"))], LIMIT) == b"a"
    with pytest.raises(RejectedInput, match="log_too_large"):
        gunzip([in_gzip(inner.ljust(LIMIT + 1, b"\0"))], LIMIT)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_bomb_is_refused_within_its_limit_of_memory(layers: int) -> None:
    packed = bomb(64 << 20)
    for _ in range(layers - 1):
        packed = gzip.compress(packed)
    tracemalloc.start()
    try:
        with pytest.raises(RejectedInput, match="log_too_large"):
            gunzip([packed], LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 4 * LIMIT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [1 << 24, 5000])
def test_members_have_a_limit(size: int) -> None:
    many = gzip.compress(b"a") * 10_000
    assert gunzip(chunks(many, size), LIMIT) == b"a" * 10_000
    with pytest.raises(RejectedInput, match="more than 10000 members"):
        gunzip(chunks(many * 20, size), LIMIT)
    with pytest.raises(RejectedInput, match="more than 10000 members"):
        gunzip([gzip.compress(many * 20)], 1 << 24)
