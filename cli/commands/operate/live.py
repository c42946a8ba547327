"""``ciml live``: windows and examples of running jobs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ciml.cli.command import HERE, make_command
from ciml.cli.running import Running
from ciml.services.options import LiveOptions

if TYPE_CHECKING:
    from ciml.services.decide import ServiceProgress


class LiveRunning(Running):
    """How ``ciml live`` runs.

    Attributes:
      once: Make one pass to the present end of the topic, in this process, without Flink.
    """


@make_command("live")
def command(options: LiveOptions, running: LiveRunning) -> None:
    """Stream windows of running jobs.

    It reads samples from a topic and publishes each window of a data set early, when it is final, and after late
    samples; and each run's example as it grows. A finished run equals the example of its log. It runs on Flink until a
    signal; --once reads the runs from their first samples, without Flink. docs/live.md describes the formats.

    \b
    Example:
      ciml live --dataset provider --data-path data
      ciml live --dataset provider --dataset cpu-load --data-path data --once --since 1h
    """

    def text(progress: ServiceProgress, word: str) -> str:
        return f"{progress.facts['counts']['messages read']:,} messages read; {progress.behind:,} to go"

    if running.once:
        running = replace(running, engine=HERE)
    running.stream(options, text)
