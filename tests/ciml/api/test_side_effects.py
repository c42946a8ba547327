"""The public API leaves the settings of its caller's process unchanged, and shows nothing but public names."""

from __future__ import annotations

import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import ciml
from ciml.api.types import DatasetKeys, ExperimentKeys
from ciml.datasets.definition import DatasetDefinition
from ciml.training.experiment import Experiment


def test_no_call_changes_the_settings_of_the_process(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.ciml.api.side_effects", str(folder)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    changes = json.loads(process.stdout.splitlines()[-1])
    assert len(changes) == 16
    assert {name: changed for name, changed in changes.items() if changed} == {}


def test_dir_shows_public_names_only() -> None:
    assert [name for name in dir(ciml) if not name.startswith("__")] == sorted(set(ciml.__all__) - {"__version__"})


@pytest.mark.parametrize(
    ("keys", "settings", "arguments"),
    [(DatasetKeys, DatasetDefinition, {"name"}), (ExperimentKeys, Experiment, {"name", "estimator"})],
)
def test_typed_keys_are_those_of_the_settings(keys: type, settings: type, arguments: set[str]) -> None:
    fields = typing.get_type_hints(settings).keys() - {"what", "lists"}
    assert typing.get_type_hints(keys).keys() == fields - arguments


def test_every_error_is_public_and_a_ciml_error() -> None:
    from ciml import errors

    kinds = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert kinds - {"RejectedInput"} <= set(ciml.__all__)
    assert all(issubclass(getattr(ciml, name), ciml.CimlError) for name in kinds - {"RejectedInput"})
