"""Row 5: the job is started again with its state lost."""

from __future__ import annotations

import shutil
import time

from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict

ROW = 5
TITLE = "job restarted with its state lost"
INJECTED = (
    "SIGKILL, and the home, caches and temporary files of the process deleted: all that there is but the data root "
    "(on Flink the job with its checkpoints); started again in a new home, twice"
)
EXPECTED = "goes on from the committed offsets"
INVARIANTS = ("I1", "I2", "I3", "I4", "I6", "I7")
TRIALS = 20
ENGINES = ("micro-batches", "flink")


def trial(seed: int, scene: Scene) -> Verdict:
    if scene.engine == "flink":
        return _on_flink(seed, scene)
    story = Story(scene, seed)
    story.produce(story.planner.mixed(300), rate=80)
    story.poll()
    for number in (1, 2):
        home = scene.folder / f"home-{number}"
        (home / "tmp").mkdir(parents=True)
        scene.environment.update({name: str(home) for name in ("HOME", "CIML_HOME", "XDG_CACHE_HOME")})
        scene.environment["TMPDIR"] = str(home / "tmp")
        story.ingest()
        if not story.commits(story.random.choice((1, 2))):
            break
        story.sleep(story.random.uniform(0.0, 0.6))
        version, at = story.kill(), time.monotonic()
        shutil.rmtree(home)
        if number == 2:
            story.fault_over()
            home.mkdir()
            (home / "tmp").mkdir()
            story.ingest()
            story.next_commit(version, at)
    return story.conclude()


def _on_flink(seed: int, scene: Scene) -> Verdict:
    """The job is cancelled behind the supervisor's back and all its checkpoints are deleted; in odd seeds the
    JobManager dies as well."""
    story, cluster = Story.on_cluster(scene, seed)
    story.produce(story.planner.mixed(300), rate=30)
    if story.commits(story.random.choice((1, 2, 3))):
        story.sleep(story.random.uniform(0.0, 3.0))
        cluster.cancel_jobs()
        if seed % 2:
            cluster.kill("jobmanager")
        story.verdict.count("checkpoints deleted", cluster.forget_checkpoints())
        story.verdict.count("kills")
        story.tick()
        version, at = story.ledger.version, time.monotonic()
        story.next_commit(version, at)
    story.fault_over()
    return story.conclude()
