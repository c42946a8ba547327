"""Tekton: its own validation takes the Tasks and the Pipeline, and their steps give what the commands give."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
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
    SERVED,
    Learned,
    check_values,
    parsed,
    recorded,
    recorder,
)
from tests.go_programs import go_program

FOLDER = Path(__file__).parents[2] / "deploy/tekton"


@functools.cache
def validator() -> Path:
    """Tekton's defaults and validation (1.6.0) as a program; its first build takes a minute."""
    return go_program(Path(__file__).parent / "tekton", "validate")


def validate(*paths: Path) -> tuple[int, str]:
    done = subprocess.run([validator(), *paths], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.engines
@pytest.mark.timeout(900)
def test_tekton_takes_them_and_refuses_planted_errors(tmp_path: Path) -> None:
    code, said = validate(*sorted(FOLDER.glob("*.yaml")))
    assert code == 0, said
    assert said.count(": valid") == 6
    whole = "\n---\n".join(path.read_text() for path in sorted(FOLDER.glob("*.yaml")))
    for old, new, message in (
        ("runAfter: [evaluate]", "runAfter: [evaluated]", "evaluated"),
        ("$(tasks.build-dataset.results.dataset)", "$(tasks.build.results.dataset)", "build"),
        ("- name: train\n      image:", "- nmae: train\n      image:", "nmae"),
        ("(params.dataset)}\n        - {name: MODEL", "(params.datset)}\n        - {name: MODEL", "datset"),
    ):
        assert old in whole
        (tmp_path / "wrong.yaml").write_text(whole.replace(old, new))
        code, said = validate(tmp_path / "wrong.yaml")
        assert code == 1, new
        assert message in said


def tasks() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load_all((FOLDER / "tasks.yaml").read_text())
    return {each["metadata"]["name"]: each["spec"] for each in found}


def run(name: str, folder: Path, path: str, **given: str | list[str]) -> tuple[int, dict[str, str], str]:
    """Run a Task's step as Tekton does: parameters replaced everywhere, results in files. Return its results.

    A list is an array: each of its values is an argument of the script.
    """
    spec = tasks()[name]
    defaults = {each["name"]: each["default"] for each in spec["params"] if "default" in each}
    parameters = {**defaults, **{key.replace("_", "-"): value for key, value in given.items()}}
    assert parameters.keys() == {each["name"] for each in spec["params"]}
    results = {each["name"]: folder / f"result-{each['name']}" for each in spec["results"]}
    (step,) = spec["steps"]

    def replaced(text: str) -> str:
        for key, value in parameters.items():
            text = text.replace(f"$(params.{key})", str(value))
        for key, path in results.items():
            text = text.replace(f"$(results.{key}.path)", str(path))
        return text

    script = folder / "script"
    script.write_text(replaced(step["script"]))
    script.chmod(0o700)
    values = {each["name"]: replaced(each["value"]) for each in step["env"]}
    environment = {**os.environ, "PATH": path, "TMPDIR": str(folder), **values}
    arrays = [re.sub(r"\$\(params\.(.+)\[\*\]\)", r"\1", word) for word in step.get("args", ())]
    words = [script, *(value for name in arrays for value in parameters[name])]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=folder, check=False)
    found = {key: path.read_text() for key, path in results.items() if path.exists()}
    return done.returncode, found, done.stdout + done.stderr


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_the_steps_give_what_the_commands_give(tmp_path: Path, learned: Learned, learned_data: Path) -> None:
    """The steps' ciml prints what the commands printed, and each of its lines is one of the program's."""
    path = recorder(tmp_path, learned_data.with_name("answers.json"))

    def step(name: str, **given: str) -> Mapping[str, str]:
        code, results, said = run(name, tmp_path, path, data_path=str(learned_data), **given)
        assert code == 0, said
        assert results.keys() == {each["name"] for each in tasks()[name]["results"]}
        return results

    runs = step("ciml-load", logs=str(CORPUS), results="builds.jsonl")["runs"]
    assert step("ciml-build-dataset", **DATASET) == {"dataset": "cpu"}
    figures = [step("ciml-run-training", dataset="cpu", experiment=estimator) for estimator in ESTIMATORS]
    trained = [(float(each["accuracy"]), float(each["base-rate"])) for each in figures]
    best = step("ciml-evaluate", dataset="cpu")["best"]
    refreshed = step("ciml-refresh", dataset="cpu", model=MODEL, experiment=SERVED)
    assert (int(runs), trained, best) == (learned.runs, list(learned.trained.values()), learned.best)
    assert (refreshed["outcome"], refreshed["version"]) == (learned.outcome, learned.version)
    assert [parsed(words).command.name for words in recorded(tmp_path)] == [
        "load", "build", "show", "train", "show", "train", "compare", "compare", "refresh",
    ]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", tasks())
def test_no_parameter_is_run(name: str, text: str, tmp_path: Path) -> None:
    given: dict[str, str | list[str]] = {"data_path": str(tmp_path / "data")}
    for each in tasks()[name]["params"]:
        if "default" not in each or each["name"] in ("parameters", "allow-module"):
            given[each["name"].replace("-", "_")] = [text, text] if each["type"] == "array" else text
    code, _, said = run(name, tmp_path, recorder(tmp_path), **given)
    assert code not in (0, 5, 127), said
    check_values(tmp_path, text)
    (step,) = tasks()[name]["steps"]
    assert "$(params" not in step["script"]


def test_parameters_and_images_are_one_everywhere() -> None:
    (pipeline,) = yaml.safe_load_all((FOLDER / "pipelines.yaml").read_text())
    for task in pipeline["spec"]["tasks"]:
        known = {each["name"] for each in tasks()[task["taskRef"]["name"]]["params"]}
        given = {each["name"] for each in [*task["params"], *task.get("matrix", {}).get("params", ())]}
        needed = {each["name"] for each in tasks()[task["taskRef"]["name"]]["params"] if "default" not in each}
        assert needed <= given <= known, task["name"]
    text = "".join(path.read_text() for path in FOLDER.glob("*.yaml"))
    assert set(re.findall(r"ciml/worker:([\d.]+\d)", text)) == {__version__}
