"""Row 33: erasures die before every step, and again while they are completed."""

from __future__ import annotations

import random
import shutil
import signal

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.services.stored.erase import read_receipts
from ciml.storage import LocalStore
from tests.faults.offline import Stop
from tests.faults.results import Verdict
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.faults.trainers import Work, start
from tests.services.stored.person import NAMES, broken, copy, left, make_world, others, read_all
from tests.shared import build_once

#: More steps than an erasure has. A trial has every twentieth one, and those of 20 seeds have all of them.
_MOST_STEPS, _STRIDE = 100, 20


@row(33, "erasure killed at every step, and again while it is completed", trials=40)
def erasures(seed: int, scene: Scene) -> Verdict:
    verdict, rng = Verdict(), random.Random(seed)
    home = build_once(scene.stage.home, "erasures", make_world) / "data"
    expected = others(DataRoot.open(home))
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
    child = start(Work(data.url, "erase", 0, "", stop, scene.planted), scene.log("erase"), preloads=False)
    code = child.wait(120)
    child.kill()
    return code


def _unreadable(data: DataRoot, when: str) -> list[str]:
    """Read all logs as processes do that start now."""
    try:
        read_all(data)
    except (CimlError, FileNotFoundError) as error:
        return [f"unreadable: {error} ({when})"]
    return []


def _incomplete(data: DataRoot, expected: dict[str, tuple[object, ...]], when: str) -> list[str]:
    """Return the names that a completed erasure left, and what it damaged."""
    wrong = [f"left: {word} in {path} ({when})" for path, word in left(data.store, *NAMES)]
    if others(data) != expected:
        wrong.append(f"others: runs of other people changed ({when})")
    if (receipts := len(read_receipts(data))) != 2:  # one is of the world
        wrong.append(f"receipt: {receipts} receipts ({when})")
    return wrong + [f"broken: {line} ({when})" for line in broken(data).get("faults", ())]
