"""The rows of docs/faults.md, which describes each: their trials, which the modules named below add."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.results import Verdict
    from tests.faults.scene import Scene

    Trial = Callable[[int, Scene], Verdict]

_MODULES = (
    "rows_engines",
    "rows_store",
    "rows_inputs",
    "rows_trust",
    "rows_answers",
    "rows_models",
    "rows_served",
    "rows_erasure",
)
_rows: dict[int, Row] = {}


@dataclass(frozen=True)
class Row:
    """A kind of fault.

    Attributes:
      trial: runs one trial; all that is random in it follows from the seed.
      trials: how many trials the report wants, on the first of its engines.
      engines: of ``micro-batches`` and ``flink``, what its trials can run on.
      alone: whether no other trial may run at the same time.
    """

    title: str
    trial: Trial
    trials: int = 20
    engines: tuple[str, ...] = ("micro-batches",)
    alone: bool = False

    def wanted(self, engine: str) -> int:
        """Return how many trials the report wants on an engine: half as many on a further one, where each is slow."""
        return self.trials if engine == self.engines[0] else self.trials // 2


def row(number: int, title: str, **options: Any) -> Callable[[Trial], Trial]:
    """Add a trial as a row, with these attributes."""

    def add(trial: Trial) -> Trial:
        _rows[number] = Row(title, trial, **options)
        return trial

    return add


def load() -> dict[int, Row]:
    """Return all rows by number."""
    for name in _MODULES:
        importlib.import_module(f"tests.faults.{name}")
    return dict(sorted(_rows.items()))
