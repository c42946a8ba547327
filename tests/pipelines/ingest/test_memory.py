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
from collections.abc import Callable
from pathlib import Path

import pytest

from ciml.cli.commands.operate.backfill import BackfillOptions
from ciml.events.listing import Listing, open_listing
from ciml.events.records import Batch, OffsetRange
from ciml.limits import MAX_LOG_BYTES, MAX_LOG_CELLS, SETTLE_PEAK_BYTES
from ciml.pipelines.backfill.plan import BackfillConfig, BackfillProgress, Work
from ciml.pipelines.backfill.work_queue import WorkQueue
from ciml.transforms.ingest.decode import decode_lines
from tests.memory import peak_bytes

START = 1795521600
#: The logs of a backfill, which parses by the same code: those that take most memory, and several small ones at once.
HUNGRIEST = ("many rows", "many columns", "words in many columns", "small")


def start(columns: int, cells: Callable[[], bytes], size: int, most: int = MAX_LOG_CELLS, first: int = 0) -> bytes:
    """What a recorder writes from its start: a header, and rows up to a size and a number."""
    names = ",".join(f'"c{number}"' for number in range(first, first + columns))
    header = (
        '"Dstat 0.7.4 CSV output"\n"Host:","h",,,,"User:","u"\n'
        '"Cmdline:","dstat -T",,,,"Date:","24 Nov 2026 00:00:00 UTC"\n'
        f'"epoch","total cpu usage"{"," * (columns - 1)}\n"epoch",{names}\n'
    )
    parts = [header.encode()]
    room = size - len(parts[0])
    while len(parts) <= most:
        row = b"%d,%s\n" % (START + len(parts), cells())
        room -= len(row)
        if room < 0:
            break
        parts.append(row)
    return b"".join(parts)


def filled(columns: int, cell: bytes, size: int = MAX_LOG_BYTES) -> bytes:
    """A log of one start, as large as the limits on bytes and cells permit."""
    cells = b",".join([cell] * columns)
    return start(columns, lambda: cells, size, MAX_LOG_CELLS // max(columns + 1, 16))


def digits(columns: int) -> bytes:
    """Numbers that no codec makes smaller; more bytes are beyond MAX_WIRE_BYTES in gzip."""
    chance = random.Random(1)
    return start(columns, lambda: b",".join(b"%.15f" % chance.random() for _ in range(columns)), 34_000_000)


def restarts(starts: int, columns: int) -> bytes:
    """Starts of the recorder with columns of their own each, as many cells as are permitted."""
    most = MAX_LOG_CELLS // (starts * columns + 1) // starts
    cells = b",".join([b"1.234567"] * columns)
    size = MAX_LOG_BYTES // starts
    return b"".join(start(columns, lambda: cells, size, most, number * columns) for number in range(starts))


def shapes() -> dict[str, bytes]:
    """The worst permitted logs by name; the small ones several threads may parse at once."""
    return {
        "many rows": filled(14, b"1", 40_800_000),
        "many columns": filled(4000, b"1"),
        "words": filled(14, b"x"),
        "words in many columns": filled(4000, b"x"),
        "quotes": filled(30, b'"1"'),
        "digits": digits(60),
        "restarts": restarts(20, 200),
        "a day": filled(60, b"12.345", 37_300_000),
        **{f"small {number}": filled(14, b"x", 3_900_000) for number in range(6)},
    }


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs, and listings of all of them and of the hungriest."""
    folder = tmp_path_factory.mktemp("logs")
    lines = {}
    for number, (name, log) in enumerate(shapes().items()):
        assert len(log) <= MAX_LOG_BYTES, name
        (folder / f"{number}.gz").write_bytes(gzip.compress(log, 1))
        build = {"build_uuid": name.replace(" ", "-"), "build_name": "j", "result": "SUCCESS",
                 "start_time": START, "end_time": START + 86400, "log_path": f"{number}.gz"}  # fmt: skip
        lines[name] = json.dumps(build) + "\n"
    (folder / "all.jsonl").write_text("".join(lines.values()))
    (folder / "hungriest.jsonl").write_text("".join(line for name, line in lines.items() if name.startswith(HUNGRIEST)))
    return folder


@pytest.mark.whole
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("how", "telemetry", "words"),
    [("micro-batches", 6, 8), ("backfill", 2, 7)],  # many rows, many columns, quotes, digits, restarts, a day; words
)
def test_the_worst_permitted_logs_take_no_more_than_the_documented_peak(
    how: str, telemetry: int, words: int, logs: Path
) -> None:
    command = [sys.executable, "-m", "tests.pipelines.ingest.test_memory", str(logs), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["reasons"] == {"": telemetry, "empty_telemetry": words}
    assert found["peak"] < SETTLE_PEAK_BYTES


def micro_batches(folder: Path) -> Counter[str]:
    """Settle all logs as one batch of a micro-batch."""
    import apache_beam as beam

    from ciml.transforms.beam import run_here
    from ciml.transforms.ingest.beam import TakeLogs

    config, listing = _configured(folder, "all.jsonl")
    (block,) = listing.blocks
    batch = decode_lines(OffsetRange("t", "", 0, 0, block.end), listing.read(block), config.reading)
    reasons = folder / "reasons.json"

    def build(pipeline: beam.Pipeline) -> None:
        batches = pipeline | beam.Create([batch], reshuffle=False).with_output_types(Batch)
        taken = batches | TakeLogs(config.fetch, config.raw)
        write = lambda each: reasons.write_text(json.dumps([one.reason for one in each.settled]))  # noqa: E731
        _ = taken | beam.Map(write).with_output_types(int)

    run_here(build)
    return Counter(json.loads(reasons.read_text()))


def backfill(folder: Path) -> Counter[str]:
    """Settle the hungriest logs as a backfill does, several pieces of work at once."""
    config, listing = _configured(folder, "hungriest.jsonl")
    following = BackfillProgress(config.raw, listing)
    queue = WorkQueue(config, listing, following.update)
    (block,) = listing.blocks
    for line in range(block.end):
        queue.put(Work(block, ((line, line + 1),)))
    queue.end()
    return Counter({reason: count for (_, reason), count in following.tally.counts.items()})


def _configured(folder: Path, name: str) -> tuple[BackfillConfig, Listing]:
    listing = open_listing(str(folder / name))
    return BackfillOptions(data_path=str(folder / "data"), logs=str(folder)).load_config(), listing


if __name__ == "__main__":
    reasons = {"micro-batches": micro_batches, "backfill": backfill}[sys.argv[2]](Path(sys.argv[1]))
    print(json.dumps({"reasons": reasons, "peak": peak_bytes()}))
