"""The notebook of own logs: short, and what it keeps is what comes out of a clean kernel."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.examples.notebooks import EXAMPLES, code_of, outputs_of, run

NOTEBOOK = EXAMPLES / "own_logs.ipynb"
TUTORIAL = EXAMPLES.parent / "docs" / "own-logs.md"


def calls(code: str) -> list[str]:
    """The methods and functions that code calls, in order of their first call."""
    found = [node.func for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    found.sort(key=lambda name: (name.end_lineno or 0, name.end_col_offset or 0))
    return list(dict.fromkeys(name.attr for name in found if isinstance(name, ast.Attribute)))


def test_it_has_at_most_15_lines_of_code_those_of_the_tutorial() -> None:
    code = "\n".join(code_of(_tutorial_cells(nbformat.read(NOTEBOOK, 4))))
    assert 0 < len([line for line in code.splitlines() if line.strip()]) <= 15
    (tutorial,) = re.findall(r"^```python\n(.*?)^```", TUTORIAL.read_text(), re.S | re.M)
    assert len([line for line in tutorial.splitlines() if line]) <= 15
    its_own = {"mkdtemp", "unpack_archive"}  # the logs of examples/ are packed
    assert [name for name in calls(code) if name not in its_own] == calls(tutorial)
    statements = [re.sub(r"^print\((.*)\)$", r"\1", line.partition("  #")[0]) for line in tutorial.splitlines()]
    with_paths = ("data = ciml.open(", "data.load(", 'data.model("status").predict(')
    assert [line for line in statements if line not in code and not line.startswith(with_paths)] == []


def _tutorial_cells(notebook: Any) -> Any:
    """Return the notebook up to the model of the user's own, the last step of the tutorial."""
    last = next(number for number, cell in enumerate(notebook.cells) if "to_numpy" in cell.source)
    return nbformat.v4.new_notebook(cells=notebook.cells[: last + 1])


def without_sizes(outputs: list[str]) -> list[str]:
    """Outputs without the number of runs of other jobs, which the corpus may gain."""
    return [re.sub(r"[\d,]+ (?=rows, |of other jobs)", "", text) for text in outputs]


@pytest.mark.whole
def test_what_it_keeps_is_what_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")  # oneDNN's sums depend on the CPU's instructions
    monkeypatch.setenv("TF_DETERMINISTIC_OPS", "1")
    ran, kept = run(NOTEBOOK), nbformat.read(NOTEBOOK, 4)
    nbformat.validate(kept)
    assert without_sizes(outputs_of(ran)) == without_sizes(outputs_of(kept))
    assert not any(out.output_type == "stream" and out.name == "stderr" for cell in kept.cells
                   if cell.cell_type == "code" for out in cell.outputs)  # fmt: skip
    pushed = [text for text in outputs_of(kept) if "pushed version 1" in text]
    assert [text.partition(":")[0] for text in pushed] == ["status", "mine"]
    assert "Prediction(" in outputs_of(kept)[-1]  # a served answer
