"""Whatever a zip archive holds, its log is what was packed, or it is refused with a reason."""

from __future__ import annotations

import io
import json
import struct

from hypothesis import example, given
from hypothesis import strategies as st

from ciml.errors import LogUnavailableError, RejectedInput
from ciml.transforms.fetch.artifacts import JobFacts, artifact_of, artifacts_on
from ciml.transforms.fetch.decompress import unzip
from ciml.transforms.fetch.policy import ARTIFACT_NAMES, LOG_PATHS
from tests.fuzz.frame import fuzz
from tests.transforms.fetch.zips import archive, entry, zipped

#: Names of files, some of which are those of logs.
names = st.sampled_from(
    ("dstat.csv", "logs/dstat.csv", "a/dstat-csv.log", "../dool.csv", "dool.csv/", "other", "é", "a\\dool.csv", "")
)
contents = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda byte, times: bytes([byte]) * times, st.integers(0, 255), st.integers(0, 40_000)),
    st.just(b"\x1f\x8b\x08 no gzip"),
)
files = st.dictionaries(names, contents, max_size=5)
_MARKS = (b"PK\3\4", b"PK\1\2", b"PK\5\6")


@st.composite
def zips(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """An archive and the contents of its files; perhaps damaged in a few places, most of them in headers."""
    packed = draw(files)
    data = bytearray(zipped(packed, draw(st.booleans()), draw(st.booleans())))
    for _ in range(draw(st.integers(0, 3))):
        change = draw(st.sampled_from(("field", "field", "flip", "cut", "put", "drop", "twice")))
        starts = [at for mark in _MARKS for at in range(len(data)) if data.startswith(mark, at)]
        at = draw(st.sampled_from(starts)) + draw(st.integers(0, 45)) if starts and change == "field" else 0
        at = min(at, len(data)) or draw(st.integers(0, len(data)))
        if change == "field":
            size = draw(st.sampled_from((1, 2, 4)))
            number = draw(st.sampled_from((0, 1, 8, 0xFF, 0xFFFF, 0xFFFFFFFF)) | st.integers(0, 300))
            data[at : at + size] = struct.pack("<L", number)[:size]
        elif change == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del data[at:]
        elif change == "put":
            data[at:at] = draw(st.binary(max_size=8))
        elif change == "drop":
            del data[at : at + draw(st.integers(1, 30))]
        else:
            data += data[at : at + 60]
    return bytes(data), list(packed.values())


MOST = 100_000


def _log(data: bytes) -> bytes | RejectedInput | LogUnavailableError:
    try:
        found = b""
        for piece in unzip(io.BytesIO(data), LOG_PATHS):
            found += piece
            assert len(found) <= MOST, "more than any archive of the strategy holds"
        return found
    except (RejectedInput, LogUnavailableError) as failure:
        return failure


@fuzz
@given(zips())
@example((b"", []))
@example((b"PK\5\6" + bytes(18), []))
@example((archive([entry(b"dool.csv", b"\3\0", 0)]), [b""]))
@example((zipped({"dool.csv": b"a" * 40_000}, streamed=True), [b"a" * 40_000]))
def test_the_log_of_an_archive_is_one_of_its_files_or_refused(made: tuple[bytes, list[bytes]]) -> None:
    data, contents = made
    found = _log(data)
    if isinstance(found, RejectedInput):
        assert found.reason in ("corrupt_archive", "log_too_large")
        assert len(found.detail) < 200
    elif isinstance(found, LogUnavailableError):
        assert found.reason == "log_not_found"
    else:
        assert found in (*contents, b"")


@fuzz
@given(files, st.booleans(), st.booleans())
def test_a_good_archive_gives_its_log(packed: dict[str, bytes], streamed: bool, stored: bool) -> None:
    found = _log(zipped(packed, streamed, stored))
    logs = [name for name in packed if name.rpartition("/")[2] in ("dstat.csv", "dstat-csv.log", "dool.csv")]
    assert isinstance(found, LogUnavailableError) if not logs else found in [packed[name] for name in logs]


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 65) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(("artifacts", "id", "name", "created_at", "expired", "x")), inner, max_size=5)
    ),
    max_leaves=12,
)


@fuzz
@given(
    st.binary(max_size=60)
    | _json.map(lambda value: json.dumps(value).encode())
    | st.lists(_json, max_size=3).map(lambda value: json.dumps({"artifacts": value}).encode())
)
@example(b'{"artifacts": [{"id": 1, "name": "ciml-7", "created_at": "0001-01-01T00:00:00-23:59"}]}')
def test_a_list_of_artifacts_is_read_or_refused(page: bytes) -> None:
    failure = _chosen(page)
    if failure is not None:
        assert failure.reason in ("log_not_found", "log_unavailable")
        assert len(failure.detail) < 300


def _chosen(page: bytes) -> LogUnavailableError | None:
    try:
        artifact_of(JobFacts("7", "a", 1, None, None), artifacts_on(page)[0], ARTIFACT_NAMES)
    except LogUnavailableError as failure:
        return failure
    return None
