"""The wheel on each supported Python, with the newest, the oldest and the locked versions of its dependencies.

docs/install.md has the table that the last test prints. The oldest Python is that of the recorder: what it imports uses
nothing newer.
"""

from __future__ import annotations

import ast
import fnmatch
import gzip
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ciml.events.redaction
from ciml.extras import OLDEST_PYTHON
from ciml.globs import greedy
from ciml.version import __version__
from tests.project.environment import PROJECT, requirements_of
from tests.project.release import UV, build, copy_of_checkout
from tests.project.test_extras import store
from tests.project.test_rooms import ROOT

__all__ = ["store"]

RECORDER_ONLY = ("3.9", "3.10")
FULL = ("3.11", "3.12", "3.13")
EXTRAS = ("", *(extra for extra in PROJECT["optional-dependencies"] if extra != "dev"))
LOCK = ("--constraint", str(ROOT / "requirements.lock"))
RESOLUTIONS = {"newest": ("--resolution", "highest"), "lowest": ("--resolution", "lowest-direct"), "locked": LOCK}
LOWEST = ("", "record", "receivers", "all")  # the last has the dependencies of all others
CASES = [
    (version, extra, resolution)
    for resolution in RESOLUTIONS
    for version in (*RECORDER_ONLY, *FULL)
    for extra in (EXTRAS if version in FULL else ("", "record"))
    if resolution == "newest" or (extra in LOWEST if resolution == "lowest" else version == "3.11")
]
#: What a recorder imports: at its start, and when it needs them.
RECORDER = tuple(
    "ciml.cli.main ciml.cli.commands.operate.record ciml.events.cloudevents ciml.events.samples ciml.kafka.connect"
    " ciml.recorder.spool.flush ciml.recorder.record ciml.storage.local".split()
)
#: Names of the standard library that Python 3.9 lacks.
NEWER = {"UTC", "pairwise", "tomllib", "Self", "StrEnum", "TypeAlias", "NotRequired", "Required", "ExceptionGroup"}

#: Seconds of each installation, by (version, extra, resolution).
_installed: dict[tuple[str, str, str], float] = {}


@cache
def recorder_files() -> list[Path]:
    """The modules of this checkout that a recorder imports."""
    code = f"import sys, {', '.join(RECORDER)}; print(*(m.__file__ for n, m in sys.modules.items() if n[:4] == 'ciml'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return sorted({Path(name).resolve() for name in done.stdout.split()})


def newer_features(tree: ast.AST) -> Iterator[str]:
    """Yield the uses of what Python 3.9 does not have at run time, a line each."""
    ignored: set[ast.AST] = set()  # what type checkers alone execute, and imports within functions
    for node in ast.walk(tree):
        types_only = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        lazy = isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module == "tomllib")
        if types_only or (lazy and node.col_offset):  # type: ignore[attr-defined]
            ignored.update(ast.walk(node))
    for node in set(ast.walk(tree)) - ignored:
        if isinstance(node, ast.alias) and node.name in NEWER:
            yield f"{node.lineno}: {node.name}"
        elif isinstance(node, ast.keyword) and node.arg in ("slots", "strict", "kw_only"):
            if node.arg != "strict" or ast.unparse(node.value) != "False":
                yield f"{node.value.lineno}: {node.arg}="
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            if isinstance(node.args[1], ast.BinOp):
                yield f"{node.lineno}: isinstance of X | Y"
        elif isinstance(node, ast.Match | ast.TryStar):
            yield f"{node.lineno}: {type(node).__name__}"


def test_the_recorder_uses_nothing_newer_than_its_oldest_python() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in recorder_files()
        for line in newer_features(ast.parse(path.read_text(), feature_version=(3, 9)))
    }
    assert found == set()


def test_ruff_rewrites_nothing_of_the_recorder_for_a_newer_python() -> None:
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    globs = [glob for glob, target in ruff["per-file-target-version"].items() if target == "py39"]
    names = [str(path.relative_to(ROOT)) for path in recorder_files()]
    assert [name for name in names if not any(fnmatch.fnmatch(name, glob) for glob in globs)] == []


def test_every_dependency_has_a_lower_bound_and_is_locked() -> None:
    locked = set(re.findall(r"^([a-z0-9-]+)(?:\[[a-z,]+\])?==", (ROOT / "requirements.lock").read_text(), re.M))
    for extra in EXTRAS:
        for requirement in requirements_of(extra):
            if requirement.name != "ciml":
                operators = {part.operator for part in requirement.specifier}
                assert ">=" in operators, requirement
                assert operators <= {">=", "<", "!="}, f"{requirement}: an exact version belongs into the lock"
                assert requirement.name in locked, requirement


def test_the_oldest_python_is_the_documented_one() -> None:
    assert PROJECT["requires-python"] == f">={RECORDER_ONLY[0]}"
    assert ".".join(map(str, OLDEST_PYTHON)) == FULL[0]
    classifiers = {name.rpartition(" :: ")[2] for name in PROJECT["classifiers"] if " :: Python :: 3." in name}
    assert classifiers == {*RECORDER_ONLY, *FULL}


PATTERNS = [value for value in vars(ciml.events.redaction).values() if isinstance(value, re.Pattern)]
PATTERNS += ciml.events.redaction._VALUES.values()
PIECES = st.sampled_from("'\"\\:=,{[<&/@.- \n0aZ") | st.sampled_from(
    ["password", "token=", "ghp_", "gl-", "eyJ", "aB3xY7q9"]
)
TEXTS = st.lists(PIECES).map("".join)


@given(TEXTS)
def test_greedy_patterns_of_an_older_python_match_the_same(text: str) -> None:
    for pattern in PATTERNS:
        older = re.compile(greedy(pattern.pattern), pattern.flags)
        assert [match.span() for match in older.finditer(text)] == [match.span() for match in pattern.finditer(text)]


@cache
def interpreter(version: str) -> Path:
    """The Python of a version: that of pyenv, else the one on the path; the test is skipped where there is none."""
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in (*sorted(home.glob(f"{version}.*/bin/python")), shutil.which(f"python{version}")):
        if path and subprocess.run([str(path), "--version"], capture_output=True).returncode == 0:
            return Path(path)
    pytest.skip(f"no Python {version}")


#: Imports every module of ciml. Prints those that fail, unless an extra is missing, and the number of the others.
IMPORT_ALL = """
import importlib, pkgutil, sys
import ciml
from ciml.extras import missing_extra
imported = 0
for module in pkgutil.walk_packages(ciml.__path__, "ciml.", onerror=lambda name: None):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
        imported += 1
    except ModuleNotFoundError as error:
        if missing_extra(error) is None or sys.argv[1:] == ["all"]:
            print(module.name, error)
    except Exception as error:
        if not str(error).startswith("this needs ciml[") or sys.argv[1:] == ["all"]:
            print(module.name, repr(error))
print(imported)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, or that of ``make dist`` in the folder CIML_DIST."""
    if dist := os.environ.get("CIML_DIST"):
        (released,) = (ROOT / dist).glob("ciml-*.whl")
        return released
    work = tmp_path_factory.mktemp("wheel")
    return build(copy_of_checkout(work / "source"), work / "out", 1_790_000_000)[0]


def run(*arguments: str | Path, folder: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(each) for each in arguments], capture_output=True, text=True, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.interop
@pytest.mark.parametrize(("version", "extra", "resolution"), CASES)
def test_an_extra_on_an_interpreter(
    wheel: Path, store: Path, tmp_path: Path, version: str, extra: str, resolution: str
) -> None:
    python = tmp_path / "env" / "bin" / "python"
    try:
        run(UV, "venv", "-q", "--python", interpreter(version), tmp_path / "env", folder=tmp_path)
        begun = time.monotonic()
        target = f"{wheel}[{extra}]" if extra else wheel
        run(UV, "pip", "install", "-q", *RESOLUTIONS[resolution], "--python", python, target, folder=tmp_path)
        took_s = time.monotonic() - begun
        if version in FULL:
            *failed, imported = run(python, "-c", IMPORT_ALL, extra, folder=tmp_path).splitlines()
            assert failed == []
            assert int(imported) > 50
            use_extra(python, extra, Path(shutil.copytree(store, tmp_path / "store")), tmp_path)
        else:
            run(python, "-c", f"import {', '.join(RECORDER)}", folder=tmp_path)
            use_extra(python, extra, store, tmp_path)
        if not extra:
            run_recorder_tests(python)
        _installed[version, extra, resolution] = took_s
        code = "import time; a = time.perf_counter(); import ciml; print(time.perf_counter() - a)"
        import_s = min(float(run(python, "-c", code, folder=tmp_path)) for _ in range(5))
        size = sum(path.stat().st_size for path in (tmp_path / "env/lib").rglob("*") if path.is_file())
        figures = f"{size / 1e6:,.0f} MB | {took_s:.1f} s | {import_s * 1e3:.1f} ms"
        print(f"\nPython {version}, {resolution} | `ciml[{extra}]` | {figures} |")
    finally:
        shutil.rmtree(tmp_path / "env", ignore_errors=True)  # up to 3 GB each


def run_recorder_tests(python: Path) -> None:
    """Run the recorder's tests that need no engine, with a recorder of another Python."""
    files = [
        f"tests/recorder/test_{name}.py"
        for name in ("ci_environment", "transparent", "output", "lost_processes", "send")
    ]
    words = [sys.executable, "-m", "pytest", "-q", *files, "-m", "not engines and not bench and not interop"]
    env = {**os.environ, "CIML_RECORDER_PYTHON": str(python), "CIML_TESTS": "quick"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stdout[-5000:]


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


@pytest.mark.interop
@pytest.mark.parametrize("version", RECORDER_ONLY)
def test_another_command_names_the_python_it_needs(wheel: Path, tmp_path: Path, version: str) -> None:
    python = tmp_path / "env" / "bin" / "python"
    run(UV, "venv", "-q", "--python", interpreter(version), tmp_path / "env", folder=tmp_path)
    run(UV, "pip", "install", "-q", "--python", python, wheel, folder=tmp_path)
    error = f"needs Python 3.11 or newer, this is Python {version}; only ciml record runs on it"
    done = subprocess.run([python.with_name("ciml"), "runs"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"ciml: ciml runs {error}\n")
    code = "import ciml\ntry: ciml.open\nexcept ciml.CimlError as error: print(error)"
    assert run(python, "-c", code, folder=tmp_path) == f"the Python API of ciml {error}\n"


@pytest.mark.interop
def test_print_the_table() -> None:
    for extra in EXTRAS:
        cells = []
        for version in (*RECORDER_ONLY, *FULL):
            took = [_installed.get((version, extra, resolution)) for resolution in RESOLUTIONS]
            cells.append(", ".join("–" if seconds is None else f"{seconds:.1f} s" for seconds in took))
        print(f"| {f'`{extra}`' if extra else 'none'} | {' | '.join(cells)} |")
