"""Programs and modules of Go's module proxy for a test: built once for the same sources, in the user's cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import platformdirs
import pytest
from filelock import FileLock


def go_program(source: Path, name: str, package: str = ".", *, flags: str = "-s -w", timeout_s: float = 1400.0) -> Path:
    """Return a program.

    Args:
      source: folder of go.mod, go.sum and perhaps Go files.
      name: of the program.
      package: what is built.
      flags: of the linker.
      timeout_s: of the build.
    """
    files = sorted(path for path in source.iterdir() if path.suffix in (".go", ".mod", ".sum"))
    digest = hashlib.sha256(b"\0".join(path.name.encode() + b"\0" + path.read_bytes() for path in files)).hexdigest()
    folder = platformdirs.user_cache_path("ciml") / "go" / f"{name}-{digest[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / name).exists():
            _need_go(name)
            for path in files:
                shutil.copy(path, folder)
            command = ["go", "build", "-mod=mod", f"-ldflags={flags}", "-o", f"{name}.new", package]
            built = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False)
            assert built.returncode == 0, built.stderr[-3000:]
            (folder / f"{name}.new").rename(folder / name)
    return folder / name


def go_module(module: str, version: str) -> Path:
    """Return the folder of a module's files, such as the resource definitions of an operator."""
    _need_go(module)
    command = ["go", "mod", "download", "-json", f"{module}@{version}"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(json.loads(done.stdout)["Dir"])


def _need_go(what: str) -> None:
    if shutil.which("go") is None:
        pytest.fail(f"{what} comes by Go: install it (apt-get install golang-go)", pytrace=False)
