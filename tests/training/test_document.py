from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from ciml.errors import CimlError
from ciml.training.estimators import ESTIMATORS
from ciml.training.evaluation.gate import GatePolicy
from ciml.training.experiment import Experiment

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


def test_the_documents_experiment_names_every_key_and_is_one():
    block = re.search(r'(?m)^    name = "deep"\n((    .*)?\n)+', TEXT)
    assert block is not None
    value = tomllib.loads(re.sub(r"(?m)^    ", "", block[0]))
    assert set(value) == set(Experiment.__struct_fields__)
    with pytest.raises(CimlError, match="leave out one"):
        Experiment.from_json(value)
    for left_out in ({"early_stopping"}, {"calibration", "coverage"}):
        made = Experiment.from_json({key: each for key, each in value.items() if key not in left_out})
        assert made.hidden_layers == (100, 100, 100)


def test_the_documents_gate_is_the_default_one():
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| (\S+) \|", TEXT))
    defaults = {field.name: getattr(GatePolicy(), field.name) for field in fields(GatePolicy)}
    assert rows.pop("accept_baselines") == "none"
    assert defaults.pop("accept_baselines") == ()
    assert {name: float(value) for name, value in rows.items()} == defaults


def test_the_document_of_experiments_names_every_estimator():
    text = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
    define = text.split("\n## Define\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"(?m)^\| `(\w+)` \|", define)) == sorted(ESTIMATORS)
