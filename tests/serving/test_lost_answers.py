"""A stored PUT whose answer is lost is retried and answered 412: its creator is still known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.manifest.log import ManifestLog, commit
from ciml.serving import push as module
from ciml.serving.push import push, verify_versions
from ciml.serving.registry import Decision, Registry
from ciml.storage import Store, open_store
from tests.faults.s3_shim import Shim, Weather

pytestmark = pytest.mark.engines


class Lossy(Shim):
    """Answers the next PUTs with the faults of ``script``, or every other one with ``every``; the rest succeeds.

    ``before`` runs ahead of each PUT that meets a fault of the script.
    """

    def __init__(self, endpoint: str) -> None:
        self.script: list[str] = []
        self.every = ""
        self._turn = False
        self.before: Callable[[], object] = lambda: None
        super().__init__(endpoint, 0, Weather(0.0))

    def _fault(self, verb: str) -> str:
        if verb != "PUT":
            return ""
        if self.every:
            self._turn = not self._turn
            return self.every if self._turn else ""
        if not self.script:
            return ""
        self.before()
        return self.script.pop(0)


@pytest.fixture
def lossy(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lossy]:
    shim = Lossy(s3.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", shim.url)
    yield shim
    shim.close()


@pytest.fixture
def root(s3: Any) -> str:
    return f"{s3.bucket()}/data"


LOST = ["500 after", "503 after", "reset after"]


@pytest.mark.parametrize("fault", LOST)
def test_create_knows_its_own_object(lossy: Lossy, root: str, fault: str) -> None:
    store = open_store(root)
    lossy.script = [fault]
    assert store.create("a/b", b"mine")
    lossy.script = [fault, fault]
    assert store.create("a/c", b"mine")
    assert lossy.script == []
    assert not store.create("a/b", b"mine")  # this call created nothing, with the same bytes or not
    lossy.script = ["500"]
    assert not store.create("a/b", b"mine")
    assert store.read("a/b") == b"mine"


@pytest.mark.parametrize("content", [b"mine", b"another's"])
def test_create_knows_what_another_created_meanwhile(lossy: Lossy, s3: Any, root: str, content: bytes) -> None:
    import boto3

    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    direct = boto3.client("s3", endpoint_url=s3.endpoint)
    lossy.script = ["500"]
    lossy.before = lambda: direct.put_object(Bucket=bucket, Key=f"{prefix}/x", Body=content)
    store = open_store(root)
    assert not store.create("x", b"mine")
    assert lossy.script == []
    assert store.read("x") == content


class Taken:
    """Collects the numbers taken, one per delta."""

    def __init__(self) -> None:
        self.version = 0
        self.names: list[str] = []

    def apply(self, version: int, delta: dict[str, Any]) -> None:
        self.version = version
        self.names.append(delta["name"])


@pytest.mark.parametrize("fault", LOST)
def test_commits_are_made_once(lossy: Lossy, root: str, fault: str) -> None:
    log, state = ManifestLog(open_store(root)), Taken()
    lossy.every = fault
    for number in range(4):
        assert commit(log, state, lambda number=number: {"name": f"n{number}"}) == number + 1  # type: ignore[misc]
    assert state.names == [delta["name"] for _, delta in log.since(0)] == ["n0", "n1", "n2", "n3"]


@pytest.mark.parametrize("fault", LOST)
def test_push_whose_answers_are_lost(lossy: Lossy, root: str, good: dict[int, Path], fault: str) -> None:
    """Each PUT is stored, and answered only when it is sent again."""
    data = DataRoot.open(root)
    lossy.every = fault
    for seed in (1, 2):
        assert push(data, "m", open_store(good[seed]), Decision(True), check=False).version == seed
    assert verify_versions(data, "m") == {1: "", 2: ""}
    assert Registry(data, "m").state.labels == {"stable": 2}


def test_two_pushers_of_one_moment_take_two_numbers(tmp_path: Path, good: dict[int, Path]) -> None:
    """Their deltas differ only in the pusher."""

    def registry() -> Registry:
        return Registry(DataRoot.open(tmp_path), "m", now_us=lambda: 1_000_000)

    first, second = registry(), registry()
    candidate = first.record_candidate(open_store(good[1]))
    assert second.state.version == first.state.version
    taken: list[int] = []
    real_listing = module.list_versions

    def meanwhile(base: Store, *, real: bool = True) -> list[int]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "list_versions", real_listing)
            if not taken:
                taken.append(module._take_number(first, candidate.id))
        return real_listing(base, real=real)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "list_versions", meanwhile)
        taken.append(module._take_number(second, candidate.id))
    assert taken == [1, 2]
    assert sorted(first.state.versions) == [1, 2]
