"""Estimate the cost of 100,000 runs a week on Dataflow. Writes the table of docs/dataflow.md.

    python -m studies.dataflow_cost [RUNS]

Nothing runs on Dataflow. CPU time and bytes are measured in this process; S3 and Kafka run in other processes. TLS is
not included. Bytes are those that pass between stages that Dataflow does not fuse. Prices come from Beam's release.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from apache_beam.testing.load_tests import dataflow_cost_consts as prices

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.events.cloudevents import STARTED, finished_event, run_event
from ciml.events.listing import open_listing
from ciml.kafka import KafkaOptions
from ciml.pipelines.backfill.backfill import plan_backfill
from ciml.pipelines.datasets.build import plan_build
from ciml.pipelines.ingest.committer import IngestConfig, committer
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from ciml.storage import open_store
from ciml.transforms.beam import run_here
from ciml.transforms.fetch.policy import FetchPolicy
from tests.corpus import CORPUS
from tests.pipelines.backfill.backfilling import config as backfill_config
from tests.pipelines.backfill.backfilling import listed
from tests.pipelines.ingest.scenario import corpus_facts

WEEK_RUNS = 100_000
WEEK_H = 168
#: One worker: e2-standard-2, and a disk of 30 GB with Streaming Engine, 25 GB with Dataflow Shuffle.
VCPUS = 2
MEMORY_GB = 8
STREAMING_DISK_GB = 30
BATCH_DISK_GB = 25
#: Time in which a batch job's worker starts and stops, hours.
START_H = 0.1
#: Share of a worker that a batch job uses; the rest waits for S3.
USED = 0.5


@dataclass(frozen=True)
class Measured:
    """CPU seconds and shuffled bytes of a run."""

    what: str
    cpu_s: float
    shuffled: float

    def line(self) -> str:
        return f"{self.what}: {self.cpu_s * 1000:.2f} ms of CPU and {self.shuffled:,.0f} B between stages a run"


def worker_hour(cpu: float, memory: float, disk_gb: int) -> float:
    """Return the price of a worker, USD an hour."""
    return float(VCPUS * cpu + MEMORY_GB * memory + disk_gb * prices.PD_PER_GB_HR)


def streaming_week(one: Measured) -> tuple[float, float, float]:
    """Return (USD of one worker, USD of Streaming Engine, the worker's load) of a week."""
    hour = worker_hour(prices.VCPU_PER_HR_STREAMING, prices.MEM_PER_GB_HR_STREAMING, STREAMING_DISK_GB)
    load = WEEK_RUNS * one.cpu_s / (WEEK_H * 3600 * VCPUS)
    return WEEK_H * hour, WEEK_RUNS * one.shuffled / 1e9 * prices.SHUFFLE_PER_GB_STREAMING, load


def batch_job(one: Measured) -> tuple[float, float]:
    """Return the cost (USD, hours of one worker) of a job with the runs of a week."""
    hours = START_H + WEEK_RUNS * one.cpu_s / (VCPUS * USED) / 3600
    hour = worker_hour(prices.VCPU_PER_HR_BATCH, prices.MEM_PER_GB_HR_BATCH, BATCH_DISK_GB)
    return hours * hour + WEEK_RUNS * one.shuffled / 1e9 * prices.SHUFFLE_PER_GB_BATCH, hours


def cpu_of(work: Callable[[], object]) -> float:
    """Return the CPU seconds of this process for some work."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def manifest_bytes(data: DataRoot) -> int:
    """Return the size of the raw manifest: the input of the committing stage, without repeats."""
    log = committer(data.raw).log
    return sum(len(data.raw.read(path)) for path in data.raw.list(log.folder))


def measure_backfill(runs: int, folder: Path, bucket: str) -> Measured:
    listing = listed(folder / "logs", runs=runs, tricks=False)
    store = open_store(bucket)
    for path in [listing.path, *listing.folder.rglob("*.gz")]:
        store.replace(f"ci/{path.relative_to(listing.folder)}", path.read_bytes())
    ours = backfill_config(f"{bucket}/ci", f"{bucket}/data")
    planned = plan_backfill(ours, open_listing(f"{bucket}/ci/builds.jsonl"))
    cpu_s = cpu_of(lambda: run_here(planned.build))
    # Only the work items pass a shuffle: a block's position, digest and lines.
    return Measured("backfill", cpu_s / runs, 200 * len(planned.works) / runs)


def measure_data_set(runs: int, bucket: str) -> Measured:
    from ciml.pipelines.datasets import beam as examples

    data = DataRoot.open(f"{bucket}/data")
    planned = plan_build(data, data, DatasetDefinition(name="cost", class_label="build_name", span_runs=500))
    sizes: list[int] = []
    make = examples._make

    def counted(*arguments: Any) -> Any:
        example = make(*arguments)
        sizes.append(len(example[1][1]))
        return example

    examples._make = counted  # type: ignore[assignment]
    try:
        cpu_s = cpu_of(lambda: run_here(planned.build))
    finally:
        examples._make = make
    facts = manifest_bytes(data) / runs  # of each run, in the shuffle of the parts
    return Measured("data set", cpu_s / runs, sum(sizes) / runs + facts)


def measure_ingest(runs: int, bucket: str, kafka: str) -> Measured:
    from confluent_kafka import Producer

    topic = f"cost-{runs}"
    producer = Producer({"bootstrap.servers": kafka})
    sent = 0
    stored = open_store(f"{bucket}/ci").list()
    for facts, log in corpus_facts(runs):
        if str(log.relative_to(CORPUS)) not in stored:
            open_store(f"{bucket}/ci").replace(str(log.relative_to(CORPUS)), log.read_bytes())
        named = facts.replace(log_url=f"{bucket}/ci/{log.relative_to(CORPUS)}")
        for value, headers in (  # three events a run, as Zuul sends them
            run_event(STARTED, named, event_id=f"{facts.run_id} started"),
            finished_event(named, event_id=f"{facts.run_id} finished"),
            finished_event(named, event_id=f"{facts.run_id} again"),
        ):
            producer.produce(topic, value, headers=headers)
            sent += len(value) + sum(len(key) + len(text or b"") for key, text in headers)
            producer.poll(0)
    producer.flush(60)
    data = DataRoot.open(f"{bucket}/events")
    fetch = FetchPolicy(s3_prefixes=(f"{bucket}/ci",))
    service = IngestService(IngestConfig(data.raw, topic, kafka=KafkaOptions(kafka), fetch=fetch))
    cpu_s = cpu_of(lambda: drive(service, until="end"))
    assert service.facts()["counts"]["run"] == runs, service.facts()
    # Events pass to the stages of a batch, sealed batches to the stage that gathers them, into its state and out of it.
    return Measured("ingest", cpu_s / runs, (sent + 3 * manifest_bytes(data)) / runs)


def main() -> None:
    from ciml import engines

    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as place, engines.start(["kafka", "s3"], home=Path(place, "home")) as running:
        os.environ.update(engines.s3_environment(running.s3))
        boto3.client("s3").create_bucket(Bucket="cost")
        engines.create_topics(running.kafka, {f"cost-{runs}": 1})
        batch_costs = [measure_backfill(runs, Path(place), "s3://cost"), measure_data_set(runs, "s3://cost")]
        ingest = measure_ingest(runs, "s3://cost", running.kafka)
    for cost in (ingest, *batch_costs):
        print(cost.line())
    workers, engine, load = streaming_week(ingest)
    print(
        f"ingest, a week of 100,000 runs: ${workers:.2f} of one worker ({load:.1%} busy), "
        f"${engine:.4f} of Streaming Engine"
    )
    for cost in batch_costs:
        usd, hours = batch_job(cost)
        print(f"{cost.what} of 100,000 runs: ${usd:.2f}, {hours:.2f} h of one worker")


if __name__ == "__main__":
    main()
