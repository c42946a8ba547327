"""Settings of a recorder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ciml.kafka.options import KafkaOptions


@dataclass(frozen=True, slots=True)
class Settings:
    """How a recorder works.

    Attributes:
      spool: where recordings are.
      kafka: how to reach the broker; None for none.
      flush_s: how long to send after the command's end, s.
    """

    spool: Path
    kafka: KafkaOptions | None = None
    flush_s: float = 5.0
