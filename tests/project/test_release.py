"""Wheel and sdist: the same bytes each time, the tracked files, valid metadata, and the commit in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from ciml.version import __version__, checkout_commit, stored_commit
from tests.project.release import (
    WRITTEN,
    build,
    content_faults,
    copy_of_checkout,
    git,
    metadata_faults,
    names_of,
    release_faults,
)
from tests.project.test_rooms import ROOT

EPOCH = 1_790_000_000


def repository(folder: Path) -> Path:
    """A repository with the tracked files of this checkout, as they are now."""
    copy_of_checkout(folder)
    git("init", "--quiet", "--initial-branch=main", folder=folder)
    git("add", "--all", folder=folder)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    git(*identity, "commit", "--quiet", "-m", "all", folder=folder)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(repository, wheel, sdist)"""
    work = tmp_path_factory.mktemp("release")
    source = repository(work / "source")
    return source, *build(source, work / "out", EPOCH)


def tracked(source: Path) -> set[str]:
    return set(git("ls-files", folder=source).splitlines())


@pytest.mark.whole
def test_two_builds_give_the_same_bytes(built: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The second has another path, other times, and what setuptools left in it."""
    source, *first = built
    other = shutil.copytree(source, tmp_path / "other" / "place", symlinks=True)
    for path in other.rglob("*"):
        os.utime(path, (time.time(), 1_000_000_000 + len(path.name)))
    second = build(other, tmp_path / "out", EPOCH)
    assert [each.name for each in second] == [each.name for each in first]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name


@pytest.mark.whole
def test_they_hold_the_tracked_files_and_no_others(built: tuple[Path, Path, Path], tmp_path: Path) -> None:
    source, wheel, sdist = built
    assert list(content_faults(wheel, sdist, tracked(source))) == []
    assert names_of(sdist) >= WRITTEN
    broken = Path(shutil.copy(wheel, tmp_path))
    with zipfile.ZipFile(broken, "a") as archive:
        archive.writestr("ciml/secret.key", "x")
    wanted = {*tracked(source), "services/new.toml"}
    assert list(content_faults(broken, sdist, wanted)) == [
        f"{wheel.name} lacks ciml/services/new.toml",
        f"{wheel.name} has ciml/secret.key, which is not tracked",
        f"{sdist.name} lacks ciml/services/new.toml",
    ]


@pytest.mark.whole
def test_their_metadata_is_valid(built: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, wheel, sdist = built
    assert list(metadata_faults(wheel, sdist)) == []
    broken = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(broken, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("/METADATA"):
                data = re.sub(rb"(?m)^Requires-Python: .*$", b"Requires-Python: some", data)
            new.writestr(name, data)
    found = list(metadata_faults(broken, sdist))
    assert len(found) == 2, found
    assert "requires-python" in found[0]
    assert found[1].endswith("differ in their metadata")


def version_of(tree: Path, **environment: str) -> str:
    """What ``ciml --version`` prints for a tree of the packages."""
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    words = [sys.executable, "-m", "ciml", "--version"]
    return subprocess.run(words, cwd=tree, env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.whole
def test_an_installed_ciml_knows_its_commit_without_git(built: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The wheel was built of the sdist alone, where git knows nothing."""
    source, wheel, _ = built
    commit = git("rev-parse", "HEAD", folder=source)
    tree = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tree)
    assert (tree / "ciml" / "commit.txt").read_text() == f"{commit}\n"
    assert version_of(tree, PATH="") == f"ciml {__version__} ({commit[:12]})\n"


def test_a_checkout_asks_git_and_never_fails(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("ciml", "cli"):
        unversioned = shutil.ignore_patterns("__pycache__", "commit.txt")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=unversioned)
    assert version_of(tree) == f"ciml {__version__}\n"
    git("init", "--quiet", folder=tree)
    assert version_of(tree) == f"ciml {__version__}\n"  # without a commit
    git("add", "--all", folder=tree)
    git("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", "all", folder=tree)
    commit = git("rev-parse", "HEAD", folder=tree)
    assert version_of(tree, GIT_DIR="/nowhere") == f"ciml {__version__} ({commit[:12]})\n"
    assert version_of(tree, PATH="") == f"ciml {__version__}\n"
    (tree / "ciml" / "errors.py").write_text((tree / "ciml" / "errors.py").read_text() + "\n")
    assert version_of(tree) == f"ciml {__version__} ({commit[:12]}, modified)\n"
    assert checkout_commit(tree) == f"{commit}-dirty"
    assert checkout_commit(tree / "ciml") is None  # its folders are no checkouts: site-packages below a repository
    (tree / "ciml" / "commit.txt").write_text("not a commit\n")
    assert stored_commit(tree / "ciml") is None
    (tree / "ciml" / "commit.txt").write_bytes(b"\xff" * 40)
    assert stored_commit(tree / "ciml") is None


def test_help_starts_no_git(tmp_path: Path) -> None:
    (tmp_path / "git").write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    (tmp_path / "git").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for words, asked in ((["--help"], False), (["--version"], True)):
        subprocess.run([sys.executable, "-m", "ciml", *words], cwd=ROOT, env=env, check=True, capture_output=True)
        assert (tmp_path / "asked").exists() == (asked and (ROOT / ".git").exists()), words


def test_a_release_needs_a_tag_a_section_and_equal_versions(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deploy/helm/ciml").mkdir(parents=True)
    chart = "version: 1.2.3\nappVersion: 1.2.3\n"
    (source / "deploy/helm/ciml/Chart.yaml").write_text(chart)
    log = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-11-27\n\n### Added\n- A thing.\n"
    (source / "CHANGELOG.md").write_text(log)
    git("init", "--quiet", folder=source)
    git("add", "--all", folder=source)
    git("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", "all", folder=source)
    git("tag", "v1.2.3", folder=source)
    assert list(release_faults(source, "1.2.3")) == []
    assert [line.partition(":")[0] for line in release_faults(source, "1.2.4")] == [
        "CHANGELOG.md", "deploy/helm/ciml/Chart.yaml", "git"
    ]  # fmt: skip
    for old, new in (("\n## [1.2.3]", "- More.\n\n## [1.2.3]"), (" - 2026-11-27", ""), ("[Unreleased]", "[Next]")):
        (source / "CHANGELOG.md").write_text(log.replace(old, new))
        found = [line.partition(":")[0] for line in release_faults(source, "1.2.3")]
        assert found == ["CHANGELOG.md", "git"], new
    (source / "CHANGELOG.md").write_text(log)
    git("tag", "--delete", "v1.2.3", folder=source)
    assert list(release_faults(source, "1.2.3")) == ["git: the commit has no tag v1.2.3"]


def test_the_version_is_the_same_everywhere() -> None:
    """Whatever names a version of ciml's own images or packages."""
    files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file() and path.suffix in (".yaml", ".md", "")]
    text = "".join(path.read_text() for path in [*files, *(ROOT / "docs").glob("*.md")])
    tags = re.findall(r"\bciml/(?:worker|recorder|services|serve|train|flink|jobserver):([0-9][\w.]*\w)", text)
    assert tags
    assert set(tags) == {__version__}
