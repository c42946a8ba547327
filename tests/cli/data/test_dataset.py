from __future__ import annotations

import json
import re
import tomllib
from functools import partial
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from tests.cli.calling import ciml
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
