"""Row 33: erasures die before every step, and again while they are completed."""

from __future__ import annotations

import os
import random
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from ciml.data_root import DataRoot
from ciml.digest import telemetry_digest
from ciml.errors import CimlError
from ciml.events.run_id import is_erased
from ciml.manifest import rewrite
from ciml.manifest.checkpoints import Checkpoints
from ciml.manifest.log import ManifestLog, catch_up
from ciml.runs.erased import RunCriteria
from ciml.runs.latest_runs import latest_runs
from ciml.runs.reader import read_run
from ciml.runs.state import RAW, open_raw
from ciml.services.stored.erase import erase
from ciml.services.stored.examine import examine
from ciml.services.stored.receipts import read_receipts
from ciml.serving.predict.log import prediction_checkpoints
from ciml.serving.registry import Signature
from ciml.storage import LocalStore
from ciml.verdicts.feedback.state import FEEDBACK
from tests.durable import Steps
from tests.faults import planted
from tests.faults.children import Child, Fork
from tests.faults.offline import Stop, stop_at
from tests.faults.results import Verdict
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.services.stored import every_kind
from tests.services.stored.person import NATIVE, OWNER, RUNS, WAITING, add_person, copy, left

#: More steps than an erasure has. A trial has every twentieth one, and those of 20 seeds have all of them.
_MOST_STEPS, _STRIDE = 100, 20
_SIGNED = Signature("ann", "row 33")


@dataclass(frozen=True)
class Erasure:
    """The task of a process.

    Attributes:
      data: the data root.
      stop: where it dies.
      defects: planted ones, with commas.
    """

    data: str
    stop: Stop = field(default_factory=Stop)
    defects: str = ""


def _become_eraser(work: Erasure) -> None:
    for name in filter(None, work.defects.split(",")):
        planted.DEFECTS[name].plant()
    rewrite.WAIT_S = 0.0  # no other process makes checkpoints
    recorder = Steps(work.data)
    stop_at(recorder, work.stop)
    try:
        with recorder.recording():
            list(erase(DataRoot.open(work.data), RunCriteria(owner=OWNER), _SIGNED))
    except CimlError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(error.exit_code)


@row(33, "erasure killed at every step, and again while it is completed", trials=40)
def erasures(seed: int, scene: Scene) -> Verdict:
    verdict, rng = Verdict(), random.Random(seed)
    home = _world(scene.stage.home)
    expected = _others(DataRoot.open(home))
    url = "" if seed % 2 else scene.bucket()
    for step in range(1 + seed // 2 % _STRIDE, _MOST_STEPS, _STRIDE):
        data = DataRoot.open(f"{url or scene.folder}/{step}")
        copy(LocalStore(home), data.store)
        first = _erase(scene, data, Stop(step))
        if first != -signal.SIGKILL:
            verdict.expect(first == 0, f"trial: the erasure ended with {first}")
            break
        verdict.count("kills")
        verdict.fail(*_unreadable(data, f"killed before step {step}"))
        again = _erase(scene, data, Stop(rng.randrange(1, _MOST_STEPS // 2)))
        verdict.count("kills", int(again == -signal.SIGKILL))
        verdict.fail(*_unreadable(data, f"killed before step {step}, and again"))
        last = _erase(scene, data, Stop())
        verdict.expect(last == 0, f"trial: the last erasure ended with {last}")
        verdict.fail(*_incomplete(data, expected, f"killed before step {step}"))
        shutil.rmtree(scene.folder / str(step), ignore_errors=True)
    return verdict


def _erase(scene: Scene, data: DataRoot, stop: Stop) -> int | None:
    """Start an erasure; return its exit code, or minus the signal."""
    work = Erasure(data.url, stop, scene.planted)
    child: Child = Fork(_become_eraser, work, log=scene.log("erase"), preload=["tests.faults.rows_erasure"])
    code = child.wait(120)
    child.kill()
    return code


def _unreadable(data: DataRoot, when: str) -> list[str]:
    """Read all logs as processes do that start now: from the checkpoints, and from the first delta."""
    logs: tuple[tuple[Any, Any], ...] = (
        (data.raw, RAW), (data.predictions, prediction_checkpoints()), (data.feedback, FEEDBACK),
    )  # fmt: skip
    try:
        for store, kind in logs:
            checkpoints: Checkpoints[Any] = Checkpoints(ManifestLog(store), kind)
            for state in (checkpoints.open(), checkpoints.restore(None)):
                catch_up(ManifestLog(store), state)
        data.dataset(every_kind.DATASET).state()
        _others(data)
    except (CimlError, FileNotFoundError) as error:
        return [f"unreadable: {error} ({when})"]
    return []


def _incomplete(data: DataRoot, others: dict[str, tuple[object, ...]], when: str) -> list[str]:
    """Return what an erasure that was completed has left, or took from others."""
    names = (OWNER, NATIVE, *RUNS, WAITING)
    wrong = [f"left: {word} in {path} ({when})" for path, word in left(data.store, *names)]
    if _others(data) != others:
        wrong.append(f"others: runs of other people changed ({when})")
    if (receipts := len(read_receipts(data))) != 2:  # one is of the world
        wrong.append(f"receipt: {receipts} receipts ({when})")
    return wrong + [f"broken: {line} ({when})" for line in examine(data).lines() if line.startswith("BROKEN")]


def _others(data: DataRoot) -> dict[str, tuple[object, ...]]:
    """Return all runs of other people, with the digests of their telemetry."""
    return {
        run.facts.run_id: (run.own, run.outcome, run.trust, telemetry_digest(run.facts.run_id, table))
        for run in latest_runs(*open_raw(data.raw))
        if run.facts.run_id not in RUNS and not is_erased(run.facts.run_id)
        for table in [read_run(data.raw, run.file)]
    }


def _world(home: Path) -> Path:
    """Return the data root, with every kind of object and a person's runs, that all trials of a session copy."""
    folder = home / "erasures"
    with FileLock(home / "erasures.lock"):
        if not folder.exists():
            part = home / f"erasures.{os.getpid()}"
            every_kind.make(part)
            data = DataRoot.open(part / "data")
            data.models.delete("models.config")
            add_person(data)
            part.rename(folder)
    return folder / "data"
