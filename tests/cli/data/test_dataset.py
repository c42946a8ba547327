"""``ciml dataset``: from a definition to verified spans."""

from __future__ import annotations

import json
import re
import tomllib
from functools import partial
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.pipelines.datasets.build import remove_dataset
from ciml.pipelines.datasets.update import update_dataset
from tests.cli.calling import ciml
from tests.pipelines.datasets.dataset_scenes import define, runs
from tests.runs.scenes import RawStore
from tests.transforms.samples import make_facts, table

DOCS = Path(__file__).parents[3] / "docs" / "datasets.md"


dataset = partial(ciml, "dataset")


@pytest.fixture
def data_path(tmp_path: Path) -> str:
    raw = RawStore(DataRoot.open(tmp_path / "data"))
    raw.add(
        [
            (make_facts(number, outcome=outcome), table([1_000_000 * number], usr=[1.0], load=[2.0]))
            for number, outcome in enumerate(["success", "failure", "error", "success", "success"], 1)
        ]
    )
    return str(tmp_path / "data")


@pytest.fixture
def definition(tmp_path: Path) -> str:
    path = tmp_path / "cpu.toml"
    path.write_text('features_regex = "(usr|1min)"\nspan_runs = 3\nmax_windows = 2\n')
    return str(path)


def test_a_data_set_from_definition_to_verification(data_path: str, definition: str) -> None:
    assert dataset("show", "--data-path", data_path).output == f"no data sets in {data_path}/datasets\n"
    made = dataset("create", "cpu", "--definition", definition, "--data-path", data_path)
    assert made.stdout == (f"cpu: status of all, L = 2 at 10s; next: ciml dataset update cpu --data-path {data_path}\n")
    assert "not resolved yet; pattern '(usr|1min)'" in dataset("show", "cpu", "--data-path", data_path).output
    updated = dataset("update", "cpu", "--data-path", data_path)
    assert "│    1 │       1 │        2 │      1 │      1 │     " in updated.stdout
    assert "cpu: 2 examples in 1 span sealed; 2 of 3 runs wait for the next span" in updated.stdout
    again = dataset("update", "cpu", "--data-path", data_path)
    assert again.stdout == "cpu: 0 examples in 0 spans sealed; 2 of 3 runs wait for the next span\n"
    dataset("update", "cpu", "--seal", "--runner", "fnapi", "--data-path", data_path)
    shown = dataset("show", "cpu", "--data-path", data_path).stdout
    assert "features   usr, 1m\n" in shown
    assert "class      passed: train" in shown
    assert "excluded   1 runs: no_label 1\n" in shown
    described = json.loads(dataset("show", "cpu", "--json", "--data-path", data_path).stdout)
    spans = [(span["examples"], span["classes"], span["excluded"]) for span in described["spans"]]
    assert spans == [(2, {"passed": 1, "failed": 1}, {"no_label": 1}), (2, {"passed": 2}, {})]
    assert described["cursor"] == [2, 0]
    assert dataset("show", "--data-path", data_path).output == "cpu\n"
    verified = dataset("verify", "cpu", "--data-path", data_path)
    assert verified.stdout == "cpu: 4 examples, spans 2, all as committed\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample_interval = '0s'", "sample_interval: interval '0s': must be longer than zero"),
        ("salted = 1", "salted: unknown key; did you mean salt?"),
        ("= 1", "is not TOML: Invalid statement (at line 1, column 1)"),
    ],
)
def test_a_bad_definition_gets_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    result = dataset("create", "cpu", "--definition", str(path), "--data-path", str(tmp_path), code=2)
    assert result.stderr.endswith(f"{message}\n")
    assert result.stderr.count("\n") == 1


def test_other_errors_get_one_line_too(data_path: str) -> None:
    result = dataset("update", "nothing", "--data-path", data_path, code=2)
    assert result.stderr == (
        f"ciml: no data set 'nothing' in {data_path}/datasets; create it with ciml dataset create\n"
    )
    result = dataset("update", "nothing", "--runner", "spark", "--data-path", data_path, code=2)
    assert "unknown runner 'spark'; choose from fnapi, flink, flink:HOST:PORT" in result.stderr


def test_the_documentation_names_every_key_and_its_example_is_a_definition() -> None:
    text = DOCS.read_text()
    documented = re.findall(r"^\| `([a-z_]+)` \| [^|]+ \| ", text, re.MULTILINE)
    assert tuple(documented[: len(DatasetDefinition.__struct_fields__)]) == DatasetDefinition.__struct_fields__
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    definition = DatasetDefinition.from_json({**tomllib.loads(example), "name": "cpu-load"})
    assert (definition.most_windows, definition.selects("tempest-full")) == (10, True)


@pytest.fixture
def two(tmp_path: Path) -> DataRoot:
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


def test_spans_are_listed(two: DataRoot) -> None:
    place = ("--data-path", two.url)
    lines = [json.loads(line) for line in dataset("spans", "cpu", "--json", *place).output.splitlines()]
    spans = [(one["span"], one["version"], one["latest"], one["examples"]) for one in lines]
    assert spans == [(1, 1, False, 4), (1, 2, True, 4), (2, 1, True, 4)]
    state = two.dataset("cpu").state()
    for line in lines:
        span = state.spans[line["span"]][line["version"]]
        assert sum(sum(classes.values()) for classes in line["splits"].values()) == 4
        assert {split: [each["path"] for each in files] for split, files in line["files"].items()} == {
            split: [file.path for file in files] for split, files in span.files.items()
        }
    failed = [sum(classes.get("failed", 0) for classes in line["splits"].values()) for line in lines]
    assert failed == [1, 2, 1]
    newest = [json.loads(line) for line in dataset("spans", "--latest", "--json", *place).output.splitlines()]
    assert [(one["data_set"], one["span"], one["version"]) for one in newest] == [
        ("cpu", 1, 2), ("cpu", 2, 1), ("load", 1, 1), ("load", 2, 1)
    ]  # fmt: skip
    text = dataset("spans", "cpu", "--files", *place).output
    assert "1 old" in text
    assert all(two.dataset("cpu").store.url(path) in text for path in state.spans[1][2].paths)


def test_spans_are_verified(two: DataRoot) -> None:
    place = ("--data-path", two.url)
    good = dataset("verify", *place)
    assert good.output == "".join(f"{name}: 8 examples, spans 2, all as committed\n" for name in ("cpu", "load"))
    path = f"datasets/load/{min(two.dataset('load').state().spans[2][1].paths)}"
    two.store.delete(path)
    two.store.replace("datasets/load/span-9/x", b"")
    bad = dataset("verify", *place, code=4)
    assert bad.output.splitlines()[0] == "cpu: 8 examples, spans 2, all as committed"
    assert sum(line.startswith("BROKEN load: ") for line in bad.output.splitlines()) == 2
    result = dataset("verify", "load", "--json", *place, code=4)
    assert len(json.loads(result.output)["load"]["findings"]) == 2
    dataset("verify", "cpu", *place)
    two.store.replace("datasets/load/_manifest/000000000002.json", b"{")
    assert "is damaged" in dataset("verify", *place, code=4).output


def test_no_such_data_set(two: DataRoot) -> None:
    place = ("--data-path", two.url)
    assert "choose from cpu, load" in dataset("spans", "nothing", *place, code=2).stderr
    for name in ("cpu", "load"):
        remove_dataset(two.dataset(name))
    assert "no data sets" in dataset("verify", *place).output
