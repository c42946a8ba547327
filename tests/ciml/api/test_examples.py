"""The examples in the docstrings of the public API run as they stand."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import ciml
from ciml.training.evaluation import metrics as scoring
from tests.project.api_reference import documented

EXAMPLES = [
    pytest.param(name, found, marks=pytest.mark.whole if name == "ciml.Data.refresh" else (), id=name)
    for name, value in documented()
    if (found := doctest.DocTestParser().get_examples(value.__doc__ or ""))
]


@pytest.mark.parametrize(("name", "examples"), EXAMPLES)
def test_an_example_runs(
    name: str,
    examples: list[doctest.Example],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr(scoring, "RESAMPLES", 20)
    names: dict[str, object] = {"ciml": ciml}
    monkeypatch.chdir(folder)
    names["data"] = data = ciml.open("data")
    names["dataset"] = data.dataset("status")
    if name.startswith("ciml.Model"):
        names["model"] = data.model("status")
    if name.startswith("ciml.Client"):
        url = f"http://127.0.0.1:{request.getfixturevalue('model_server').rest_port}"
        names["model"] = ciml.Client(url)
        for example in examples:
            example.source = example.source.replace("http://127.0.0.1:8501", url)
    test = doctest.DocTest(examples, names, name, None, None, None)
    out: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=out.append)
    assert "".join(out) == ""


def test_what_a_person_calls_has_an_example() -> None:
    assert {
        "ciml.open", "ciml.parse_log", "ciml.Data.runs", "ciml.Data.samples", "ciml.Data.define_dataset",
        "ciml.Data.train", "ciml.Data.cross_validate", "ciml.Data.refresh", "ciml.Data.model", "ciml.Client",
        "ciml.Dataset.to_numpy", "ciml.Model.predict", "ciml.sklearn.Downsample",
    } <= {example.id for example in EXAMPLES}  # fmt: skip
