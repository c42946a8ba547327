"""The recorder behind `ciml record`: runs a command, samples its machine once a second, and delivers the recording.

Uses the packages of `ciml` that need no extra, so that it is light on CI machines. The command never depends on it.
Here are its settings, and how it prints messages: single lines on standard error.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ciml.kafka import KafkaOptions

#: See `Settings.leftovers`.
WhoseBroker = Literal["given", "recorded", "unconfirmed"]


@dataclass(frozen=True)
class Settings:
    """Settings of a recorder.

    Attributes:
      spool: folder of the recordings.
      kafka: options of the broker; None for none.
      flush_s: time to send after the command's end, and without progress of ``ciml record --send``, s.
      leftovers: the broker that ``ciml record --send`` uses for a recording that names one itself. ``given``: the one
        in ``kafka``, even if that is None. ``recorded``: its own, without any Kafka property. ``unconfirmed``: none,
        because the command line has properties without a broker.
    """

    spool: Path
    kafka: KafkaOptions | None = None
    flush_s: float = 5.0
    leftovers: WhoseBroker = "given"


_quiet = False


def be_quiet() -> None:
    """Print nothing from now on, in this process and its forks."""
    global _quiet
    _quiet = True


def report(line: str) -> None:
    """Print one line on standard error by a single write; drop it if standard error is closed."""
    if not _quiet:
        with contextlib.suppress(OSError):
            os.write(2, f"ciml record: {' '.join(line.split())}\n".encode(errors="replace"))
