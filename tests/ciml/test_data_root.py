"""The data root is where all paths below a data path come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError
from ciml.storage import LocalStore

ROOT = Path(__file__).parents[2]
FOLDERS = set("raw datasets experiments exclusions sweeps trainer registry models predictions demo".split())
#: Calls of methods whose first argument is a path below a store, where it begins with a folder of a data root.
PATHS = re.compile(
    r"\.(?:child|create|delete|entries|exists|list|pieces|read|replace|url)\("
    rf"\s*f?[\"']((?:{'|'.join(sorted(FOLDERS))})(?:/[^\"'{{]*)?)[\"'{{]"
)


def test_the_layout(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path)
    assert data.url == str(tmp_path)
    for name in FOLDERS - {"datasets", "trainer"}:
        assert getattr(data, name).root == str(tmp_path / name)
    assert data.dataset("cpu").store.root == str(tmp_path / "datasets/cpu")
    assert data.trainer("m").root == str(tmp_path / "trainer/m")


def test_a_data_set_reads_the_raw_store_that_its_manifest_names(tmp_path: Path) -> None:
    data, elsewhere = DataRoot.open(tmp_path / "data"), DataRoot.open(tmp_path / "elsewhere")
    definition = {"time_us": 0, "version": 1}
    for name, more in {
        "own": {}, "other": {"source": elsewhere.url},
        "logs": {"listing": {"url": "builds.jsonl", "digest": "0", "logs": "", "source": "", "runs_of": ""}},
    }.items():  # fmt: skip
        delta = {**definition, "definition": DatasetDefinition(name=name).to_json(), **more}
        assert data.dataset(name).log.try_append(1, delta)
    assert data.dataset_names() == ["logs", "other", "own"]
    assert data.dataset("own").raw() == data.raw
    assert data.dataset("other").raw() == elsewhere.raw
    with pytest.raises(CimlError, match=r"'logs' was built from the logs of builds\.jsonl"):
        data.dataset("logs").raw()


def test_no_such_data_set_and_no_such_name(tmp_path: Path) -> None:
    data = DataRoot(LocalStore(tmp_path))
    with pytest.raises(CimlError, match=f"no data set 'cpu' in {tmp_path}/datasets; create it"):
        data.dataset("cpu").state()
    assert data.dataset("load").log.try_append(1, {"definition": DatasetDefinition(name="load").to_json()})
    with pytest.raises(CimlError, match=r"'cpu' in .*/datasets; choose from load, or create it with ciml dataset"):
        data.dataset("cpu").state()
    with pytest.raises(CimlError, match="name"):
        data.dataset("../raw")


def test_no_other_module_writes_such_a_path() -> None:
    calls = 'data.child("raw"); store.read(\n  f"datasets/{name}/x"); found.list("runs"); found.read("models.config")'
    assert PATHS.findall(calls) == ["raw", "datasets/"]
    tops = [top for top in ROOT.iterdir() if (top / "__init__.py").exists() and top.name != "tests"]
    assert len(tops) >= 9
    files = [path for top in tops for path in top.rglob("*.py") if path != ROOT / "ciml/data_root.py"]
    assert {str(path): found for path in files if (found := PATHS.findall(path.read_text()))} == {}
