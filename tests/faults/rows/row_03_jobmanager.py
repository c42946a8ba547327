"""Row 3: the JobManager is killed."""

from __future__ import annotations

import time

from tests.faults.cluster import Supervised
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict

ROW = 3
TITLE = "JobManager killed"
INJECTED = (
    "SIGKILL by its recorded pid (every third trial the job server with it). Its jobs are gone with it: standalone "
    "Flink has high availability by ZooKeeper alone, and ciml's supervisor submits anew instead"
)
EXPECTED = "resumes, from the manifest"
INVARIANTS = ("I1", "I2", "I3", "I4", "I6", "I7")
TRIALS = 10
ENGINES = ("flink",)


def trial(seed: int, scene: Scene) -> Verdict:
    story, cluster = Story.on_cluster(scene, seed)
    job = story.ingests[-1]
    assert isinstance(job, Supervised)
    story.produce(story.planner.mixed(400), rate=25)
    if story.commits(story.random.choice((1, 2, 3))):
        story.sleep(story.random.uniform(0.0, 3.0))
        cluster.kill("jobmanager")
        story.verdict.count("kills")
        if seed % 3 == 0:
            cluster.kill("jobserver")
            story.verdict.count("kills")
        at, before = time.monotonic(), job.status().get("resubmitted", 0)
        # what was on its way to the commit still gets there: the new job's first commit is meant
        story.wait(lambda: job.status().get("resubmitted", 0) > before or story.is_settled(), what="another submission")
        story.verdict.measure("submitted_s", time.monotonic() - at)
        story.next_commit(story.ledger.version, at)
    story.fault_over()
    return story.conclude()
