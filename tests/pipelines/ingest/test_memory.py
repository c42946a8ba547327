"""The worst logs that the limits permit stay below the documented peak of memory, whatever settles them.

``python -m tests.pipelines.ingest.test_memory FOLDER micro-batches|backfill`` settles its logs as that command
does, and prints a JSON object: outcomes by reason, and the peak in bytes.
"""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ciml.cli.commands.operate.backfill import BackfillOptions
from ciml.events.listing import Listing, open_listing
from ciml.events.records import Batch
from ciml.limits import MAX_LOG_BYTES, MAX_LOG_CELLS, SETTLE_PEAK_BYTES
from ciml.pipelines.backfill.plan import BackfillConfig
from tests.memory import peak_bytes

START = 1795521600
_SMALL = 6  # repeats of a log of some MiB, which several threads may parse at once


def header(columns: int, first: int = 0) -> bytes:
    """What a recorder starts with, for the epoch and so many columns."""
    names = ",".join(f'"c{number}"' for number in range(first, first + columns))
    return (
        '"Dstat 0.7.4 CSV output"\n"Host:","h",,,,"User:","u"\n'
        '"Cmdline:","dstat -T",,,,"Date:","24 Nov 2026 00:00:00 UTC"\n'
        f'"epoch","total cpu usage"{"," * (columns - 1)}\n"epoch",{names}\n'
    ).encode()


def rows(columns: int, cells: bytes, size: int, most: int) -> Iterator[bytes]:
    """Rows of the same cells, up to a size and a number."""
    made = number = 0
    while number < most:
        row = b"%d%s\n" % (START + number, b"," + cells)
        made, number = made + len(row), number + 1
        if made > size:
            return
        yield row


def filled(columns: int, cell: bytes, size: int = MAX_LOG_BYTES) -> bytes:
    """A log of one start, as large as the limits on bytes and cells permit."""
    top = header(columns)
    body = rows(columns, b",".join([cell] * columns), size - len(top), MAX_LOG_CELLS // max(columns + 1, 16))
    return top + b"".join(body)


def digits(columns: int) -> bytes:
    """Numbers that no codec makes smaller."""
    chance = random.Random(1)
    top = header(columns)
    made, out = len(top), [top]
    while True:
        row = b"%d,%s\n" % (START + len(out), b",".join(b"%.15f" % chance.random() for _ in range(columns)))
        made += len(row)
        if made > 34_000_000:  # more than that is beyond MAX_WIRE_BYTES in gzip
            return b"".join(out)
        out.append(row)


def restarts(starts: int, columns: int) -> bytes:
    """Starts of the recorder with columns of their own each, as many cells as are permitted."""
    most = MAX_LOG_CELLS // (starts * columns + 1) // starts
    cells = b",".join([b"1.234567"] * columns)
    parts: list[bytes] = []
    for number in range(starts):
        parts += [header(columns, number * columns), *rows(columns, cells, MAX_LOG_BYTES // starts, most)]
    return b"".join(parts)


def shapes() -> dict[str, bytes]:
    """The worst permitted logs by name."""
    return {
        "many rows": filled(14, b"1", 40_800_000),
        "many columns": filled(4000, b"1"),
        "words": filled(14, b"x"),
        "words in many columns": filled(4000, b"x"),
        "quotes": filled(30, b'"1"'),
        "digits": digits(60),
        "restarts": restarts(20, 200),
        "a day": filled(60, b"12.345", 37_300_000),
        **{f"small {number}": filled(14, b"x", 3_900_000) for number in range(_SMALL)},
    }


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs and a listing of them."""
    folder = tmp_path_factory.mktemp("logs")
    lines = []
    for number, (name, log) in enumerate(shapes().items()):
        assert len(log) <= MAX_LOG_BYTES, name
        (folder / f"{number}.gz").write_bytes(gzip.compress(log, 1))
        build = {"build_uuid": name.replace(" ", "-"), "build_name": "j", "result": "SUCCESS",
                 "start_time": START, "end_time": START + 86400, "log_path": f"{number}.gz"}  # fmt: skip
        lines.append(json.dumps(build))
    (folder / "listing.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.whole
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["micro-batches", "backfill"])
def test_the_worst_permitted_logs_take_no_more_than_the_documented_peak(how: str, logs: Path) -> None:
    command = [sys.executable, "-m", "tests.pipelines.ingest.test_memory", str(logs), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    found = json.loads(done.stdout.splitlines()[-1])
    # Rows: many rows, many columns, quotes, digits, restarts, a day. The others are words in place of numbers.
    assert found["reasons"] == {"": 6, "empty_telemetry": 8}
    assert found["peak"] < SETTLE_PEAK_BYTES


def micro_batches(folder: Path) -> Counter[str]:
    """Settles all logs as one batch of a micro-batch."""
    import apache_beam as beam

    from ciml.events.records import OffsetRange
    from ciml.pipelines.flink.submit import run_here
    from ciml.transforms.ingest.beam import TakeLogs
    from ciml.transforms.ingest.decode import decode_lines

    config, listing = _configured(folder)
    (block,) = listing.blocks
    batch = decode_lines(OffsetRange("t", "", 0, 0, block.end), listing.read(block), config.reading)
    found: Counter[str] = Counter()

    def build(pipeline: beam.Pipeline) -> None:
        batches = pipeline | beam.Create([batch], reshuffle=False).with_output_types(Batch)
        taken = batches | TakeLogs(config.fetch, config.raw)
        _ = taken | beam.Map(lambda each: _write(folder, each))

    run_here(build)
    found.update(json.loads((folder / "reasons.json").read_text()))
    return found


def _write(folder: Path, batch: Batch) -> None:
    (folder / "reasons.json").write_text(json.dumps([each.reason for each in batch.settled]))


def backfill(folder: Path) -> Counter[str]:
    """Settles all logs as a backfill does, several pieces of work at once."""
    from ciml.pipelines.backfill.plan import BackfillProgress, Work
    from ciml.pipelines.backfill.work_queue import WorkQueue

    config, listing = _configured(folder)
    following = BackfillProgress(config.raw, listing)
    flow = WorkQueue(config, listing, following.update)
    (block,) = listing.blocks
    for start in range(block.end):
        flow.put(Work(block, ((start, start + 1),)))
    flow.end()
    return Counter({reason: count for (_, reason), count in following.tally.counts.items()})


def _configured(folder: Path) -> tuple[BackfillConfig, Listing]:
    return BackfillOptions(data_path=str(folder / "data"), logs=str(folder)).load_config(), open_listing(
        str(folder / "listing.jsonl")
    )


if __name__ == "__main__":
    reasons = {"micro-batches": micro_batches, "backfill": backfill}[sys.argv[2]](Path(sys.argv[1]))
    print(json.dumps({"reasons": reasons, "peak": peak_bytes()}))
