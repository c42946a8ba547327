"""A trial's processes, from the first message to the verdict: producer, ingest, a polling reader, and the clock."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults import datasets, planted
from tests.faults.children import Child, Program, python
from tests.faults.cluster import Cluster, Supervised
from tests.faults.judge import Delivery, accepted, deliveries, judge
from tests.faults.oracle import Ledger, open_objects
from tests.faults.plan import Plan, Send
from tests.faults.producer import Ack, Acks, write_plan
from tests.faults.scene import Sampler, Scene
from tests.faults.verdict import Verdict

#: I6: what an ingest may have at most. Beam and its workers take 300 MiB before the first event.
MOST_RSS_MB = 900.0
MOST_OPEN_FILES = 400
_TICK_S = 0.02
_WAIT_S = 180.0


class Story:
    """One topic, one data root, and what happens to them.

    Args:
      scene: where it plays.
      seed: of all that is random.
      partitions: of the topic.
      broker: the broker that all of it uses; the scene's by default.
      through: the broker's address for ingest, where that is another one (a proxy).
      delays: waits before a log that is not there is tried again.
      options: more arguments of ``ciml ingest``.
      cold: whether ingests are started from their very beginning.
      cycle: how many messages of a partition a micro-batch takes at most; by chance unless given.
      data: the data root; a folder of the trial's own by default.
    """

    def __init__(
        self, scene: Scene, seed: int, *, partitions: int = 2, broker: str = "", through: str = "",
        delays: Sequence[str] = ("400ms", "800ms", "1600ms"), options: Sequence[str] = (), cold: bool = False,
        data: str = "", topic: str = "", cycle: int = 0,
    ) -> None:  # fmt: skip
        self.scene, self.seed, self.random = scene, seed, random.Random(seed ^ 0x5EED)
        self.broker = broker or scene.broker
        self.through = through or self.broker
        self.topic = topic or scene.topic("events", partitions, self.broker)
        self.runs_topic = f"runs-{self.topic}"
        self.data = data or str(scene.folder / "data")
        self.cold = cold
        self.planner = scene.planner(seed, partitions)
        self.verdict = Verdict()
        self.ledger = Ledger(open_objects(f"{self.data}/raw"))
        self.sends: list[Send] = []
        self.ingests: list[Child] = []
        self.late_logs: dict[str, bytes] = {}
        self._delays, self._options = delays, options
        self._cycle = cycle or self.random.choice((15, 40, 100, 2000))
        self._producers: list[tuple[Program, Acks]] = []
        self._acks: list[Ack] = []
        self._uncovered: list[Ack] = []
        self._late_runs: dict[str, str] = {}  # the run that waits for a late log: its name
        self._poller: Program | None = None
        self._sampler = Sampler()
        self._fault_over = 0.0
        self.began = time.monotonic()

    # --- processes

    @classmethod
    def on_cluster(cls, scene: Scene, seed: int) -> tuple[Story, Cluster]:
        """A story whose ingest is at work on the scene's Flink cluster, watched by a poller; and that cluster."""
        assert scene.cluster is not None
        story = cls(scene, seed)
        story.poll()
        story.warm_up()
        return story, scene.cluster

    def produce(self, plan: Plan | Sequence[Send], rate: float = 0.0) -> None:
        """Starts to send a plan, at ``rate`` messages a second (0: as fast as it goes)."""
        sends = list(plan.sends if isinstance(plan, Plan) else plan)
        if isinstance(plan, Plan):
            self.late_logs.update(plan.late_logs)
        folder = self.scene.folder / f"producer-{len(self._producers) + 1}"
        write_plan(folder, sends)
        program = python(
            "tests.faults.producer", str(folder), self.broker, self.topic, str(rate), log=folder / "producer.log"
        )  # fmt: skip
        self._producers.append((program, Acks(folder, len(self.sends))))
        self.sends += sends
        names = {log: name for name in self.late_logs for log in [str(self._served / name)]}
        for claim in (claim for send in sends for claim in send.claims):
            if claim.logs and claim.logs[0] in names:
                self._late_runs[claim.run_id] = names[claim.logs[0]]

    def poll(self) -> None:
        """Starts the reader that polls."""
        out = self.scene.folder / "poller.json"
        self._poller = Program(
            [sys.executable, "-m", "tests.faults.poller", f"{self.data}/raw", str(out)],
            self.scene.folder / "logs" / "poller.log", self.scene.environment, stdin=subprocess.PIPE,
        )  # fmt: skip

    def arguments(self) -> list[str]:
        """Of ``ciml ingest``: this story's topic, data and logs."""
        delays = [word for delay in self._delays for word in ("--retry-after", delay)]
        return [
            "--data-path", self.data, "--kafka", self.through, "--topic", self.topic, "--runs-topic",
            self.runs_topic, "--engine", self.scene.engine, "--allow-host", self.scene.logs_url, *delays,
            *self._options,
        ]  # fmt: skip

    def ingest(self) -> Child:
        """Starts an ingest. On Flink one that was not stopped goes on by itself."""
        if self.scene.cluster is not None and self.scene.engine == "flink":
            last = self.ingests[-1] if self.ingests else None
            if last is not None and last.poll() is None:
                return last
            if last is None:
                self.scene.cluster.wait_whole()
            supervised = Supervised(self.scene.cluster, self.topic, self.scene.run, self.arguments())
            self._sampler.watch(supervised)
            self.ingests.append(supervised)
            return supervised
        size = {planted.CYCLE: str(self._cycle)}
        child = self.scene.ciml(
            "ingest", *self.arguments(), name="ingest", planted=True, cold=self.cold, environment=size
        )
        self._sampler.watch(child)
        self.ingests.append(child)
        return child

    def warm_up(self) -> bool:
        """Starts an ingest and waits until it has committed something: from here on faults meet work, not a start."""
        plan = self.planner.plan
        self.produce(self.planner.mixed_again(20))
        self.planner.plan = plan
        self.ingest()
        return self.commits(1)

    def kill(self, child: Child | None = None) -> int:
        """SIGKILL to the last ingest (or another; on Flink to its workers); the version after which it died."""
        self.verdict.expect((child or self.ingests[-1]).crash(), "trial: ingest had ended before it was killed")
        self.verdict.count("kills")
        self.ledger.poll()
        return self.ledger.version

    # --- time

    def tick(self) -> None:
        """Reads what is new in the manifest, and lets late logs come once something waits for them."""
        self.ledger.poll()
        if self.late_logs and self.ledger.deferred():
            for run_id in self.ledger.waiting() & self._late_runs.keys():
                self.log_arrives(self._late_runs.pop(run_id))

    def log_arrives(self, name: str) -> None:
        """Puts a late log into the served folder, whole at once."""
        content = self.late_logs.pop(name, None)
        if content is not None:
            part = self._served / f".{name}"
            part.write_bytes(content)
            os.replace(part, self._served / name)

    @property
    def _served(self) -> Path:
        return self.planner.served

    def wait(self, done: Callable[[], bool], most_s: float = _WAIT_S, *, what: str = "") -> bool:
        """Waits until ``done``; notes a failure and returns False when it takes too long or an ingest gives up."""
        deadline = time.monotonic() + most_s
        while True:
            self.tick()
            if done():
                return True
            if self.ingests and (code := self.ingests[-1].poll()) is not None:
                self.verdict.fail(f"ingest ended with {code}: {self.ingests[-1].said()[-600:]}")
                return False
            if time.monotonic() > deadline:
                self.verdict.fail(f"I7: {what or 'it'} did not happen within {most_s:.0f} s")
                return False
            time.sleep(_TICK_S)

    def sleep(self, seconds: float) -> None:
        """Lets time pass while logs arrive."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.tick()
            time.sleep(_TICK_S)

    def next_commit(self, after: int, since: float, name: str = "commit_s") -> bool:
        """Waits for a delta beyond ``after`` (or for the end of all work), and measures how long it took."""
        if not self.wait(lambda: self.ledger.version > after or self.is_settled(), self.scene.lag_limit_s,
                         what="the next commit"):  # fmt: skip
            return False
        if (seen := next((at for version, at in self.ledger.seen if version > after), None)) is not None:
            self.verdict.measure(name, seen - since)
        return True

    def commits(self, count: int, most_s: float = _WAIT_S) -> bool:
        """Waits for ``count`` further deltas, or for the end of all work."""
        target = self.ledger.version + count
        return self.wait(lambda: self.ledger.version >= target or self.is_settled(), most_s, what="a commit")

    # --- what is known

    def acks(self) -> list[Ack]:
        """All acknowledgements so far."""
        new = [ack for _, acks in self._producers for ack in acks.new()]
        self._acks += new
        self._uncovered += new
        return self._acks

    def deliveries(self) -> list[Delivery]:
        """All that was acknowledged."""
        return deliveries(self.sends, self.acks())

    def all_sent(self) -> bool:
        return all(program.poll() is not None for program, _ in self._producers)

    def lag(self) -> int:
        """How many acknowledged messages are not covered."""
        self.acks()
        covered = self.ledger.covered
        self._uncovered = [ack for ack in self._uncovered if ack[2] not in covered[self.topic, ack[1]]]
        return len(self._uncovered)

    def is_settled(self) -> bool:
        return self.all_sent() and not self.ledger.deferred() and not self.lag()

    def fault_over(self) -> None:
        """From here on I7 counts."""
        self._fault_over = time.monotonic()

    def settle(self) -> bool:
        """Waits until everything is sent, and then at most as long as I7 allows until nothing is left to do."""
        self.wait(self.all_sent, 600, what="the producer's end")
        since = max(self._fault_over, self.began)
        sent = time.monotonic()
        done = self.wait(self.is_settled, self.scene.lag_limit_s, what="the end of the lag")
        if done:
            self.verdict.measure("lag_s", time.monotonic() - (max(since, sent) if self._fault_over else sent))
        return done

    # --- the end

    def stop_ingest(self) -> None:
        """SIGTERM to the last ingest, which is to end as asked."""
        if self.ingests:
            code = self.ingests[-1].stop()
            # a program that is still importing ends by the signal itself
            self.verdict.expect(
                code in (0, -signal.SIGTERM), f"ingest ended with {code} on SIGTERM: {self.ingests[-1].said()[-300:]}"
            )

    def conclude(self) -> Verdict:
        """Waits until all is settled, stops the ingest, and compares: how most stories end."""
        self.settle()
        self.stop_ingest()
        return self.finish()

    def finish(
        self,
        *,
        data_sets: bool = True,
        odd: bool = False,
        before: Sequence[Delivery] = (),
        only: Sequence[Delivery] | None = None,
    ) -> Verdict:
        """Ends all processes and compares everything with the acknowledged list.

        Args:
          data_sets: whether I1 is checked for data sets too.
          odd: whether runs may be no examples, because of odd telemetry.
          before: deliveries of other topics that the store holds as well.
          only: these deliveries instead of all that were acknowledged.
        """
        verdict, sent = self.verdict, list(self.deliveries() if only is None else only)
        self.close()
        for name in list(self.late_logs):  # nothing ever waited for them
            self.log_arrives(name)
        for program, _ in self._producers:
            if program.poll() != 0:
                verdict.fail(f"the producer ended with {program.poll()}: {program.said()[-300:]}")
        self.ledger.poll()
        verdict.fail(*judge(self.topic, sent, self.ledger, before=before))
        runs = accepted([*before, *sent])
        if data_sets:
            broken = datasets.update(self.data, self.scene.folder)
            verdict.fail(*broken)
            if not broken:
                verdict.fail(*datasets.check(open_objects(self.data), runs, self.ledger.outcome, odd=odd))
        verdict.fail(*self._announced(len(before) > 0))
        verdict.count("events", len(sent))
        verdict.count("acknowledged", len(self.acks()))
        verdict.count("rows", len(runs))
        verdict.count("versions", self.ledger.version)
        return verdict

    def close(self) -> None:
        """Ends what runs, and takes the poller's and the sampler's findings."""
        for child in self.ingests:
            if not isinstance(child, Supervised):
                child.send(signal.SIGCONT)
            child.kill()
        for program, _ in self._producers:
            program.kill()
        if self._poller is not None:
            assert self._poller.process.stdin is not None
            self._poller.process.stdin.close()
            code = self._poller.wait(60)
            out = self.scene.folder / "poller.json"
            if code == 0 and out.exists():
                report = json.loads(out.read_text())
                self.verdict.fail(*report["faults"][:20])
                self.verdict.count("polls", report["polls"])
            else:
                self.verdict.fail(f"I3: the poller ended with {code}: {self._poller.said()[-300:]}")
            self._poller = None
        self._sampler.close()
        self.verdict.measure("rss_mb", self._sampler.rss_mb)
        self.verdict.measure("open_files", self._sampler.open_files)
        self.verdict.expect(self._sampler.rss_mb <= MOST_RSS_MB, f"I6: ingest had {self._sampler.rss_mb:.0f} MiB")
        self.verdict.expect(self._sampler.open_files <= MOST_OPEN_FILES, f"I6: {self._sampler.open_files} open files")

    def _announced(self, more: bool) -> list[str]:
        """Each row is told of on the topic ``runs`` once."""
        told = Counter(key.decode() for key in read_keys(self.broker, self.runs_topic))
        rows = {run_id for run_id, entries in self.ledger.rows.items() if entries}
        wrong = [f"runs: {run_id} was announced {count} times" for run_id, count in told.items() if count != 1]
        wrong += [f"runs: {run_id} was never announced" for run_id in rows - told.keys() if not more]
        return wrong[:20] + [f"runs: {run_id} was announced and is no row" for run_id in told.keys() - rows][:20]


def read_keys(broker: str, topic: str) -> list[bytes]:
    """The keys of all committed messages of a topic."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    client = Consumer({
        "bootstrap.servers": broker, "group.id": "faults", "enable.auto.commit": False, "auto.offset.reset": "error",
        "isolation.level": "read_committed", "enable.partition.eof": True, "log_level": 0,
    })  # fmt: skip
    try:
        found = client.list_topics(topic, timeout=30).topics[topic]
        if found.error is not None:
            return []
        partitions = found.partitions
        keys: list[bytes] = []
        open_ones = set(partitions)
        client.assign([TopicPartition(topic, number, 0) for number in partitions])
        deadline = time.monotonic() + 60
        while open_ones and time.monotonic() < deadline:
            for message in client.consume(1000, 0.2):
                if message.error() is None:
                    keys.append(message.key() or b"")
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    open_ones.discard(message.partition())
        return keys
    finally:
        client.close()
