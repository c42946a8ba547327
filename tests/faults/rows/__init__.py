"""The rows of the matrix, a module each: constants that the report prints, and ``trial(seed, scene) -> Verdict``."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Protocol

from tests.faults.scene import Scene
from tests.faults.verdict import Verdict


class Row(Protocol):
    """What a module of this package has.

    Attributes:
      ROW: its number in the matrix.
      TITLE: the fault or input.
      INJECTED: how it is injected, in a sentence for the report.
      EXPECTED: what has to happen.
      INVARIANTS: of I1–I7, those that its trials check beside the equality of every row with the direct computation.
      TRIALS: how many trials the report wants, on the first of its engines.
      ENGINES: of ``micro-batches`` and ``flink``, what its trials can run on.

    One that measures has ``ALONE = True``: no other trial runs beside it.
    """

    ROW: int
    TITLE: str
    INJECTED: str
    EXPECTED: str
    INVARIANTS: tuple[str, ...]
    TRIALS: int
    ENGINES: tuple[str, ...]

    def trial(self, seed: int, scene: Scene) -> Verdict:
        """Runs one trial; everything that is random in it follows from ``seed``."""


def wanted(row: Row, engine: str) -> int:
    """How many trials of a row the report wants on an engine: on a further one half as many, for there each takes a
    minute, and what is injected is the same."""
    return row.TRIALS if engine == row.ENGINES[0] else row.TRIALS // 2


def load() -> dict[int, Row]:
    """All rows by number."""
    found: dict[int, Row] = {}
    for info in pkgutil.iter_modules(__path__):
        module: ModuleType = importlib.import_module(f"{__name__}.{info.name}")
        row: Row = module
        if row.ROW in found:
            raise ValueError(f"two modules are row {row.ROW}")
        found[row.ROW] = row
    return dict(sorted(found.items()))
