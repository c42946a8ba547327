"""The notebook: what it keeps is what comes out when it is run, and it is small and explained."""

from __future__ import annotations

import base64
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOK = EXAMPLES / "workflow.ipynb"


@dataclass(frozen=True)
class Ran:
    """The notebook after it was run, and the folder of its data."""

    cells: list[Any]
    data: Path


@pytest.fixture(scope="module")
def kept() -> list[Any]:
    return nbformat.read(NOTEBOOK, 4).cells


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    (data,) = folder.glob("workflow-*")
    return Ran(notebook.cells, data)


def texts(cells: list[Any], *having: str) -> list[str]:
    """What the cells whose code has one of these words put out as text, without names of temporary folders."""
    found = []
    for cell in cells:
        if cell.cell_type == "code" and any(word in cell.source for word in having):
            text = "".join(out.get("text", "") or out.data.get("text/plain", "") for out in cell.outputs)
            found.append(re.sub(r"\S*/workflow-\w+", "DATA", text))
    return found


def test_it_is_small_and_each_cell_is_explained(kept: list[Any]) -> None:
    nbformat.validate(nbformat.read(NOTEBOOK, 4))
    code = [cell for cell in kept if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [out for cell in code for out in cell.outputs]
    images = [base64.b64decode(out.data["image/png"]) for out in outputs if "image/png" in out.get("data", {})]
    assert len(images) == 2
    assert sum(map(len, images)) < 100_000
    assert NOTEBOOK.stat().st_size < 150_000
    for before, cell in itertools.pairwise(kept):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown"
            assert len(before.source.split("\n\n")[-1].splitlines()) <= 2, before.source
    streams = {out.name for out in outputs if out.output_type == "stream"}
    assert streams == {"stdout"}


@pytest.mark.whole
def test_what_it_keeps_is_what_comes_out(kept: list[Any], ran: Ran) -> None:
    told = ("ciml-build-dataset", "describe()", "margins=True", "head(3)", "ciml-setup-experiment", "experiment report")
    assert texts(ran.cells, *told) == texts(kept, *told)
    built, counts = texts(ran.cells, "ciml-build-dataset", "margins=True")
    (train, test) = map(int, re.findall(r"splits    train (\d+), dev 0, test (\d+)", built)[0])
    assert counts.splitlines()[-1].split() == ["All", str(test), str(train), "280"]
    assert train + test == 280


@pytest.mark.whole
def test_its_results_are_those_that_are_stored(kept: list[Any], ran: Ran) -> None:
    stored = {}
    for path in ran.data.glob("experiments/*/results/status/*/result.json"):
        result = json.loads(path.read_text())
        stored[result["experiment"]["name"]] = result
    assert set(stored) == {"dnn-5x100", "forest"}
    rows = {}
    for cells in (ran.cells, kept):
        (table,) = texts(cells, "results = pd.DataFrame")
        rows[id(cells)] = {
            line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in table.splitlines()[1:]
        }
    for name, result in stored.items():
        test = result["test"]
        figures = [*(test["accuracy"][key] for key in ("value", "low", "high")), test["base_rate"]["value"]]
        figures += [result["baselines"]["duration"]["accuracy"]["value"], test["macro"]["f1"]["value"]]
        assert rows[id(ran.cells)][name] == [round(figure, 3) for figure in figures]
        # another processor may round a network's sums another way
        assert rows[id(kept)][name] == pytest.approx(
            rows[id(ran.cells)][name], abs=0.05 if name == "dnn-5x100" else 0.002
        )
    assert rows[id(ran.cells)]["forest"][0] > stored["forest"]["test"]["base_rate"]["value"]

    confusion, errors = texts(ran.cells, 'predictions["predicted"])', "wrong.groupby")
    counts = [[int(cell) for cell in line.split()[1:]] for line in confusion.splitlines()[2:]]
    forest = stored["forest"]["test"]
    classes, rows_are_labels = forest["confusion"]["classes"], forest["confusion"]["rows_are_labels"]
    order = [classes.index(name) for name in sorted(classes)]  # as pandas orders them
    assert counts == [[rows_are_labels[row][column] for column in order] for row in order]
    shares = {name: float(share) for name, share in (line.split() for line in errors.splitlines()[2:])}
    assert shares == {
        name: pytest.approx(1 - row[at] / sum(row), abs=5.1e-4)
        for at, (name, row) in enumerate(zip(sorted(classes), counts, strict=True))
    }
    page = (ran.data / "report" / "index.html").read_text()
    assert f"{forest['accuracy']['value']:.3f}" in page
