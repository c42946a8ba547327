"""What a recorder costs, in seconds of CPU that do not depend on the machine's other work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recorder.recorded import environment, recorder

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


@pytest.mark.parametrize("dool", [None, ""], ids=["dool", "proc"])
def test_a_recorder_takes_less_than_a_fiftieth_of_a_core(tmp_path: Path, dool: str | None) -> None:
    """Two lengths of the same, so that what a start costs is not counted: docs/record.md has both."""
    seconds = []
    for length in (1, 5):
        options = ["-q", "--log-dir", str(tmp_path / "logs")]
        argv = [*recorder(tmp_path / "spool", *options), "sleep", str(length)]
        env = environment(**({} if dool is None else {"CIML_DOOL": dool}))
        pid = os.posix_spawn(argv[0], argv, env)
        _, status, used = os.wait4(pid, 0)
        assert status == 0
        seconds.append(used.ru_utime + used.ru_stime)
    assert (seconds[1] - seconds[0]) / 4 < 0.02
