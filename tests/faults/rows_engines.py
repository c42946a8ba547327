"""Rows 1 to 10 and 28: processes, engines and the link to the broker fail; events repeat, come late or all at once."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from ciml.kafka import KafkaOptions
from ciml.pipelines.kafka.broker import list_topic
from tests.faults.broker import Broker, Missing, Proxy, own_broker
from tests.faults.cluster import Cluster, Supervised
from tests.faults.oracle import Delivery
from tests.faults.plan import Mix, Send, repeated
from tests.faults.results import Verdict
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.pipelines.kafka.kafka_topics import delete_records, recreate

_ALL = "I1 I2 I3 I4 I6 I7"
_BOTH = ("micro-batches", "flink")


def _on_cluster(seed: int, scene: Scene, strike: Callable[[Story, Cluster], None], runs: int = 400) -> Verdict:
    """A trial whose ingest works on the scene's Flink cluster when ``strike`` is called."""
    assert scene.stage.cluster is not None
    story = Story(scene, seed)
    story.warm_up()
    story.produce(story.planner.mixed(runs), rate=25)
    if story.commits(1, 2, 3):
        story.sleep(0.0, 3.0)
        strike(story, scene.stage.cluster)
    return story.conclude()


@row(1, "Python worker killed at a random moment", engines=_BOTH)
def worker_killed(seed: int, scene: Scene) -> Verdict:
    if scene.engine == "flink":
        return _on_cluster(seed, scene, _kill_workers)
    story = Story(scene, seed, cold=seed % 10 == 0)
    story.produce(story.planner.mixed(400), rate=80)
    story.ingest()
    for number in range(story.random.choice((3, 4, 5))):
        if number % 3 == 1:  # while it starts
            story.sleep(0.0, 1.0)
        elif story.commits(1, 2, 3):
            story.sleep(0.0, 0.6)
        if story.is_settled() or story.verdict.failures:
            break
        story.kill()
        story.ingest()
        if number % 3 != 0 and not story.next_commit():
            break
    if seed % 4 == 3 and not story.verdict.failures:
        _presume_dead(story)
    return story.conclude()


def _kill_workers(story: Story, cluster: Cluster) -> None:
    for _ in range(story.random.choice((1, 2))):
        story.kill()
        if not (story.next_commit() and story.commits(1, 2)) or story.is_settled():
            break
        story.sleep(0.0, 3.0)


def _presume_dead(story: Story) -> None:
    """The worker freezes and is replaced; when it wakes, another does its work."""
    story.produce(story.planner.mixed(200), rate=100)
    story.commits(1)
    frozen = story.ingests[-1]
    frozen.send(signal.SIGSTOP)
    story.struck(kills=0)
    story.ingest()
    story.next_commit()
    frozen.send(signal.SIGCONT)
    story.verdict.count("woken")
    story.sleep(2.0)
    story.verdict.expect(frozen.stop() in (0, None), "trial: the woken one did not end")


@row(2, "TaskManager killed once, then twice", trials=10, engines=("flink",))
def taskmanager_killed(seed: int, scene: Scene) -> Verdict:
    def strike(story: Story, cluster: Cluster) -> None:
        for again in range(1 + (seed + 1) % 2):
            if again:
                story.sleep(2.0, 15.0)
            if parts := cluster.parts("taskmanager"):
                cluster.kill(story.random.choice(parts))
                story.struck()
        story.next_commit()

    return _on_cluster(seed, scene, strike)


@row(3, "JobManager killed", trials=10, engines=("flink",))
def jobmanager_killed(seed: int, scene: Scene) -> Verdict:
    def strike(story: Story, cluster: Cluster) -> None:
        job = story.ingests[-1]
        assert isinstance(job, Supervised)
        before = job.status().get("resubmitted", 0)
        for part in ("jobmanager", "jobserver") if seed % 3 == 0 else ("jobmanager",):
            cluster.kill(part)
            story.struck()
        at = time.monotonic()
        # what was on its way to the commit still arrives: the new job's first commit is meant
        story.wait(lambda: job.status().get("resubmitted", 0) > before or story.is_settled(), what="another submission")
        story.verdict.measure("submitted_s", time.monotonic() - at)
        story.next_commit()

    return _on_cluster(seed, scene, strike)


@row(4, "stop with savepoint, resume, other parallelism", trials=10, engines=("flink",))
def savepoint(seed: int, scene: Scene) -> Verdict:
    def strike(story: Story, cluster: Cluster) -> None:
        job, verdict = story.ingests[-1], story.verdict
        assert isinstance(job, Supervised)
        for parallelism in (2,) if seed % 2 else (2, 1):
            code = job.stop(savepoint=True)
            verdict.expect(code == 0, f"savepoint: stop ended with {code}: {job.said()[-300:]}")
            story.struck(kills=0)
            version = story.ledger.version
            story.sleep(1.0)
            verdict.expect(story.ledger.version == version, "savepoint: it went on committing after its stop")
            code = job.resume(parallelism)
            verdict.expect(code == 0, f"savepoint: resume ended with {code}: {job.said()[-300:]}")
            if not story.next_commit():
                break
            story.wait(lambda: bool((job.status().get("savepoint") or {}).get("use")), 60, what="a savepoint's use")
            kept = job.status().get("savepoint") or {}
            verdict.expect(kept.get("use") == "resumed", f"savepoint: it was {kept.get('use')!r}: {kept.get('why')}")
            verdict.count("savepoints")
            story.commits(1, 2, 3)
            story.sleep(0.0, 3.0)

    return _on_cluster(seed, scene, strike)


@row(5, "job restarted with its state lost", engines=_BOTH)
def state_lost(seed: int, scene: Scene) -> Verdict:
    if scene.engine == "flink":
        return _on_cluster(seed, scene, lambda story, cluster: _lose_checkpoints(story, cluster, seed), runs=300)
    story = Story(scene, seed)
    story.produce(story.planner.mixed(300), rate=80)
    for number in (1, 2, 3):
        home = scene.folder / f"home-{number}"
        (home / "tmp").mkdir(parents=True)
        scene.environment.update({name: str(home) for name in ("HOME", "CIML_HOME", "XDG_CACHE_HOME")})
        scene.environment["TMPDIR"] = str(home / "tmp")
        story.ingest()
        if number == 3:
            story.next_commit()
        elif story.commits(1, 2):
            story.sleep(0.0, 0.6)
            story.kill()
            shutil.rmtree(home)
        else:
            break
    return story.conclude()


def _lose_checkpoints(story: Story, cluster: Cluster, seed: int) -> None:
    """The job is cancelled without its supervisor and all its checkpoints are deleted; in odd seeds the JobManager
    dies as well."""
    cluster.cancel_jobs()
    if seed % 2:
        cluster.kill("jobmanager")
    story.verdict.count("checkpoints deleted", cluster.forget_checkpoints())
    story.struck()
    story.next_commit()


@row(6, "broker killed or frozen", engines=_BOTH)
def broker_dies(seed: int, scene: Scene) -> Verdict:
    broker = own_broker(scene.stage.home)
    story = Story(scene, seed, broker=broker.address)
    story.produce(story.planner.mixed(300), rate=50)
    story.ingest()
    story.commits(1)
    story.sleep(0.0, 1.0)
    if seed % 2:
        broker.kill()
        story.sleep(0.0, 5.0)
        broker.start()
    else:
        broker.freeze()
        story.sleep(*((30.0,) if seed % 10 == 4 else (5.0, 15.0)))
        broker.thaw()
    story.struck()
    story.next_commit("back_s")
    return story.conclude()


@row(7, "Kafka link reset, slow, cut")
def link_fails(seed: int, scene: Scene) -> Verdict:
    broker = own_broker(scene.stage.home)
    try:
        proxy = Proxy(scene.folder / "logs", broker.proxied, broker.behind)
    except Missing as reason:
        return Verdict(skipped=str(reason))
    try:
        story = Story(scene, seed, broker=broker.address, through=f"127.0.0.1:{broker.proxied}")
        story.produce(story.planner.mixed(300), rate=40)
        story.ingest()
        story.commits(1)
        for toxic in story.random.sample(_toxics(proxy, story.random), 3):
            toxic()
            story.verdict.count("faults")
            story.sleep(1.0, 5.0)
            proxy.mend()
            story.sleep(0.0, 1.5)
        return story.conclude()
    finally:
        proxy.close()


def _toxics(proxy: Proxy, chance: random.Random) -> list[Callable[[], None]]:
    both = ("downstream", "upstream")
    return [
        lambda: proxy.add("reset_peer", timeout=chance.randrange(0, 500)),
        lambda: proxy.add("latency", latency=chance.randrange(300, 1500), jitter=200),
        lambda: proxy.add("bandwidth", rate=chance.randrange(20, 100)),
        lambda: proxy.add("limit_data", chance.choice(both), bytes=chance.randrange(100, 20_000)),
        lambda: proxy.add("slicer", average_size=50, size_variation=30, delay=500),
        lambda: proxy.add("timeout", chance.choice(both), timeout=0),  # all is swallowed, the connection stays
        lambda: proxy.enable(False),
    ]


@row(8, "retention passes the offset; topic made anew")
def topic_gone(seed: int, scene: Scene) -> Verdict:
    broker = own_broker(scene.stage.home)
    story = Story(scene, seed, broker=broker.address)
    story.produce(story.planner.mixed(150))
    story.ingest()
    if not story.settle():
        return story.finish(data_sets=False)
    before, version = story.deliveries(), story.ledger.version
    running = seed % 3 == 0
    if running:
        story.ingests[-1].send(signal.SIGSTOP)
    else:
        story.stop_ingest()
    messages = _delete_records(story, broker) if seed % 2 else _recreate(story, broker, 20 if seed % 4 else 400)
    if running:
        story.ingests[-1].send(signal.SIGCONT)
    else:
        story.ingest()
    story.verdict.count("faults")
    _check_alarm(story, version, before, messages)
    return story.finish(data_sets=False, only=before)  # what came later is not recorded in the manifest


def _check_alarm(story: Story, version: int, before: list[Delivery], messages: tuple[str, ...]) -> None:
    """The last ingest has to end by itself, with 4 and its reason, and nothing committed."""
    code, verdict = story.ingests[-1].wait(60), story.verdict
    said = " ".join(story.ingests[-1].said().split())
    verdict.expect(code == 4, f"alarm: ingest ended with {code}, not with 4: {said[-200:]}")
    verdict.expect(any(each in said for each in messages), f"alarm: it reports {said[-300:]!r}, want one of {messages}")
    story.ledger.poll()
    covered = {(partition, n) for (_, partition), numbers in story.ledger.covered.items() for n in numbers}
    more = covered - {(one.partition, one.offset) for one in before}
    verdict.expect(not more, f"alarm: it went on and covered {sorted(more)[:3]}")
    verdict.expect(story.ledger.version == version, f"alarm: it went on to version {story.ledger.version}")


def _produce_more(story: Story, runs: int) -> None:
    story.produce(story.planner.mixed(runs))
    while not story.all_sent():
        time.sleep(0.05)


def _delete_records(story: Story, broker: Broker) -> tuple[str, ...]:
    """All but the last of the new messages of each partition are deleted, as by retention."""
    _produce_more(story, 40)
    options = KafkaOptions(broker.address)
    for partition, (_, end) in list_topic(options, story.topic).bounds.items():
        delete_records(options, story.topic, partition, end - 1)
    return ("expired before they were read", "does not hold")


def _recreate(story: Story, broker: Broker, runs: int) -> tuple[str, ...]:
    recreate(KafkaOptions(broker.address), story.topic, partitions=2)
    _produce_more(story, runs)
    return ("created again", "it is not the topic that was read", "does not hold")


@row(9, "each event three times, also after a restart", engines=_BOTH)
def three_times(seed: int, scene: Scene) -> Verdict:
    story = Story(scene, seed)
    plan = story.planner.mixed(150, Mix(repeats=0, several=0.04))
    # what had an event's id is a repeat; what had none is the same dead letter once more
    again = [replace(send, claims=tuple(map(repeated, send.claims)), timestamp_s=None) for send in plan.sends]
    story.ingest()
    story.produce(plan)
    story.commits(1)
    story.random.shuffle(again)
    story.produce(again)
    if story.settle():
        if seed % 2:
            story.stop_ingest()
        else:
            story.kill()
        story.ingest()
        story.random.shuffle(again)
        story.produce(again)
    return story.conclude()


@row(10, "late, out of order, an idle partition", engines=_BOTH)
def late(seed: int, scene: Scene) -> Verdict:
    story = Story(scene, seed, partitions=4)
    planner, chance = story.planner, story.random
    planner.partitions = 2
    plan = planner.mixed(250, Mix(late=0.1))

    def displaced(send: Send) -> Send:
        if chance.random() < 0.67:
            return send
        return replace(send, timestamp_s=chance.choice((3600.0, -60.0, -3600.0, -86_400.0, -2_592_000.0)))

    plan.sends = [displaced(send) for send in plan.sends]
    chance.shuffle(plan.sends)
    story.ingest()
    story.produce(plan, rate=100)
    story.settle()
    plan = planner.mixed(40)
    plan.sends = [replace(send, partition=2, timestamp_s=-86_400.0 * 365) for send in plan.sends]
    story.produce(plan)
    return story.conclude()


_PHASE_S = 10.0
_MOST = 2.0


@row(28, "one key with 90 % of the events; a burst of 10 times", alone=True)
def hot_key(seed: int, scene: Scene) -> Verdict:
    story = Story(scene, seed, partitions=4, cycle=2000)
    story.ingest()
    story.produce(story.planner.mixed(20, Mix(late_logs=0)))
    story.settle()
    plan, began = story.planner.mixed(400, Mix(bad=0, late_logs=0)), time.monotonic()
    story.produce(plan)
    story.settle()
    story.verdict.measures["lag_s"].clear()
    rate = len(plan.sends) / (time.monotonic() - began) / 20  # of the others
    quiet, loud = (_phase(story, rate, hot) for hot in (0, 9))
    story.settle()
    latency = story.latencies()
    before, after = (_p99([latency[place] for place in places if place in latency]) for places in (quiet, loud))
    for name, value in {"rate": rate * 10, "quiet_p99_s": before, "loud_p99_s": after, "ratio": after / before}.items():
        story.verdict.measure(name, value)
    ratio = f"{after / before:.1f} times as long ({after:.2f} s for {before:.2f} s)"
    story.verdict.expect(after <= _MOST * before, f"p99: the others wait {ratio}")
    return story.conclude()


def _phase(story: Story, rate: float, hot: int) -> set[tuple[int, int]]:
    """Send events at ``rate``, and next to each so many of the hot key; return the positions of the others' events."""
    plan = story.planner.plan
    for number in range(max(round(rate * _PHASE_S), 20)):
        for index in range(1 + hot):
            story.planner.plain()
            place = {"partition": 0, "key": "hot"} if index else {"partition": 1 + number % 3}
            plan.sends[-1] = replace(plan.sends[-1], **place)
    first = len(story.sends)
    story.produce(plan, rate=rate * (1 + hot))
    story.wait(story.all_sent, 300, what="the end of a phase")
    if hot == 0:
        story.wait(story.is_settled, what="the end of the quiet phase")
    return {(part, offset) for number, part, offset, _ in story.acks() if number >= first and part != 0}


def _p99(values: list[float]) -> float:
    return sorted(values)[min(int(0.99 * len(values)), len(values) - 1)]
