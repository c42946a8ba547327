"""The value files that users start from: each holds configurations that ciml itself reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError
from ciml.integrations.config import load_receivers
from ciml.settings import read_toml
from ciml.training.experiment import Experiment
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.trust import TrustPolicy
from ciml.verdicts.feedback.config import load_feedback
from tests.deploy.chart import EXAMPLES, Resource, example, merged, render

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]
NAMES = ("everything", "flink", "micro-batches")


def read_all(resources: list[Resource], folder: Path) -> dict[str, object]:
    """Write the chart's configurations into a folder, and return what ciml reads there, by file name."""
    (held,) = [each["data"] for each in resources if each["metadata"]["name"] == "ciml-config"]
    found: dict[str, object] = {}
    for name, text in held.items():
        path = folder / name
        path.write_text(text)
        match name.partition("-")[0].removesuffix(".toml"):
            case "receivers":
                found[name] = {source.receiver for source in load_receivers(path).sources}
            case "fetch":
                found[name] = FetchPolicy.load(path).hosts
            case "trust":
                found[name] = TrustPolicy.load(path).digest
            case "dataset":
                named = {**read_toml(path), "name": name.removeprefix("dataset-").removesuffix(".toml")}
                found[name] = DatasetDefinition.from_json(named, name).class_label
            case "experiment":
                found[name] = Experiment.load(path).estimator
            case "feedback" if "[[system]]" in text:
                found[name] = [system.name for system in load_feedback(path).systems]
    return found


def test_all_value_files_are_known() -> None:
    assert tuple(sorted(path.stem for path in EXAMPLES.iterdir())) == NAMES
    for path in EXAMPLES.iterdir():
        assert f"-f deploy/helm/ciml/examples/{path.name}" in path.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_configurations_in_a_value_file_are_valid(name: str, tmp_path: Path) -> None:
    resources = render(example(name))
    found = read_all(resources, tmp_path)
    kinds = {each["metadata"]["name"].removeprefix("ciml-") for each in resources if each["kind"] == "Deployment"}
    assert found["receivers.toml"] == kinds & {"webhooks", "mqtt", "gerrit"} != set()
    assert found["fetch.toml"] == ("logs.example.org",)
    assert found["dataset-status.toml"] == "status"
    if name == "everything":
        assert found["dataset-cause.toml"] == "cause"
        assert found["feedback.toml"] == ["review"]
        assert found["experiment-status.toml"] == "dnn"
        assert "trust.toml" in found


def test_a_wrong_configuration_in_a_value_file_is_found(tmp_path: Path) -> None:
    wrong = merged(example("everything"), {"receivers": {"config": '[[source]]\nreceiver = "webhook"\n'}})
    with pytest.raises(CimlError, match="'webhook' is unknown; choose from"):
        read_all(render(wrong), tmp_path)


def test_each_model_that_predicts_is_trained_and_has_its_own_service() -> None:
    trained = {each["model"] if "model" in each else each["dataset"] for each in example("everything")["trainers"]}
    assert {each["name"] for each in example("everything")["predict"]["models"]} <= trained
    two = render(merged(example("everything"), {"predict": {"models": [{"name": "a"}, {"name": "b"}]}}))
    names = {each["metadata"]["name"] for each in two if each["kind"] == "Deployment"}
    assert {"ciml-predict-a", "ciml-predict-b"} <= names


@pytest.mark.parametrize("name", NAMES)
def test_a_value_file_says_nothing_twice(name: str) -> None:
    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[object, object]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    assert yaml.load((EXAMPLES / f"{name}.yaml").read_text(), Loader)
