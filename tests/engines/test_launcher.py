"""Starts and stops of engines whose processes do nothing: what is recorded when, and what a failure takes along."""

from __future__ import annotations

import contextlib
import socket
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ciml.engines import launcher, processes, state
from ciml.engines.base import Engine, Launch, Settings
from ciml.engines.state import EngineState
from ciml.errors import CimlError, EngineError

SLEEPS = "import time; time.sleep(60)"
TAKEN = "raise SystemExit('bind: address already in use')"


@dataclass(eq=False)
class Tiny(Engine):
    """An engine whose processes run programs in turn.

    Attributes:
      launched: states with which its processes were found in the state file before they were ready.
      fails_to_end: whether its end is an error.
    """

    name: str
    programs: list[str] = field(default_factory=lambda: [SLEEPS])
    uses: tuple[str, ...] = ("port",)
    launched: list[EngineState | None] = field(default_factory=list)
    fails_to_end: bool = False

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        with pytest.raises(CimlError, match="another ciml is starting or stopping"), state.exclusive(home, 0.0):
            pass
        program = self.programs.pop(0) if len(self.programs) > 1 else self.programs[0]
        return Launch(self.name, (sys.executable, "-c", program), ports, address=f"h:{ports['port']}")

    def ready(self, home: Path, state_: EngineState) -> EngineState | None:
        self.launched.append(state.read(home).get(self.name))
        return state_ if self.programs[0] == SLEEPS else None

    def end(self, home: Path, state_: EngineState) -> bool:
        if self.fails_to_end:
            raise EngineError(f"{self.name} does not stop")
        return super().end(home, state_)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tiny]:
    programs = {"bad": ["raise SystemExit('no luck')"], "once": [TAKEN, TAKEN, SLEEPS], "taken": [TAKEN] * 4}
    engines = {name: Tiny(name, programs.get(name, [SLEEPS])) for name in ("one", "two", "three", *programs)}
    monkeypatch.setattr(launcher, "ENGINES", engines)
    monkeypatch.setattr(launcher, "_PORT_S", 0.2)
    return engines


def test_a_process_is_recorded_before_it_is_ready(tiny: dict[str, Tiny], tmp_path: Path) -> None:
    """So that `ciml down` always finds it."""
    with launcher.start(["one"], tmp_path) as running:
        pids = {recorded and recorded.pid for recorded in tiny["one"].launched}
        assert pids == {running.states["one"].pid}
        assert stat.S_IMODE(state.state_file(tmp_path).stat().st_mode) == 0o600
    assert state.read(tmp_path) == {}


def test_an_engine_that_fails_takes_all_started_with_it_along(tiny: dict[str, Tiny], tmp_path: Path) -> None:
    with launcher.start(["three"], tmp_path) as running:
        with pytest.raises(EngineError, match="bad exited during its start: no luck"):
            launcher.start(["three", "one", "two", "bad"], tmp_path)
        assert state.read(tmp_path) == running.states
    started = [recorded for one in tiny.values() for recorded in one.launched if recorded]
    assert {recorded.name for recorded in started} >= {"three", "one", "two"}
    assert [recorded.name for recorded in started if processes.find(recorded.process)] == []


def test_a_port_that_was_taken_meanwhile_is_chosen_again_twice(tmp_path: Path) -> None:
    with launcher.start(["once"], tmp_path):
        pass
    with pytest.raises(EngineError, match=r"taken: a port of .* is in use"):
        launcher.start(["taken"], tmp_path)
    assert state.read(tmp_path) == {}


def test_a_crashed_engine_comes_back_at_its_port_and_reports_another_one(tmp_path: Path) -> None:
    first = launcher.start(["one"], tmp_path).states["one"]
    processes.end(first.process, grace_s=0.0)
    with pytest.raises(EngineError, match="bad exited"):  # neither a start that fails forgets the port
        launcher.start(["one", "bad"], tmp_path)
    launcher.start(["two"], tmp_path)  # nor that of another engine
    again = launcher.start(["one"], tmp_path)
    assert (again.states["one"].address, again.notes) == (first.address, [])
    assert again.states["one"].pid != first.pid
    processes.end(again.states["one"].process, grace_s=0.0)
    port = first.ports["port"]
    with socket.create_server(("127.0.0.1", port)):
        other = launcher.start(["one"], tmp_path)
    now = other.states["one"].address
    assert now != first.address
    assert other.notes == [
        f"one: port {port}, used before, is in use by another program; it listens at {now}. "
        f"Give clients this address, or free the port and run: ciml down one; ciml up one --port port={port}"
    ]
    assert sorted(launcher.stop(home=tmp_path)) == ["one", "two"]


def test_an_engine_that_does_not_stop_stays_recorded_and_the_others_do_not(
    tiny: dict[str, Tiny], tmp_path: Path
) -> None:
    running = launcher.start(["one", "two"], tmp_path)
    tiny["one"].fails_to_end = True
    with contextlib.suppress(EngineError):
        launcher.stop(home=tmp_path)
    assert state.read(tmp_path) == {"one": running.states["one"]}
    tiny["one"].fails_to_end = False
    assert launcher.stop(home=tmp_path) == ["one"]


def test_states_are_written_whole(tmp_path: Path) -> None:
    one = EngineState("kafka", "real", "Kafka", "h:1", 7, 1.5, {"kafka": 1}, {"a": "b"}, "/log", 512)
    state.write(tmp_path, {"kafka": one})
    assert state.read(tmp_path) == {"kafka": one}
    assert [path.name for path in tmp_path.iterdir()] == ["engines.json"]
