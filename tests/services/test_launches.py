"""A launch of a service: it inherits no failure of an earlier one, and has the environment of the service's start."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from ciml import engines
from ciml.cli.commands.serve.service import command
from ciml.data_root import DataRoot
from ciml.engines import processes, state
from ciml.engines.environment import record_environment, use_environment
from ciml.engines.state import ProcessId
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.manifest.coverage import OtherTopicError
from ciml.manifest.log import ManifestLog
from ciml.pipelines.flink import jobs as flink_jobs
from ciml.pipelines.flink.jobs import RestJob
from ciml.services import jobs as jobs_module
from ciml.services import status
from ciml.services.decide import ServiceProgress
from ciml.services.files import ServiceFiles, StartOptions, in_place
from ciml.services.jobs import InWorker, OnFlink, Worker
from ciml.services.process import _Worker, impatient_service, supervisor_main, worker_main
from ciml.services.status import gather, remedy
from ciml.services.supervisor import Supervisor
from tests.services.supervising import mark_running, options_for

FAILED = {"pid": 4711, "state": "ended", "error": "token: no such file", "fault": True, "exit_code": 2}


def files_of(home: Path, kind: str = "ingest", **changes: Any) -> ServiceFiles:
    files = ServiceFiles(home, "one")
    arguments = {"data_path": str(home / "data"), "kafka": "127.0.0.1:1", **changes.pop("arguments", {})}
    files.put_options(StartOptions(options_for(kind, **arguments), "micro-batches", cwd=str(home), **changes))
    return files


def sleeper(home: Path, log: Path) -> ProcessId:
    return processes.spawn((sys.executable, "-c", "import time; time.sleep(60)"), log, {}, home)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_the_report_of_an_earlier_launch_is_no_failure_of_the_next_one(home: Path) -> None:
    files = files_of(home)
    jobs = InWorker(Worker(files, home))
    for report in ({**FAILED, "launch": "earlier"}, FAILED):  # the second of a version without launches
        files.put_report(report)
        assert (jobs.status().state, jobs.status().fault) == ("missing", "")


def test_the_failure_of_its_own_launch_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(home)
    spawn = Mock(return_value=ProcessId(2**22 + 1, 1.0))
    monkeypatch.setattr(processes, "spawn", spawn)
    jobs = InWorker(Worker(files, home))
    jobs.submit()
    launch = spawn.call_args.args[0][-2]
    assert jobs.status().state == "over"  # it died before its first report
    files.put_report({**FAILED, "launch": launch})
    assert (jobs.status().state, jobs.status().fault, jobs.status().exit_code) == ("over", "token: no such file", 2)
    jobs.submit()
    assert spawn.call_args.args[0][-2] != launch
    assert jobs.status().fault == ""


def test_a_launch_begins_after_the_end_of_the_last_one_without_its_report_log_and_metrics(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(home)
    last = sleeper(home, files.log("worker"))
    files.record("worker", *last)
    files.put_report(FAILED)
    files.log("worker").write_text("of the last launch")
    files.timings.mkdir()
    (files.timings / f"counter_{last.pid}.db").touch()
    launches: list[Path] = []

    def spawn(command: object, log: Path, environment: dict[str, str], cwd: Path) -> ProcessId:
        assert processes.find(last) is None
        assert (files.report(), log.exists()) == ({}, False)
        assert log.with_suffix(".log.1").read_text() == "of the last launch"
        assert list(Path(environment["PROMETHEUS_MULTIPROC_DIR"]).iterdir()) == []
        launches.append(log)
        return ProcessId(2**22 + 1, 1.0)

    monkeypatch.setattr(processes, "spawn", spawn)
    InWorker(Worker(files, home)).submit()
    assert launches == [files.log("worker")]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (OtherTopicError("another topic"), {"exit_code": 4, "needs_adoption": True}),
        (IntegrityError("another fault"), {"exit_code": 4, "needs_adoption": False}),
        (CimlError("unknown estimator"), {"exit_code": 2, "needs_adoption": False}),
        (EngineError("Kafka does not answer"), {}),
    ],
)
def test_a_worker_reports_whether_its_error_is_permanent(
    error: CimlError, fault: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(home)
    worker = _Worker(files, files.options(), "launch")
    monkeypatch.setattr(worker, "_work", Mock(side_effect=error))
    assert worker.run("") == error.exit_code
    assert jobs_module._fault(files.report()) == ({"fault": str(error), **fault} if fault else {})


def test_a_worker_works_with_a_full_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(home)
    worker = _Worker(files, files.options(), "launch")
    monkeypatch.setattr(files, "put_report", Mock(side_effect=OSError(28, "No space left on device")))
    work = Mock()
    monkeypatch.setattr(worker, "_work", work)
    assert worker.run("savepoint") == 0
    work.assert_called_once_with("savepoint")


def test_what_a_trainer_waits_for_is_known_to_its_worker_alone(home: Path) -> None:
    files = files_of(home, "trainer", arguments={"new_runs": 5})
    options = files.options()
    mark_running(files, "worker")
    waits = "1 of 5 new trusted runs"
    worker = _Worker(files, options, "launch")
    worker._report(state="starting")
    worker._on_progress(ServiceProgress(3, facts={"waits_for": waits}), "idle")
    service = impatient_service(options)
    assert service.observe().facts["waits_for"] == ""  # counting takes long
    supervisor = Supervisor(service, jobs_module.jobs_of(files, options), lambda: "run", lambda status: None)
    supervisor.step()
    assert (supervisor.status["waits_for"], supervisor.status["version"]) == (waits, 3)


def test_only_the_worker_of_a_trainer_stores_the_exclusions_of_its_file(home: Path) -> None:
    files = files_of(home, "trainer", arguments={"exclude": str(home / "runs.txt")})
    service = impatient_service(files.options())
    with pytest.raises(CimlError, match=r"runs\.txt: cannot be read"):
        service.check()  # before a start
    (home / "runs.txt").write_text("zuul~1~1 disk was full\n")
    service.check()
    exclusions = ManifestLog(DataRoot.open(str(home / "data")).exclusions)
    assert exclusions.end() == 0
    files.options().service.service().open()
    assert exclusions.end() == 1


@pytest.mark.parametrize("name", ["IntegrityError", "OtherTopicError", "EngineError"])
def test_a_failure_on_flink_is_told_apart_by_its_class(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = f"java.lang.RuntimeException: Error received\nciml.errors.{name}: t[0] ends at 3 [while running 'x']"
    answer = {"exceptionHistory": {"entries": [{"stacktrace": trace}]}}
    monkeypatch.setattr(flink_jobs, "ask", lambda *_: answer)
    failure = flink_jobs.last_failure(flink_jobs.RestJob("http://r", "1", "j", "FAILED", 5.0, False))
    assert failure.fault == ("" if name == "EngineError" else "t[0] ends at 3")
    assert failure.needs_adoption == (name == "OtherTopicError")


def test_a_silent_supervisor_has_to_end_before_the_service_continues(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(home)
    supervisor = sleeper(home, home / "log")
    files.record("supervisor", *supervisor)
    files.put_status({"health": "running", "why": "", "updated_us": status.now_us() - 70_000_000})
    assert (gather(files)["health"], gather(files)["remedy"]) == ("starting", None)  # it has not written yet
    monkeypatch.setattr(status, "_HEARTBEAT_S", 0.0)
    seen = gather(files)
    processes.end(supervisor)
    assert seen["health"] == "stalled"
    assert seen["remedy"] == f"ciml service stop one --home {home} && ciml service resume one --home {home}"


def test_a_running_worker_is_taken_over_with_its_report(home: Path) -> None:
    files = files_of(home)
    mark_running(files, "worker")
    files.put_report({"pid": os.getpid(), "state": "running", "launch": "earlier", "waits": "Kafka", "time_us": 7})
    worker = Worker(files, home)
    seen = InWorker(worker).status()
    assert (seen.state, seen.waits, seen.progress_us) == ("running", "Kafka", 7)
    mark_running(files, "worker", 100.0)  # it died; its pid is another process's now
    files.put_report({**FAILED, "launch": "earlier"})
    assert InWorker(worker).status().fault == "token: no such file"


class Flink:
    """The jobs of a service on a cluster, as Flink lists them, and those that were cancelled."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.files = files_of(home)
        self.jobs = self.jobs_with(workers="w:1")
        self.states: dict[str, str] = {}
        self.cancelled: list[str] = []
        monkeypatch.setattr(flink_jobs, "list_rest_jobs", lambda _: self.listed())
        monkeypatch.setattr(flink_jobs, "list_jobs", lambda _: self.listed())
        monkeypatch.setattr(flink_jobs, "cancel", lambda job: self.cancel(job.id))
        monkeypatch.setattr(flink_jobs, "cancel_job", lambda _, job_id: self.cancel(job_id))
        monkeypatch.setattr(flink_jobs, "ask", lambda *_, **__: {})

    def jobs_with(self, workers: str) -> OnFlink:
        options = StartOptions(options_for("ingest"), "flink", "j:1", "http://r", workers, cwd=str(self.home))
        return OnFlink(Worker(self.files, self.home), options, "ciml-ingest-one-", self.home)

    def listed(self) -> list[RestJob]:
        """Return the jobs; each has its number as id and as the time of its start."""
        return [
            RestJob("http://r", number, f"ciml-ingest-one-{number}", state, float(number), state == "RUNNING")
            for number, state in self.states.items()
        ]

    def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)
        self.states[job_id] = "CANCELED"


@pytest.fixture
def flink(home: Path, monkeypatch: pytest.MonkeyPatch) -> Flink:
    return Flink(home, monkeypatch)


def test_a_job_whose_workers_were_threads_of_its_dead_submitter_is_over(flink: Flink) -> None:
    """An embedded Flink: the job lists as running, and nothing works on it."""
    jobs = flink.jobs_with(workers="")
    flink.states = {"5": "RUNNING"}
    mark_running(flink.files, "worker")
    flink.files.put_report({"launch": "one", "state": "submitting", "job": "ciml-ingest-one-5"})
    assert (jobs.status().state, jobs.status().id) == ("running", "5")
    flink.files.record("worker", os.getpid(), 1000.0)
    seen = jobs.status()
    assert (seen.state, seen.how) == ("over", "its workers died: its process died")
    jobs.cancel()
    assert set(flink.cancelled) == {"5"}


def test_a_job_that_flink_remembers_from_an_earlier_launch_is_no_failure(flink: Flink) -> None:
    flink.states = {"5": "FAILED"}
    assert (flink.jobs.status().state, flink.jobs.status().fault) == ("missing", "")


def test_an_earlier_failure_of_a_job_is_not_that_of_the_next_submission(flink: Flink) -> None:
    mark_running(flink.files, "worker")
    flink.states = {"5": "RUNNING"}
    flink.files.put_report({"launch": "next", "state": "submitting", "job": "ciml-ingest-one-6"})
    assert flink.jobs.status().id == "5"
    flink.states = {"5": "FAILED"}
    flink.files.record("worker", 2**22 + 1, 10.0)  # it was started after the failed job, and has ended
    flink.files.put_report({**flink.files.report(), "error": "Kafka does not answer"})
    assert flink.jobs.status().how == "Kafka does not answer"


def test_a_savepoint_is_kept_if_its_submitter_cannot_be_ended(flink: Flink, monkeypatch: pytest.MonkeyPatch) -> None:
    flink.states = {"5": "RUNNING"}

    def savepoint(*_: object) -> str:
        monkeypatch.setattr(flink_jobs, "list_rest_jobs", Mock(side_effect=EngineError("Flink does not answer")))
        return "s3://b/savepoint-1"

    monkeypatch.setattr(flink_jobs, "stop_with_savepoint", savepoint)
    assert flink.jobs.stop_with_savepoint() == "s3://b/savepoint-1"


def test_of_several_running_jobs_the_newest_stays(flink: Flink) -> None:
    flink.states = {"5": "RUNNING", "7": "RUNNING", "6": "RUNNING", "4": "FAILED"}
    assert flink.jobs.status().id == "7"
    assert flink.cancelled == ["5", "6"]


def test_a_job_that_flink_has_not_received_yet_is_cancelled_too(flink: Flink, monkeypatch: pytest.MonkeyPatch) -> None:
    submitter = sleeper(flink.home, flink.files.log("worker"))
    flink.files.record("worker", *submitter)
    flink.files.put_report({"launch": "one", "state": "submitting", "job": "ciml-ingest-one-8"})
    flink.states = {"8": "RUNNING"}
    monkeypatch.setattr(flink_jobs, "list_rest_jobs", lambda _: [])
    flink.jobs.cancel()
    assert flink.cancelled == ["8"]
    assert processes.find(submitter) is None


def test_a_service_names_the_command_that_continues_it(home: Path) -> None:
    files = files_of(home)
    resume = f"ciml service resume one --home {home}"
    running = {"supervisor": {"pid": 1}}
    assert remedy(files, {"health": "failed", "why": "x", "supervisor": None}) == resume
    other = {"health": "failed", "why": "in other words", "needs_adoption": True, **running}
    assert remedy(files, other) == f"ciml topics adopt --service one --home {home} && {resume}"
    assert remedy(files, {"health": "waiting", "why": "Kafka", **running}) is None
    silent = {"health": "stalled", "why": "in other words", **running}
    assert remedy(files, silent) is None
    assert remedy(files, silent, is_silent=True) == f"ciml service stop one --home {home} && {resume}"


def test_stale_figures_are_marked_and_a_stale_lag_is_unknown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(home, "webhooks", arguments={"config": "none"})
    mark_running(files, "supervisor")
    now = status.now_us()
    monkeypatch.setattr(status, "now_us", lambda: now)
    files.put_status(
        {
            "health": "running", "why": "", "updated_us": now - 3e6, "behind": 0, "lag": {"0": 0}, "rate": 1.5,
            "read_us": {"lag": now - 47e6, "manifest": now - 2e6, "job": now - 2e6},
        }
    )  # fmt: skip
    seen = gather(files)
    assert seen["stale"] == ["lag"]
    assert (seen["behind"], seen["lag"], seen["rate"]) == (None, None, None)
    assert seen["last_known"] == {"behind": 0, "lag": {"0": 0}, "rate": 1.5}
    assert (seen["ages_s"]["lag"], seen["ages_s"]["status"]) == (47, 3)
    files.put_status({**files.status(), "updated_us": now - 40e6})
    assert gather(files)["stale"] == ["lag", "status"]


def test_a_damaged_file_fails_its_service_and_the_others_are_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_query_in_child", lambda _, before: {**status._unknown(before), "read_us": {}})
    ServiceFiles(home, "other").put_options(files_of(home).options())
    ServiceFiles(home, "other").want("stop")
    files_of(home).status_file.write_bytes(b"")
    for words in ((), ("--json",)):
        done = CliRunner().invoke(command, ["status", *words, "--home", str(home)], standalone_mode=False)
        assert done.return_value == 2
        assert "one.json is unreadable" in done.output.replace("\n", "")
    reports = json.loads(done.output)
    assert {name: report["health"] for name, report in reports.items()} == {"one": "failed", "other": "stopped"}


@pytest.mark.parametrize(("main", "process"), [(supervisor_main, "supervisor"), (worker_main, "worker")])
def test_a_second_process_of_a_service_ends_with_a_reason(
    main: Callable[[Path, str], int],
    process: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files_of(home)
    monkeypatch.setattr(ServiceFiles, "exclusive", lambda *_, **__: nullcontext(False))
    assert main(home, "one") == 75
    assert capsys.readouterr().err == f"ciml: another {process} of the service one is running\n"


def test_a_query_without_an_answer_leaves_folder_and_environment_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ciml service status` queries several services in turn: a late query must not change the next one's."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a broker that accepts connections and answers nothing
        arguments = {"kafka": f"127.0.0.1:{silent.getsockname()[1]}"}
        files = files_of(home, arguments=arguments, environment={"AWS_PROFILE": "of the service"})
        monkeypatch.setattr(status, "_DEADLINE_S", 1.0)
        before = Path.cwd(), dict(os.environ)
        seen = gather(files)
        assert (Path.cwd(), dict(os.environ)) == before
    assert (seen["lag"], seen["job"]["state"], seen["stale"]) == (None, "unknown", [])
    assert (seen["health"], seen["why"]) == ("stalled", "its supervisor died")


def test_a_service_without_supervisor_and_broker_is_queried_where_it_was_started(home: Path) -> None:
    seen = gather(files_of(home, environment={"AWS_PROFILE": "of the service"}))
    assert (seen["job"]["state"], list(seen["ages_s"]), seen["lag"]) == ("missing", ["job"], None)


def test_settings_are_recorded_and_secrets_only_by_name() -> None:
    given = {
        "AWS_ENDPOINT_URL_S3": "http://s3:1", "AWS_PROFILE": "ci", "AWS_CA_BUNDLE": "/ca.pem", "AWS_REGION": "eu",
        "AWS_SHARED_CREDENTIALS_FILE": "/credentials", "AWS_WEB_IDENTITY_TOKEN_FILE": "/token",
        "AWS_ACCESS_KEY_ID": "secret-1", "AWS_SECRET_ACCESS_KEY": "secret-2", "AWS_SESSION_TOKEN": "secret-3",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://secret-4", "OPENLINEAGE_API_KEY": "secret-5",
        "HTTPS_PROXY": "http://user:secret-6@proxy:1", "http_proxy": "http://secret-7@proxy:1",
        "https_proxy": "http://proxy:1", "NO_PROXY": "localhost", "HOME": "/root", "PATH": "/bin",
    }  # fmt: skip
    settings, secrets = record_environment(given)
    assert settings == {
        "AWS_ENDPOINT_URL_S3": "http://s3:1", "AWS_PROFILE": "ci", "AWS_CA_BUNDLE": "/ca.pem", "AWS_REGION": "eu",
        "AWS_SHARED_CREDENTIALS_FILE": "/credentials", "AWS_WEB_IDENTITY_TOKEN_FILE": "/token",
        "NO_PROXY": "localhost", "https_proxy": "http://proxy:1",
    }  # fmt: skip
    assert secrets == (
        "AWS_ACCESS_KEY_ID", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
        "HTTPS_PROXY", "OPENLINEAGE_API_KEY", "http_proxy",
    )  # fmt: skip
    assert "secret-" not in json.dumps([settings, secrets])


def test_a_service_uses_the_settings_of_its_start_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "of another shell")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "rotated")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another shell")
    before = dict(os.environ)
    with use_environment({"AWS_ENDPOINT_URL_S3": "http://s3:1"}, ["AWS_SECRET_ACCESS_KEY"]):
        found = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        assert found["AWS_ENDPOINT_URL_S3"] == "http://s3:1"
        assert found["AWS_SECRET_ACCESS_KEY"] == "rotated"
        assert not {"AWS_PROFILE", "AWS_SESSION_TOKEN"} & found.keys()
    assert dict(os.environ) == before


def test_the_homes_own_engines_have_their_present_addresses(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    own = {f"local_{engine}": True for engine in ("kafka", "flink", "s3", "models")}
    given = {"data_path": "s3://b/data", "server": "old:1", "kafka": "old:2"}
    files = files_of(home, "predict", arguments=given, jobs="old:3", environment={"AWS_ENDPOINT_URL_S3": "x"}, **own)
    assert files.options().service.bootstrap == "old:2"
    present = [
        engines.EngineState("kafka", "real", "", "new:1"),
        engines.EngineState("cluster", "real", "", "new:2", urls={"rest": "http://new:3", "workers": "new:4"}),
        engines.EngineState("flink", "real", "", "embedded:5"),
        engines.EngineState("s3", "real", "", "http://new:6"),
        engines.EngineState("models", "real", "", "", urls={"grpc": "new:7"}),
    ]
    state.write(home, {engine.name: engine for engine in present})
    options = files.options()
    assert (options.service.bootstrap, options.service.to_json()["server"]) == ("new:1", "new:7")
    assert (options.jobs, options.rest, options.workers) == ("new:2", "http://new:3", "new:4")
    with in_place(home, options):
        assert os.environ["AWS_ENDPOINT_URL_S3"] == "http://new:6"
        assert os.environ["AWS_ACCESS_KEY_ID"] == "local"
        assert Path.cwd() == home
    assert "AWS_ENDPOINT_URL_S3" not in os.environ


def test_a_folder_that_is_gone_is_named(home: Path) -> None:
    options = StartOptions(options_for("ingest"), "", cwd=str(home / "gone"))
    with pytest.raises(CimlError, match=r"was started in .*gone, which cannot be used now"), in_place(home, options):
        pass
