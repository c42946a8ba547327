"""Telemetry as hypothesis, and atheris where it is installed, would have it.

``python -m tests.faults.fuzz SEED RUNS`` lets atheris look for an input that breaks the parser, led by coverage.
"""

from __future__ import annotations

import gzip
import importlib.util
import sys
import tempfile
from pathlib import Path

import hypothesis
from hypothesis import strategies as st

from tests.corpus import CORPUS
from tests.faults.plan import builds
from tests.golden import make_logs

REASONS = frozenset({
    "not_telemetry", "empty_telemetry", "no_time", "ambiguous_time", "outside_run", "log_too_wide", "log_too_large",
    "corrupt_gzip", "too_many_restarts",
})  # fmt: skip
_START_US, _END_US = make_logs.instant("2026-11-24T13:50:00Z"), make_logs.instant("2026-11-24T15:00:00Z")

_CELLS = (
    b"nan", b"-inf", b"1e400", b"1_000", "٣".encode(), b"0x10", b"", b" ", b'"', b'"a,b"', b"\xe9", b"\x00", b"1e-400",
    b"+3", b"--5", b"1.2.3", b"99999999999999999999", b"Infinity", b"NULL", b"12k", b"24-11 25:61:00",
    b"31-02 00:00:00",
)  # fmt: skip


def bases() -> list[bytes]:
    """Logs to start from: one of each kind, and real ones."""
    real = [gzip.decompress((CORPUS / build["log_path"]).read_bytes()) for build in builds()[::30]]
    return [make().data for make in make_logs.SMALL] + real


@st.composite
def logs(draw: st.DrawFn) -> bytes:
    """A log with some damage."""
    data = draw(st.sampled_from(bases()))
    for _ in range(draw(st.integers(0, 6))):
        lines = data.split(b"\n")
        at = draw(st.integers(0, max(len(lines) - 1, 0)))
        kind = draw(st.integers(0, 13))
        if kind == 0:
            lines[at : at + 1] = []
        elif kind == 1:
            lines.insert(at, draw(st.binary(max_size=40)))
        elif kind == 2:
            lines.insert(at, lines[draw(st.integers(0, len(lines) - 1))])
        elif kind == 3:  # another start of some recorder
            lines[at:at] = draw(st.sampled_from(bases())).split(b"\n")[: draw(st.integers(1, 12))]
        elif kind in (4, 5, 6):
            cells = lines[at].split(b",")
            cells[draw(st.integers(0, len(cells) - 1))] = draw(
                st.one_of(st.sampled_from(_CELLS), st.binary(max_size=9))
            )
            lines[at] = b",".join(cells)
        elif kind == 7:
            cells = lines[at].split(b",")
            lines[at] = b",".join(cells[: draw(st.integers(0, len(cells)))])
        elif kind == 8:
            lines[at] += b"," * draw(st.integers(1, 300))
        elif kind == 9:
            lines[at] = lines[at] * draw(st.integers(2, 2000))
        data = b"\n".join(lines)
        if kind == 10:
            data = data[: draw(st.integers(0, len(data)))]
        elif kind == 11:
            data = data.replace(b"\n", draw(st.sampled_from((b"\r\n", b"\r", b"\n\n", b"\x85"))))
        elif kind == 12:
            packed = gzip.compress(data, mtime=0)
            cut = draw(st.integers(0, len(packed)))
            data = draw(
                st.sampled_from(
                    (packed, packed[:cut], packed + packed, gzip.compress(packed, mtime=0), packed + data[:50])
                )
            )
        elif kind == 13 and data:
            place = draw(st.integers(0, len(data) - 1))
            data = data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
        data = data[: 1 << 20]
    return data


def draw(seed: int, count: int) -> list[bytes]:
    """``count`` logs of a seed, each having gone through `check` in this process."""
    found: list[bytes] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(logs())
    def each(data: bytes) -> None:
        check(data)
        found.append(data)

    each()
    return found


def check(data: bytes) -> None:
    """The parser gives a table of finite numbers or a reason of the closed set, and raises nothing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from ciml.errors import RejectedInput
    from ciml.transforms.parse.logs import Log, parse_logs

    result = parse_logs([Log(data, _START_US, _END_US)])[0]
    if isinstance(result, RejectedInput):
        assert result.reason in REASONS, result
        return
    assert result.num_rows > 0
    assert result.column("time").null_count == 0
    for column in result.columns[2:]:
        assert column.type == pa.float64()
        assert pc.all(pc.is_finite(column)).as_py() is not False


def has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


def _by_coverage(seed: int, runs: int) -> None:
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with atheris.instrument_imports(include=["transforms", "ciml"]):
        import ciml.transforms.parse.logs  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(bases()):
            Path(folder, str(number)).write_bytes(data)
        arguments = [
            sys.argv[0],
            folder,
            f"-seed={seed}",
            f"-runs={runs}",
            "-max_len=20000",
            "-timeout=20",
            "-verbosity=0",
        ]
        atheris.Setup(arguments, check)
        atheris.Fuzz()


if __name__ == "__main__":
    _by_coverage(int(sys.argv[1]), int(sys.argv[2]))
