"""The public API shows nothing but public names, and takes the keys of the settings."""

from __future__ import annotations

import typing

import pytest

import ciml
from ciml.api.types import DatasetKeys, ExperimentKeys
from ciml.datasets.definition import DatasetDefinition
from ciml.settings import Settings
from ciml.training.experiment import Experiment


def test_dir_shows_public_names_only() -> None:
    assert [name for name in dir(ciml) if not name.startswith("__")] == sorted(set(ciml.__all__) - {"__version__"})
    assert {getattr(ciml, name).__module__.partition(".")[0] for name in ciml.__all__ if name[0].isupper()} == {"ciml"}
    with pytest.raises(AttributeError, match="module 'ciml' has no attribute 'opne'"):
        _ = ciml.opne  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("keys", "settings", "arguments"),
    [(DatasetKeys, DatasetDefinition, {"name"}), (ExperimentKeys, Experiment, {"name", "estimator", "packages"})],
)
def test_typed_keys_are_those_of_the_settings(keys: type, settings: type[Settings], arguments: set[str]) -> None:
    assert typing.get_type_hints(keys).keys() == set(settings.__struct_fields__) - arguments


def test_every_error_is_public_and_a_ciml_error() -> None:
    from ciml import errors

    kinds = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    of_stages = {"RejectedInput", "LogUnavailableError"}  # become outcomes of a run
    assert kinds - of_stages <= set(ciml.__all__)
    assert all(issubclass(getattr(ciml, name), ciml.CimlError) for name in kinds - of_stages)


def test_former_progress_callbacks_and_outcomes_work_with_a_warning() -> None:
    from ciml.api.types import _Outcome, present_progress

    calls: list[object] = []
    with pytest.warns(DeprecationWarning, match="step, done, total"):
        present_progress(lambda done, total: calls.append((done, total)))("runs", 1, 2)
    with pytest.warns(DeprecationWarning, match="step, done, total"):
        present_progress(lambda step: calls.append(step))("train", 1, 2)
    present_progress(lambda step, done, total: calls.append((step, done, total)))("runs", 2, 2)
    assert calls == [(1, 2), "train", ("runs", 2, 2)]
    with pytest.warns(DeprecationWarning, match="'rejected'"):
        assert _Outcome("rejected") == "refused"
    assert _Outcome("pushed") == "pushed"
    assert _Outcome("pushed") != "rejected"
