"""Erasures beside ingest and data sets, and what must be true after them.

Only the eraser makes checkpoints: other processes may be suspended here for hours between looking for the mark and
creating a segment, for which an erasure does not wait.
"""

from __future__ import annotations

from ciml.errors import CimlError
from ciml.events.run_id import erased_id, is_erased
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.update import verify_dataset
from ciml.pipelines.ingest.committer import Committer
from ciml.runs.erased import RunCriteria
from ciml.runs.pack_index import RUNS, SWEPT
from ciml.runs.run_log import StoredRunLog
from ciml.runs.verify import verify_raw
from ciml.services.stored.erase import erase
from ciml.serving.registry import Signature
from tests.services.stored.person import left
from tests.simulation.scheduler import Violation
from tests.simulation.world import Process

_SIGNED = Signature("ann", "a request")


def eraser(process: Process) -> None:
    """Erase a run that is stored, again and again."""
    world = process.world
    committing = Committer(process.data.raw)

    def work() -> bool:
        committing.maintain(budget_s=10.0)
        stored = [run_id for run_id in _run_ids(process) if not is_erased(run_id)]
        if stored and world.chaos.on and len(world.erased) < 4:
            world.erased.add(world.random.choice(stored))
        for run_id in sorted(world.erased & set(stored)):
            try:
                list(erase(process.data, RunCriteria(run_id=run_id), _SIGNED))
            except CimlError as error:
                if type(error) is not CimlError:
                    raise  # only "a writer names it again" is expected
        return False

    process.cycle(work, once_s=5.0)


def _run_ids(process: Process) -> list[str]:
    log = StoredRunLog(ManifestLog(process.data.raw))
    return sorted({row.mention.run_id for _, delta in log.since(0) for row in delta.rows})


def audit(process: Process) -> None:
    """Complete the erasures; then nothing names an erased run, everything else is verified, and none came back."""
    world, data = process.world, process.data
    world.scheduler.pause(7200.0)  # what an update left that was killed is old now
    for run_id in sorted(world.erased):
        list(erase(data, RunCriteria(run_id=run_id), _SIGNED))
    # A worker that was killed or suspended between the object of a run and its commit leaves one that nothing names.
    if findings := [line for line in verify_raw(data.raw).findings if "not named by any" not in line]:
        raise Violation(f"after erasures: {findings[0]}")
    for name in data.dataset_names():
        if faults := verify_dataset(data.dataset(name)):
            raise Violation(f"{name} after erasures: {faults[0]}")
    run_ids = _run_ids(process)
    if back := world.erased & set(run_ids):
        raise Violation(f"{min(back)} is stored after its erasure")
    if missing := set(map(erased_id, world.erased)) - set(run_ids):
        raise Violation(f"{min(missing)} has lost its entry")
    # So may one that was making a checkpoint, a part of the index.
    unnamed = (f"raw/{RUNS}/", f"raw/{SWEPT}/", "raw/_manifest/index/")
    if places := [place for place in left(data.store, *world.erased) if not place[0].startswith(unnamed)]:
        raise Violation(f"{places[0]} after its erasure")
