"""``ciml dataset spans`` and ``ciml dataset verify``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ciml.cli.commands.data.dataset import command
from ciml.data_root import DataRoot
from ciml.pipelines.datasets.build import remove_dataset
from ciml.pipelines.datasets.update import update_dataset
from tests.pipelines.datasets.dataset_scenes import define, runs
from tests.runs.scenes import RawStore


def ciml(data: Path, *arguments: str) -> Result:
    return CliRunner().invoke(command, [*arguments, "--data-path", str(data)], standalone_mode=False)


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    """Two data sets; a span of the first has a corrected label, and so a second version."""
    data = DataRoot.open(tmp_path)
    raw = RawStore(data)
    raw.add(runs(1, 8))
    for name in ("cpu", "load"):
        define(data, name)
        update_dataset(data.dataset(name))
    raw.add(corrections=[runs(1, 1)[0][0].replace(outcome="failure", result="FAILURE")])
    update_dataset(data.dataset("cpu"))
    return data


def test_spans_are_listed(tmp_path: Path, data: DataRoot) -> None:
    lines = [json.loads(line) for line in ciml(tmp_path, "spans", "cpu", "--json").output.splitlines()]
    spans = [(one["span"], one["version"], one["latest"], one["examples"]) for one in lines]
    assert spans == [(1, 1, False, 4), (1, 2, True, 4), (2, 1, True, 4)]
    state = data.dataset("cpu").state()
    for line in lines:
        span = state.spans[line["span"]][line["version"]]
        assert sum(sum(classes.values()) for classes in line["splits"].values()) == 4
        assert {split: [each["path"] for each in files] for split, files in line["files"].items()} == {
            split: [file.path for file in files] for split, files in span.files.items()
        }
    failed = [sum(classes.get("failed", 0) for classes in line["splits"].values()) for line in lines]
    assert failed == [1, 2, 1]
    newest = [json.loads(line) for line in ciml(tmp_path, "spans", "--latest", "--json").output.splitlines()]
    assert [(one["data_set"], one["span"], one["version"]) for one in newest] == [
        ("cpu", 1, 2), ("cpu", 2, 1), ("load", 1, 1), ("load", 2, 1)
    ]  # fmt: skip
    text = ciml(tmp_path, "spans", "cpu", "--files").output
    assert "1 old" in text
    assert all(data.dataset("cpu").store.url(path) in text for path in state.spans[1][2].paths)


def test_spans_are_verified(tmp_path: Path, data: DataRoot) -> None:
    good = ciml(tmp_path, "verify")
    assert (good.return_value, good.output) == (
        0, "cpu: 8 examples, spans 2, all as committed\nload: 8 examples, spans 2, all as committed\n"
    )  # fmt: skip
    path = f"datasets/load/{min(data.dataset('load').state().spans[2][1].paths)}"
    data.store.delete(path)
    data.store.replace("datasets/load/span-9/x", b"")
    bad = ciml(tmp_path, "verify")
    assert bad.return_value == 4
    assert bad.output.splitlines()[0] == "cpu: 8 examples, spans 2, all as committed"
    assert sum(line.startswith("BROKEN load: ") for line in bad.output.splitlines()) == 2
    result = ciml(tmp_path, "verify", "load", "--json")
    assert result.return_value == 4
    assert len(json.loads(result.output)["load"]["findings"]) == 2
    assert ciml(tmp_path, "verify", "cpu").return_value == 0
    data.store.replace("datasets/load/_manifest/000000000002.json", b"{")
    assert "is damaged" in ciml(tmp_path, "verify").output


def test_no_such_data_set(tmp_path: Path, data: DataRoot) -> None:
    assert "choose from cpu, load" in str(ciml(tmp_path, "spans", "nothing").exception)
    for name in ("cpu", "load"):
        remove_dataset(data.dataset(name))
    empty = ciml(tmp_path, "verify")
    assert (empty.return_value, "no data sets" in empty.output) == (0, True)
