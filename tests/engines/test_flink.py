from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import apache_beam as beam
import psutil
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.utils.timestamp import Timestamp

from ciml import engines
from ciml.errors import EngineError
from ciml.pipelines.flink import jobs
from ciml.pipelines.flink.jobs import cancel_job, cancel_orphans, list_jobs
from tests.pipelines.flink.flink_state import cancel_all_jobs

pytestmark = [
    pytest.mark.engines,
    # The worker's threads in this process log an error when their Flink has ended.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]
ROOT = Path(__file__).resolve().parents[2]


class Append(beam.DoFn):
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def process(self, element):
        with open(self.path, "a") as out:
            out.write(f"{element}\n")


def options(flink: str, name: str, *more: str) -> PipelineOptions:
    return PipelineOptions(
        [
            *("--runner=PortableRunner", f"--job_endpoint={flink}", "--environment_type=LOOPBACK"),
            *("--parallelism=1", f"--job_name={name}", *more),
        ]
    )


STREAMING = (
    *("--streaming", "--checkpointing_interval=1000", "--max_bundle_size=1000", "--max_bundle_time_mills=500"),
    "--finish_bundle_before_checkpointing",
)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def start_stream(flink: str, name: str, out: Path):
    pipeline = beam.Pipeline(options=options(flink, name, *STREAMING))
    begin = Timestamp.now()  # else the time of the import, and hours of rows at once
    _ = pipeline | PeriodicImpulse(begin, fire_interval=0.05) | beam.ParDo(Append(out))
    result = pipeline.run()
    deadline = time.monotonic() + 60
    while len(lines(out)) < 20:
        assert time.monotonic() < deadline, f"no rows within 60 s; {list_jobs(flink)}"
        time.sleep(0.05)
    return result


def test_a_batch_pipeline(flink: str, tmp_path: Path):
    with beam.Pipeline(options=options(flink, "batch")) as pipeline:
        sums = pipeline | beam.Create(range(100)) | beam.Map(lambda n: (n % 2, n)) | beam.CombinePerKey(sum)
        _ = sums | beam.ParDo(Append(tmp_path / "out"))
    assert sorted(lines(tmp_path / "out")) == ["(0, 2450)", "(1, 2500)"]
    (job,) = [job for job in list_jobs(flink) if job.name == "batch"]
    assert job.state == "DONE"
    assert cancel_job(flink, job.id) == job


def test_a_streaming_pipeline_runs_until_it_is_cancelled(flink_jobs: str, tmp_path: Path):
    result = start_stream(flink_jobs, "stream", tmp_path / "out")
    (inside,) = [job for job in jobs.list_flink_jobs(flink_jobs) if job.name == "stream"]
    assert inside.state == "RUNNING"

    ended = cancel_job(flink_jobs, result._job_id)
    assert (ended.name, ended.state) == ("stream", "CANCELLED")
    assert [job for job in jobs.list_flink_jobs(flink_jobs) if job.name == "stream" and not job.over] == []
    after = len(lines(tmp_path / "out"))
    time.sleep(1.5)
    assert len(lines(tmp_path / "out")) == after


def test_beam_s_own_cancel_is_completed(flink_jobs: str, tmp_path: Path):
    """Beam says CANCELLED while its embedded Flink goes on: that is why there is `cancel_job`."""
    result = start_stream(flink_jobs, "half-cancelled", tmp_path / "out")
    result.cancel()
    assert [job.state for job in jobs.list_flink_jobs(flink_jobs) if job.name == "half-cancelled"] == ["RUNNING"]
    assert [job.name for job in cancel_all_jobs(flink_jobs)] == ["half-cancelled"]
    assert [job for job in jobs.list_flink_jobs(flink_jobs) if not job.over] == []


def test_a_job_is_cancelled_as_soon_as_it_is_submitted(flink_jobs: str, tmp_path: Path):
    pipeline = beam.Pipeline(options=options(flink_jobs, "hasty", *STREAMING))
    _ = pipeline | PeriodicImpulse(Timestamp.now(), fire_interval=0.05) | beam.ParDo(Append(tmp_path / "out"))
    result = pipeline.run()
    assert cancel_job(flink_jobs, result._job_id).state == "CANCELLED"
    time.sleep(2)
    assert [job for job in jobs.list_flink_jobs(flink_jobs) if not job.over] == []


def test_the_job_of_a_killed_client_is_found_and_cancelled(flink_jobs: str, tmp_path: Path):
    mine = start_stream(flink_jobs, "mine", tmp_path / "mine")
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.engines.test_flink import start_stream;"
        "start_stream(sys.argv[1], 'orphan', Path(sys.argv[2])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, flink_jobs, str(tmp_path / "orphan")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=90, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [(job.name, job.state) for job in cancel_orphans(flink_jobs)] == [("orphan", "CANCELLED")]
    assert [job.name for job in jobs.list_flink_jobs(flink_jobs) if not job.over] == ["mine"]
    assert cancel_orphans(flink_jobs) == []
    assert cancel_job(flink_jobs, mine._job_id).state == "CANCELLED"


def test_an_unknown_job_is_one_line(flink: str):
    with pytest.raises(EngineError, match=f"the job server at {flink} does not know job none"):
        cancel_job(flink, "none")


def test_down_leaves_nothing_of_a_running_job(tmp_path: Path):
    with engines.start(["flink"], tmp_path / "home", engines.Settings(tied=True)) as running:
        one = running.states["flink"]
        start_stream(running.flink, "abandoned", tmp_path / "out")
        process = psutil.Process(one.pid)
        ports = {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert {one.ports["flink"], one.ports["flink-rest"]} <= ports
    assert not process.is_running()
    assert not {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN} & ports
    after = len(lines(tmp_path / "out"))
    time.sleep(1)
    assert len(lines(tmp_path / "out")) == after
