"""The tutorial of a model of your own: its Python lines and its commands run as they stand, on the sample logs.

This is a data scientist's first day: an own table, X and y, an own pipeline, its comparison, the push, and the answer
of a model server by curl, which is that of the pipeline.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.project.test_readme import ROOT, commands, run
from tests.serving.process import wait_loaded

pytestmark = pytest.mark.whole
DOCUMENT = (ROOT / "docs" / "own-model.md").read_text()
PYTHON = "\n".join(re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.S | re.M))
JOBS = ("networkx-unit", "numpy-lib", "sympy-core")
#: Prints what the pipeline answers for the test runs that most surely passed and failed, by the id of the run's row.
EXPECTED = """
import json
answers = pipeline.predict_proba(X_test)
rows = answers[:, 1].argmin(), answers[:, 1].argmax()
print(json.dumps({X_test.index[row].split("~")[1]: answers[row].tolist() for row in rows}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The sample logs, and an own table of the runs of three jobs."""
    shutil.unpack_archive(ROOT / "examples" / "corpus" / "logs.tar", tmp_path)
    builds = [json.loads(line) for line in (ROOT / "examples" / "corpus" / "builds.jsonl").read_text().splitlines()]
    names = {"build_uuid": "id", "build_name": "job", "result": "result", "start_time": "start", "end_time": "end"}
    with (tmp_path / "results.csv").open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow([*names.values(), "log"])
        selected = [build for build in builds if build["build_name"] in JOBS]
        table.writerows([*(build[name] for name in names), build["log_path"]] for build in selected)
    return tmp_path


@contextmanager
def running(command: str, folder: Path) -> Iterator[int]:
    """Run the tutorial's server on free ports until the block ends. Yield the REST port when the model is served."""
    words = [sys.executable, "-m", "ciml", *command.split()[1:], "--grpc-port", "0", "--rest-port", "0"]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = json.loads(process.stdout.readline())["rest"]
            wait_loaded(port)
            yield port
        finally:
            process.terminate()


def test_a_pipeline_of_scikit_learn_is_trained_compared_pushed_and_served(folder: Path) -> None:
    lines = [line for line in PYTHON.splitlines() if line]
    assert f"It takes {len(lines)} lines of Python, three commands" in DOCUMENT
    (folder / "mine.py").write_text(PYTHON + EXPECTED)
    *printed, last = run(f"{sys.executable} mine.py", folder).splitlines()
    documented = [line for line in re.findall(r"^    (.*)", DOCUMENT, re.M) if line.strip() != "…"]
    assert [line for line in documented if line not in printed] == []
    assert any(line.startswith("mine: pushed version 1") for line in printed)
    assert any("base rate" in line for line in printed)

    logs = {
        Path(row["log"]).name.partition(".")[0]: row["log"] for row in csv.DictReader((folder / "results.csv").open())
    }
    serve, request, curl = commands(DOCUMENT)
    with running(serve, folder) as port:
        for class_name, (uuid, expected) in zip(("passed", "failed"), json.loads(last).items(), strict=True):
            shutil.copyfile(folder / logs[uuid], folder / "logs" / "new.csv.gz")
            run(request, folder)
            answer = json.loads(run(curl.replace("8501", str(port)), folder))
            (row,) = answer["predictions"]
            assert row["probabilities"] == pytest.approx(expected, abs=1e-6)
            assert row["class"] == class_name
