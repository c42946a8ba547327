"""Settings of a recorder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ciml.kafka.options import KafkaOptions


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a recorder.

    Attributes:
      spool: folder of the recordings.
      kafka: options of the broker; None for none.
      flush_s: time to send after the command's end, s.
    """

    spool: Path
    kafka: KafkaOptions | None = None
    flush_s: float = 5.0
