"""Start, resume and stop of a service: the order of their durable steps, and a death before each of them.

The service is idle, and the engine scripted: no process, broker or Flink is needed.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ciml.engines import processes
from ciml.engines.state import ProcessId
from ciml.errors import CimlError, EngineError
from ciml.services import control, process
from ciml.services.decide import JobStatus
from ciml.services.files import ServiceFiles, StartOptions
from tests.durable import Disk, each_step
from tests.services.supervising import mark_running, options_for
from tests.services.test_supervisor import Idle

EARLIER_FAILURE = {"time_us": 1, "why": "no disk"}
SAVEPOINT = {"path": "s3://b/savepoint-1", "time_us": 1, "version": 7, "use": ""}


class Home:
    """A home with one service, whose job runs with the options of its start.

    Attributes:
      running: the options of the running job; None for no job.
      supervisors: the options that the started supervisors read.
      problems: of the service; see `ciml.services.service.Service.problems`.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        folder.mkdir()
        self.files = ServiceFiles(folder, "one")
        service = options_for("ingest", data_path=str(folder / "data"))
        options |= {"beam": ("--x=1",), "tied": ProcessId(2**22 + 1, 1.5)}
        before = StartOptions(service, "flink", "j:1", "http://r", "w:1", cwd=str(folder), **options)
        self.files.put_options(before)
        self.files.put_status({"health": "stopped", "last_failure": EARLIER_FAILURE, "savepoint": SAVEPOINT})
        self.files.want("stop")
        self.running: StartOptions | None = before
        self.supervisors: list[StartOptions] = []
        self.disk = Disk(folder)
        self.problems: dict[str, str] = {}

    def step(self, text: str) -> None:
        self.disk.step(text)
        with ServiceFiles(self.files.home, "one").exclusive("command") as is_free:
            assert not is_free, f"another command may run at: {text}"

    def jobs_of(self, files: ServiceFiles, options: StartOptions) -> Home:
        return self

    def status(self) -> JobStatus:
        return JobStatus("missing" if self.running is None else "running", id="1", name="j")

    def cancel(self) -> None:
        self.step("cancel the job")
        self.running = None

    def stop_with_savepoint(self) -> str:
        self.step("stop the job with a savepoint")
        self.running = None
        return "s3://b/savepoint-2"

    def spawn(self, command: object, log: Path, environment: object, cwd: Path) -> ProcessId:
        self.step("start the supervisor")
        self.supervisors.append(self.files.options())
        return ProcessId(2**22 + 1, 1.0)

    def service(self, options: StartOptions) -> Idle:
        service = Idle("idle")
        service.problems = lambda: self.problems  # type: ignore[method-assign]
        return service

    def steps(self) -> list[str]:
        """Return the steps; of those that replace a file only the last."""
        names = [step.partition(" to services/")[2] or step for step in self.disk.steps]
        return [f"write {name}" if name.endswith(".json") else name for name in names if not name.startswith("sync ")]


@pytest.fixture
def home_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Home]:
    def make(name: str = "home", **options: Any) -> Home:
        made = Home(tmp_path / name, **options)
        for module in (control, process):
            monkeypatch.setattr(module, "jobs_of", made.jobs_of)
        monkeypatch.setattr(process, "impatient_service", made.service)
        monkeypatch.setattr(process, "supervisor_main", lambda *_: pytest.fail("it starts in the foreground"))
        monkeypatch.setattr(processes, "spawn", made.spawn)
        monkeypatch.setattr("ciml.pipelines.flink.jobs.list_jobs", lambda _: [])
        return made

    return make


def start(home: Home) -> None:
    control.start(home.files, replace(home.files.options(), parallelism=2), 0.0, print)


def resume(home: Home) -> None:
    control.resume(home.files, 2, 0.0, print)


OTHER_OPTIONS = {
    start: ["cancel the job", "write one/options.json", "write one.json", "write one/wanted.json"],
    resume: ["cancel the job", "write one/options.json", "write one/wanted.json"],
}


@pytest.mark.parametrize("command", OTHER_OPTIONS)
def test_a_job_with_other_options_ends_before_they_are_stored(
    command: Callable[[Home], None], home_of: Callable[..., Home]
) -> None:
    """Stored first, a death before the cancel would let the next command take over a job with the old options."""
    home = home_of()
    with home.disk.recording():
        command(home)
    assert home.steps() == [*OTHER_OPTIONS[command], "start the supervisor"]
    assert stat.S_IMODE((home.files.folder / "options.json").stat().st_mode) == 0o600
    for index in each_step(len(home.disk.steps), few=False):
        home = home_of(f"home-{index}")
        home.disk.before = index
        with home.disk.recording():
            command(home)
        home.disk = Disk(home.files.home)
        command(home)
        assert (home.running, home.files.wanted()) == (None, "run"), index
        assert {options.parallelism for options in home.supervisors} == {2}
        assert home.files.status().get("last_failure") == EARLIER_FAILURE


def test_a_job_with_the_same_options_is_taken_over(home_of: Callable[..., Home]) -> None:
    home = home_of()
    control.start(home.files, home.files.options(), 0.0, print)
    control.resume(home.files, None, 0.0, print)
    assert home.running == home.supervisors[0] == home.supervisors[1]


def test_a_resume_requires_the_secrets_of_the_start(
    home_of: Callable[..., Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_of(secret_variables=("AWS_SECRET_ACCESS_KEY",), environment={})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "")
    with pytest.raises(CimlError, match="was started with AWS_SECRET_ACCESS_KEY, which is not set now"):
        control.resume(home.files, None, 0.0, print)
    assert home.supervisors == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    control.resume(home.files, None, 0.0, print)
    assert len(home.supervisors) == 1


@pytest.mark.parametrize("foreground", [False, True])
def test_a_start_rejects_a_problem_that_a_resume_continues_without(
    foreground: bool, home_of: Callable[..., Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_of()
    home.problems = {"logs.example.org": "token: no such file"}
    other = replace(home.files.options(), parallelism=2)
    with pytest.raises(CimlError, match="token: no such file"):
        control.start(home.files, other, 0.0, print, foreground=foreground)
    reports: list[str] = []
    control.resume(home.files, None, 0.0, reports.append)
    assert reports[0] == "Continuing without: token: no such file"
    assert len(home.supervisors) == 1


def test_a_savepoint_of_an_earlier_stop_is_not_the_requested_one(home_of: Callable[..., Home]) -> None:
    home = home_of()
    home.files.put_status({**home.files.status(), "health": "running"})
    home.running = None
    with pytest.raises(EngineError, match="is stopped without a savepoint: its job did not run"):
        control.stop(home.files, 5.0, print, savepoint=True)
    assert home.files.status()["savepoint"] == SAVEPOINT


def test_a_stop_takes_a_savepoint_and_the_history_stays(home_of: Callable[..., Home], capsys: Any) -> None:
    home = home_of()
    home.files.put_status({**home.files.status(), "resubmitted": 3})
    with home.disk.recording():
        control.stop(home.files, 30.0, print, savepoint=True)
    steps = ("write one/wanted.json", "stop the job with a savepoint")
    assert [step for step in home.steps() if step in steps] == [*steps]
    status = home.files.status()
    assert (status["savepoint"]["path"], status["savepoint"]["use"]) == ("s3://b/savepoint-2", "")
    assert (status["resubmitted"], status["last_failure"]) == (3, EARLIER_FAILURE)
    assert "with the savepoint s3://b/savepoint-2" in capsys.readouterr().out


@pytest.mark.parametrize("command", [start, resume])
def test_a_command_ends_the_supervisor_of_a_failed_service(
    command: Callable[[Home], None], home_of: Callable[..., Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It only serves the metrics of the failure."""
    home = home_of()
    ended: list[ProcessId | None] = []
    monkeypatch.setattr(processes, "end", lambda process, **_: ended.append(process))
    mark_running(home.files, "supervisor")
    home.files.put_status({**home.files.status(), "health": "failed"})
    command(home)
    assert ended[0] == home.files.recorded("supervisor")
    assert len(home.supervisors) == 1
    home.files.put_status({**home.files.status(), "health": "running"})
    if command is start:
        with pytest.raises(CimlError, match="a service named one is already running"):
            command(home)
