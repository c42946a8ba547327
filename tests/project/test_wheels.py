"""The wheel in fresh environments: what each extra costs, and that its commands work. docs/install.md has the table."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ciml.version import __version__
from tests.project.release import UV, copy_of_checkout
from tests.project.test_extras import store
from tests.project.test_rooms import ROOT

__all__ = ["store"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, or that of ``make dist`` in the folder CIML_DIST."""
    if dist := os.environ.get("CIML_DIST"):
        (released,) = (ROOT / dist).glob("ciml-*.whl")
        return released
    work = tmp_path_factory.mktemp("wheel")
    source = copy_of_checkout(work / "source")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(work), str(source)],
        check=True,
        capture_output=True,
        text=True,
    )
    (built,) = work.glob("ciml-*.whl")
    return built


def run(*arguments: str | Path, folder: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(each) for each in arguments], capture_output=True, text=True, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.interop
@pytest.mark.parametrize("extra", ["", "receivers", "data", "reports", "serve", "pipelines", "train", "all"])
def test_an_environment_of_its_own(wheel: Path, store: Path, tmp_path: Path, extra: str) -> None:
    python = tmp_path / "env" / "bin" / "python"
    run(UV, "venv", "-q", "--python", sys.executable, tmp_path / "env", folder=tmp_path)
    begun = time.monotonic()
    lock = ROOT / "requirements.lock"
    target = f"{wheel}[{extra}]" if extra else wheel
    run(UV, "pip", "install", "-q", "--python", python, "--constraint", lock, target, folder=tmp_path)
    took = time.monotonic() - begun
    (site,) = (tmp_path / "env").glob("lib/python3*/site-packages")
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    run(python, "-c", "import ciml", folder=tmp_path)  # compiles it
    code = "import time; a = time.perf_counter(); import ciml; print(time.perf_counter() - a)"
    imported = min(float(run(python, "-c", code, folder=tmp_path)) for _ in range(5))
    print(f"\n| `ciml[{extra}]` | {size / 1e6:,.0f} MB | {took:.1f} s | {imported * 1e3:.1f} ms |")

    use_extra(python, extra, store, tmp_path)


def use_extra(python: Path, extra: str, store: Path, folder: Path) -> None:
    """Run the commands of an extra in an environment; they write into ``folder`` and into the data root ``store``."""
    ciml = python.with_name("ciml")
    run(ciml, "--help", folder=folder)
    assert run(ciml, "--version", folder=folder).startswith(f"ciml {__version__}")
    run(ciml, "record", "--log-dir", "logs", "--spool", "spool", "--job", "unit", "--", "sleep", "1.5", folder=folder)
    (log,) = folder.glob("logs/unit/*/*.gz")
    assert gzip.decompress(log.read_bytes()).count(b"\n") >= 4
    if extra == "receivers":
        _connect(ciml, python, folder)
    if extra in ("", "receivers", "record", "kubeflow"):  # without `data`
        return
    (folder / "jobs.toml").write_text('class_label = "status"\nspan_runs = 10\n')
    data = ["--data-path", str(store)]
    assert "networkx-unit" in run(ciml, "runs", *data, folder=folder)
    name = f"jobs-{extra}"
    run(ciml, "dataset", "create", name, "--definition", "jobs.toml", *data, folder=folder)
    run(ciml, "dataset", "update", name, *data, folder=folder)
    assert "20 examples" in run(ciml, "dataset", "verify", name, *data, folder=folder)
    if extra in ("reports", "all"):
        run(ciml, "plot", name, *data, folder=folder)
    if extra in ("pipelines", "all"):
        assert "ParDo" in run(ciml, "graph", "ingest", folder=folder)
    if extra in ("serve", "all"):
        run(python, "-c", "import ciml.serving.server.rest, ciml.serving.server.model.loaded_model", folder=folder)
    if extra in ("train", "all"):
        run(ciml, "experiment", "define", f"svm-{extra}", "--estimator", "svm", *data, folder=folder)


def _connect(ciml: Path, python: Path, folder: Path) -> None:
    """Write the configuration of a webhook, and open its receiver without a broker."""
    words = ["connect", "github", "--url", "https://ci.example.org", "--kafka", "127.0.0.1:1", "--folder", "config"]
    shown = run(ciml, *words, folder=folder)
    assert "https://ci.example.org/hooks/github" in shown
    with (folder / "config" / "receivers.toml").open("a") as file:
        file.write("\n[webhooks]\nport = 0\n")
    code = """
import urllib.request
from ciml.services.options import WebhooksOptions
service = WebhooksOptions(config="config/receivers.toml", kafka="127.0.0.1:1").service()
service.open()
print(urllib.request.urlopen(service.url + "/healthz").read().decode())
service.close()
"""
    assert run(python, "-c", code, folder=folder) == '{"alive": true}\n'
