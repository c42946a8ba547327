"""A trial's processes, from the first message to the verdict: producer, ingest, a polling reader, and the clock."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from ciml.errors import EngineError
from tests.faults import datasets, planted
from tests.faults.children import Child
from tests.faults.cluster import Supervised
from tests.faults.oracle import Delivery, Ledger, accepted, deliveries, judge, open_objects
from tests.faults.plan import Plan, Send
from tests.faults.poller import Poller
from tests.faults.producer import Ack, Producer
from tests.faults.results import Verdict
from tests.faults.scene import Scene
from tests.messages import published

#: I6: the limits of an ingest. Beam and its workers take 300 MiB before the first event.
MOST_RSS_MB = 900.0
MOST_OPEN_FILES = 400
_TICK_S = 0.02
_WAIT_S = 180.0


class Sampler:
    """I6: memory and open files of processes, sampled five times a second."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.rss_mb = 0.0
        self.open_files = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.2):
            for child in list(self.children):
                usage = child.usage()
                if usage is None:
                    self.children.remove(child)
                else:
                    self.rss_mb, self.open_files = max(self.rss_mb, usage[0]), max(self.open_files, usage[1])

    def close(self) -> None:
        self._over.set()
        self._thread.join(5)


class Story:
    """One topic, one data root, and what happens to them.

    Args:
      scene: where it runs.
      seed: of all that is random.
      partitions: of the topic.
      broker: the broker of all processes; the scene's by default.
      through: the broker's address for ingest, if that is another one (a proxy).
      delays: waits before a missing log is tried again.
      options: more arguments of ``ciml ingest``.
      cold: whether ingests import everything by themselves.
      cycle: how many messages of a partition a micro-batch takes at most; random by default, and small, so that short
        trials have many commits.
      data: the data root; a folder of the trial's own by default.
    """

    def __init__(
        self, scene: Scene, seed: int, *, partitions: int = 2, broker: str = "", through: str = "",
        delays: Sequence[str] = ("400ms", "800ms", "1600ms"), options: Sequence[str] = (), cold: bool = False,
        data: str = "", cycle: int = 0,
    ) -> None:  # fmt: skip
        self.scene, self.seed, self.random = scene, seed, random.Random(seed ^ 0x5EED)
        self.broker = broker or scene.broker
        self.topic = scene.topic("events", partitions, self.broker)
        self.runs_topic = f"runs-{self.topic}"
        self.data = data or str(scene.folder / "data")
        self.cold = cold
        self.planner = scene.planner(seed, partitions)
        self.verdict = Verdict()
        self.ledger = Ledger(open_objects(f"{self.data}/raw"))
        self.sends: list[Send] = []
        self.ingests: list[Child] = []
        self.late_logs: dict[str, bytes] = {}
        retries = [word for delay in delays for word in ("--retry-after", delay)]
        self._arguments = [
            "--data-path", self.data, "--kafka", through or self.broker, "--topic", self.topic, "--runs-topic",
            self.runs_topic, "--engine", scene.engine, "--allow-host", scene.stage.logs_url, *retries, *options,
        ]  # fmt: skip
        self._cycle = cycle or self.random.choice((15, 40, 100, 2000))
        self._producers: list[Producer] = []
        self._acks: list[Ack] = []
        self._uncovered: list[Ack] = []
        self._late_runs: dict[str, str] = {}  # the run that waits for a late log: its name
        self._poller: Poller | None = None
        self._sampler = Sampler()
        self._struck = (0, 0.0)
        self.began = time.monotonic()

    # --- processes

    def produce(self, plan: Plan | Sequence[Send], rate: float = 0.0) -> None:
        """Start to send a plan, at ``rate`` messages a second (0: as fast as possible)."""
        sends = list(plan.sends if isinstance(plan, Plan) else plan)
        if isinstance(plan, Plan):
            self.late_logs.update(plan.late_logs)
            self.planner.plan = Plan()
        self._producers.append(Producer(self.broker, self.topic, sends, rate, len(self.sends)))
        self.sends += sends
        names = {str(self.planner.served / name): name for name in self.late_logs}
        for claim in (claim for send in sends for claim in send.claims):
            if claim.logs and claim.logs[0] in names:
                self._late_runs[claim.run_id] = names[claim.logs[0]]

    def ingest(self) -> Child:
        """Start an ingest, and the poller with the first. On Flink one that was not stopped goes on by itself."""
        cluster = self.scene.stage.cluster
        if self._poller is None:
            self._poller = Poller(open_objects(f"{self.data}/raw"))
            self._poller.start()
        if cluster is not None and self.scene.engine == "flink":
            if self.ingests and self.ingests[-1].poll() is None:
                return self.ingests[-1]
            if not self.ingests:
                cluster.wait_whole()
            child: Child = Supervised(cluster, self.topic, self.scene.run, self._arguments)
        else:
            size = {planted.CYCLE: str(self._cycle)}
            child = self.scene.ciml(
                "ingest", *self._arguments, defects=self.scene.planted, cold=self.cold, environment=size
            )
        self._sampler.children.append(child)
        self.ingests.append(child)
        return child

    def warm_up(self) -> None:
        """Start an ingest and wait until it has committed something, so that faults meet work, not a start."""
        self.produce(self.planner.mixed(20))
        self.ingest()
        self.commits(1)

    def struck(self, kills: int = 1) -> None:
        """Note a fault: what `next_commit` measures from."""
        self.tick()
        self.verdict.count("kills", kills)
        self._struck = (self.ledger.version, time.monotonic())

    def kill(self) -> None:
        """Kill the last ingest (on Flink its workers)."""
        self.verdict.expect(self.ingests[-1].crash(), "trial: ingest had ended before it was killed")
        self.struck()

    # --- time

    def tick(self) -> None:
        """Read what is new in the manifest, and let late logs arrive once a run waits for them."""
        self.ledger.poll()
        if self.late_logs and self.ledger.deferred():
            for run_id in self.ledger.waiting() & self._late_runs.keys():
                self._log_arrives(self._late_runs.pop(run_id))

    def _log_arrives(self, name: str) -> None:
        content = self.late_logs.pop(name, None)
        if content is not None:
            part = self.planner.served / f".{name}"
            part.write_bytes(content)
            os.replace(part, self.planner.served / name)

    def wait(self, done: Callable[[], bool], most_s: float = _WAIT_S, *, what: str) -> bool:
        """Wait until ``done``; note a failure and return False if it takes too long or an ingest gives up."""
        deadline = time.monotonic() + most_s
        while True:
            self.tick()
            if done():
                return True
            if self.ingests and (code := self.ingests[-1].poll()) is not None:
                self.verdict.fail(f"ingest ended with {code}: {self.ingests[-1].said()[-600:]}")
                return False
            if time.monotonic() > deadline:
                self.verdict.fail(f"I7: {what} did not happen within {most_s:.0f} s")
                return False
            time.sleep(_TICK_S)

    def sleep(self, least: float, most: float | None = None) -> None:
        """Let time pass while logs arrive: so many seconds, or a random time in between."""
        until = time.monotonic() + (least if most is None else self.random.uniform(least, most))
        while time.monotonic() < until:
            self.tick()
            time.sleep(_TICK_S)

    def next_commit(self, name: str = "commit_s") -> bool:
        """Wait for a delta after the last fault (or for the end of all work), and measure how long it took."""
        after, since = self._struck
        if not self.wait(
            lambda: self.ledger.version > after or self.is_settled(), self.scene.lag_limit_s, what="the next commit"
        ):
            return False
        if (seen := next((at for version, at in self.ledger.seen if version > after), None)) is not None:
            self.verdict.measure(name, seen - since)
        return True

    def commits(self, *counts: int) -> bool:
        """Wait for a further number of deltas, one of ``counts``, or for the end of all work."""
        target = self.ledger.version + self.random.choice(counts)
        return self.wait(lambda: self.ledger.version >= target or self.is_settled(), what="a commit")

    # --- what is known

    def acks(self) -> list[Ack]:
        """Return all acknowledgements so far."""
        for producer in self._producers:
            new = producer.acks[:]
            del producer.acks[: len(new)]
            self._acks += new
            self._uncovered += new
        return self._acks

    def deliveries(self) -> list[Delivery]:
        """Return all that was acknowledged."""
        return deliveries(self.sends, self.acks())

    def all_sent(self) -> bool:
        return not any(producer.is_alive() for producer in self._producers)

    def lag(self) -> int:
        """Return how many acknowledged messages are not covered."""
        self.acks()
        covered = self.ledger.covered
        self._uncovered = [ack for ack in self._uncovered if ack[2] not in covered[self.topic, ack[1]]]
        return len(self._uncovered)

    def is_settled(self) -> bool:
        return self.all_sent() and not self.ledger.deferred() and not self.lag()

    def latencies(self) -> dict[tuple[int, int], float]:
        """Return the seconds from each event's acknowledgement until the delta that settles it was seen."""
        seen, shift = dict(self.ledger.seen), time.time() - time.monotonic()
        versions = {(key[1], key[2]): entry.version for key, all_ in self.ledger.entries.items() for entry in all_}
        return {
            (part, offset): seen[versions[part, offset]] + shift - at
            for _, part, offset, at in self.acks()
            if versions.get((part, offset)) in seen
        }

    def settle(self) -> bool:
        """Wait until everything is sent, and then at most as long as I7 allows until nothing is left to do."""
        self.wait(self.all_sent, 600, what="the producer's end")
        sent = time.monotonic()
        done = self.wait(self.is_settled, self.scene.lag_limit_s, what="the end of the lag")
        if done:
            self.verdict.measure("lag_s", time.monotonic() - sent)
        return done

    # --- the end

    def stop_ingest(self) -> None:
        """Stop the last ingest by SIGTERM."""
        code = self.ingests[-1].stop()  # a program that is still importing ends by the signal itself
        self.verdict.expect(
            code in (0, -signal.SIGTERM), f"ingest ended with {code} on SIGTERM: {self.ingests[-1].said()[-300:]}"
        )

    def conclude(self, *, odd: bool = False) -> Verdict:
        """Wait until all is settled, stop the ingest, and compare: how most stories end."""
        self.settle()
        self.stop_ingest()
        return self.finish(odd=odd)

    def finish(self, *, data_sets: bool = True, odd: bool = False, only: Sequence[Delivery] | None = None) -> Verdict:
        """End all processes and compare everything with the acknowledged list.

        Args:
          data_sets: whether I1 is checked for data sets too.
          odd: whether runs may be no examples, because of odd telemetry.
          only: these deliveries instead of all that were acknowledged.
        """
        verdict, sent = self.verdict, list(self.deliveries() if only is None else only)
        self._close()
        for name in list(self.late_logs):  # nothing ever waited for them
            self._log_arrives(name)
        for producer in self._producers:
            verdict.expect(not producer.is_alive(), "the producer has not ended")
            verdict.fail(*(f"the producer lost {line}" for line in producer.lost[:5]))
        self.ledger.poll()
        verdict.fail(*judge(self.topic, sent, self.ledger))
        runs = accepted(sent)
        if data_sets:
            broken = datasets.update(self.data)
            verdict.fail(*broken)
            if not broken:
                verdict.fail(*datasets.check(open_objects(self.data), runs, self.ledger.outcome, odd=odd))
        self._compare_announcements()
        verdict.count("events", len(sent))
        verdict.count("rows", len(runs))
        verdict.count("versions", self.ledger.version)
        return verdict

    def _close(self) -> None:
        """End what runs, and take the findings of the poller and the sampler."""
        for child in self.ingests:
            if not isinstance(child, Supervised):
                child.send(signal.SIGCONT)
            child.kill()
        if self._poller is not None:
            self._poller.end()
            self.verdict.fail(*self._poller.faults[:20])
            self.verdict.count("polls", self._poller.polls)
        self._sampler.close()
        rss_mb, open_files = self._sampler.rss_mb, self._sampler.open_files
        self.verdict.measure("rss_mb", rss_mb)
        self.verdict.measure("open_files", open_files)
        self.verdict.expect(rss_mb <= MOST_RSS_MB, f"I6: ingest had {rss_mb:.0f} MiB")
        self.verdict.expect(open_files <= MOST_OPEN_FILES, f"I6: {open_files} open files")

    def _compare_announcements(self) -> None:
        """Each row is announced on the topic ``runs`` once."""
        try:
            announced = Counter(
                (message.key or b"").decode() for message in published(self.broker, self.runs_topic, None)
            )
        except EngineError:  # there is no such topic
            announced = Counter()
        rows = Counter(run_id for run_id, entries in self.ledger.rows.items() if entries)
        wrong = sorted((announced - rows | rows - announced).items())
        self.verdict.fail(*(f"runs: {run_id} is announced {announced[run_id]} times" for run_id, _ in wrong[:20]))
