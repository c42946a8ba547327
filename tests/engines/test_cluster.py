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
from unittest.mock import MagicMock, Mock

import psutil
import pytest

from ciml import engines
from ciml.engines import processes
from ciml.engines.flink import cluster_watchdog, parts, worker_pool
from ciml.engines.flink.cluster import Cluster
from ciml.engines.flink.cluster_watchdog import ClusterWatchdog, remove_old_checkpoints
from ciml.engines.flink.parts import MARK, Part, PartState, pool_socket
from ciml.engines.state import EngineState, ProcessId
from ciml.errors import EngineError
from ciml.storage import open_store
from tests.engines.test_engines import ciml, wait_for

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")


def runs(pid: int | None) -> bool:
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Watched:
    """A watchdog of two HTTP servers, and of a part that always dies."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "cluster"
        self.log = home / "watchdog.log"
        planned = [self.part("dies", ["false"], "http://127.0.0.1:9")]
        for name, port in zip("ab", processes.lasting_ports(2), strict=True):
            command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
            planned.append(self.part(name, command, f"http://127.0.0.1:{port}"))
        parts.write_plan(self.folder, planned, {})
        self.process = self.start()

    def part(self, name: str, command: list[str], url: str) -> Part:
        scratch = str(self.home / name)
        return Part(name, "", command, ["http", url], url, scratch, f"{scratch}.log", patience_s=5.0)

    def start(self) -> ProcessId:
        command = processes.python_command("ciml.engines.flink.cluster_watchdog", str(self.home), str(self.folder))
        return processes.spawn(command, self.log, {MARK: str(self.home), "PYTHONUNBUFFERED": "1"}, self.home)

    def state(self, name: str) -> PartState:
        return parts.read_states(self.folder).get(name, PartState(name))

    def wait_until_answered(self, name: str, restarts: int) -> None:
        wait_for(lambda: self.state(name).answered and self.state(name).restarts == restarts)

    def end(self) -> bool:
        return Cluster().end(self.home, EngineState("cluster", "real", "", **self.process._asdict()))


@pytest.mark.engines
def test_a_watchdog_keeps_parts_running_also_after_its_own_death(tmp_path: Path):
    watched = Watched(tmp_path / "home")
    foreign = processes.spawn(SLEEPER, tmp_path / "log", {MARK: str(tmp_path / "other")}, tmp_path)
    try:
        for name in "ab":
            watched.wait_until_answered(name, 0)
        first = {name: watched.state(name) for name in "ab"}
        os.kill(first["a"].pid or 0, signal.SIGKILL)
        watched.wait_until_answered("a", 1)
        assert watched.state("a").reason == "it died"
        assert watched.state("b") == first["b"]
        os.kill(first["b"].pid or 0, signal.SIGSTOP)
        watched.wait_until_answered("b", 1)
        assert watched.state("b").reason == "no answer for 5 s"
        assert not runs(first["b"].pid)

        second = watched.start()
        wait_for(lambda: processes.find(second) is None)
        assert "another watchdog is running in" in watched.log.read_text()
        assert processes.find(watched.process) is not None

        wait_for(lambda: watched.state("dies").restarts >= 4)
        pauses = re.findall(r"dies \(pid \d+\): it died; restart in ([\d.]+) s", watched.log.read_text())
        assert pauses[:4] == ["0.5", "1.0", "2.0", "4.0"]

        os.kill(watched.process.pid, signal.SIGKILL)
        wait_for(lambda: processes.find(watched.process) is None)
        left = {name: watched.state(name) for name in "ab"}
        os.kill(left["a"].pid or 0, signal.SIGKILL)
        # A started part that the watchdog has not recorded yet.
        stray = processes.spawn(SLEEPER, tmp_path / "log", {MARK: str(watched.home)}, tmp_path)
        wait_for(lambda: stray.pid in {process.pid for process in parts.cluster_processes(watched.home)})
        watched.process = watched.start()
        wait_for(lambda: watched.state("a").pid not in (None, left["a"].pid) and watched.state("a").answered)
        assert watched.state("b") == left["b"]
        assert processes.find(stray) is None

        pids = [watched.process.pid, *(watched.state(name).pid for name in "ab")]
        assert watched.end()
        assert not any(map(runs, pids))
        assert not watched.end()
        assert processes.find(foreign) is not None
    finally:
        watched.end()
        processes.end(foreign)


class _Jobs(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"jobs": [{"id": "known", "status": "RUNNING"}]}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def rest() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Jobs) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_old_checkpoints_of_forgotten_jobs_go(tmp_path: Path, rest: str):
    store = open_store(tmp_path)
    for path in ("checkpoints/known/chk-1/_metadata", "checkpoints/gone/chk-7/_metadata", "checkpoints/gone/shared/x"):
        assert store.create(path, b"x")
    assert store.create("savepoints/savepoint-1/_metadata", b"x")
    everything = store.list()
    os.utime(
        tmp_path / "checkpoints/gone/shared/x", (0, 0)
    )  # a job that wrote a checkpoint lately keeps its older ones
    assert remove_old_checkpoints(str(tmp_path), rest, before_s=time.time() - 3600) == []
    with pytest.raises(EngineError, match="does not answer"):  # then nothing is removed
        remove_old_checkpoints(str(tmp_path), "http://127.0.0.1:9", before_s=time.time() + 3600)
    assert store.list() == everything
    assert remove_old_checkpoints(str(tmp_path), rest, before_s=time.time() + 3600) == ["gone"]
    assert store.list() == ["checkpoints/known/chk-1/_metadata", "savepoints/savepoint-1/_metadata"]


def test_a_taskmanager_is_not_restarted_because_the_jobmanager_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    answers = iter(["no", "unknown", "no", "unknown", "unknown"])
    part = Part("a", "", ["x"], ["http", "http://h"], "", str(tmp_path), str(tmp_path / "log"), patience_s=2.5)
    (tmp_path / "log").touch()
    for name in ("_CHECK_S", "_TICK_S"):
        monkeypatch.setattr(cluster_watchdog, name, 0.0)
    now_s = iter(range(1000))
    monkeypatch.setattr(cluster_watchdog, "time", Mock(wraps=time, monotonic=lambda: next(now_s)))
    ended: list[object] = []
    monkeypatch.setattr(processes, "end", lambda *_, **__: ended.append(_))
    finds = iter([True] * 12)
    monkeypatch.setattr(processes, "find", lambda _: next(finds, None))
    pool = MagicMock()  # each check is done at once
    pool().__enter__().submit = lambda *_: Mock(result=Mock(return_value=next(answers, "unknown")))
    monkeypatch.setattr(cluster_watchdog, "ThreadPoolExecutor", pool)
    watchdog = ClusterWatchdog(tmp_path, tmp_path)
    assert (watchdog._wait_for_fault(part, PartState("a", 1, 1.0, answered=True)), ended) == ("it died", [])


def test_a_worker_ends_after_its_job_was_unreachable_without_a_break(monkeypatch: pytest.MonkeyPatch):
    now_s = [0.0]
    reachable = {12.0: False, 15.0: True, 18.0: False, 24.0: False, 27.0: False}
    monkeypatch.setattr(worker_pool, "time", Mock(wraps=time, monotonic=lambda: now_s[0]))
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


@pytest.mark.parametrize(("workers", "ended"), [(["1-1", "1-2"], [True, False]), (["1-1", "1-1"], [False, False])])
def test_a_worker_is_ended_by_its_id_unless_two_jobs_have_that_id(workers: list[str], ended: list[bool]):
    pool = worker_pool.Pool()
    started = [Mock() for _ in workers]
    for number, (process, worker_id) in enumerate(zip(started, workers, strict=True)):
        pool._workers[f"{worker_id} of h:{number}"] = worker_pool._Worker(process, f"h:{number}", worker_id)
    pool._end("1-1")
    assert [process.terminate.called for process in started] == ended


def test_the_watchdog_of_a_cluster_is_stopped_before_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It would restart them."""
    watchdog, part = (processes.spawn(SLEEPER, tmp_path / "log", {MARK: str(tmp_path)}, tmp_path) for _ in range(2))
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
    """By Beam's own client."""
    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

    (port,) = processes.lasting_ports(1)
    name = pool_socket(tmp_path, "workers-1")
    command = processes.python_command("ciml.engines.flink.worker_pool", str(port), name)
    pool = processes.spawn(command, tmp_path / "log", {}, tmp_path)
    process = psutil.Process(pool.pid)
    jobs = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]

    def pids() -> list[int]:
        return [int(pid) for pid in re.findall(r"worker \S+ of \S+: pid (\d+)", (tmp_path / "log").read_text())]

    try:
        wait_for(lambda: parts.run_check(["pool", name]) == "yes" and process.children())
        spare = process.children()[0].pid
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)

            def start(worker_id: str, job: socket.socket) -> None:
                request = beam_fn_api_pb2.StartWorkerRequest(worker_id=worker_id)
                request.control_endpoint.url = f"127.0.0.1:{job.getsockname()[1]}"
                workers = len(pids())
                assert stub.StartWorker(request, timeout=10).error == ""
                wait_for(lambda: len(pids()) == workers + 1)

            start("1-1", jobs[0])
            assert pids() == [spare]  # which had its imports behind it
            stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1"), timeout=10)
            wait_for(lambda: not runs(spare))
            for job in jobs:  # two jobs may have equal ids
                start("3-1", job)
            for worker_id in ("3-1", "4-1"):
                stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id=worker_id), timeout=10)
            start("5-1", jobs[0])  # after both requests
            assert all(map(runs, pids()[1:]))
        children = [child.pid for child in process.children()]
        assert set(pids()[1:]) <= set(children)
        os.kill(pool.pid, signal.SIGKILL)
        wait_for(lambda: not any(map(runs, children)))
        assert parts.run_check(["pool", name]) == "no"
    finally:
        processes.end(pool)
        for job in jobs:
            job.close()


@pytest.mark.engines
@pytest.mark.timeout(300)
def test_up_status_and_down_of_a_cluster(tmp_path: Path):
    home = tmp_path / "home"
    options = ("--task-managers", "2", "--slots", "1", "--flink-heap", "256")
    try:
        done = ciml("up", "cluster", *options, home=home)
        first = engines.read(home)["cluster"]
        assert f"cluster: Flink 1.19, standalone: 2 × 1 slots at {first.urls['jobs']} (pid {first.pid}," in done.stdout
        assert first.urls["state"] == (home / "flink").as_uri()
        assert first.address == first.urls["jobs"]

        row = json.loads(ciml("status", "--json", home=home).stdout)["cluster"]
        names = ["jobmanager", "taskmanager-1", "taskmanager-2", "jobserver", "workers-1", "workers-2"]
        assert list(row["parts"]) == names
        assert {part["health"] for part in row["parts"].values()} == {"ok"}
        assert row["memory_used_mb"] > sum(part["memory_used_mb"] for part in row["parts"].values()) / 2
        # Nothing of it is open to other machines, but for the job server, which binds all interfaces in any case.
        for name, part in row["parts"].items():
            listening = [c for c in psutil.Process(part["pid"]).net_connections("inet") if c.status == "LISTEN"]
            assert name == "jobserver" or {c.laddr.ip for c in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}, name
        table = ciml("status", home=home).stdout
        assert all(f"  {name} " in table for name in names)

        os.kill(first.pid or 0, signal.SIGKILL)
        os.kill(row["parts"]["taskmanager-2"]["pid"], signal.SIGKILL)
        # This process started the watchdog. To it, the watchdog runs until the system has ended all its threads.
        wait_for(lambda: processes.find(first.process) is None and not runs(row["parts"]["taskmanager-2"]["pid"]))
        dead = json.loads(ciml("status", "--json", home=home, code=3).stdout)["cluster"]
        assert (dead["health"], dead["parts"]["taskmanager-2"]["health"]) == ("dead", "dead")
        ciml("up", "cluster", *options, home=home)
        again = engines.read(home)["cluster"]
        assert again.pid != first.pid
        assert (again.ports, again.urls) == (first.ports, first.urls)
        now = engines.cluster_parts(home)
        assert [name for name in names if now[name].pid != row["parts"][name]["pid"]] == ["taskmanager-2"]

        workers = [child.pid for name in names[4:] for child in psutil.Process(now[name].pid).children()]
        os.kill(now["workers-1"].pid or 0, signal.SIGSTOP)  # ends all the same
        os.kill(again.pid or 0, signal.SIGKILL)
        assert ciml("down", home=home).stdout == "Stopped cluster.\n"
        assert parts.cluster_processes(home) == []
        assert not any(runs(pid) for pid in [*workers, *(part.pid for part in now.values())])
        assert engines.read(home) == {}
    finally:
        engines.stop(home=home)
