from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.storage import LocalStore
from ciml.training.data.snapshot import Snapshot, read_snapshot
from ciml.training.export import load_exported
from ciml.training.refresh import Candidate, TrainConfig, refresh
from tests.training.conftest import QUICK

pytestmark = pytest.mark.engines


def test_a_data_path_on_s3_gives_the_same_snapshot_and_keeps_its_records_there(
    s3: Any, made: Path, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    local, data = LocalStore(made), DataRoot.open(s3.bucket())
    for path in local.list():
        assert data.store.create(path, local.read(path))
    done = refresh(TrainConfig(data, "providers", "m", QUICK))

    assert isinstance(done, Candidate)
    assert done.snapshot == snapshot
    assert done.decision.blessed, done.decision.reasons
    assert done.folder.is_relative_to(tmp_path / "ciml/trainer")
    assert load_exported(done.folder).definition == snapshot.resolved
    trainer = data.trainer("m")
    assert read_snapshot(trainer, snapshot.digest) == snapshot
    assert sorted({path.split("/")[0] for path in trainer.list()}) == ["analyses", "metrics", "snapshots"]
    assert len(trainer.list("analyses")) == 1
