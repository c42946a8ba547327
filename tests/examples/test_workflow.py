"""The notebook: what it keeps is what comes out when it is run, and it is small and explained."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.examples.notebooks import EXAMPLES, run

NOTEBOOK = EXAMPLES / "workflow.ipynb"


@pytest.fixture(scope="module")
def kept() -> list[Any]:
    return nbformat.read(NOTEBOOK, 4).cells


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Path]:
    """The cells after they were run, and the folder of their data."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        cells = run(NOTEBOOK).cells
    (data,) = folder.glob("workflow-*")
    return cells, data


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
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 2
    assert NOTEBOOK.stat().st_size < 150_000
    for before, cell in itertools.pairwise(kept):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown"
            assert len(before.source.split("\n\n")[-1].splitlines()) <= 2, before.source
    assert {out.name for out in outputs if out.output_type == "stream"} == {"stdout"}


@pytest.mark.whole
def test_what_it_keeps_is_what_comes_out(kept: list[Any], ran: tuple[list[Any], Path]) -> None:
    told = ("ciml-build-dataset", "describe()", "margins=True", "head(3)", "ciml-setup-experiment", "experiment report")
    assert texts(ran[0], *told) == texts(kept, *told)
    built, counts = texts(ran[0], "ciml-build-dataset", "margins=True")
    (train, test) = map(int, re.findall(r"splits    train (\d+), dev 0, test (\d+)", built)[0])
    assert counts.splitlines()[-1].split() == ["All", str(test), str(train), "280"]
    assert train + test == 280


def results_in(cells: list[Any]) -> dict[str, list[float]]:
    """The figures of each experiment in the table of the notebook."""
    (table,) = texts(cells, "results = pd.DataFrame")
    rows = [line.split() for line in table.splitlines()[1:]]
    return {name: [float(cell) for cell in cells] for name, *cells in rows}


@pytest.mark.whole
def test_its_results_are_those_that_are_stored(kept: list[Any], ran: tuple[list[Any], Path]) -> None:
    cells, data = ran
    results = [json.loads(path.read_text()) for path in data.glob("experiments/*/results/status/*/result.json")]
    stored = {result["experiment"]["name"]: result for result in results}
    assert set(stored) == {"dnn-5x100", "forest"}
    for name, result in stored.items():
        test = result["test"]
        figures = [*(test["accuracy"][key] for key in ("value", "low", "high")), test["base_rate"]["value"]]
        figures += [result["baselines"]["duration"]["accuracy"]["value"], test["macro"]["f1"]["value"]]
        assert results_in(cells)[name] == [round(figure, 3) for figure in figures]
        tolerance = 0.05 if name == "dnn-5x100" else 0.002  # another processor may round a network's sums another way
        assert results_in(kept)[name] == pytest.approx(results_in(cells)[name], abs=tolerance)
    forest = stored["forest"]["test"]
    assert forest["accuracy"]["value"] > forest["base_rate"]["value"]

    confusion, errors = texts(cells, 'predictions["predicted"])', "wrong.groupby")
    counts = [[int(cell) for cell in line.split()[1:]] for line in confusion.splitlines()[2:]]
    classes, rows_are_labels = forest["confusion"]["classes"], forest["confusion"]["rows_are_labels"]
    order = [classes.index(name) for name in sorted(classes)]  # as pandas orders them
    assert counts == [[rows_are_labels[row][column] for column in order] for row in order]
    shares = {name: float(share) for name, share in (line.split() for line in errors.splitlines()[2:])}
    assert shares == {
        name: pytest.approx(1 - row[at] / sum(row), abs=5.1e-4)
        for at, (name, row) in enumerate(zip(sorted(classes), counts, strict=True))
    }
    assert f"{forest['accuracy']['value']:.3f}" in (data / "report" / "index.html").read_text()
