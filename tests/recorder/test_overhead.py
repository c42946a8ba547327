"""What a recorder costs, in seconds of CPU that do not depend on the machine's other work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.recorder.recorded import environment, recorder, wait_for

#: What takes tens of milliseconds to import. Before the command starts none of it is; beside it only what is used.
SLOW = ("numpy", "pyarrow", "confluent_kafka", "psutil", "rich", "pydantic", "boto3", "ciml.engines.launcher")


def loaded(code: str) -> list[str]:
    probe = f"{code}\nimport sys; print(*[name for name in {SLOW!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=environment())
    return done.stdout.split()


def test_the_command_waits_for_no_slow_import() -> None:
    assert (
        loaded(
            "import ciml.cli.main, ciml.cli.commands.operate.record, ciml.recorder.record,"
            " ciml.recorder.ci_environment, ciml.events.run_facts"
        )
        == []
    )


def test_a_sample_is_sent_without_numpy_and_arrow() -> None:
    sent = """
from ciml.recorder.spool.delivery import encode_piece
from ciml.recorder.tail import Piece
import ciml.events.cloudevents, ciml.kafka.connect
encode_piece("zuul~1~1", Piece(10**15, 0, ("load avg:1m",), [10**15], [True], [[0.5]]), 10**15)
"""
    assert loaded(sent) == ["confluent_kafka"]


def cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@pytest.mark.parametrize("dool", [None, ""], ids=["dool", "proc"])
def test_a_sample_takes_less_than_a_fiftieth_of_a_second_of_cpu(tmp_path: Path, dool: str | None) -> None:
    """Counted once everything is loaded and started, which takes longer (docs/record.md)."""
    env = environment(**({} if dool is None else {"CIML_DOOL": dool}))

    def samples() -> int:
        return sum(log.read_bytes().count(b"\n") for log in tmp_path.glob("spool/*/dstat-csv_log.txt"))

    with subprocess.Popen([*recorder(tmp_path / "spool", "-q"), "sleep", "60"], env=env) as process:
        try:
            wait_for(lambda: samples() >= 9)  # with the lines of the header
            recording = psutil.Process(process.pid)
            family = [recording, *recording.children(recursive=True)]
            first, before = samples(), cpu_seconds(family)
            wait_for(lambda: samples() >= first + 4)
            used = cpu_seconds(family) - before
        finally:
            process.terminate()
    assert used / 4 < 0.02
