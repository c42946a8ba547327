"""Programs that Go builds from the module proxy for a test, once for the same sources, in the user's cache."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import platformdirs
import pytest
from filelock import FileLock


def go_program(source: Path, name: str, package: str = ".") -> Path:
    """Return a program.

    Args:
      source: folder of go.mod, go.sum and perhaps Go files.
      name: of the program.
      package: what is built.
    """
    files = sorted(path for path in source.iterdir() if path.suffix in (".go", ".mod", ".sum"))
    digest = hashlib.sha256(b"\0".join(path.name.encode() + b"\0" + path.read_bytes() for path in files)).hexdigest()
    folder = platformdirs.user_cache_path("ciml") / "go" / f"{name}-{digest[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / name).exists():
            if shutil.which("go") is None:
                pytest.fail(f"{name} is built by Go: install it (apt-get install golang-go)", pytrace=False)
            for path in files:
                shutil.copy(path, folder)
            command = ["go", "build", "-mod=mod", "-ldflags=-s -w", "-o", f"{name}.new", package]
            built = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1400, check=False)
            assert built.returncode == 0, built.stderr[-3000:]
            (folder / f"{name}.new").rename(folder / name)
    return folder / name
