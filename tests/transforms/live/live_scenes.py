"""Runs replayed as live samples: what recorders send, as it arrives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from ciml.events.samples import End, Samples
from ciml.telemetry import telemetry_columns
from ciml.transforms.live.samples import part_of
from ciml.transforms.live.windows import LiveRun

SECOND = 1_000_000


@dataclass(frozen=True)
class Disorder:
    """What happens to samples on their way: shuffled within, a share late by minutes, a share sent again."""

    shuffle_s: float = 30.0
    late: float = 0.01
    late_s: tuple[float, float] = (60.0, 300.0)
    again: float = 0.01


CALM = Disorder(0.0, 0.0, again=0.0)


def recorded(run_id: str, table: pa.Table, columns: Sequence[str] | None = None) -> list[Samples]:
    """What the recorder of a stored run sends: a message for each start, which the mark of a first sample begins."""
    names = tuple(columns or telemetry_columns(table.column_names))
    times = table.column("time").cast(pa.int64()).to_numpy()
    boot = table.column("boot").to_numpy().astype(bool)
    values = np.column_stack([table.column(name).to_numpy() for name in names])
    starts = np.unique(np.concatenate([[0], np.flatnonzero(boot)]))
    out = []
    for number, (begin, end) in enumerate(zip(starts, [*starts[1:], times.size], strict=True)):
        rows = slice(int(begin), int(end))
        # Starts follow each other, whatever the clock says.
        recorder = int(times[0]) + number * SECOND
        sequence = np.arange(end - begin)
        out.append(Samples(run_id, recorder, int(times[0]), names, sequence, times[rows], boot[rows], values[rows]))
    return out


def some(message: Samples, rows: np.ndarray) -> Samples:
    return replace(
        message, sequence=message.sequence[rows], time_us=message.time_us[rows], boot=message.boot[rows],
        values=message.values[rows],
    )  # fmt: skip


def arrivals(
    messages: Sequence[Samples], rng: np.random.Generator, disorder: Disorder = CALM, tick_s: float = 2.0
) -> list[tuple[int, Samples | End]]:
    """(when it arrives, epoch µs; message) in the order of arrival, one message a tick. Ends come when the last sample
    was recorded, so before the late ones."""
    found: list[tuple[int, int, Samples | End]] = []
    for message in messages:
        n, end_us = message.sequence.size, int(message.time_us.max())
        rows = np.concatenate([np.arange(n), rng.choice(n, rng.binomial(n, disorder.again), replace=False)])
        delay = rng.uniform(0, disorder.shuffle_s, rows.size)
        late = rng.random(rows.size) < disorder.late
        delay[late] = rng.uniform(*disorder.late_s, np.count_nonzero(late))
        arrives = message.time_us[rows] + (delay * SECOND).astype(np.int64)
        tick = arrives // round(tick_s * SECOND)
        for each in np.unique(tick).tolist():
            mine = np.flatnonzero(tick == each)
            mine = rows[mine[np.argsort(arrives[mine], kind="stable")]]
            found.append((int((each + 1) * tick_s * SECOND), len(found), some(message, mine)))
        found.append((end_us + round(tick_s * SECOND), len(found), End(message.run_id, message.recorder_us, n)))
    return [(at, message) for at, _, message in sorted(found, key=lambda one: one[:2])]


def feed(run: LiveRun, arriving: Sequence[tuple[int, Samples | End]], together: int = 1) -> Iterator[LiveRun]:
    """Adds what arrives, so many messages at once; yields the run after each time."""
    for begin in range(0, len(arriving), together):
        batch = [(begin + n, message) for n, (_, message) in enumerate(arriving[begin : begin + together])]
        run.add(part_of(batch, run.columns))
        yield run
