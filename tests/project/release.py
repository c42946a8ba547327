"""Builds a release: wheel and sdist of a commit, checked. ``make dist`` and ``make release`` run it.

The commit is cloned first, so uncommitted changes and leftovers of earlier builds are in neither. docs/releases.md is
the how-to.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import yaml
from packaging.metadata import Metadata

from ciml.version import __version__, checkout_commit
from tests.project.test_rooms import FOLDERS, ROOMS, ROOT, installed

UV = Path(sys.executable).with_name("uv")
#: Files of an sdist beside the packages. setuptools writes the others.
TOP = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "SECURITY.md", "pyproject.toml", "setup.py"}
WRITTEN = {"PKG-INFO", "setup.cfg"}


def git(*words: str, folder: Path = ROOT) -> str:
    """Return what git prints."""
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def clone(target: Path, root: Path = ROOT) -> Path:
    """Clone the commit that is checked out."""
    head = git("rev-parse", "HEAD", folder=root)
    git("clone", "--quiet", "--shared", "--no-checkout", str(root), str(target))
    git("-c", "advice.detachedHead=false", "checkout", "--quiet", head, folder=target)
    return target


def copy_of_checkout(source: Path) -> Path:
    """Copy the tracked files as they are now, so that building leaves nothing in the checkout; without examples."""
    for name in git("ls-files").splitlines():
        if (ROOT / name).exists() and not name.startswith(("examples/", "tests/golden/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    return source


def build(source: Path, out: Path, epoch: int) -> tuple[Path, Path]:
    """Build the sdist of a source tree, and the wheel of that sdist.

    Args:
      source: the tree. It gets setuptools' own folders.
      out: the folder for both files.
      epoch: time of all files in them, seconds.

    Returns:
      The wheel and the sdist.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["SOURCE_DATE_EPOCH"] = str(epoch)
    words = [UV, "build", "--quiet", "--no-build-isolation", "--python", sys.executable, "--out-dir", out, source]
    done = subprocess.run(words, env=env, umask=0o022, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"uv build: {done.stderr[-2000:]}")
    (wheel,), (sdist,) = out.glob("ciml-*.whl"), out.glob("ciml-*.tar.gz")
    return wheel, sdist


def names_of(archive: Path) -> set[str]:
    """Return the names of all files of a wheel or an sdist, without the sdist's own folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return set(wheel.namelist())
    with tarfile.open(archive) as sdist:
        return {each.name.partition("/")[2] for each in sdist if each.isfile()}


def content_faults(wheel: Path, sdist: Path, tracked: set[str]) -> Iterator[str]:
    """Yield differences between what is built and the tracked files, a line each.

    Args:
      wheel, sdist: what was built.
      tracked: paths of all files of the commit.
    """
    ours = {installed(path) for path in tracked if path.partition("/")[0] in FOLDERS} - {
        f"ciml/{room}" for room in ROOMS
    }
    ours.add("ciml/commit.txt")
    of_wheel = {name for name in names_of(wheel) if ".dist-info/" not in name}
    yield from (f"{wheel.name} lacks {name}" for name in sorted(ours - of_wheel))
    yield from (f"{wheel.name} has {name}, which is not tracked" for name in sorted(of_wheel - ours))
    of_sdist = {name for name in names_of(sdist) if not name.startswith("ciml.egg-info/")}
    yield from (f"{sdist.name} lacks {name}" for name in sorted((ours | TOP) - of_sdist))
    yield from (f"{sdist.name} has {name}" for name in sorted(of_sdist - ours - TOP - WRITTEN))


def metadata_faults(wheel: Path, sdist: Path, version: str = __version__) -> Iterator[str]:
    """Yield what an index would reject, or would not show, in the metadata of both; a line each."""
    texts: list[bytes] = []
    with zipfile.ZipFile(wheel) as archive:
        texts.append(archive.read(f"ciml-{version}.dist-info/METADATA"))
    with tarfile.open(sdist) as archive_of_source:
        file = archive_of_source.extractfile(f"ciml-{version}/PKG-INFO")
        texts.append(file.read() if file else b"")
    for where, text in zip((wheel.name, sdist.name), texts, strict=True):
        try:
            found = Metadata.from_email(text, validate=True)
        except ExceptionGroup as errors:
            yield from (f"{where}: {error}" for error in errors.exceptions)
            continue
        if (found.name, str(found.version)) != ("ciml", version):
            yield f"{where}: is {found.name} {found.version}"
        if found.description_content_type != "text/markdown" or not (found.description or "").startswith("# "):
            yield f"{where}: has no description in Markdown"
        if found.license_expression != "Apache-2.0" or found.license_files != ["LICENSE"]:
            yield f"{where}: does not name its licence"
        for name in ("summary", "requires_python", "provides_extra"):
            if not getattr(found, name):
                yield f"{where}: has no {name}"
    first, second = ({key: each.get_all(key) for key in each} for each in map(email.message_from_bytes, texts))
    if first != second:
        yield f"{wheel.name} and {sdist.name} differ in their metadata"


def release_faults(root: Path = ROOT, version: str = __version__) -> Iterator[str]:
    """Yield what is still to do before the commit that is checked out is a release, a line each."""
    if not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", version):
        yield f"ciml/version.py: {version} is not a version MAJOR.MINOR.PATCH"
    log = (root / "CHANGELOG.md").read_text()
    sections = re.findall(r"^## \[([^\]]+)\](.*)$", log, re.M)
    if not sections or sections[0][0] != "Unreleased":
        yield "CHANGELOG.md: the first section is not [Unreleased]"
    if not any(name == version and re.fullmatch(r" - \d{4}-\d{2}-\d{2}", rest) for name, rest in sections[1:2]):
        yield f"CHANGELOG.md: the second section is not '## [{version}] - YYYY-MM-DD'"
    elif log.split("\n## [")[1].partition("\n")[2].strip():
        yield "CHANGELOG.md: [Unreleased] has entries; move them to the section of the version"
    chart = yaml.safe_load((root / "deploy/helm/ciml/Chart.yaml").read_text())
    if (chart["version"], chart["appVersion"]) != (version, version):
        yield f"deploy/helm/ciml/Chart.yaml: version and appVersion are not {version}"
    if f"v{version}" not in git("tag", "--points-at", "HEAD", folder=root).split():
        yield f"git: the commit has no tag v{version}"
    if (checkout_commit(root) or "-dirty").endswith("-dirty"):
        yield "git: tracked files are changed, or this is no checkout"


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path), default=Path("dist"))
@click.option("--release", "strict", is_flag=True, help="Fail unless the commit is a release.")
def main(out: Path, strict: bool) -> None:
    """Build wheel and sdist of HEAD into OUT, and check them."""
    todo = list(release_faults())
    for line in todo:
        click.echo(f"{'BROKEN' if strict else 'not a release yet:'} {line}")
    if strict and todo:
        raise SystemExit(4)
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("ciml-*.whl"), *out.glob("ciml-*.tar.gz")]:
        old.unlink()
    with tempfile.TemporaryDirectory(prefix="ciml-release-") as folder:
        source = clone(Path(folder) / "source")
        epoch = int(git("show", "-s", "--format=%ct", folder=source))
        wheel, sdist = build(source, out.absolute(), epoch)
        tracked = set(git("ls-files", folder=source).splitlines())
    faults = [*content_faults(wheel, sdist, tracked), *metadata_faults(wheel, sdist)]
    for line in faults:
        click.echo(f"BROKEN {line}")
    for each in (wheel, sdist):
        click.echo(f"{each}: {each.stat().st_size:,} bytes")
    raise SystemExit(4 if faults else 0)


if __name__ == "__main__":
    main()
