"""``ciml experiment sweep``: its help, its document, and mistakes in one line."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from ciml.settings import parse_toml
from ciml.training.sweeps.definition import Sweep
from tests.cli.calling import ciml

ROOT = Path(__file__).parents[3]


sweep = partial(ciml, "experiment", "sweep")


def test_the_document_shows_the_example_and_names_every_key() -> None:
    text = (ROOT / "docs/sweeps.md").read_text()
    block, several = re.findall(r"^```toml\n(.*?)^```", text, re.S | re.M)
    named_estimators = Sweep.from_json(parse_toml(f"name = 'a'\ntrials = 3\n{several}", "docs/sweeps.md"))
    assert named_estimators.effective({"estimator": "LogisticRegression", "view": "flat", "parameters.C": 1.0}) == {
        "estimator": "LogisticRegression",
        "view": "flat",
        "parameters.C": 1.0,
    }
    example = Sweep.load(ROOT / "examples/sweep.toml")
    assert Sweep.from_json(parse_toml(block, "docs/sweeps.md")) == example
    assert len(example.grid) == 16
    named = set(re.findall(r"^\| `([a-z_]+)` \| ", text.partition("## Output")[0], re.M))
    assert named == set(Sweep.__struct_fields__) - {"dataset", "experiment", "vary"}
    help_text = " ".join(sweep("--help").output.split())
    assert "ciml experiment sweep examples/sweep.toml --data-path DATA" in help_text
    assert "the test runs are never read" in help_text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name = ", "is not TOML: Invalid value"),
        ('name = "a"', "vary: is missing"),
        ('name = "a"\n[vary.dataset]\nsample_interval = ["1s"]\n[dataset]\nlabel = "x"', "dataset: label: unknown key"),
        ('name = "a"\n[vary.dataset]\nbuild_name = ["a"]\ninterval = ["1s"]', "vary.dataset.interval: dataset:"),
        ('name = "a"\n[vary.experiment]\nlearning_rate = [0]', "vary.experiment.learning_rate: exp"),
        ('name = "a"\n[vary.experiment]\nlearning_rate = [0.1]', "no raw store at "),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_left_of_it(text: str, line: str, tmp_path: Path) -> None:
    file, data = tmp_path / "sweep.toml", tmp_path / "data"
    file.write_text(text)
    data.mkdir()
    (data / "other").touch()
    done = sweep(file, "--data-path", data, "--output", tmp_path / "page", code=2)
    assert done.stdout == ""
    (error,) = done.stderr.splitlines()
    assert error.startswith(f"ciml: {line}" if line.startswith("no raw") else f"ciml: {file}")
    assert line in error
    assert not (tmp_path / "page").exists()
    assert [path for path in data.rglob("*") if path.is_file()] == [data / "other"]
