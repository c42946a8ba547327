"""Trainers, pushers, purges and erasures in processes that die or freeze at a step.

Each does what a command of ciml does, except for the training.

A scripted refresh gives files that depend on its runs and its experiment, and loads no model, so that a trial has time
for a death at each step. A real one trains, exports and judges.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.manifest import rewrite
from ciml.runs.erased import RunCriteria
from ciml.services.stored.erase import erase
from ciml.serving import contract
from ciml.serving import push as push_module
from ciml.serving.lease import ModelLockedError, leased
from ciml.serving.push import push
from ciml.serving.registry import Decision, Signature
from ciml.storage import open_store
from ciml.training import trainer
from ciml.training.data.snapshot import make_snapshot, write_snapshot
from ciml.training.evaluation.gate import GatePolicy
from ciml.training.exclusions import Exclusion
from ciml.training.experiment import Experiment, refresh_key
from ciml.training.purge import purge
from ciml.training.refresh import Candidate, Skipped, TrainConfig
from tests.durable import Steps
from tests.faults import planted
from tests.faults.children import Child, Fork
from tests.faults.offline import Stop, stop_at
from tests.faults.registries import MODEL, STABLE
from tests.services.stored.person import OWNER

DATASET = "providers"
#: It blesses whatever the few runs of a trial give: what is tested is what happens to a blessed candidate.
LOOSE = GatePolicy(min_test_runs=5, tolerance=1.0, baseline_tolerance=1.0, above_base_rate=-1.0, min_agreement=0.0)
#: What a process that trains has imported before it is forked.
PRELOADED = ["tests.faults.trainers", "ciml.training.data.materialise_beam", "ciml.training.export"]


@dataclass(frozen=True)
class Work:
    """The task of a process.

    Attributes:
      data: the data root.
      task: ``push``, ``refresh``, ``purge``, or ``erase`` of a person's runs.
      number: makes another candidate: the model's files, or the strength of its penalty.
      folder: of candidates that are not real.
      stop: where it dies or freezes.
      defects: planted ones, with commas.
      lease_s: how long a lease is valid without a renewal.
      is_real: whether it trains.
      label: of a push.
      run: that a purge excludes.
      patience_s: how long it tries again while another one trains.
    """

    data: str
    task: str
    number: int
    folder: str
    stop: Stop = field(default_factory=Stop)
    defects: str = ""
    lease_s: float = 120.0
    is_real: bool = False
    label: str = STABLE
    run: str = ""
    patience_s: float = 0.0


def start(work: Work, log: Path, *, preloads: bool, **environment: str) -> Child:
    """Start a process that does it, and ends as a command of ciml would. ``preloads``: all that training takes."""
    preload = PRELOADED if preloads else PRELOADED[:1]
    return Fork(_become_trainer, work, log=log, environment=environment, preload=preload)


def _become_trainer(work: Work) -> None:
    for name in filter(None, work.defects.split(",")):
        planted.DEFECTS[name].plant()
    recorder = Steps(work.data)
    stop_at(recorder, work.stop)
    try:
        with recorder.recording():
            perform(work)
    except CimlError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(error.exit_code)


def perform(work: Work) -> None:
    """Do a task in this process.

    Raises:
      CimlError: as ciml's own commands do.
    """
    data = DataRoot.open(work.data)
    if work.task == "push":
        folder = candidate_files(Path(work.folder), f"pushed-{work.number}")
        push(data, MODEL, open_store(folder), Decision(True), label=work.label, check=False)
    elif work.task == "erase":
        rewrite.WAIT_S = 0.0  # no other process makes checkpoints
        list(erase(data, RunCriteria(owner=OWNER), Signature("ann", "row 33")))
    elif work.task == "purge":
        exclusion = Exclusion("forged results", work.run)
        purge(data, exclusion, Signature("ann", "forged results"), lambda model, dataset: _refresh(work, data))
    else:
        _refresh(work, data)


def _refresh(work: Work, data: DataRoot) -> trainer.TrainResult:
    patched: Any = trainer
    named = SimpleNamespace(token_hex=lambda size: f"{os.getpid()}-" * (size == 8) + os.urandom(size).hex())
    setattr(push_module, "secrets", named)  # noqa: B010  # so the ledger names who stages
    patched.leased = partial(leased, seconds=work.lease_s)
    if not work.is_real:
        patched.refresh = partial(_scripted, work)
        setattr(contract, "check_candidate", lambda folder: None)  # noqa: B010
    experiment = Experiment(estimator="LogisticRegression", parameters={"C": 1.0 + work.number})
    config = TrainConfig(data, DATASET, MODEL, experiment, gate=LOOSE)
    deadline_s = time.monotonic() + work.patience_s
    while True:
        try:
            return trainer.run_once(config)
        except ModelLockedError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)


class _Scripted(Candidate):
    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "pid": os.getpid()}


def _scripted(task: Work, config: TrainConfig, *, last_key: str | None, **_: Any) -> Candidate | Skipped:
    """Stand in for `ciml.training.refresh.refresh`."""
    snapshot = make_snapshot(config.data.dataset(config.dataset), config.trust.current())
    assert config.experiment is not None
    key = refresh_key(snapshot.digest, config.experiment)
    if key == last_key:
        return Skipped("nothing new", snapshot)
    write_snapshot(config.data.trainer(config.model), snapshot)
    folder = candidate_files(Path(task.folder), f"{key}-{task.number}")
    decision = Decision(True, ("scripted",), {})
    return _Scripted(folder, snapshot, config.experiment, {}, decision, {})


def candidate_files(folder: Path, name: str) -> Path:
    """Write files that stand for a SavedModel, if they are not there; return their folder."""
    target = folder / name
    part = folder / f"{name}.{os.getpid()}"
    if target.exists():
        return target
    for file in ("saved_model.pb", "assets/definition.json", "variables/variables.index"):
        (part / file).parent.mkdir(parents=True, exist_ok=True)
        (part / file).write_text(f"{file} of {name}")
    part.rename(target)
    return target
