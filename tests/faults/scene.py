"""Where trials run: the engines that all trials of a session share, and the folder and processes of one trial."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ciml import engines
from tests.corpus import CORPUS
from tests.faults import planted, rows
from tests.faults.children import ROOT, Child, Fork, python
from tests.faults.cluster import Cluster
from tests.faults.plan import Planner
from tests.faults.results import Verdict

#: Folders of trials that failed.
KEPT = ROOT / "build" / "faults"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Stage:
    """What trials share. Can be pickled.

    Attributes:
      home: a folder.
      broker: ``host:port`` of a broker that no trial may harm: see `tests.faults.broker`.
      logs_url: of a log server; the corpus is below it as ``corpus``.
      s3: address of an S3 endpoint, if there is one.
      cluster: the Flink cluster, if there is one.
    """

    home: Path
    broker: str
    logs_url: str
    s3: str = ""
    cluster: Cluster | None = None

    @property
    def served(self) -> Path:
        """The folder that the log server serves."""
        return self.home / "served"


@contextmanager
def stage(*, broker: str = "", flink: bool = False, s3: bool = False, **settings: Any) -> Iterator[Stage]:
    """Start what trials share, in a temporary folder, and end it.

    Args:
      broker: one that runs already.
      flink, s3: whether to start a Flink cluster, an S3 endpoint too.
      settings: of the engines.
    """
    home = Path(tempfile.mkdtemp(prefix="ciml-faults-"))
    (home / "served").mkdir()
    (home / "served" / "corpus").symlink_to(CORPUS / "logs")
    names = ["logs", *["kafka"] * (not broker), *["cluster"] * flink, *["s3"] * s3]
    options = engines.Settings(logs_root=str(home / "served"), tied=True, **settings)
    try:
        with engines.start(names, home=home / "engines", settings=options) as running:
            cluster = Cluster(home / "engines") if flink else None
            endpoint = running.s3 if s3 else ""
            yield Stage(home, broker or running.kafka, running.logs.rstrip("/"), endpoint, cluster)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@dataclass
class Scene:
    """What a trial is given.

    Attributes:
      stage: what it shares with others.
      folder: its own, kept when the trial fails.
      engine: ``micro-batches`` or ``flink``.
      planted: the defects of its services (`tests.faults.planted`), with commas.
      lag_limit_s: I7: how long after a fault the lag may last.
      scale: of the number of runs; below 1 for a short trial.
      environment: more variables of its processes.
    """

    stage: Stage
    folder: Path
    engine: str = "micro-batches"
    planted: str = ""
    lag_limit_s: float = 120.0
    scale: float = 1.0
    environment: dict[str, str] = field(default_factory=dict)
    _logs: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    @property
    def broker(self) -> str:
        return self.stage.broker

    def topic(self, name: str = "events", partitions: int = 1, broker: str = "") -> str:
        """Create a topic and return its name."""
        unique = f"{name}-{os.getpid()}-{next(_numbers)}-{time.time_ns() % 10**8}"
        engines.create_topics(broker or self.broker, {unique: partitions})
        return unique

    def bucket(self) -> str:
        """Create a bucket and return its address. This process's own environment points at its endpoint."""
        import boto3

        os.environ.update(engines.s3_environment(self.stage.s3))
        name = f"trial-{os.getpid()}-{next(_numbers)}"
        boto3.client("s3").create_bucket(Bucket=name)
        return f"s3://{name}"

    def planner(self, seed: int, partitions: int = 2) -> Planner:
        """Return a planner whose broken, missing and late logs are served from a folder of the trial's own."""
        name, stage = f"{self.folder.name}-{seed}", self.stage
        return Planner(seed, stage.logs_url, stage.served / name, f"{stage.logs_url}/{name}", partitions, self.scale)

    def log(self, name: str) -> Path:
        """Return the path of a new log."""
        return self.folder / "logs" / f"{next(self._logs):02d}-{name}.log"

    def ciml(
        self, *arguments: str, defects: str = "", cold: bool = False, environment: Mapping[str, str] | None = None
    ) -> Child:
        """Start ``ciml arguments``: forked, or a ``cold`` program that imports everything by itself."""
        log, more = self.log(arguments[0]), {**self.environment, **(environment or {})}
        if cold:
            return python("tests.faults.planted", defects, *arguments, log=log, environment=more)
        return Fork(planted.ciml, defects, arguments, log=log, environment=more)

    def run(self, arguments: list[str]) -> tuple[int | None, str]:
        """Run ``ciml arguments`` to its end: (exit code, output)."""
        child = self.ciml(*arguments)
        code = child.wait(180)
        child.kill()
        return code, child.said()


def play(
    row: int, seed: int, engine: str, place: Stage, defects: str = "", scale: float = 1.0
) -> tuple[Verdict, float]:
    """Run one trial in this process: (verdict, seconds). A failing one leaves its folder in `KEPT`."""
    began = time.monotonic()
    scene = Scene(place, place.home / f"row-{row:02d}-{engine}-{seed}-{defects}".rstrip("-"), engine, defects)
    scene.scale = scale
    if defects:
        scene.lag_limit_s = 40.0  # a defect that stops everything need not be watched for longer
    try:
        verdict = rows.load()[row].trial(seed, scene)
    except Exception:  # noqa: BLE001  # a trial that breaks is a trial that failed
        verdict = Verdict([f"trial: {traceback.format_exc()[-2000:]}"])
    if not defects:
        keep_folder(scene.folder, verdict)
    shutil.rmtree(scene.folder, ignore_errors=True)
    return verdict, time.monotonic() - began


def hunt(name: str, place: Stage) -> list[str]:
    """Run the trial of a planted defect; return its failures."""
    defect, lines = planted.DEFECTS[name], []
    for attempt in range(defect.tries):  # each fourth trial of a row has the same kind of fault
        verdict, _ = play(defect.row, defect.seed + 4 * attempt, "micro-batches", place, name)
        lines = verdict.failures
        if any(line.startswith(defect.finds) for line in lines):
            break
    return lines


def keep_folder(folder: Path, verdict: Verdict, *ignored: str) -> None:
    """Keep the folder of a trial that failed, but for files of these patterns."""
    if verdict.failures:
        kept = KEPT / folder.name
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(
            folder, kept, symlinks=True, ignore_dangling_symlinks=True, ignore=shutil.ignore_patterns(*ignored)
        )  # fmt: skip
        (kept / "verdict.txt").write_text("\n".join(verdict.failures) + "\n")
