"""The build, also of what Beam workers are staged with (``--setup_file``): the commit, and the same bytes each time.

All that is said of the package stands in pyproject.toml. Wheels and sdists have the file ``ciml/commit.txt``, where the
commit is known. With ``SOURCE_DATE_EPOCH``, two builds of the same files give the same bytes.
"""

from __future__ import annotations

import gzip
import os
import runpy
import tarfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent
VERSION = runpy.run_path(str(HERE / "ciml" / "version.py"))


def write_commit(package: Path) -> None:
    """Write the commit into a built package ``ciml``: that of the checkout, or of the sdist that is built here."""
    known = VERSION["stored_commit"](HERE / "ciml") or VERSION["checkout_commit"](HERE)
    if known is not None:
        file = package / VERSION["COMMIT_FILE"]
        file.unlink(missing_ok=True)  # it may be a link to a file of the checkout
        file.write_text(f"{known}\n")


class BuildPackages(build_py):
    """Copies the packages, and adds the commit."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            write_commit(Path(self.build_lib) / "ciml")


class Sdist(sdist):
    """Writes an archive that depends on the names and bytes of its files alone, and on ``SOURCE_DATE_EPOCH``."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        write_commit(Path(base_dir) / "ciml")

    def make_archive(
        self,
        base_name: str,
        format: str,
        root_dir: str | None = None,
        base_dir: str | None = None,
        owner: str | None = None,
        group: str | None = None,
    ) -> str:
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch is None or format != "gztar" or base_dir is None:
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)
        target = Path(f"{base_name}.tar.gz")
        with (
            target.open("wb") as file,
            gzip.GzipFile("", "wb", 9, file, mtime=int(epoch)) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            tree = Path(root_dir or ".", base_dir)
            for path in sorted([tree, *tree.rglob("*")]):
                entry = archive.gettarinfo(path, str(path.relative_to(root_dir or ".")))
                entry.uid = entry.gid = 0
                entry.uname = entry.gname = ""
                entry.mtime = int(epoch)
                entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
                if entry.isreg():
                    with path.open("rb") as content:
                        archive.addfile(entry, content)
                else:
                    archive.addfile(entry)
        return str(target)


setup(cmdclass={"build_py": BuildPackages, "sdist": Sdist})
