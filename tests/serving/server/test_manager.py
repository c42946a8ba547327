"""The manager: the states that TensorFlow Serving's clients read, also while a load fails, is retried, or is slow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from ciml.errors import EngineError, IntegrityError
from ciml.http.intake import RequestError
from ciml.serving.model_files import ModelEntry
from ciml.serving.server import manager as manager_module
from ciml.serving.server.manager import ModelChoice, ModelManager, VersionStatus
from ciml.storage import Store


class Loaded:
    """A version that answers no call."""

    loaded_at = 0.0

    def __init__(self, source: str) -> None:
        self.source = source
        self.ended = False
        self.closed = False

    def close(self, wait_s: float = 0.0) -> None:
        self.closed = True


class Loads:
    """Loads versions, or raises ``failure``.

    Attributes:
      states: the state of version 1 of model m during each load.
      outcomes: of the loads, as the manager reports them.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.states: list[str] = []
        self.outcomes: list[str] = []
        self.now_s = 0.0
        self.manager = ModelManager(load=self, clock=lambda: self.now_s, on_load=self._count)  # type: ignore[arg-type]

    def __call__(self, folder: Store, verify: Any) -> Loaded:
        self.states.append(self.manager.status(ModelChoice("m", 1))[0].state)
        if self.failure is not None:
            raise self.failure
        return Loaded(folder.root)

    def _count(self, model: str, outcome: str, seconds: float) -> None:
        self.outcomes.append(outcome)

    def serve(self, base: Path) -> VersionStatus:
        self.manager.apply([ModelEntry("m", str(base), versions=(1,), labels={"stable": 1})])
        return self.step()

    def step(self) -> VersionStatus:
        self.now_s += 100
        self.manager.step()
        return self.manager.status(ModelChoice("m", 1))[0]


AWAY = OSError("the disk is away")


def manager_of(load: Callable[[str], Loaded], **more: Any) -> ModelManager:
    """A manager whose versions are loaded by the path of their folder."""
    return ModelManager(load=lambda folder, verify: load(folder.root), **more)  # type: ignore[arg-type,return-value]


def serve(manager: ModelManager, base: Path, *versions: int, wait: bool = True, **more: Any) -> None:
    """Configure versions of the model m, and step."""
    manager.apply([ModelEntry("m", str(base), versions=versions, **more)])
    manager.step(wait=wait)


def states(manager: ModelManager) -> list[tuple[int, str]]:
    return [(status.version, status.state) for status in manager.status(ModelChoice("m"))]


def test_a_retry_leaves_the_state_as_it_is_until_it_succeeds(tmp_path: Path) -> None:
    loads = Loads()
    loads.failure = AWAY
    failed = VersionStatus(1, "END", "UNAVAILABLE", "the disk is away")
    assert [loads.serve(tmp_path), loads.step(), loads.serve(tmp_path)] == [failed] * 3
    assert loads.states == ["LOADING", "END", "END"]
    loads.failure = None
    assert loads.step() == VersionStatus(1, "AVAILABLE")


def test_a_version_of_another_folder_is_loaded_anew(tmp_path: Path) -> None:
    loads = Loads()
    loads.failure = AWAY
    loads.serve(tmp_path / "a")
    loads.serve(tmp_path / "b")
    assert loads.states == ["LOADING", "LOADING"]


def test_a_version_is_available_while_its_reload_runs_and_after_it_failed(tmp_path: Path) -> None:
    loads = Loads()
    assert loads.serve(tmp_path / "a") == VersionStatus(1, "AVAILABLE")
    loads.failure = IntegrityError("it is corrupt")
    assert loads.serve(tmp_path / "b") == VersionStatus(1, "AVAILABLE", "DATA_LOSS", "it is corrupt")
    assert loads.manager.find(ModelChoice("m", label="stable"))[1].source == str(tmp_path / "a" / "1")
    loads.failure = None
    assert loads.serve(tmp_path / "b") == VersionStatus(1, "AVAILABLE")
    assert loads.manager.find(ModelChoice("m", label="stable"))[1].source == str(tmp_path / "b" / "1")
    assert loads.states == ["LOADING", "AVAILABLE", "AVAILABLE"]


def test_a_version_whose_process_ended_is_loading_again(tmp_path: Path) -> None:
    loads = Loads()
    loads.serve(tmp_path)
    loads.manager.find(ModelChoice("m"))[1].ended = True  # type: ignore[misc]
    loads.failure = AWAY
    assert loads.step().state == "END"
    assert loads.states == ["LOADING", "LOADING"]


def test_without_a_version_the_highest_one_whose_process_lives_answers(tmp_path: Path) -> None:
    manager = manager_of(Loaded)
    serve(manager, tmp_path, 1, 2, labels={"canary": 2})
    answers = [manager.find(ModelChoice("m"))[0]]
    for number in (2, 1):
        manager.find(ModelChoice("m", number))[1].ended = True  # type: ignore[misc]
        answers.append(manager.find(ModelChoice("m"))[0])
    assert answers == [2, 1, 2]
    assert manager.find(ModelChoice("m", label="canary"))[0] == 2  # a label names a version


@pytest.mark.parametrize(
    ("failure", "code", "outcome"),
    [
        (EngineError("loading takes longer than 120 s"), "UNAVAILABLE", "failed"),
        (IntegrityError("an operation is not allowed"), "DATA_LOSS", "refused"),
        (FileNotFoundError("no model"), "NOT_FOUND", "failed"),
        (RuntimeError("defect"), "UNKNOWN", "failed"),
    ],
)
def test_only_a_version_that_may_not_be_served_is_refused(
    tmp_path: Path, failure: Exception, code: str, outcome: str
) -> None:
    loads = Loads()
    loads.failure = failure
    assert loads.serve(tmp_path) == VersionStatus(1, "END", code, str(failure))
    assert loads.outcomes == [outcome]


@pytest.mark.parametrize(
    ("took_s", "begun_s"),
    [
        (0.0, [0, 1, 3, 7, 15, 31, 63, 123, 183]),  # after 1, 2, 4 … 60 s
        (0.5, [0, 6, 12, 18, 27, 44, 77, 138, 199]),  # and at least ten times as long as the load took
    ],
)
def test_a_failed_load_is_repeated_ever_later(tmp_path: Path, took_s: float, begun_s: list[int]) -> None:
    now_s = [0.0]
    tries_s: list[float] = []

    def load(folder: str) -> Loaded:
        tries_s.append(now_s[0])
        now_s[0] += took_s
        raise AWAY

    manager = manager_of(load, clock=lambda: now_s[0])
    manager.apply([ModelEntry("m", str(tmp_path), versions=(1,))])
    for second in range(200):
        now_s[0] = float(second)
        manager.step()
    assert tries_s == begun_s
    assert not manager.ready
    serve(manager, tmp_path, 1)
    assert len(tries_s) == len(begun_s) + 1  # another configuration is tried immediately


@pytest.mark.parametrize(
    ("failing", "labels"),
    [(set(), {"stable": 3, "canary": 4}), ({3}, {"stable": 2, "canary": 4}), ({3, 4}, {"stable": 2, "canary": 2})],
)
def test_a_label_without_a_version_falls_back_to_the_highest_below_once_its_own_has_failed(
    tmp_path: Path, failing: set[int], labels: dict[str, int]
) -> None:
    labels_during: dict[int, dict[str, int]] = {}

    def load(folder: str) -> Loaded:
        number = int(Path(folder).name)
        labels_during[number] = manager.labels("m")
        if number in failing:
            raise AWAY
        return Loaded(folder)

    manager = manager_of(load)
    serve(manager, tmp_path, 1, 2)
    serve(manager, tmp_path, 1, 2, 3, 4, labels={"stable": 3, "canary": 4})
    assert manager.labels("m") == labels
    assert "stable" not in labels_during[3]


@pytest.mark.parametrize(
    ("withdrawn", "labels", "available"), [((), {"stable": 2}, [1, 2]), ((2,), {"stable": 1}, [1]), ((1, 2), {}, [])]
)
def test_a_withdrawn_version_is_not_served_instead_of_one_that_cannot_be_loaded(
    tmp_path: Path, withdrawn: tuple[int, ...], labels: dict[str, int], available: list[int]
) -> None:
    def load(folder: str) -> Loaded:
        if folder.endswith("3"):
            raise IntegrityError("it is corrupt")
        return Loaded(folder)

    manager = manager_of(load)
    serve(manager, tmp_path, 1, 2, labels={"stable": 2})
    serve(manager, tmp_path, 3, labels={"stable": 3}, withdrawn=frozenset(withdrawn))
    assert (manager.labels("m"), list(manager.available("m"))) == (labels, available)


@pytest.mark.parametrize(
    ("entry", "versions"),
    [
        ({"policy": "latest", "latest": 1}, [11]),
        ({"policy": "latest", "latest": 2}, [2, 11]),
        ({"policy": "all"}, [1, 2, 11]),
        ({"versions": (2,)}, [2]),
    ],
)
def test_latest_and_all_as_in_tensorflow_serving(tmp_path: Path, entry: dict[str, Any], versions: list[int]) -> None:
    for version in ("1", "2", "11"):
        (tmp_path / version).mkdir()
    manager = manager_of(Loaded)
    manager.apply([ModelEntry("m", str(tmp_path), **entry)])
    manager.step()
    assert list(manager.available("m")) == versions


def test_bad_folder_of_one_model_leaves_the_others_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "1").mkdir()
    bad = {"b": "gs://x", "c": "s3://", "d": f"{tmp_path}/{'x' * 300}", "e": f"{tmp_path}/a\0b"}
    manager = manager_of(Loaded)
    folders = {"a": str(tmp_path), **bad, "z": str(tmp_path)}
    entries = [ModelEntry(name, folder, "latest") for name, folder in folders.items()]
    manager.apply([*entries, ModelEntry("f", "gs://x", "specific", (4, 7))])
    for _ in range(3):
        manager.step()
    assert {name: list(manager.available(name)) for name in manager.names()} == {
        "a": [1], "b": [], "c": [], "d": [], "e": [], "f": [], "z": [1],
    }  # fmt: skip
    assert not manager.ready
    with pytest.raises(RequestError, match=r"Could not find any versions of model b: .*gs://x"):
        manager.status(ModelChoice("b"))
    statuses = manager.status(ModelChoice("f"))
    assert [(one.version, one.state, one.code) for one in statuses] == [
        (7, "END", "INVALID_ARGUMENT"), (4, "END", "INVALID_ARGUMENT")
    ]  # fmt: skip
    assert "gs://x" in statuses[0].message
    # An error is reported once.
    assert [record.message for record in caplog.records].count(f"model b: {statuses[0].message}") == 1
    # A repaired folder is served; a newly broken one leaves the loaded versions.
    manager.apply([ModelEntry("a", "gs://x", "latest"), ModelEntry("b", str(tmp_path), "latest")])
    manager.step()
    assert {name: list(manager.available(name)) for name in manager.names()} == {"a": [1], "b": [1]}
    assert manager.find(ModelChoice("a"))[0] == 1


def test_a_served_version_stays_while_a_new_one_loads_without_an_end(tmp_path: Path) -> None:
    loading = threading.Event()
    ended = threading.Event()

    def load(folder: str) -> Loaded:
        if folder.endswith("2"):
            loading.set()
            ended.wait(60)
            raise EngineError("loading takes longer than 120 s")
        return Loaded(folder)

    manager = manager_of(load)
    serve(manager, tmp_path, 1)
    serve(manager, tmp_path, 1, 2, wait=False)
    assert loading.wait(60)
    assert states(manager) == [(2, "LOADING"), (1, "AVAILABLE")]
    assert manager.find(ModelChoice("m"))[0] == 1
    ended.set()
    manager.step()
    assert states(manager) == [(2, "END"), (1, "AVAILABLE")]
    assert manager.find(ModelChoice("m"))[0] == 1


@pytest.fixture
def waits_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times that the manager waits for threads or versions, which all take as long as they may: the clock says so."""
    waits_s: list[float] = []

    def wait(waiting: object, wait_s: float) -> None:
        waits_s.append(wait_s)

    monkeypatch.setattr(manager_module, "time", SimpleNamespace(monotonic=lambda: sum(waits_s)))
    monkeypatch.setattr(threading.Thread, "join", wait)
    monkeypatch.setattr(Loaded, "close", wait)
    return waits_s


def test_close_waits_once_for_all_models(tmp_path: Path, waits_s: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Semaphore(0)
    ended = threading.Event()
    loaded: list[Loaded] = []

    def load(folder: str) -> Loaded:
        begun.release()
        ended.wait(60)
        loaded.append(Loaded(folder))
        return loaded[-1]

    manager = manager_of(load)
    manager.apply([ModelEntry(name, str(tmp_path), versions=(1, 2)) for name in "abcdefgh"])
    manager.step(wait=False)
    for _ in "abcdefgh":
        assert begun.acquire(timeout=60)
    manager.close()
    assert waits_s == [manager_module._CLOSE_S] + [0.0] * 7
    monkeypatch.undo()
    ended.set()
    manager.step()  # waits for the threads
    assert len(loaded) == 8  # a closed manager begins no further load
    assert all(version.closed for version in loaded)


def test_versions_that_are_unloaded_together_wait_once_for_their_requests(tmp_path: Path, waits_s: list[float]) -> None:
    manager = manager_of(Loaded)
    manager.apply([ModelEntry("m", str(tmp_path), versions=(1, 2, 3, 4))])
    manager._step_model("m", manager._target["m"])  # in this thread
    manager.apply([ModelEntry("m", str(tmp_path), versions=(3, 4))])
    manager._step_model("m", manager._target["m"])
    assert waits_s == [manager_module._DRAIN_S, 0.0]
    waits_s.clear()
    manager.close()
    assert waits_s == [manager_module._DRAIN_S, 0.0]


def test_a_dropped_model_is_unloaded_even_if_no_thread_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions: list[Loaded] = []

    def load(folder: str) -> Loaded:
        versions.append(Loaded(folder))
        return versions[-1]

    manager = manager_of(load)
    serve(manager, tmp_path, 1)
    manager.apply([ModelEntry("n", str(tmp_path), versions=(1,))])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
        with pytest.raises(RuntimeError, match="can't start new thread"):
            manager.step()
    assert [version.closed for version in versions] == [True]
    manager.step()
    assert (manager.names(), manager.ready) == (["n"], True)


def test_a_loaded_version_is_served_even_if_its_count_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    count = Mock(side_effect=ValueError("no such metric"))
    manager = manager_of(Loaded, on_load=count)
    serve(manager, tmp_path, 1)
    assert (count.call_count, manager.ready) == (1, True)
    assert "the change to its configured versions failed" in caplog.text
