"""Folders that all processes of a test session share: built once, by the first that needs one, and never changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def shared(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """Return the folder of a name, which ``build`` fills. A test that changes files copies it first."""
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return build_once(root, f"shared-{name}", build)


def build_once(root: Path, name: str, build: Callable[[Path], object]) -> Path:
    """Return the folder of a name below another one; the first of several processes that needs it calls ``build``."""
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that did not complete it
            folder.mkdir()
            build(folder)
            done.touch()
    return folder
