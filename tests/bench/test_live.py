"""Live windows: how soon they are told, how many jobs two cores carry, whether state stays flat, and all runs of the
corpus through kills.

    python -m pytest tests/bench/test_live.py -m bench -s

CIML_BENCH_S says how long each measurement is (60 s); an hour shows whether state and memory stay flat. CIML_BENCH_JOBS
are the numbers of jobs, CIML_BENCH_RUNS how many runs go through the kills (all).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from ciml.datasets.definition import DatasetDefinition, resolve
from ciml.engines import Engines, cluster_parts
from ciml.errors import EngineError
from ciml.kafka import KafkaOptions
from ciml.pipelines.flink import jobs as flink_rest
from ciml.pipelines.flink.jobs import RestJob, list_flink_jobs
from ciml.pipelines.flink.submit import FlinkJob, flink_options
from ciml.pipelines.kafka.reader import close_readers
from ciml.pipelines.live import LiveConfig, build_live
from ciml.services.driver import drive
from ciml.services.live import LiveService, make_topics, plan_live
from ciml.transforms.live.samples import LivePolicy
from ciml.transforms.live.windows import LiveDataset
from tests.bench.live_farm import COLUMNS
from tests.corpus import builds
from tests.pipelines.flink.flink_state import checkpoint_counts
from tests.pipelines.ingest.ingesting import wait_for
from tests.pipelines.live.living import USUAL, Kept, assert_equals_batch, datasets, replayed, send

pytestmark = [pytest.mark.bench, pytest.mark.engines, pytest.mark.timeout(0)]

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("CIML_BENCH_S", "60"))
JOBS = [int(jobs) for jobs in os.environ.get("CIML_BENCH_JOBS", "100,200,400").split(",")]
RUNS = int(os.environ.get("CIML_BENCH_RUNS", len(builds())))
PATIENCE_S = 600.0
MIB = 1 << 20
LONGEST_S = 120  # of the jobs that come and go


def farm_sets() -> tuple[LiveDataset, ...]:
    definition = DatasetDefinition.from_json({"name": "bench", "sample_interval": "1s", "features_regex": "(usr|1min)"})
    return (LiveDataset("bench", resolve(definition, [COLUMNS], [])),)


def make_config(broker: str, topic: Callable[..., str], sets: tuple[LiveDataset, ...], **keys: Any) -> LiveConfig:
    names = [
        topic(partitions, name)
        for partitions, name in ((2, "samples"), (2, "windows"), (1, "examples"), (1, "letters"))
    ]
    return LiveConfig(KafkaOptions(broker), sets, *names, **keys)


@contextmanager
def living(config: LiveConfig, endpoint: str, **options: Any) -> Iterator[FlinkJob]:
    reads = plan_live(config, make_topics(config), None, bounded=False)
    build = partial(build_live, config=config, reads=reads, clock=time.time)
    job = FlinkJob(build, flink_options(endpoint, "live", changes=LiveService.flink, **options))
    try:
        yield job
    finally:
        job.cancel()
        close_readers()


def farm(config: LiveConfig, jobs: int, seconds: float, **more: Any) -> subprocess.Popen[str]:
    topics = {"kafka": config.kafka.bootstrap, "samples": config.topic, "windows": config.windows_topic}
    options = json.dumps({**topics, "jobs": jobs, "seconds": seconds, **more})
    command = [sys.executable, "-m", "tests.bench.live_farm", options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def flink_process() -> psutil.Process:
    """The JVM with Beam's job server and Flink in it, a child of this process."""
    found = [
        one for one in psutil.Process().children(recursive=True) if "FlinkJobServerDriver" in " ".join(one.cmdline())
    ]
    assert len(found) == 1
    return found[0]


def checkpoint_bytes(endpoint: str) -> int:
    """Of the job that runs now; 0 while it begins."""
    try:
        points = [flink_rest.last_checkpoint(one) for one in list_flink_jobs(endpoint) if not one.over]
    except EngineError:
        return 0
    return max((point.bytes for point in points if point is not None), default=0)


@pytest.mark.parametrize("jobs", JOBS)
def test_from_sample_to_window(kafka: str, topic: Callable[..., str], flink_jobs: str, jobs: int) -> None:
    """And what it costs: 100 jobs for the latency, more to see how many are carried."""
    config = make_config(kafka, topic, farm_sets())
    with living(config, flink_jobs):
        warm = farm(config, 1, 5.0, patience=300)
        assert json.loads(warm.communicate()[0])["missing"] == 0
        ours = {"python": psutil.Process(), "flink": flink_process()}
        before, begun = {name: cpu_s(one) for name, one in ours.items()}, time.monotonic()
        result = json.loads(farm(config, jobs, SECONDS).communicate()[0])
        took = time.monotonic() - begun
        cores = ", ".join(f"{name} {(cpu_s(one) - before[name]) / took:.2f}" for name, one in ours.items())
    print(
        f"\n{jobs} jobs, {result['samples'] / SECONDS:.0f} samples/s for {SECONDS:.0f} s: p50 {result['p50_s']:.2f} s, "
        f"p90 {result['p90_s']:.2f} s, p99 {result['p99_s']:.2f} s, worst {result['worst_s']:.2f} s; caught up after "
        f"{result['caught_up_s']:.1f} s; cores: {cores}; sent late by at most {result['sent_late_s']:.2f} s"
    )
    assert result["missing"] == 0


def test_state_and_memory_while_jobs_come_and_go(kafka: str, topic: Callable[..., str], flink_jobs: str) -> None:
    """Short jobs, so that many end: a look every hundredth of the time. The source's state grows until it is renewed,
    here every sixth of the time, so that peaks can be compared."""
    config = make_config(kafka, topic, farm_sets(), policy=LivePolicy(remember_s=min(SECONDS / 12, 86_400.0)))
    looks, stop = [], threading.Event()
    service = LiveService(config, 2.0 * LONGEST_S)
    service.renew_s = SECONDS / 6
    go = partial(drive, service, flink_jobs, stop=stop)
    live = threading.Thread(target=go)
    live.start()
    try:
        warm = farm(config, 1, 5.0, patience=300)
        assert json.loads(warm.communicate()[0])["missing"] == 0
        flink = flink_process()
        child = farm(config, 100, SECONDS, length=(20, LONGEST_S), patience=300)
        begun = time.monotonic()
        while child.poll() is None:
            time.sleep(SECONDS / 100)
            looks.append((
                time.monotonic() - begun, checkpoint_bytes(flink_jobs) / MIB,
                psutil.Process().memory_info().rss / MIB, flink.memory_info().rss / MIB,
            ))  # fmt: skip
        result = json.loads(child.communicate()[0])
    finally:
        stop.set()
        live.join()
    print(f"\n{result['ended']} jobs ended, {result['samples']} samples")
    print(f"p50 {result['p50_s']:.2f} s, p99 {result['p99_s']:.2f} s, worst {result['worst_s']:.2f} s")
    print("after s, checkpoint MiB, python MiB, flink MiB")
    for look in looks:
        print(", ".join(f"{number:.1f}" for number in look))
    assert result["missing"] == 0


def test_every_run_of_the_corpus_with_kills(kafka: str, topic: Callable[..., str], cluster: Engines) -> None:
    """Shuffled within 30 s, one sample in a hundred late by minutes and one repeated; a worker and then the TaskManager
    are killed. The messages are sent in ten parts, each once something of the one before was told."""
    config = make_config(kafka, topic, datasets(**USUAL), policy=LivePolicy(grace_s=600.0))
    messages = replayed(RUNS, seed=9)
    run_ids = list(dict.fromkeys(run_id for run_id, _ in messages))
    assert len(run_ids) == RUNS
    reads = plan_live(config, make_topics(config), None, bounded=False)
    options = flink_options(
        cluster.cluster["jobs"], "live", workers=cluster.cluster["workers"], changes={"checkpointing_interval": 2000}
    )
    name = FlinkJob(partial(build_live, config=config, reads=reads, clock=time.time), options).name
    rest, kept = cluster.cluster["rest"], Kept(config.kafka, config)

    def job() -> RestJob:
        found = flink_rest.find_rest_job(rest, name)
        assert found is not None
        return found

    def told() -> int:
        kept.look()
        return sum(map(len, kept.windows.values()))

    wait_for(lambda: flink_rest.find_rest_job(rest, name) is not None, PATIENCE_S)
    parts = [messages[at : at + len(messages) // 10 + 1] for at in range(0, len(messages), len(messages) // 10 + 1)]
    for number, part in enumerate(parts):
        before = told()
        send(kafka, config.topic, part, 2)
        wait_for(lambda before=before: told() > before, PATIENCE_S)
        if number == 3:
            wait_for(lambda: flink_rest.last_checkpoint(job()) is not None, PATIENCE_S)
            pool = psutil.Process(cluster_parts(cluster.home)["workers-1"].pid or 0)
            busy = [
                one for one in pool.children() if any(c.status == "ESTABLISHED" for c in one.net_connections("tcp"))
            ]
            busy[0].kill()
        if number == 6:
            os.kill(cluster_parts(cluster.home)["taskmanager-1"].pid or 0, signal.SIGKILL)
    wait_for(lambda: kept.look().ended() == set(run_ids), PATIENCE_S)
    restored = checkpoint_counts(job())["restored"]
    flink_rest.cancel(job())
    wait_for(lambda: job().over, PATIENCE_S)
    compared = assert_equals_batch(kept, run_ids, config.datasets)
    panes = sum(map(len, kept.windows.values()))
    print(
        f"\n{len(run_ids)} runs, {len(messages)} messages: {compared} examples and {panes} windows equal the batch "
        f"result; {restored} times from a checkpoint; {kept.repeats} repeats; {len(kept.dead_letters)} dead letters"
    )
    kept.close()
    assert restored >= 1
    assert kept.dead_letters == []
