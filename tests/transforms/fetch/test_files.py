"""Files: what is below a root is read, whatever links lead to it; of what is outside nothing can be learned."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from unittest import mock

import pytest

from ciml.errors import RejectedInput
from ciml.transforms.fetch.files import open_below
from ciml.transforms.fetch.policy import FetchPolicy
from tests.transforms.fetch.fetching import only, run
from tests.transforms.fetch.log_server import LOG

OUTSIDE = ("dead_letter", "address_not_allowed", "the file is not below an allowed root")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with two roots, and beside them each kind of thing that an address might ask for."""
    for name in ("root/in/deep", "second", "outside/folder", "root-not"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("root/in/log", "second/log"):
        (tmp_path / name).write_bytes(gzip.compress(LOG))
    for name in ("outside/file", "root-not/log", "outside/closed"):
        (tmp_path / name).write_bytes(b"secret")
    (tmp_path / "outside" / "closed").chmod(0)
    os.mkfifo(tmp_path / "outside" / "pipe")
    (tmp_path / "outside" / "loop").symlink_to("loop")
    (tmp_path / "outside" / "back").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "away").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "up").symlink_to("../outside")
    return tmp_path


def answers(policy: FetchPolicy, urls: list[str]) -> set[tuple[str, str, str]]:
    logs, settled = run(policy, *urls)
    assert logs == []
    assert len(settled) == len(urls)
    return {(each.kind, each.reason, each.detail) for each in settled}


NAMES = ["file", "none", "folder", "folder/none", "file/none", "closed", "pipe", "loop", "loop/x", "x" * 300, ""]


@pytest.mark.parametrize(
    "way",
    [
        "{outside}",
        "{root}-not",
        "{root}/../outside",
        "{root}/in/../../outside",
        "{root}/away",
        "{root}/up",
        "{root}/in/deep/../../up",
        "{root}/away/../outside",
    ],
)
def test_outside_of_the_roots_every_answer_is_the_same(place: Path, way: str) -> None:
    policy = FetchPolicy(file_roots=(str(place / "root"), str(place / "second")))
    start = way.format(outside=place / "outside", root=place / "root")
    assert answers(policy, [f"{start}/{name}" for name in NAMES]) == {OUTSIDE}
    assert answers(policy, [f"file://{start}/{name}".replace("..", "%2e%2e") for name in NAMES]) == {OUTSIDE}


def test_a_path_outside_is_never_looked_at(place: Path) -> None:
    roots = FetchPolicy(file_roots=(str(place / "root"),)).resolved_roots
    looked: list[str] = []
    real = {name: getattr(os, name) for name in ("open", "stat", "lstat", "readlink")}

    def watch(name: str) -> mock.Mock:
        def call(path: object, *args: object, **keys: object) -> object:
            looked.append(str(path))
            return real[name](path, *args, **keys)

        return mock.Mock(side_effect=call)

    with mock.patch.multiple(os, **{name: watch(name) for name in real}):
        for path in ("/etc/shadow", f"{place}/outside/back/in/log", f"{place}/root/../outside/file",
                     f"{place}/root/away/file", f"{place}/root/up/folder/x"):  # fmt: skip
            with pytest.raises(RejectedInput):
                open_below(roots, path)
    assert looked
    assert set(looked) <= {f"{place}/root", "away", "up"}


def test_links_and_dots_within_the_roots_lead_to_the_log(place: Path) -> None:
    root, second = place / "root", place / "second"
    (root / "near").symlink_to("in/log")
    (root / "folder").symlink_to("in")
    (root / "full").symlink_to(root / "in")
    (root / "other").symlink_to(second)
    (root / "round").symlink_to("../second/log")
    (root / "in" / "chain").symlink_to("../near")
    (place / "alias").symlink_to(root)
    policy = FetchPolicy(file_roots=(str(place / "alias"), str(second)))
    good = [
        f"{root}/in/log", f"{root}//in/./log", f"{root}/in/../in/log", f"{root}/in/deep/../log", f"{root}/near",
        f"{root}/folder/log", f"{root}/full/log", f"{root}/full/../in/log", f"{root}/other/log", f"{root}/round",
        f"{root}/in/chain", f"{root}/../second/log", f"{place}/alias/in/log", f"file://{place}/alias/folder/log",
        f"{root}/other/../root/in/log",
    ]  # fmt: skip
    assert run(policy, *good) == ([LOG] * len(good), [])


def test_a_root_may_be_the_whole_file_system_or_within_another(place: Path) -> None:
    assert run(FetchPolicy(file_roots=("/",)), f"{place}/root/in/log", f"{place}/outside/back/in/log")[0] == [LOG] * 2
    both = FetchPolicy(file_roots=(str(place), str(place / "root" / "in" / "deep")))
    assert run(both, f"{place}/root/in/log", f"{place}/root/in/deep/../log")[0] == [LOG] * 2


def test_within_a_root_a_fault_has_its_reason(place: Path) -> None:
    root = place / "root"
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    policy = FetchPolicy(file_roots=(str(root), str(place / "gone")))
    expected = {
        f"{root}/none": ("deferred", "log_not_found"),
        f"{root}/none/../in/log": ("deferred", "log_not_found"),
        f"{root}/in/log/none": ("deferred", "log_not_found"),
        f"{place}/gone/log": ("deferred", "log_not_found"),
        f"{root}/loop": ("deferred", "log_unavailable"),
        f"{root}/pipe": ("dead_letter", "address_not_allowed"),
        f"{root}/in": ("dead_letter", "address_not_allowed"),
        f"{root}": ("dead_letter", "address_not_allowed"),
        f"{root}/{'x' * 300}": ("dead_letter", "bad_address"),
        f"{root}/{'in/../' * 1000}in/log": ("dead_letter", "bad_address"),
    }
    for url, answer in expected.items():
        assert only(run(policy, url)[1]) == answer, url


def test_no_handle_is_left_open(place: Path) -> None:
    policy = FetchPolicy(file_roots=(str(place / "root"),), threads=1)
    paths = [f"{place}/root/in/log", f"{place}/root/in/deep/../../in/log", f"{place}/root/away/file", f"{place}/none"]
    run(policy, *paths)
    assert [path for path in opened() if path.startswith(str(place))] == []


def opened() -> list[str]:
    """The paths that this process has open; it may close handles of other tests at any moment."""
    handles = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return [os.readlink(each) for each in handles if os.path.lexists(each)]
