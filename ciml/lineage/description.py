"""What a step of training reads and writes, before it becomes an event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

State = Literal["START", "COMPLETE", "FAIL", "ABORT"]


@dataclass(frozen=True)
class Data:
    """Data that a step reads or writes.

    Attributes:
      address: a folder or ``s3://`` prefix; stable over versions.
      version: of the data, such as a digest; "" if unknown.
      columns: (name, type) of its columns.
      rows: number of rows; None if unknown.
      facts: further facts by name, as JSON.
    """

    address: str
    version: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    rows: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """What a step reads, writes and found.

    Attributes:
      inputs, outputs: its data.
      parameters: of the step by name, as JSON.
      checks: each check by name, and whether it passed.
      facts: figures of the step by name, as JSON.
    """

    inputs: tuple[Data, ...] = ()
    outputs: tuple[Data, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[tuple[str, bool], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepEvent:
    """A state of a step.

    Attributes:
      run_id: UUID of this execution.
      job: name of the step, such as ``snapshot.provider``.
      state: what happened.
      time: when, in UTC.
      description: what is known by now.
      error: the exception's text, with FAIL.
    """

    run_id: str
    job: str
    state: State
    time: datetime
    description: Description
    error: str = ""
