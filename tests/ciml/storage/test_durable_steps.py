"""The order of durable steps of a write to a folder: at a power cut, a file has its old or its new content, whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ciml.recorder.spool.folder import open_private
from ciml.storage import open_store
from ciml.storage.local import replace_file
from tests.durable import Disk

OLD, NEW = b"old", b"new content"
Write = Callable[[Path], object]


def write_in_spool(root: Path) -> None:
    root.chmod(0o700)
    with open_private(root) as folder:
        folder.write("file", NEW)


#: Steps by write: of a file that exists if the name says so.
WRITES: dict[str, tuple[bool, Write, list[str]]] = {
    "create in a new folder": (
        False,
        lambda root: open_store(root).create("a/b/file", NEW),
        [
            "create a/", "sync ./", "create a/b/", "sync a/",
            "sync a/b/.staging-*", "create a/b/file", "delete a/b/.staging-*", "sync a/b/",
        ],
    ),
    "create what another writer has not synced yet": (
        True,
        lambda root: open_store(root).create("file", NEW),
        ["sync ./"],
    ),
    "replace": (
        True,
        lambda root: open_store(root).replace("file", NEW),
        ["sync .staging-*", "rename .staging-* to file", "sync ./"],
    ),
    "delete": (True, lambda root: open_store(root).delete("file"), ["delete file"]),
    "replace a state file": (
        True,
        lambda root: replace_file(root / "file", NEW),
        ["sync .staging-*", "rename .staging-* to file"],
    ),
    "create a state file": (
        False,
        lambda root: replace_file(root / "file", NEW, exclusively=True),
        ["sync .staging-*", "create file", "delete .staging-*"],
    ),
    "replace a file of the spool": (True, write_in_spool, ["sync file.new", "rename file.new to file"]),
}  # fmt: skip


def written(folder: Path, name: str, before: int | None = None, *, keeps_names: bool = False) -> Disk:
    exists, write, _ = WRITES[name]
    root = folder / f"{before}-{keeps_names}"
    root.mkdir()
    if exists:
        (root / "file").write_bytes(OLD)
    with Disk(root, before, keeps_names=keeps_names).recording() as disk:
        write(root)
    return disk


@pytest.mark.parametrize("name", WRITES)
def test_steps_of_a_write(tmp_path: Path, name: str) -> None:
    assert written(tmp_path, name).steps == WRITES[name][2]


@pytest.mark.parametrize("keeps_names", [False, True], ids=["names lost", "names kept"])
@pytest.mark.parametrize("name", WRITES)
def test_a_power_cut_before_each_step(tmp_path: Path, name: str, keeps_names: bool) -> None:
    for before in range(len(WRITES[name][2])):
        disk = written(tmp_path, name, before, keeps_names=keeps_names)
        files = [file for file in disk.root.rglob("file") if file.is_file()]
        assert [file.read_bytes() for file in files] in ([], [OLD], [NEW])
        assert files or name.startswith(("create", "delete"))  # an existing file is never lost


@pytest.mark.parametrize("name", ["create in a new folder", "create what another writer has not synced yet", "replace"])
def test_what_a_store_has_written_survives_a_power_cut(tmp_path: Path, name: str) -> None:
    disk = written(tmp_path, name)
    before = {file: file.read_bytes() for file in disk.root.rglob("*") if file.is_file()}
    disk.lose_unsynced()
    assert {file: file.read_bytes() for file in disk.root.rglob("*") if file.is_file()} == before
