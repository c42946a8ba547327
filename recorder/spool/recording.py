"""The spool: one folder for each recording, so that no data is lost with a process or a network.

A recording's folder holds ``run.json`` (the facts of the run, and its destination), the log, ``starts`` (a line for
each start of the recorder), perhaps the output of the command (`ciml.recorder.output`) and, once the command has
ended, ``end.json``. Progress of sending is not stored: a later
sender sends all of it, and repeats are recognised by the identity of each sample and event. A folder is locked while a
process records into it or sends it, and removed when everything has arrived. A leftover recording is untrusted input:
an earlier job of this user may have created or changed it (`ciml.recorder.spool.seals`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from ciml.errors import CimlError, RejectedInput
from ciml.events.fields import is_clean, parse_json
from ciml.events.records import RunFacts
from ciml.events.run_facts import check_labels, facts_from_run, run_from_facts
from ciml.events.run_id import RunId
from ciml.limits import MAX_RECORDING_FILE_BYTES, MAX_RECORDING_LOG_BYTES, MAX_RECORDING_STARTS, MAX_SPOOL_ENTRIES
from ciml.recorder.output import MAX_FILE_BYTES, kept_pieces
from ciml.recorder.sampler import repair
from ciml.recorder.spool.folder import Folder, open_private
from ciml.recorder.tail import Micros, Start
from ciml.storage.json_files import seal, seal_of, without_seal

LOG = "dstat-csv_log.txt"
RUN = "run.json"
END = "end.json"
STARTS = "starts"
OUTPUT = "job-output.txt"
SEAL = "seal.json"
_LOCK = "lock"
#: All files that a recording may contain: also those that were not renamed yet, and their former names. Removed in this
#: order: without its first file a folder is not a recording, so none with a part of its log is sent again.
_FILES = (
    RUN,
    LOG,
    OUTPUT,
    END,
    STARTS,
    SEAL,
    _LOCK,
    *(f"{name}.new" for name in (RUN, END, SEAL)),
    "run.new",
    "end.new",
)
#: Bytes of a file that is read again; of each other file `MAX_RECORDING_FILE_BYTES`.
_MAX_BYTES = {LOG: MAX_RECORDING_LOG_BYTES, OUTPUT: MAX_FILE_BYTES}
_NAME = re.compile(r"[0-9]{1,20}-[0-9]{1,10}")
_RESULTS = frozenset({"SUCCESS", "FAILURE", "TIMED_OUT", "ABORTED"})
_LOCK_TRIES = 50
_LOCK_PAUSE_S = 0.01
_MAX_DESTINATION = 4096  # characters of an address, a topic or a path
_YOUNG_S = 60.0  # a folder without run.json may be one that another recorder is creating


@dataclass(frozen=True)
class Destination:
    """The destination of a recording, without its broker; as in `Plan`."""

    samples_topic: str = "samples"
    events_topic: str = "ci-events"
    log_dir: str = ""
    log_url: str = ""


@dataclass(frozen=True)
class Plan:
    """The facts of a run at its start, and the destination of its recording. It holds no secret.

    Attributes:
      mention: the run's facts as in an event; ``start_us`` is set.
      kafka: the broker's address, or "" for none.
      samples_topic, events_topic: topics of samples and events; without a ``samples_topic`` no samples are sent.
      log_dir: the folder or ``s3://`` prefix in which the log is stored, or "".
      log_url: the public address of ``log_dir``, or "" if it is the same.
    """

    mention: RunFacts
    kafka: str = ""
    samples_topic: str = "samples"
    events_topic: str = "ci-events"
    log_dir: str = ""
    log_url: str = ""

    @property
    def has_destination(self) -> bool:
        """Whether it can be sent anywhere."""
        return bool(self.kafka or self.log_dir)


@dataclass(frozen=True)
class End:
    """The end of the command: epoch microseconds, the result as in `ciml.events.outcomes`, and further labels."""

    end_us: Micros
    result: str
    labels: dict[str, str]


class Recording:
    """A recording's folder, locked by this process and its forks.

    Attributes:
      folder: its folder, held open.
      plan: its plan.
      lock: the descriptor that holds the lock.
    """

    def __init__(self, folder: Folder, plan: Plan, lock: int) -> None:
        self.folder = folder
        self.plan = plan
        self.lock = lock

    @property
    def log(self) -> Path:
        """The log, in dstat's CSV, for the recording process. It may not exist yet."""
        return self.folder.path / LOG

    @property
    def descriptors(self) -> tuple[int, int]:
        """The descriptors that a process must keep open to continue with it."""
        return self.lock, self.folder.descriptor

    @classmethod
    def create(cls, spool: Path, plan: Plan) -> Recording:
        """Create a recording.

        Raises:
          CimlError: the spool is not a private folder of this user.
          OSError: the folder cannot be created.
        """
        with open_private(spool, create=True) as parent:
            name = f"{plan.mention.start_us}-{os.getpid()}"
            os.mkdir(name, 0o700, dir_fd=parent.descriptor)
            folder = parent.folder(name)
            with contextlib.ExitStack() as unused:
                unused.callback(folder.close)
                unused.callback(_remove, folder)
                lock = _lock_new(folder)
                unused.callback(os.close, lock)
                content = {**asdict(plan), "mention": plan.mention.to_json()}
                folder.write(RUN, seal(json.dumps(content).encode()))
                unused.pop_all()  # the recording has both now
        return cls(folder, plan, lock)

    @classmethod
    def take(cls, spool: Folder, name: str) -> Recording | None:
        """Open and lock an older recording.

        Returns:
          The recording; None if another process has it, is creating it, or has removed it.

        Raises:
          CimlError: it is not a recording, or cannot be read; the message gives the reason.
        """
        path = spool.path / name
        if not _NAME.fullmatch(name):
            raise CimlError(f"{path}: not a recording")
        try:
            folder = spool.folder(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CimlError(f"{path}: cannot be opened as a folder ({error.strerror})") from None
        try:
            with contextlib.ExitStack() as unused:
                unused.callback(folder.close)
                is_young = _is_young(folder)  # before locking, which may create a file
                lock = _lock(folder, is_new=False)
                if lock is None:
                    return None
                unused.callback(os.close, lock)
                if not is_young and set(folder.names(1)) <= {_LOCK}:
                    _remove(folder)  # a process was killed while it created or removed it
                    return None
                plan = _read_plan(folder, is_young)
                if plan is None:
                    return None
                unused.pop_all()  # the recording has both now
                return cls(folder, plan, lock)
        except FileNotFoundError:  # removed meanwhile by its sender
            return None
        except OSError as error:
            raise CimlError(f"{path}: cannot be read ({error.strerror})") from None
        except (RejectedInput, msgspec.ValidationError) as error:
            raise CimlError(f"{path / RUN}: cannot be read ({error})") from None

    def add_start(self, recorder_us: int) -> None:
        """Write down a start of the recorder, whose samples begin at the log's end. Raises `OSError`.

        A line that a killed recorder has cut is removed first: the next samples begin in its place.
        """
        repair(self.log)
        start = Start(self.log.stat().st_size if self.log.exists() else 0, recorder_us)
        with os.fdopen(self.folder.open(STARTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a") as file:
            file.write(json.dumps(asdict(start)) + "\n")

    def starts(self) -> list[Start]:
        """Return the starts of the recorder, at least one, in order."""
        starts: list[Start] = []
        with contextlib.suppress(OSError, CimlError, msgspec.MsgspecError):  # a full disk may have cut the last line
            for line in self.folder.read(STARTS, MAX_RECORDING_FILE_BYTES).splitlines()[:MAX_RECORDING_STARTS]:
                start = msgspec.json.decode(line, type=Start)
                if starts and (start.offset < starts[-1].offset or start.recorder_us <= starts[-1].recorder_us):
                    break
                starts.append(start)
        return starts or [Start(0, self.plan.mention.start_us or 0)]

    def write_end(self, end: End) -> None:
        """Write the end of the command. Raises `OSError`."""
        self.folder.write(END, seal(json.dumps(asdict(end)).encode()))

    def end(self) -> End | None:
        """Return the end of the command, or None if it is missing or unreadable."""
        try:
            end = msgspec.convert(_read(self.folder, END), End)
            return End(end.end_us, end.result, check_labels(end.labels)) if end.result in _RESULTS else None
        except (OSError, CimlError, RejectedInput, msgspec.ValidationError):
            return None

    def read_log(self, offset: int, count: int) -> bytes:
        """Return at most ``count`` bytes of the log; b"" at its end or without a log. Raises `OSError`, `CimlError`."""
        try:
            with os.fdopen(self.folder.open(LOG), "rb") as log:
                return os.pread(log.fileno(), max(0, min(count, MAX_RECORDING_LOG_BYTES - offset)), offset)
        except FileNotFoundError:
            return b""

    def create_output(self) -> int:
        """Create the file of the output; return its descriptor. Raises `OSError`."""
        return self.folder.open(OUTPUT, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def remove_output(self) -> None:
        """Remove the file of the output, if it can be."""
        with contextlib.suppress(OSError):
            os.unlink(OUTPUT, dir_fd=self.folder.descriptor)

    def output_pieces(self) -> Iterator[bytes] | None:
        """Return what was recorded of the output, piece by piece; None without one. Raises `OSError`, `CimlError`."""
        status = self.folder.stat(OUTPUT)
        if status is None:
            return None

        def read(offset: int, count: int) -> bytes:
            with os.fdopen(self.folder.open(OUTPUT), "rb") as file:
                return os.pread(file.fileno(), count, offset)

        return kept_pieces(read, min(status.st_size, MAX_FILE_BYTES))

    @property
    def has_seal(self) -> bool:
        """Whether it has a seal, valid or not, so its recorder had credentials. Raises `OSError`, `CimlError`."""
        return self.folder.stat(SEAL) is not None

    def changed_us(self) -> int:
        """Return the time of the last change of the log, or without one of the folder, epoch microseconds."""
        status = self.folder.stat(LOG) or os.fstat(self.folder.descriptor)
        return status.st_mtime_ns // 1000

    def remove(self) -> str:
        """Remove the recording after its arrival, and release it. Return why it could not be removed, or ""."""
        problem = _remove(self.folder)
        self.release()
        return problem

    def release(self) -> None:
        """Unlock it for other processes."""
        self.folder.close()
        os.close(self.lock)


def max_bytes_of(name: str) -> int:
    """Return the most bytes of a file of a recording that is read again."""
    return _MAX_BYTES.get(name, MAX_RECORDING_FILE_BYTES)


def list_spool(spool: Folder) -> tuple[list[str], bool]:
    """List a spool. Raises `OSError`.

    Returns:
      The names of recordings, including those in progress, oldest first, then all others, at most `MAX_SPOOL_ENTRIES`;
      and whether the spool has more entries.
    """
    names = spool.names(MAX_SPOOL_ENTRIES)
    names.sort(key=lambda name: _NAME.fullmatch(name) is None)
    return names[:MAX_SPOOL_ENTRIES], len(names) > MAX_SPOOL_ENTRIES


def size_of(folder: Folder) -> int:
    """Return the bytes of a recording's files, without files above the limits. Raises `OSError`."""
    total = 0
    for name in set(folder.names(len(_FILES))) & set(_FILES):
        status = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
        total += status.st_size if status.st_size <= max_bytes_of(name) else 0
    return total


def default_spool() -> Path:
    """Return ``$CIML_SPOOL``; by default a folder in the user's state folder, or in /tmp if that is not writable."""
    configured = os.environ.get("CIML_SPOOL")
    if configured:
        return Path(configured).absolute()
    state = Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"))
    existing = next(folder for folder in (state, *state.parents) if folder.exists())
    if state.is_absolute() and os.access(existing, os.W_OK | os.X_OK):
        return state / "ciml" / "record"
    return Path("/tmp") / f"ciml-record-{os.getuid()}"  # noqa: S108  # `open_private` checks the owner


def _read_plan(folder: Folder, is_young: bool) -> Plan | None:
    """Read and check a recording's plan, as ingest checks an event. Return None for a young recording without one.

    Raises:
      CimlError, RejectedInput, msgspec.ValidationError, OSError: it is not a recording.
    """
    names = folder.names(len(_FILES))
    if unknown_names := sorted(set(names) - set(_FILES)):
        raise CimlError(f"{folder.path}: not a recording: contains {unknown_names[0]!r:.80}")
    if RUN not in names:
        if is_young:
            return None
        raise CimlError(f"{folder.path}: not a recording: no {RUN}")
    for name in names:  # also files that are not read here: a folder of that name could not be removed
        status = folder.stat(name)
        max_bytes = max_bytes_of(name)
        if status is not None and status.st_size > max_bytes:
            raise CimlError(f"{folder.path / name} is larger than {max_bytes} bytes")
    plan = msgspec.convert(_read(folder, RUN), Plan)
    facts = plan.mention.replace(end_us=None, outcome=None, result="", log_url="", output_url="")  # set at the end
    if facts.start_us is None or not 0 <= facts.start_us < 1 << 53:
        raise RejectedInput("bad_time", "start_us")
    checked, *_ = facts_from_run(run_from_facts(facts), RunId.decode(facts.run_id), "started")
    for text in (plan.kafka, plan.samples_topic, plan.events_topic, plan.log_dir, plan.log_url):
        if len(text) > _MAX_DESTINATION or not is_clean(text):
            raise RejectedInput("bad_field", f"{text!r:.80} is not a valid destination")
    return replace(plan, mention=checked)


def _read(folder: Folder, name: str) -> Any:
    """Return the content of a JSON file. Raises `CimlError`, `RejectedInput`, `OSError`."""
    data = folder.read(name, MAX_RECORDING_FILE_BYTES)
    seal_of(data, str(folder.path / name), "remove the recording")
    return parse_json(without_seal(data))


def _remove(folder: Folder) -> str:
    """Remove a recording's folder and its known files; nothing else is ever removed from the spool.

    Returns:
      A line on why the folder still exists, or "".
    """
    errors: list[OSError] = []
    for name in _FILES:
        try:
            os.unlink(name, dir_fd=folder.descriptor)
        except FileNotFoundError:
            continue
        except OSError as error:
            errors.append(error)
    try:
        folder.path.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        errors.append(error)
    return f"cannot remove {folder.path} ({errors[0].strerror})" if errors else ""


def _is_young(folder: Folder) -> bool:
    return time.time() - os.fstat(folder.descriptor).st_mtime < _YOUNG_S


def _lock(folder: Folder, *, is_new: bool) -> int | None:
    """Lock a folder for this process and its forks; return the descriptor, or None if another process uses it.

    In a folder of another process the file of the lock is not created: that process may be about to remove the folder.
    """
    try:
        lock = folder.open(_LOCK, os.O_RDWR | (os.O_CREAT if is_new else 0))
    except FileNotFoundError:
        if _is_young(folder):
            return None
        lock = folder.open(_LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _lock_new(folder: Folder) -> int:
    """Lock a new folder; wait for a recorder that looks into it while it scans the spool. Raises `OSError`."""
    for _ in range(_LOCK_TRIES):
        lock = _lock(folder, is_new=True)
        if lock is not None:
            return lock
        time.sleep(_LOCK_PAUSE_S)
    raise BlockingIOError(errno.EAGAIN, f"{folder.path} is locked by another process")
