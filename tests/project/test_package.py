"""What workers are staged with: the sdist, installed beside the libraries of the worker image, outside the checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.environment import make_environment
from tests.project.test_rooms import ROOT

pytestmark = pytest.mark.interop


def copy_of_checkout(source: Path) -> Path:
    """A copy of the tracked files, so that building leaves nothing in the checkout; without examples."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).exists() and not name.startswith(("examples/", "tests/golden/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    return source


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment as in the worker image, with the sdist of this checkout."""
    work = tmp_path_factory.mktemp("sdist")
    source = copy_of_checkout(work / "source")
    run = {"check": True, "capture_output": True, "text": True}
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", str(work)], cwd=source, **run)
    (sdist,) = work.glob("ciml-*.tar.gz")
    python = make_environment(work / "env", "data", "pipelines", "train", "serve", ciml=False)
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", str(sdist)], cwd=work, **run
    )
    return python


def test_every_dofn_imports_from_the_installed_sdist(installed: Path) -> None:
    code = """
import importlib, inspect, pkgutil, sys
import apache_beam as beam
# Beam's workers have no library of receivers, and none of OpenLineage.
WITHOUT = ("ciml.integrations.mqtt", "ciml.integrations.gerrit.", "ciml.lineage.openlineage")
found = set()
for package in map(importlib.import_module, sys.argv[1:]):
    assert "site-packages" in package.__file__, package.__file__
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.endswith("__main__") or module.name.startswith(WITHOUT):
            continue
        loaded = importlib.import_module(module.name)
        for name, kind in vars(loaded).items():
            mine = inspect.isclass(kind) and kind.__module__ == module.name
            if mine and issubclass(kind, (beam.DoFn, beam.CombineFn)):
                found.add(f"{module.name}.{name}")
print("\\n".join(sorted(found)))
"""
    words = [str(installed), "-I", "-c", code, "ciml"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=installed.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    found = set(done.stdout.split())
    assert {name.rpartition(".")[0] for name in found} >= {"ciml.pipelines.kafka.source"}
    assert len(found) >= 5, found
