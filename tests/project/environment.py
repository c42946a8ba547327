"""Environments that hold what an extra brings and nothing else: links to the packages that run the tests."""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import sys
import tomllib
import venv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements_of(extra: str) -> list[Requirement]:
    """What pyproject.toml asks for under an extra; "" for the base."""
    listed = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return [Requirement(each) for each in listed]


@functools.cache
def distributions_of(*extras: str) -> frozenset[str]:
    """The canonical names of all that ``ciml[extras]`` installs, ciml itself left out."""
    found: set[tuple[str, str]] = set()
    todo = [("ciml", extra) for extra in ("", *extras)]
    while todo:
        name, extra = one = todo.pop()
        if one in found:
            continue
        found.add(one)
        others = [] if name == "ciml" else importlib.metadata.requires(name) or []
        for each in requirements_of(extra) if name == "ciml" else map(Requirement, others):
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(each.name), more) for more in ("", *each.extras)]
    return frozenset(name for name, _ in found) - {"ciml"}


@functools.cache
def owners_of_modules() -> dict[str, set[str]]:
    """The top-level modules that are installed, and the canonical names of the distributions of each."""
    found = importlib.metadata.packages_distributions()
    return {module: {canonicalize_name(owner) for owner in owners} for module, owners in found.items()}


def modules_of(distributions: Iterable[str]) -> set[str]:
    """The top-level modules of distributions."""
    wanted = set(distributions)
    return {module for module, owners in owners_of_modules().items() if wanted & owners}


def make_environment(folder: Path, *extras: str) -> Path:
    """The path of a Python whose site-packages hold what ``ciml[extras]`` installs, and this checkout."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python3*/site-packages"))
    here = Path(next(entry for entry in sys.path if entry.endswith("site-packages")))
    _link("", distributions_of(*extras), here, site)
    (site / "ciml.pth").write_text(f"{ROOT}\n")
    return folder / "bin" / "python"


@functools.cache
def _owners() -> dict[str, set[str]]:
    """Files and folders of site-packages, and the distributions that have files there."""
    owners = defaultdict[str, set[str]](set)
    for one in importlib.metadata.distributions():
        name = canonicalize_name(one.name)  # parsed anew each time that it is asked for
        for path in _files(one):
            while path and name not in owners[path]:
                owners[path].add(name)
                path = path.rpartition("/")[0]
    return owners


def _files(distribution: importlib.metadata.Distribution) -> Iterator[str]:
    """The paths of a distribution's files. ``files`` makes an object of each, which takes seconds."""
    record = distribution.read_text("RECORD")
    return map(str, distribution.files or ()) if record is None else (row[0] for row in csv.reader(record.splitlines()))


def _link(part: str, wanted: frozenset[str], here: Path, site: Path) -> None:
    """Links what of a folder belongs to wanted distributions alone; a folder that others share is made and entered."""
    for entry in (here / part).iterdir():
        inner = f"{part}/{entry.name}" if part else entry.name
        owners = _owners().get(inner, set())
        if owners and owners <= wanted:
            (site / inner).symlink_to(entry)
        elif owners & wanted and entry.is_dir():
            (site / inner).mkdir(exist_ok=True)
            _link(inner, wanted, here, site)
