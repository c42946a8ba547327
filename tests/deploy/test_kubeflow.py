"""Kubeflow Pipelines: the compiled file is that of the source, runs whole, and gives what the commands give."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from ciml import __version__
from tests.corpus import CORPUS
from tests.deploy.steps import (
    DATASET,
    ESTIMATORS,
    HOSTILE,
    MODEL,
    PATH,
    SERVED,
    Learned,
    check_values,
    parsed,
    recorded,
    recorder,
    served_versions,
    write_listing,
)

FOLDER = Path(__file__).parents[2] / "deploy/kubeflow"
COMPILED = FOLDER / "learn.yaml"
DOCUMENT = (FOLDER.parents[1] / "docs/kubeflow.md").read_text()
STEPS = {"load", "build-dataset", "train", "evaluate", "push"}


@pytest.fixture(scope="module")
def pipeline() -> ModuleType:
    """The source of the pipeline, as a module."""
    spec = importlib.util.spec_from_file_location("kubeflow_pipeline", FOLDER / "pipeline.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compiled() -> tuple[dict[str, Any], dict[str, Any]]:
    """The compiled pipeline: its specification, and by step what is for Kubernetes."""
    spec, platform = yaml.load_all(COMPILED.read_text(), yaml.CSafeLoader)
    return spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


@pytest.mark.whole
def test_the_compiled_file_is_that_of_the_source(pipeline: ModuleType, tmp_path: Path) -> None:
    pipeline.compile_to(tmp_path / "learn.yaml")
    assert (tmp_path / "learn.yaml").read_text() == COMPILED.read_text(), "run python deploy/kubeflow/pipeline.py"


def tasks(spec: dict[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """(the task, the inputs of the graph that holds it) by name, of all steps."""
    graphs = [spec["root"], *(each for each in spec["components"].values() if "dag" in each)]
    return {
        name: (task, graph["inputDefinitions"]["parameters"])
        for graph in graphs
        for name, task in graph["dag"]["tasks"].items()
        if "executorLabel" in spec["components"][task["componentRef"]["name"]]
    }


def test_every_step_has_image_secret_and_bounds(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    spec, kubernetes = compiled
    found = tasks(spec)
    assert found.keys() == STEPS
    for name, (task, given) in found.items():
        label = spec["components"][task["componentRef"]["name"]]["executorLabel"]
        container, platform = spec["deploymentSpec"]["executors"][label]["container"], kubernetes[label]
        (image,) = re.findall(r"^\{\{\$\.inputs\.parameters\['([\w-]+)'\]\}\}$", container["image"])
        assert task["inputs"]["parameters"][image]["componentInputParameter"] in given, name
        assert image.removeprefix("pipelinechannel--") == "image"
        (secret,) = platform["secretAsEnv"]
        assert secret["secretNameParameter"]["componentInputParameter"] in given, name
        assert secret["secretNameParameter"]["componentInputParameter"].removeprefix("pipelinechannel--") == "secret"
        assert secret["optional"]
        assert {each["envVar"] for each in secret["keyToEnv"]} >= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        assert platform["securityContext"] == {"runAsNonRoot": True}
        assert container["resources"].keys() >= {"resourceCpuRequest", "resourceMemoryRequest", "resourceMemoryLimit"}
        assert task["cachingOptions"] == {}, "the same parameters are not the same data"


def test_the_image_is_that_of_this_version_and_has_all_that_a_step_needs(
    compiled: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    spec, _ = compiled
    image = spec["root"]["inputDefinitions"]["parameters"]["image"]["defaultValue"]
    assert image == f"registry.example.org/ciml/worker:{__version__}"
    assert "pip install" not in COMPILED.read_text()
    lock = FOLDER.parents[1] / "deploy/images/worker/requirements.lock"
    locked = re.findall(r"^kfp==([\d.]+)", lock.read_text(), re.M)
    assert [spec["sdkVersion"]] == [f"kfp-{version}" for version in locked]


def test_the_document_names_every_parameter_and_output(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    spec, _ = compiled
    inputs, outputs = (spec["root"][each]["parameters"] for each in ("inputDefinitions", "outputDefinitions"))
    parameters, steps = re.findall(r"^\| (?:parameter|step) \|.*\n\|[-|]+\n((?:\|.*\n)+)", DOCUMENT, re.M)
    names = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in parameters.splitlines()]
    assert sorted(name for row in names for name in row) == sorted(inputs)
    assert {name for name, each in inputs.items() if "defaultValue" not in each} == set(names[0])
    assert {row.split("|")[1].strip(" `") for row in steps.splitlines()} == STEPS
    (said,) = re.findall(r"^The outputs of the pipeline are (.*?)\.", DOCUMENT, re.M)
    assert set(re.findall(r"`(\w+)`", said)) == outputs.keys()
    submitted, tried = blocks()
    for given in (re.findall(r'"(\w+)": "', submitted), re.findall(r"(\w+)=\"", tried.partition("learn(")[2])):
        assert {"dataset", "model"} <= set(given) <= inputs.keys()


def blocks() -> list[str]:
    """The Python of the document."""
    return re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.M | re.S)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", sorted(STEPS))
def test_no_parameter_is_run(
    name: str, text: str, pipeline: ModuleType, compiled: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from kfp import dsl

    spec, _ = compiled
    component = spec["components"][f"comp-{name}"]
    artifacts = component["outputDefinitions"].get("artifacts", {})
    given: dict[str, Any] = dict.fromkeys(component["inputDefinitions"]["parameters"], text)
    given |= {key: [text] for key in ("experiments", "parameters") if key in given}
    monkeypatch.setenv("PATH", recorder(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        getattr(pipeline, name.replace("-", "_")).python_func(**given, **{each: dsl.Artifact() for each in artifacts})
    assert ended.value.code == 2
    check_values(tmp_path, text)
    for words in recorded(tmp_path):
        parsed(words)
    container = spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
    assert [each for each in [*container["command"], *container["args"]] if "{{" in each] == ["{{$}}"]


@pytest.mark.interop
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")  # of image and sizes: no effect
def test_the_pipeline_gives_what_the_commands_give(
    tmp_path: Path, learned: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, documented = tmp_path / "data", dict[str, Any]()
    monkeypatch.setenv("PATH", PATH)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deploy").symlink_to(FOLDER.parent)
    exec(blocks()[1].partition("task = ")[0], documented)
    learn: Callable[..., Any] = documented["learn"]
    given = {**DATASET, "experiments": list(ESTIMATORS), "model": MODEL, "served_experiment": SERVED}
    given["data_path"] = str(data)
    outputs = learn(logs=str(CORPUS), results=str(write_listing(tmp_path)), **given).outputs
    steps = outputs_of_steps(tmp_path / "kfp")
    assert {name: len(found) for name, found in steps.items()} == dict.fromkeys(STEPS, 1) | {"train": len(ESTIMATORS)}
    trained = {}
    for step in steps["train"]:
        values = step["parameterValues"]
        trained[values["trained"]] = (values["accuracy"], values["base_rate"])
        assert metadata(step, "metrics") == {name: values[name] for name in ("accuracy", "base_rate")}
        rows = metadata(step, "confusion")["confusionMatrix"]["rows"]
        right, all_runs = sum(row["row"][at] for at, row in enumerate(rows)), sum(sum(row["row"]) for row in rows)
        assert right / all_runs == values["accuracy"]
    runs = steps["load"][0]["parameterValues"]["Output"]
    assert metadata(steps["build-dataset"][0], "metrics") == {"examples": runs}
    assert metadata(steps["push"][0], "metrics").keys() == {"accuracy", "base_rate"}
    assert Learned(runs, trained, outputs["best"], outputs["outcome"], outputs["version"]) == learned
    assert outputs["accuracy"] == trained[outputs["best"]][0]
    assert (outputs["outcome"], served_versions(data)) == ("pushed", {"stable": int(outputs["version"])})
    (table,) = (tmp_path / "kfp").rglob("comparison")
    assert f"| {outputs['best']} | {outputs['accuracy']:.3f} |" in table.read_text()


def outputs_of_steps(root: Path) -> dict[str, list[dict[str, Any]]]:
    """What each step has left for Kubeflow Pipelines, by the name of the step."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in root.rglob("executor_output.json"):
        found.setdefault(path.parent.name, []).append(json.loads(path.read_text()))
    return found


def metadata(step: dict[str, Any], artifact: str) -> dict[str, Any]:
    (found,) = step["artifacts"][artifact]["artifacts"]
    return dict(found["metadata"])
