"""Runs a notebook of examples/ from a clean kernel: for its test, and to store what comes out.

python -m tests.examples.notebooks examples/own_logs.ipynb
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(notebook: Path, timeout_s: int = 240) -> Any:
    """Return the notebook with the outputs of this run."""
    found = nbformat.read(notebook, 4)
    place = {"metadata": {"path": str(EXAMPLES)}}
    NotebookClient(found, timeout=timeout_s, coalesce_streams=True, resources=place).execute()
    for cell in found.cells:
        cell.metadata.pop("execution", None)  # its times
    return found


def code_of(notebook: Any) -> list[str]:
    """Return the source of each code cell."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(notebook: Any) -> list[str]:
    """Return what each code cell puts out, as text without the names of temporary folders."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            text = "".join(out.get("text", "") or out.data.get("text/plain", "") for out in cell.outputs)
            found.append(re.sub(r"/[^\s']*/own-logs-\w+", "FOLDER", text))
    return found


if __name__ == "__main__":
    for name in sys.argv[1:]:
        nbformat.write(run(Path(name)), name)
