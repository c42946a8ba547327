from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.utils.timestamp import Timestamp

from ciml.errors import EngineError
from ciml.pipelines.flink import jobs
from ciml.pipelines.flink.jobs import cancel_job, cancel_orphans
from tests.engines.test_engines import wait_for

pytestmark = [
    pytest.mark.engines,
    # The worker's threads in this process log an error when their Flink has ended.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]
ROOT = Path(__file__).resolve().parents[2]
STREAMING = (
    *("--streaming", "--checkpointing_interval=1000", "--max_bundle_size=1000", "--max_bundle_time_mills=500"),
    "--finish_bundle_before_checkpointing",
)


class Append(beam.DoFn):
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def process(self, element):
        with open(self.path, "a") as out:
            out.write(f"{element}\n")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def options(flink: str, name: str, *more: str) -> PipelineOptions:
    runner = ("--runner=PortableRunner", f"--job_endpoint={flink}", "--environment_type=LOOPBACK")
    return PipelineOptions([*runner, "--parallelism=1", f"--job_name={name}", *more])


def start_stream(flink: str, name: str, out: Path, rows: int = 20) -> Any:
    """Start a pipeline that appends to a file, and wait until it has some rows."""
    pipeline = beam.Pipeline(options=options(flink, name, *STREAMING))
    begin = Timestamp.now()  # else the time of the import, and hours of rows at once
    _ = pipeline | PeriodicImpulse(begin, fire_interval=0.05) | beam.ParDo(Append(out))
    result = pipeline.run()
    wait_for(lambda: len(lines(out)) >= rows)
    return result


def running(flink: str) -> list[tuple[str, str]]:
    return [(job.name, job.state) for job in jobs.list_flink_jobs(flink) if not job.over]


def test_beam_s_own_cancel_is_completed(flink_jobs: str, tmp_path: Path):
    """Beam reports CANCELLED while its embedded Flink continues: that is why there is `cancel_job`."""
    result = start_stream(flink_jobs, "stream", tmp_path / "out")
    result.cancel()
    assert running(flink_jobs) == [("stream", "RUNNING")]
    ended = cancel_job(flink_jobs, result._job_id)
    assert (ended.name, ended.state) == ("stream", "CANCELLED")
    assert running(flink_jobs) == []
    assert cancel_job(flink_jobs, result._job_id) == ended
    after = len(lines(tmp_path / "out"))
    time.sleep(0.5)
    assert len(lines(tmp_path / "out")) == after


def test_a_job_is_cancelled_as_soon_as_it_is_submitted(flink_jobs: str, tmp_path: Path):
    result = start_stream(flink_jobs, "hasty", tmp_path / "out", rows=0)
    assert cancel_job(flink_jobs, result._job_id).state == "CANCELLED"
    time.sleep(1)
    assert running(flink_jobs) == []


def test_the_job_of_a_killed_client_is_found_and_cancelled(flink_jobs: str, tmp_path: Path):
    mine = start_stream(flink_jobs, "mine", tmp_path / "mine")
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.engines.test_flink import start_stream;"
        "start_stream(sys.argv[1], 'orphan', Path(sys.argv[2]), 1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, flink_jobs, str(tmp_path / "orphan")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=90, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [(job.name, job.state) for job in cancel_orphans(flink_jobs)] == [("orphan", "CANCELLED")]
    assert running(flink_jobs) == [("mine", "RUNNING")]
    assert cancel_orphans(flink_jobs) == []
    assert cancel_job(flink_jobs, mine._job_id).state == "CANCELLED"
    with pytest.raises(EngineError, match=f"the job server at {flink_jobs} does not know job none"):
        cancel_job(flink_jobs, "none")
