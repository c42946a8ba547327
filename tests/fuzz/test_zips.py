"""Whatever a zip archive holds, its log is what Python's zipfile makes of it, or it is refused with a reason."""

from __future__ import annotations

import io
import json
import zipfile
import zlib

from hypothesis import example, given
from hypothesis import strategies as st

from ciml.errors import RejectedInput
from tests.fuzz.frame import fuzz
from tests.fuzz.strategies.zips import zips
from tests.transforms.fetch.zips import archive, entry, zipped
from transforms.fetch.artifacts import JobFacts, artifact_of, artifacts_on
from transforms.fetch.errors import LogUnavailableError
from transforms.fetch.policy import ARTIFACT_NAMES, LOG_PATHS
from transforms.fetch.unzip import unzip

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
@example(b"")
@example(b"PK\5\6" + bytes(18))
@example(archive([entry(b"dool.csv", b"\3\0", 0)]))
@example(zipped({"dool.csv": b"a" * 40_000}, streamed=True))
def test_the_log_of_an_archive_is_what_zipfile_reads_or_refused(data: bytes) -> None:
    found = _log(data)
    if isinstance(found, RejectedInput):
        assert found.reason in ("corrupt_archive", "log_too_large")
        return
    if isinstance(found, LogUnavailableError):
        assert found.reason == "log_not_found"
        return
    logs = []
    with zipfile.ZipFile(io.BytesIO(data)) as other:
        for info in other.infolist():
            try:
                logs.append(other.read(info))
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error):
                continue  # another file of the archive: it costs only itself
    assert found in logs


@fuzz
@given(zips().filter(lambda data: not isinstance(_log(data), Exception)), st.integers(0, 1 << 20), st.integers(0, 7))
def test_a_changed_bit_never_changes_a_log(data: bytes, at: int, bit: int) -> None:
    changed = bytearray(data)
    changed[at % len(data)] ^= 1 << bit
    found, before = _log(bytes(changed)), _log(data)
    assert isinstance(found, Exception) or found == before or len(zipfile.ZipFile(io.BytesIO(data)).infolist()) > 1


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
