"""The files of a supervised service: the status ``<home>/services/<name>.json``, and a folder of the same name.

The folder has the record of the service's start (`StartOptions`), the operator's last request, the ids of its two
processes, the *supervisor* and the *worker*, and what the worker reports.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict, cast

import psutil

from ciml.engines import processes, state
from ciml.engines.environment import s3_environment, use_environment, use_local_s3
from ciml.engines.state import ProcessId
from ciml.errors import CimlError
from ciml.services.decide import Wanted
from ciml.services.options import IngestOptions, ServiceOptions, options_of
from ciml.storage.json_files import read_json, write_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_LOG_BYTES = 5 * 2**20
_FOLDERS = ("services", "ingest")  # earlier versions supervised only an ingest, in the second


class JobEntry(TypedDict, total=False):
    """The job in a `Status`: ``state`` is a `ciml.services.decide.JobState`, or "unknown"; see `JobStatus`."""

    state: str
    id: str
    name: str
    how: str
    submitted_us: int | None
    restarts: int | None


class SavepointEntry(TypedDict, total=False):
    """A savepoint of a job in a `Status`: its URL, time, version of the manifest, use, and why it was rejected."""

    path: str
    time_us: int
    version: int | None
    use: str
    why: str


class Occurrence(TypedDict):
    """A failure or a resubmission in a `Status`: its time, and its reason."""

    time_us: int
    why: str


class Status(TypedDict, total=False):
    """The status of a service, as JSON. A key is missing before its value was first known.

    Times end with ``_us`` (epoch microseconds), ages and durations with ``_s`` (seconds).

    Attributes:
      name, health, why: of the service; see `ciml.services.decide.Action`. Always present after `gather`.
      kind, engine, data, topic, kafka, parallelism: of its start.
      supervisor, worker: the running processes (``pid``); None for none. Always present after `gather`.
      job: its job; see `JobEntry`.
      checkpoint: the last one of the job (``bytes``, ``time_us``).
      savepoint: the last one (``path``, ``time_us``, ``version``, ``use``: "", ``resumed`` or ``refused``).
      savepoint_failed: why the last savepoint failed; "" if it did not.
      version, last_commit_us, counts, deferred: facts of the manifest; a kind of service may add others.
      lag, behind: uncovered offsets by partition, and their sum.
      rate: offsets covered a second.
      problems: see `ciml.services.service.Service.problems`.
      failures: number of successive fruitless submissions.
      resubmitted, resubmissions: number of resubmissions, and the last ones (``time_us``, ``why``).
      last_failure: the last permanent error (``time_us``, ``why``).
      exit_code: of a permanent error.
      needs_adoption: whether a permanent error is an `OtherTopicError`.
      metrics: the URL of the metrics, or why they are not served.
      since_us: the time from which health and reason are the present ones.
      updated_us: the time of the supervisor's last report.
      read_us: the times at which figures were read; see `ciml.services.status`.
      remedy: the command that continues the service; None if it continues by itself. The keys from here on are always
        present after `gather`, and they are not stored.
      uptime_s, last_commit_age_s: ages of the job and of the last commit; None if unknown.
      dead_letters: number of open dead letters; None if unknown.
      ages_s, stale: the ages of figures, and the names of those that are too old.
      last_known: ``behind``, ``lag`` and ``rate`` if they are stale, when the present ones are unknown; None otherwise.
    """

    name: str
    health: str
    why: str
    kind: str
    engine: str
    data: str
    topic: str
    kafka: str | None
    parallelism: int
    supervisor: dict[str, int] | None
    worker: dict[str, int] | None
    job: JobEntry
    checkpoint: dict[str, int] | None
    savepoint: SavepointEntry | None
    savepoint_failed: str
    version: int
    last_commit_us: int | None
    counts: dict[str, int]
    deferred: int
    lag: dict[str, int] | None
    behind: int | None
    rate: float | None
    problems: Mapping[str, str]
    failures: int
    resubmitted: int
    resubmissions: list[Occurrence]
    last_failure: Occurrence | None
    exit_code: int
    needs_adoption: bool
    metrics: str
    since_us: int
    updated_us: int
    read_us: dict[str, int]
    remedy: str | None
    uptime_s: int | None
    last_commit_age_s: int | None
    dead_letters: int | None
    ages_s: dict[str, int | None]
    stale: list[str]
    last_known: dict[str, Any] | None


@dataclass(frozen=True)
class StartOptions:
    """The record of a service's start. Written with mode 0600, since Kafka's properties may hold a password.

    Attributes:
      service: the options of the service.
      engine: ``flink`` or ``micro-batches``; "" for a kind that runs no pipeline.
      jobs: Beam's job server, ``host:port``; "" for micro-batches.
      rest: the URL of Flink's REST API; "" for a Flink inside the job server.
      workers: the pool of Python workers, ``host:port``; "" if the workers are threads of the submitter.
      parallelism: of a job on Flink.
      beam: further options of Beam.
      cwd: the base of relative paths.
      local_kafka, local_flink, local_s3, local_models: whether these are the home's own, whose addresses may change
        (`located`).
      metrics_port, metrics_address: address of the supervisor's metrics; None for no metrics.
      environment: the variables that the start used, without secrets; None in the record of an earlier version.
      secret_variables: the names of those that hold secrets.
      tied: the process whose end stops the service; for tests.
    """

    service: ServiceOptions
    engine: str
    jobs: str = ""
    rest: str = ""
    workers: str = ""
    parallelism: int = 1
    beam: tuple[str, ...] = ()
    cwd: str = field(default_factory=os.getcwd)
    local_kafka: bool = False
    local_flink: bool = False
    local_s3: bool = False
    local_models: bool = False
    environment: Mapping[str, str] | None = None
    secret_variables: tuple[str, ...] = ()
    tied: ProcessId | None = None
    metrics_port: int | None = None
    metrics_address: str = "127.0.0.1"

    @property
    def kind(self) -> str:
        """The kind of the service."""
        return self.service.kind

    def to_json(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "service"}
        return {"kind": self.kind, "arguments": self.service.to_json(), **values}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StartOptions:
        # Before there were other kinds of services, "ingest" held the arguments.
        arguments = value.pop("ingest", None) or value.pop("arguments")
        service = options_of(value.pop("kind", "ingest")).from_json(arguments)
        tied = value.pop("tied", None)
        return cls(
            service=service,
            beam=tuple(value.pop("beam")),
            secret_variables=tuple(value.pop("secret_variables", ())),
            tied=ProcessId(int(tied[0]), float(tied[1])) if tied else None,
            **value,
        )


def with_present_addresses(home: Path, options: StartOptions) -> StartOptions:
    """Return the options with the present addresses of the home's own engines.

    An engine that does not run keeps its last address.
    """
    engines = state.read(home)
    flink = engines.get("cluster") or engines.get("flink")
    if options.local_flink and flink is not None and not flink.light:
        rest_url = flink.urls.get("rest", "")
        workers = flink.urls.get("workers", "")
        options = replace(options, jobs=flink.address, rest=rest_url, workers=workers)
    s3 = engines.get("s3")
    if options.local_s3 and s3 is not None:
        options = replace(options, environment={**(options.environment or {}), **s3_environment(s3.address)})
    kafka = engines.get("kafka")
    models = engines.get("models")
    service = options.service.with_addresses(
        kafka.address if options.local_kafka and kafka is not None else None,
        models.urls["grpc"] if options.local_models and models is not None else None,
    )
    return replace(options, service=service)


@contextmanager
def in_place(home: Path, options: StartOptions) -> Iterator[None]:
    """Use the working folder and the environment of a service's start in this process, within the context."""
    with _folder(options.cwd), _environment(home, options):
        yield


@contextmanager
def _folder(path: str) -> Iterator[None]:
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(path)
    except OSError as error:
        os.close(before)
        raise CimlError(
            f"the service was started in {path}, which cannot be used now ({error.strerror}): restore the folder, "
            "or start the service in another one"
        ) from None
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


@contextmanager
def _environment(home: Path, options: StartOptions) -> Iterator[None]:
    if options.environment is not None:
        with use_environment(options.environment, options.secret_variables):
            yield
        return
    with use_environment({}, os.environ.keys()):  # an earlier version recorded none: this process's, and the local S3
        service = options.service
        roots = service.roots if isinstance(service, IngestOptions) else ()
        if any(url.startswith("s3://") for url in (service.data, *roots)):
            use_local_s3(state.read(home).get("s3"))
        yield


def check_secret_variables(options: StartOptions) -> None:
    """Raise `CimlError` if a variable with a secret that the start used is not set."""
    missing = [name for name in options.secret_variables if not os.environ.get(name)]
    if missing:
        raise CimlError(
            f"the service was started with {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not set "
            "now: set them, or keep the credentials in a file and start the service again (ciml service start)"
        )


class ServiceFiles:
    """The files of one service of a home. Services that an earlier version started keep their folder.

    Raises:
      CimlError: for an invalid name.
    """

    def __init__(self, home: Path, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise CimlError(f"invalid service name {name!r}: use at most 64 letters, digits, '.', '_' and '-'")
        self.home = home
        self.name = name
        new, old = (home / folder for folder in _FOLDERS)
        self._is_earlier = not (new / name / "options.json").exists() and (old / name / "options.json").exists()
        folder = old if self._is_earlier else new
        self.status_file = folder / f"{name}.json"
        self.folder = folder / name

    @classmethod
    def all(cls, home: Path) -> list[ServiceFiles]:
        """Return the services that were ever started in a home."""
        names = {path.parent.name for folder in _FOLDERS for path in (home / folder).glob("*/options.json")}
        return [cls(home, name) for name in sorted(names)]

    @property
    def timings(self) -> Path:
        """The folder of the worker's metrics, which its supervisor exports."""
        return self.folder / "timings"

    def log(self, process: str) -> Path:
        """Return the log of its ``supervisor`` or ``worker``."""
        return self.home / "logs" / f"{'ingest' if self._is_earlier else 'service'}-{self.name}-{process}.log"

    @property
    def was_started(self) -> bool:
        """Whether it was ever started."""
        return (self.folder / "options.json").exists()

    def options(self) -> StartOptions:
        """Return its start options, with the present addresses of the home's own engines.

        Raises:
          CimlError: if it was never started.
        """
        value = read_json(self.folder / "options.json")
        if value is None:
            raise CimlError(
                f"no service named {self.name} was started in {self.home}; start one by ciml service start KIND"
            )
        return with_present_addresses(self.home, StartOptions.from_json(value))

    def put_options(self, options: StartOptions) -> None:
        write_json(self.folder / "options.json", options.to_json(), mode=0o600)

    def wanted(self) -> Wanted:
        """Return the operator's last request."""
        value: Wanted = (read_json(self.folder / "wanted.json") or {}).get("wanted", "run")
        return value

    def want(self, wanted: Wanted) -> None:
        write_json(self.folder / "wanted.json", {"wanted": wanted})

    def status(self) -> Status:
        """Return the last status of a supervisor; empty before the first."""
        return cast("Status", read_json(self.status_file) or {})

    def put_status(self, status: Status) -> None:
        write_json(self.status_file, dict(status))

    def process(self, name: str) -> psutil.Process | None:
        """Return the recorded ``supervisor`` or ``worker`` if it runs."""
        return processes.find(self.recorded(name))

    def recorded(self, process: str) -> ProcessId | None:
        """Return the recorded ``supervisor`` or ``worker``, which may have ended; None if none is recorded."""
        value = read_json(self.folder / f"{process}.json") or {}
        return ProcessId.of(value.get("pid"), value.get("started"))

    def record(self, process: str, pid: int, started: float) -> None:
        write_json(self.folder / f"{process}.json", {"pid": pid, "started": started})

    def report(self) -> dict[str, Any]:
        """Return the last report of the worker; empty before the first."""
        return read_json(self._report_file) or {}

    def put_report(self, value: dict[str, Any]) -> None:
        write_json(self._report_file, value)

    def clear_worker(self) -> None:
        """Prepare for the next worker: remove the last one's report, and move its log aside."""
        self._report_file.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.log("worker"), self.log("worker").with_suffix(".log.1"))

    @property
    def _report_file(self) -> Path:
        return self.folder / "worker.said.json"

    @contextmanager
    def exclusive(self, holder: str, timeout_s: float = 0.0) -> Iterator[bool]:
        """Hold the lock of the only ``supervisor``, ``worker`` or ``command``. Yield whether it is held."""
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{holder}.lock", timeout=timeout_s)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


def read_times(status: Status) -> dict[str, int]:
    """Return when the figures of a status were read, epoch microseconds."""
    reported = {"status": status["updated_us"]} if "updated_us" in status else {}
    return {**reported, **status.get("read_us", {})}


def bound_log(log: Path, most: int = _MAX_LOG_BYTES) -> None:
    """Empty a log of more than ``most`` bytes, even while it is written to; keep a copy next to it."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > most:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)  # its writer appends


def now_us() -> int:
    return int(time.time() * 1e6)
