"""Writes ``tests/golden/present`` and ``outputs``: the stored formats that the data roots of older versions lack.

``python -m tests.golden.make_present FOLDER``. The samples of a released version are never written again.

``tests/golden/checkpoints`` is of version 0.1.0: three runs, one of them untrusted and corrected, dead letters, 1,003
deltas of which 1,000 are in a segment; and 1,002 predictions. ``tests/golden/packs`` is the raw store alone, of the
version whose packs name the columns of their runs. ``tests/golden/outputs`` is a raw store with the output of a run,
by the version that stored the first outputs. ``tests/golden/erasures`` is a data root of eight runs, of which one was
erased after its first checkpoint, by the version that erased the first runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.manifest import rewrite
from ciml.manifest.checkpoints import Checkpoints, Limits
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.build import build_dataset
from ciml.runs.compact import compact
from ciml.runs.erased import RunCriteria
from ciml.runs.state import RAW
from ciml.services.stored.erase import erase
from ciml.serving.registry import Signature
from ciml.training.exclusions import Exclusion, add
from ciml.training.sweeps.definition import Sweep
from ciml.training.sweeps.study import Outcome, begin_sweep, store_baselines, store_outcome, sweep_store
from ciml.verdicts.feedback.truths import Correction, add_corrections
from ciml.verdicts.signatures.notes import Note, add_note
from tests.runs.scenes import RawStore
from tests.transforms.samples import corpus
from tests.verdicts.feedback.reviews import feedback, prediction
from tests.verdicts.feedback.worlds import World


def make(folder: Path) -> None:
    """Write the data root."""
    data = DataRoot.open(folder)
    runs, tables, _ = corpus(8)
    raw = RawStore(data)
    raw.add(list(zip(runs[:4], tables[:4], strict=True)))
    compact(data.raw, older_than_s=0, grace_s=0)
    raw.add(list(zip(runs[4:], tables[4:], strict=True)))
    definition = DatasetDefinition(
        name="cpu", class_label="build_name", features_regex="usr", sample_interval="1min", span_runs=8
    )
    build_dataset(data, data, definition)
    add(data.exclusions, [Exclusion("disk was full", job="tempest-*", since_us=1_790_000_000_000_000)], now_us=1)
    add_note(data.failures, Note("e952cac59839", "ada", cause="machine", text="mirror down"), now_us=1)
    add_corrections(data, [Correction(runs[0].run_id, "machine", "gerrit:7", 1)])
    World(folder, feedback()).take(prediction(1))
    sweep = Sweep.from_json({"name": "intervals", "vary": {"dataset": {"sample_interval": ["1s", "1min"]}}})
    store = sweep_store(data.sweeps, sweep.name)
    begin_sweep(store, sweep, {}, lambda: 2)
    store_outcome(
        store,
        Outcome(number=0, question=0, parameters={"sample_interval": "1s"}, state="failed", reason="too few runs"),
    )
    store_baselines(store, 0, {"majority": {"accuracy": 0.5}})


def make_erasures(folder: Path) -> None:
    """Write a data root in which a run was erased."""
    make(folder)
    data = DataRoot.open(folder)
    log = ManifestLog(data.raw)
    checkpoints = Checkpoints(log, RAW, Limits(deltas=log.end()))
    while checkpoints.maintain():
        pass
    with patch.object(rewrite, "WAIT_S", 0.0):
        list(erase(data, RunCriteria(run_id=corpus(8)[0][1].run_id), Signature("ada", "a request")))


def make_outputs(folder: Path) -> None:
    """Write a raw store with an output, and a row without one."""
    raw = RawStore(DataRoot.open(folder))
    runs, tables, _ = corpus(2)
    raw.add(
        list(zip(runs, tables, strict=True)),
        outputs={runs[0].run_id: b"collecting\npassword=hunter2\n1 failed in 3.2s\n"},
        missing="log_not_found",
    )


if __name__ == "__main__":
    {"present": make, "outputs": make_outputs, "erasures": make_erasures}[Path(sys.argv[1]).name](Path(sys.argv[1]))
