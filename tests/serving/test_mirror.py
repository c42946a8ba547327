"""A mirror: what TensorFlow Serving reads is complete, verified, and never taken away while it is configured."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError
from ciml.serving.ledger import rollback, withdraw
from ciml.serving.mirror import mirror
from ciml.serving.model_files import file_digests, parse_config
from ciml.serving.registry import Registry, Signature
from ciml.storage import open_store
from tests.durable import Steps
from tests.serving.test_push import pushed


def config(folder: Path) -> dict[str, tuple[str, tuple[int, ...], dict[str, int]]]:
    entries = parse_config((folder / "models.config").read_text())
    return {one.name: (one.base_path, one.versions, dict(one.labels)) for one in entries}


def test_it_follows_pushes_and_rollbacks(anywhere: DataRoot, folders: dict[int, Path], tmp_path: Path) -> None:
    folder = tmp_path / "mirror"
    assert mirror(anywhere, folder) == ((), (), (), True)
    assert config(folder) == {}
    for seed in (1, 2):
        pushed(anywhere, folders[seed])
    assert mirror(anywhere, folder) == ((("m", 1), ("m", 2)), (), (), True)
    assert config(folder) == {"m": (str(folder / "m"), (1, 2), {"stable": 2})}
    for version in (1, 2):
        copies = file_digests(open_store(folder / "m" / str(version)))
        assert copies == dict(Registry(anywhere, "m").state.files(version))
    assert mirror(anywhere, folder) == ((), (), (), False)
    pushed(anywhere, folders[3])
    assert mirror(anywhere, folder) == ((("m", 3),), (), (), True)
    assert config(folder)["m"][1:] == ((2, 3), {"stable": 3})
    assert (folder / "m/1/saved_model.pb").exists()  # a server may not have read the new configuration yet
    assert mirror(anywhere, folder) == ((), (("m", 1),), (), False)
    assert sorted(os.listdir(folder / "m")) == ["2", "3"]
    rollback(anywhere, "m")
    assert mirror(anywhere, folder).changed
    assert config(folder)["m"][2] == {"stable": 2}


def test_an_altered_version_is_left_out_and_its_label_stays(folders: dict[int, Path], tmp_path: Path) -> None:
    data, folder = DataRoot.open(tmp_path / "data"), tmp_path / "mirror"
    Registry(data, "a").record_candidate(open_store(folders[1]))  # a model without a version stops no other
    for seed in (1, 2):
        pushed(data, folders[seed])
    pushed(data, folders[1], "other")
    mirror(data, folder)
    pushed(data, folders[3])
    graph = tmp_path / "data/models/m/3/saved_model.pb"
    graph.write_bytes(graph.read_bytes() + b"\0")
    done = mirror(data, folder)
    assert done.copied == ()
    assert "m/3/saved_model.pb was altered" in done.faults[0]
    assert config(folder) == {
        "m": (str(folder / "m"), (2,), {"stable": 2}), "other": (str(folder / "other"), (1,), {"stable": 1})
    }  # fmt: skip
    assert sorted(os.listdir(folder / "m")) == ["1", "2"]
    arguments = ["models", "mirror", str(folder), "--data-path", str(tmp_path / "data")]
    ran = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert ran.return_value == 4
    assert "BROKEN model m, version 3" in ran.stderr
    withdraw(Registry(data, "m"), [2], Signature("ann", "forged results"))
    mirror(data, folder)
    assert config(folder)["m"][1:] == ((1,), {"stable": 1})  # not the withdrawn one
    (tmp_path / "data/registry/m/_manifest/000000000001.json").write_bytes(b"{")
    done = mirror(data, folder)
    assert "model m: " in done.faults[0]
    assert not done.changed


#: Steps of two calls of `mirror` after a push: the second one removes what the configuration no longer names.
STEPS = [
    "rename m/staging-3-* to m/3",
    "delete m/staging-3-*/",  # nothing is left of it
    "replace models.config",
    "delete m/1/",
]


def test_a_mirror_dies_before_each_step(folders: dict[int, Path], tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path / "data")
    for seed in (1, 2):
        pushed(data, folders[seed])
    mirror(data, tmp_path / "old")
    pushed(data, folders[3])
    files = {str(number): dict(Registry(data, "m").state.files(number)) for number in (1, 2, 3)}
    for index in range(len(STEPS) + 1):
        folder = tmp_path / str(index)
        shutil.copytree(tmp_path / "old", folder)
        text = (folder / "models.config").read_text().replace(str(tmp_path / "old"), str(folder))
        (folder / "models.config").write_text(text)
        with Steps(str(folder), index).recording() as steps:
            mirror(data, folder)
            mirror(data, folder)
        assert steps.steps == STEPS[:index]
        for name in os.listdir(folder / "m"):
            if not name.startswith("staging-"):
                assert file_digests(open_store(folder / "m" / name)) == files[name]
        versions = config(folder)["m"][1]
        assert versions == ((1, 2) if index <= STEPS.index("replace models.config") else (2, 3))
        assert {*map(str, versions)} <= {*os.listdir(folder / "m")}
        mirror(data, folder)
        mirror(data, folder)
        assert sorted(os.listdir(folder / "m")) == ["2", "3"]
        assert config(folder)["m"][1:] == ((2, 3), {"stable": 3})


def test_it_takes_no_foreign_folder(folders: dict[int, Path], tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path / "data")
    pushed(data, folders[1])
    with pytest.raises(CimlError, match="is not empty and no mirror"):
        mirror(DataRoot.open(tmp_path / "elsewhere"), tmp_path / "data/models")
    assert Registry(data, "m").folder(1).exists("saved_model.pb")
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot write the mirror"):
        mirror(data, tmp_path / "file/below")
