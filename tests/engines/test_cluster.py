"""The parts of a cluster: kept running, identified and ended; light ones, and once Flink."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from ciml import engines
from ciml.engines import processes
from ciml.engines.flink import cluster_watchdog, parts, worker_pool
from ciml.engines.flink.cluster import Cluster
from ciml.engines.flink.cluster_watchdog import ClusterWatchdog, remove_old_checkpoints
from ciml.engines.flink.parts import MARK, Part, PartState, pool_socket
from ciml.engines.state import EngineState
from ciml.errors import CimlError, EngineError
from ciml.storage import open_store
from tests.engines.test_engines import ciml


def wait_for(done: Callable[[], object], most_s: float = 60.0) -> None:
    deadline = time.monotonic() + most_s
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def runs(pid: int | None) -> bool:
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Kept:
    """A watchdog of light parts: HTTP servers, and one that dies at once where ``broken``."""

    def __init__(self, home: Path, broken: bool = False) -> None:
        self.home, self.folder = home, home / "cluster"
        ports = dict(zip(("a", "b"), processes.free_ports(2), strict=True))
        planned = [self._part(name, port) for name, port in ports.items()]
        if broken:
            command = [sys.executable, "-c", "raise SystemExit('no luck')"]
            planned.append(
                Part("c", "", command, ["http", "http://127.0.0.1:9"], "", str(home / "c"), str(home / "c.l"))
            )
        parts.write_plan(self.folder, planned, {"ports": ports})
        self.start()

    def _part(self, name: str, port: int) -> Part:
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
        place = self.home / name
        return Part(name, "", command, ["http", url], url, str(place), str(place) + ".log", patience_s=1.0)

    def start(self) -> None:
        command = processes.python_command("ciml.engines.flink.cluster_watchdog", str(self.home), str(self.folder))
        environment = {**processes.python_environment(), MARK: str(self.home), "PYTHONUNBUFFERED": "1"}
        self.process = processes.spawn(command, self.home / "watchdog.log", environment, self.home)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        wait_for(lambda: processes.find(self.process) is None)

    @property
    def states(self) -> dict[str, PartState]:
        return parts.read_states(self.folder)

    def answered(self, *names: str) -> bool:
        return all(name in self.states and self.states[name].answered for name in names)

    def end(self) -> bool:
        return Cluster().end(self.home, EngineState("cluster", "real", "", **self.process._asdict()))


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[..., Kept]]:
    made: list[Kept] = []

    def make(**options: bool) -> Kept:
        made.append(Kept(tmp_path / "home", **options))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.mark.engines
def test_what_dies_or_does_not_answer_is_started_again(keep: Callable[..., Kept]):
    kept = keep()
    wait_for(lambda: kept.answered("a", "b"))
    first = kept.states
    os.kill(first["a"].pid or 0, signal.SIGKILL)
    wait_for(lambda: kept.states["a"].restarts == 1 and kept.answered("a"))
    assert kept.states["a"].reason == "it died"
    assert kept.states["b"] == first["b"]

    os.kill(first["b"].pid or 0, signal.SIGSTOP)
    wait_for(lambda: kept.states["b"].restarts == 1 and kept.answered("b"))
    assert kept.states["b"].reason == "no answer for 1 s"
    assert not runs(first["b"].pid)
    left = [one.pid for one in kept.states.values()]
    assert kept.end()
    assert not any(runs(pid) for pid in [*left, kept.process.pid])
    assert not kept.end()


@pytest.mark.engines
def test_a_watchdog_goes_on_where_a_killed_one_was(keep: Callable[..., Kept], tmp_path: Path):
    kept = keep()
    wait_for(lambda: kept.answered("a", "b"))
    first = kept.states
    kept.kill()
    os.kill(first["a"].pid or 0, signal.SIGKILL)
    # A started part that the watchdog has not recorded yet, and a process of another home, which must be left alone.
    sleeper = (sys.executable, "-c", "import time; time.sleep(600)")
    stray = processes.spawn(sleeper, tmp_path / "log", {MARK: str(kept.home)}, tmp_path)
    foreign = processes.spawn(sleeper, tmp_path / "log", {MARK: str(tmp_path / "other")}, tmp_path)
    try:
        wait_for(lambda: len(parts.cluster_processes(kept.home)) == 2)
        kept.start()
        wait_for(lambda: kept.states["a"].pid not in (None, first["a"].pid) and kept.answered("a", "b"))
        assert kept.states["b"] == first["b"]
        assert processes.find(stray) is None
        assert processes.find(foreign) is not None
        kept.end()
        assert processes.find(foreign) is not None
    finally:
        processes.end(foreign)


@pytest.mark.engines
def test_the_pause_before_each_start_doubles(keep: Callable[..., Kept]):
    kept = keep(broken=True)
    wait_for(lambda: "c" in kept.states and kept.states["c"].restarts == 4)
    said = re.findall(r"c \(pid \d+\): it died; restart in ([\d.]+) s", (kept.home / "watchdog.log").read_text())
    assert said[:4] == ["0.5", "1.0", "2.0", "4.0"]
    assert kept.answered("a", "b")


@pytest.mark.engines
def test_a_second_watchdog_of_a_home_ends_at_once(keep: Callable[..., Kept]):
    kept = keep()
    wait_for(lambda: kept.answered("a", "b"))
    first = kept.process
    kept.start()
    wait_for(lambda: processes.find(kept.process) is None)
    assert "another watchdog is running in" in (kept.home / "watchdog.log").read_text()
    kept.process = first
    assert processes.find(first) is not None


class _Jobs(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"jobs": [{"id": "known", "status": "RUNNING"}]}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("place", ["folder", pytest.param("s3", marks=pytest.mark.engines)])
def test_old_checkpoints_of_forgotten_jobs_go(place: str, tmp_path: Path, request: pytest.FixtureRequest):
    state = request.getfixturevalue("s3").bucket() + "/flink" if place == "s3" else str(tmp_path)
    store = open_store(state)
    for path in ("checkpoints/known/chk-1/_metadata", "checkpoints/gone/chk-7/_metadata", "checkpoints/gone/shared/x"):
        assert store.create(path, b"x")
    assert store.create("savepoints/savepoint-1/_metadata", b"x")
    with HTTPServer(("127.0.0.1", 0), _Jobs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rest = f"http://127.0.0.1:{server.server_port}"
        everything = store.list()
        if place == "folder":  # a job that wrote a checkpoint lately keeps its older ones
            os.utime(tmp_path / "checkpoints/gone/shared/x", (0, 0))
        assert remove_old_checkpoints(state, rest, before_s=time.time() - 3600) == []
        assert store.list() == everything
        assert remove_old_checkpoints(state, rest, before_s=time.time() + 3600) == ["gone"]
        server.shutdown()
    assert store.list() == ["checkpoints/known/chk-1/_metadata", "savepoints/savepoint-1/_metadata"]
    with pytest.raises(EngineError, match="does not answer"):  # then nothing is removed
        remove_old_checkpoints(state, rest, before_s=time.time() + 3600)
    assert len(store.list()) == 2


def test_a_taskmanager_is_not_restarted_because_the_jobmanager_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    answers = iter(["no", "unknown", "no", "unknown", "unknown"])
    part = Part("a", "", ["x"], ["http", "http://h"], "", str(tmp_path), str(tmp_path / "log"), patience_s=2.5)
    (tmp_path / "log").touch()
    now_s = iter(range(1000))
    watchdog = ClusterWatchdog(tmp_path, tmp_path)
    state = PartState("a", 1, 1.0, answered=True)
    for name in ("_CHECK_S", "_TICK_S"):
        monkeypatch.setattr(cluster_watchdog, name, 0.0)
    monkeypatch.setattr("ciml.engines.flink.cluster_watchdog.time.monotonic", lambda: next(now_s))
    ended: list[object] = []
    monkeypatch.setattr(processes, "end", lambda *_, **__: ended.append(_))
    runs = iter(range(12))
    monkeypatch.setattr(processes, "find", lambda _: True if next(runs, None) is not None else None)
    monkeypatch.setattr(cluster_watchdog, "ThreadPoolExecutor", InThisThread)
    monkeypatch.setattr(cluster_watchdog, "run_check", lambda _: next(answers, "unknown"))
    assert (watchdog._wait_for_fault(part, state), ended) == ("it died", [])


def test_a_worker_ends_after_its_job_was_unreachable_without_a_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now_s = [0.0]
    reachable = {12.0: False, 15.0: True, 18.0: False, 24.0: False, 27.0: False}
    monkeypatch.setattr("ciml.engines.flink.worker_pool.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("ciml.engines.flink.worker_pool._listens", lambda _: reachable.get(now_s[0], True))
    process = subprocess.Popen([sys.executable, "-c", "input(); input()"], stdin=subprocess.PIPE)
    worker = worker_pool._Worker(process, "h:1", "1-1")
    for now_s[0] in (3.0, 6.0, 9.0, 12.0, 15.0, 18.0, 24.0):
        assert worker.check()
        assert worker._kill_at_s is None, now_s
    now_s[0] = 27.0
    worker.check()
    assert worker._kill_at_s is not None
    process.wait()


class InThisThread:
    """A pool that does its work when it is submitted."""

    def __init__(self, *_: object) -> None:
        self.answer = ""

    def __enter__(self) -> InThisThread:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., str], *arguments: object) -> InThisThread:
        self.answer = work(*arguments)
        return self

    def done(self) -> bool:
        return True

    def result(self) -> str:
        return self.answer


def test_the_watchdog_of_a_cluster_is_stopped_before_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It would restart them."""
    sleeper = (sys.executable, "-c", "import time; time.sleep(60)")
    watchdog, part = (processes.spawn(sleeper, tmp_path / "log", {MARK: str(tmp_path)}, tmp_path) for _ in range(2))
    signalled: list[tuple[str, int]] = []
    for name in ("terminate", "kill"):
        send = getattr(psutil.Process, name)

        def recorded(process: psutil.Process, name: str = name, send: Callable[..., None] = send) -> None:
            signalled.append((name, process.pid))
            send(process)

        monkeypatch.setattr(psutil.Process, name, recorded)
    wait_for(lambda: len(parts.cluster_processes(tmp_path)) == 2)
    assert Cluster().end(tmp_path, EngineState("cluster", "real", "", **watchdog._asdict()))
    assert signalled[0] == ("kill", watchdog.pid)
    assert ("terminate", part.pid) in signalled
    assert processes.find(part) is None


@pytest.mark.engines
def test_a_pool_starts_and_ends_workers_and_takes_them_with_it(tmp_path: Path):
    """By Beam's own client; the address of one job answers, that of the other does not."""
    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

    (port, unused) = processes.free_ports(2)
    name = pool_socket(tmp_path, "workers-1")
    command = processes.python_command("ciml.engines.flink.worker_pool", str(port), name)
    pool = processes.spawn(command, tmp_path / "log", processes.python_environment(), tmp_path)
    process = psutil.Process(pool[0])

    def pids() -> list[int]:
        return [int(pid) for pid in re.findall(r"worker \S+ of \S+: pid (\d+)", (tmp_path / "log").read_text())]

    try:
        wait_for(lambda: parts.run_check(["pool", name]) == "yes")
        with socket.socket() as job, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            job.bind(("127.0.0.1", 0))
            job.listen(64)
            stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)

            def ask(worker_id: str, at: int) -> None:
                request = beam_fn_api_pb2.StartWorkerRequest(worker_id=worker_id)
                request.control_endpoint.url = f"127.0.0.1:{at}"
                assert stub.StartWorker(request, timeout=10).error == ""

            wait_for(lambda: len(process.children()) == 1)
            spare = process.children()[0].pid
            ask("1-1", job.getsockname()[1])
            wait_for(lambda: len(pids()) == 1)
            assert pids() == [spare]  # which had its imports behind it
            ask("2-1", unused)
            wait_for(lambda: len(pids()) == 2)
            wait_for(lambda: not runs(pids()[1]))
            assert runs(spare)
            stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1"), timeout=10)
            wait_for(lambda: not runs(spare))
            ask("3-1", job.getsockname()[1])
            wait_for(lambda: len(pids()) == 3)
            with socket.create_server(("127.0.0.1", 0)) as other_job:  # two jobs may have equal ids
                ask("3-1", other_job.getsockname()[1])
                wait_for(lambda: len(pids()) == 4)
                stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="3-1"), timeout=10)
                stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="4-1"), timeout=10)  # it was handled
                assert all(map(runs, pids()[2:]))
            left = [one.pid for one in process.children()]
            assert pids()[2] in left
            os.kill(pool[0], signal.SIGKILL)
            wait_for(lambda: not any(runs(pid) for pid in left))
        assert parts.run_check(["pool", name]) == "no"
    finally:
        processes.end(pool)


@pytest.mark.engines
@pytest.mark.timeout(300)
def test_up_status_and_down_of_a_cluster(tmp_path: Path):
    home = tmp_path / "home"
    try:
        done = ciml("up", "cluster", "--task-managers", "2", "--slots", "1", "--flink-heap", "256", home=home)
        one = engines.read(home)["cluster"]
        assert (
            f"cluster: Flink 1.19, standalone: 2 × 1 slots at {one.urls['jobs']} (pid {one.pid}, ready" in done.stdout
        )
        assert one.urls["state"] == (home / "flink").as_uri()
        assert one.address == one.urls["jobs"]

        seen = json.loads(ciml("status", "--json", home=home).stdout)["cluster"]
        names = ["jobmanager", "taskmanager-1", "taskmanager-2", "jobserver", "workers-1", "workers-2"]
        assert list(seen["parts"]) == names
        assert {part["health"] for part in seen["parts"].values()} == {"ok"}
        assert seen["memory_used_mb"] > sum(part["memory_used_mb"] for part in seen["parts"].values()) / 2
        # Nothing of it is open to other machines, but for the job server, which binds all interfaces in any case.
        for name, part in seen["parts"].items():
            listening = [c for c in psutil.Process(part["pid"]).net_connections("inet") if c.status == "LISTEN"]
            assert name == "jobserver" or {c.laddr.ip for c in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}, name
        table = ciml("status", home=home).stdout
        assert all(f"  {name} " in table for name in names)

        os.kill(one.pid or 0, signal.SIGKILL)
        os.kill(seen["parts"]["taskmanager-2"]["pid"], signal.SIGKILL)
        wait_for(lambda: processes.find(one.process) is None)
        looked = json.loads(ciml("status", "--json", home=home, code=3).stdout)["cluster"]
        assert (looked["health"], looked["parts"]["taskmanager-2"]["health"]) == ("dead", "dead")
        ciml("up", "--cluster", "cluster", "--task-managers", "2", "--slots", "1", "--flink-heap", "256", home=home)
        again = engines.read(home)["cluster"]
        assert again.pid != one.pid
        assert (again.ports, again.urls) == (one.ports, one.urls)
        now = engines.cluster_parts(home)
        assert {name: now[name].pid for name in names if name != "taskmanager-2"} == {
            name: part["pid"] for name, part in seen["parts"].items() if name != "taskmanager-2"
        }
        assert now["taskmanager-2"].pid != seen["parts"]["taskmanager-2"]["pid"]

        workers = [child.pid for name in names[4:] for child in psutil.Process(now[name].pid).children()]
        os.kill(now["workers-1"].pid or 0, signal.SIGSTOP)  # ends all the same
        os.kill(again.pid or 0, signal.SIGKILL)
        assert ciml("down", home=home).stdout == "Stopped cluster.\n"
        assert parts.cluster_processes(home) == []
        assert not any(runs(pid) for pid in [*workers, *(part.pid for part in now.values())])
        assert engines.read(home) == {}
    finally:
        engines.stop(home=home)


def test_what_a_cluster_cannot_have_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done = ciml("up", "cluster", "--state", "folder/x", home=tmp_path, code=2)
    assert "'folder/x' is not s3://BUCKET/PREFIX" in done.stderr
    done = ciml("up", "cluster", home=tmp_path, code=3, CIML_NO_JAVA="1")
    line = "ciml: a Flink cluster needs Java (CIML_NO_JAVA is set); without Java use --engine micro-batches\n"
    assert done.stderr == line
    with pytest.raises(CimlError, match="'file:///x' is not s3://BUCKET/PREFIX"):
        engines.start(["cluster"], tmp_path, engines.Settings(state="file:///x"))


@pytest.mark.engines
def test_a_missing_bucket_is_reported_at_once(tmp_path: Path, s3):
    with pytest.raises(EngineError, match="no-such-bucket"):
        engines.start(["cluster"], tmp_path, engines.Settings(state="s3://no-such-bucket/x"))
    assert engines.read(tmp_path) == {}
