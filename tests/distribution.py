"""Which process tests which file: whole files, those on one engine together, and no waiting after a crash."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

#: Files whose tests run on one engine of the session: one process runs them all, so one engine is started, not six.
ON_ENGINE = {
    "flink": frozenset(
        {
            "tests/cli/test_metrics.py",
            "tests/engines/test_flink.py",
            "tests/pipelines/datasets/test_commit.py",
            "tests/pipelines/ingest/test_ingest.py",
            "tests/pipelines/kafka/test_source_flink.py",
            "tests/pipelines/live/test_live.py",
            "tests/services/test_other_kinds.py",
        }
    ),
    "cluster": frozenset({"tests/pipelines/flink/test_cluster.py", "tests/services/test_ingest_service_flink.py"}),
}
#: Folders and files whose tests use TensorFlow. Few processes test them, since imports and the process that serves
#: models take 12 s of CPU time in each.
WITH_TENSORFLOW = (
    "tests/ciml/api/",
    "tests/cli/learn/",
    "tests/cli/test_older_data_root.py",
    "tests/deploy/test_jobs.py",
    "tests/deploy/test_kubeflow.py",
    "tests/deploy/test_tekton.py",
    "tests/fuzz/test_serving.py",
    "tests/fuzz/test_warmup.py",
    "tests/pipelines/exports/",
    "tests/pipelines/flink/test_graphs.py",
    "tests/pipelines/predict/",
    "tests/pipelines/test_readable.py",
    "tests/serving/",
    "tests/training/",
)
_ENGINES = {file: engine for engine, files in ON_ENGINE.items() for file in files}


def next_scope(waiting: Iterable[str], place: int, processes: int) -> str:
    """Return the files that a process tests next: the first ones that it prefers, or else the first ones.

    Args:
      waiting: the names of files, or of an engine whose files are one piece of work, in order.
      place: of the process among all; the first ones prefer files with TensorFlow.
      processes: how many there are.
    """
    waiting = list(waiting)
    prefers = place < max(1, (processes - 1) // 2)
    return next((name for name in waiting if name.startswith(WITH_TENSORFLOW) == prefers), waiting[0])


class FilesByEngine(LoadFileScheduling):
    """Distributes whole files. A process that crashes fails the test that it ran, and the others run the rest.

    xdist 3.8 gives the files that the process had *finished* to the others too. A process that is given a finished file
    receives no test, reports none, and waits until CI ends it (pytest-xdist, issues 1327 and 1378).
    """

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return _ENGINES.get(file, file)

    def schedule(self) -> None:
        """Assign files. A process holds its last test back until it knows the next one, or that there is none."""
        super().schedule()
        if self.collection:
            super().schedule()

    def _reschedule(self, node: WorkerController) -> None:
        """Assign further files. A process that replaces a crashed one has none before it has collected the tests."""
        if node in self.registered_collections:
            super()._reschedule(node)

    def _assign_work_unit(self, node: WorkerController) -> None:
        self.workqueue.move_to_end(next_scope(self.workqueue, self.nodes.index(node), len(self.nodes)), last=False)
        # A process that has just crashed takes nothing: the files are its own until `remove_node` gives them to others.
        with contextlib.suppress(OSError):
            super()._assign_work_unit(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """Take a process out; return the test that it crashed in, which counts as done, or None."""
        files = self.assigned_work.pop(node)
        crashed = next((test for tests in files.values() for test, done in tests.items() if not done), None)
        if crashed is not None:
            files[self._split_scope(crashed)][crashed] = True
        self.workqueue.update({file: tests for file, tests in files.items() if not all(tests.values())})
        if self.workqueue:
            for other in self.nodes:
                self._reschedule(other)
        return crashed
