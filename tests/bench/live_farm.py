"""Jobs that come and go, each with a sample a second, and how long it takes until their windows are on the topic.

A program of its own, so that it takes no time from the one that is measured: ``python -m tests.bench.live_farm JSON``
with kafka, samples and windows (topics), jobs, seconds, and perhaps length (samples of a job, from and to), seed, and
patience (how long the last windows are waited for, s).
"""

from __future__ import annotations

import heapq
import json
import random
import sys
import threading
import time
from argparse import Namespace
from dataclasses import dataclass

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from ciml.events.fields import iso_time
from ciml.events.samples import End, Samples, encode

COLUMNS = (
    "total cpu usage:usr", "total cpu usage:sys", "load avg:1m", "memory usage:used", "dsk/total:read",
    "dsk/total:writ",
)  # fmt: skip


@dataclass
class Job:
    run_id: str
    begun_us: int
    length: int
    sent: int = 0


class Farm:
    """So many jobs at any time; each second a sample of each, spread over the second."""

    def __init__(self, options: Namespace) -> None:
        self._options = options
        self._random = random.Random(options.seed)
        self._producer = Producer({"bootstrap.servers": options.kafka, "linger.ms": 2})
        self.sent_s: dict[tuple[str, str], float] = {}
        self.samples = self.ended = 0
        self.worst_s = 0.0  # how late a sample was sent

    def run(self) -> None:
        begin, options = time.time(), self._options
        due = [(begin + self._random.random(), number, self._job(number, begin)) for number in range(options.jobs)]
        heapq.heapify(due)
        count = options.jobs
        while due[0][0] < begin + options.seconds:
            at, number, job = heapq.heappop(due)
            if (left := at - time.time()) > 0:
                self._producer.poll(0)
                time.sleep(left)
            self.worst_s = max(self.worst_s, -left)
            self._send(job)
            if job.sent == job.length:
                self._end(job)
                job, count = self._job(count, time.time()), count + 1
            heapq.heappush(due, (at + 1.0, number, job))
        for _, _, job in due:
            self._end(job)
        assert self._producer.flush(30) == 0

    def _job(self, number: int, now_s: float) -> Job:
        low, high = self._options.length
        return Job(f"bench~{self._options.seed}-{number}~1", int(now_s * 1e6), self._random.randint(low, high))

    def _send(self, job: Job) -> None:
        now_s = time.time()
        time_us = int(now_s * 1e6)
        values = np.array([[self._random.random() * 100 for _ in COLUMNS]])
        message = Samples(
            job.run_id, job.begun_us, job.begun_us, COLUMNS, np.array([job.sent]), np.array([time_us]),
            np.array([job.sent == 0]), values,
        )  # fmt: skip
        self.sent_s.setdefault((job.run_id, iso_time(time_us // 1_000_000 * 1_000_000)), now_s)
        self._producer.produce(self._options.samples, encode(message), key=job.run_id)
        job.sent += 1
        self.samples += 1

    def _end(self, job: Job) -> None:
        self._producer.produce(self._options.samples, encode(End(job.run_id, job.begun_us, job.sent)), key=job.run_id)
        self.ended += 1


class Watcher(threading.Thread):
    """Reads the windows as they come: when each was there first."""

    def __init__(self, options: Namespace) -> None:
        super().__init__(daemon=True)
        self._consumer = Consumer({
            "bootstrap.servers": options.kafka, "group.id": "farm", "enable.auto.commit": False,
            "fetch.wait.max.ms": 20,
        })  # fmt: skip
        partitions = self._consumer.list_topics(options.windows).topics[options.windows].partitions
        ends = [self._consumer.get_watermark_offsets(TopicPartition(options.windows, part))[1] for part in partitions]
        self._consumer.assign(
            [TopicPartition(options.windows, p, end) for p, end in zip(partitions, ends, strict=True)]
        )
        self.there_s: dict[tuple[str, str], float] = {}
        self.messages = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            for message in self._consumer.consume(1000, 0.05):
                if message.error() is None:
                    value = json.loads(message.value())
                    self.there_s.setdefault((value["run_id"], value["start"]), time.time())
                    self.messages += 1


def main() -> None:
    defaults = {"length": (120, 900), "seed": time.time_ns() % 1_000_000_000, "patience": 60.0}
    options = Namespace(**{**defaults, **json.loads(sys.argv[1])})
    farm, watcher = Farm(options), Watcher(options)
    watcher.start()
    farm.run()
    until = time.time() + options.patience
    while len(farm.sent_s.keys() - watcher.there_s.keys()) and time.time() < until:
        time.sleep(0.1)
    caught_up_s = time.time() - (until - options.patience)
    watcher.over.set()
    watcher.join()
    waited = [watcher.there_s[key] - at for key, at in farm.sent_s.items() if key in watcher.there_s]
    p50, p90, p99 = np.percentile(waited, [50, 90, 99]).tolist() if waited else (0.0, 0.0, 0.0)
    print(json.dumps({
        "jobs": options.jobs, "samples": farm.samples, "ended": farm.ended, "windows": len(farm.sent_s),
        "missing": len(farm.sent_s) - len(waited), "messages": watcher.messages, "p50_s": p50, "p90_s": p90,
        "p99_s": p99, "worst_s": max(waited, default=0.0), "sent_late_s": farm.worst_s, "caught_up_s": caught_up_s,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
