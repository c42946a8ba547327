"""Whatever a zip archive holds, its log is what was packed, or it is refused with a reason."""

from __future__ import annotations

import io
import json

from hypothesis import example, given
from hypothesis import strategies as st

from ciml.errors import LogUnavailableError, RejectedInput
from ciml.transforms.fetch.artifacts import JobFacts, artifact_of, artifacts_on
from ciml.transforms.fetch.decompress import unzip
from ciml.transforms.fetch.policy import ARTIFACT_NAMES, LOG_PATHS
from tests.fuzz.frame import fuzz
from tests.fuzz.strategies.zips import files, zips
from tests.transforms.fetch.zips import archive, entry, zipped

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
