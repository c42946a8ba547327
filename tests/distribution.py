"""Which process tests which file: whole files, those on one engine together, and no waiting after a crash."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

#: Files whose tests run on one engine of the session: one process runs them all, so one engine is started, not five.
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
_ENGINES = {file: engine for engine, files in ON_ENGINE.items() for file in files}


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
