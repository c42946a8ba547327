"""The spool: one folder for each recording, so that nothing is lost with a process or a network.

A recording's folder holds what is to be sent: ``run.json`` (what is known of the run, and where it is to go), the log,
``starts`` (a line for each start of the recorder) and, once the command has ended, ``end.json``. Nothing says how far
it was sent: whoever sends it again sends all of it, and each sample and event has an identity by which a repeat is
known. A folder is locked while somebody records into it or sends it, and removed when all has arrived.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ciml.errors import CimlError
from ciml.records import Mention

LOG = "dstat-csv_log.txt"
_RUN, _END, _STARTS, _LOCK = "run.json", "end.json", "starts", "lock"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a run when it starts, and where its recording goes. Nothing here is a secret.

    Attributes:
      mention: the run, as an event says it; ``start_us`` is set.
      kafka: the broker's address, or "" for none.
      samples_topic, events_topic: where samples and events go; samples go nowhere where theirs is "".
      log_dir: the folder or ``s3://`` prefix that the log is put below, or "".
      log_url: the address under which others find ``log_dir``, or "" where it is its own address.
    """

    mention: Mention
    kafka: str = ""
    samples_topic: str = "samples"
    events_topic: str = "ci-events"
    log_dir: str = ""
    log_url: str = ""

    @property
    def leads_somewhere(self) -> bool:
        """Whether there is a place to send it to."""
        return bool(self.kafka or self.log_dir)


@dataclass(frozen=True, slots=True)
class End:
    """How the command ended: epoch microseconds, the word of `ciml.outcomes`, and labels that say more."""

    end_us: int
    result: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Start:
    """A start of the recorder: where in the log it begins, and when it was, epoch microseconds."""

    offset: int
    recorder_us: int


class Recording:
    """A recording's folder, locked by this process and those that it forks.

    Attributes:
      folder: its path.
      plan: what it is.
    """

    def __init__(self, folder: Path, plan: Plan, lock: int) -> None:
        self.folder, self.plan, self.lock = folder, plan, lock

    @property
    def log(self) -> Path:
        """The log, in dstat's CSV. It may not be there yet."""
        return self.folder / LOG

    @classmethod
    def create(cls, spool: Path, plan: Plan) -> Recording:
        """A new recording. Raises `OSError`."""
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = spool / f"{plan.mention.start_us}-{os.getpid()}"
        folder.mkdir(mode=0o700)
        try:
            lock = _lock(folder)
            assert lock is not None, "nobody else knows it"
            _write(folder / _RUN, {**asdict(plan), "mention": plan.mention.to_json()})
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(folder, plan, lock)

    @classmethod
    def take(cls, folder: Path) -> Recording | None:
        """An older recording, or None where another process has it, or it is gone.

        Raises:
          CimlError: what is there is no recording.
        """
        try:
            lock = _lock(folder)
        except OSError:
            return None
        if lock is None:
            return None
        try:
            content = json.loads((folder / _RUN).read_bytes())
            plan = Plan(**{**content, "mention": Mention.from_json(content["mention"])})
        except FileNotFoundError:
            os.close(lock)
            if not folder.exists():
                return None
            raise CimlError(f"{folder}: no recording: it has no {_RUN}") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            os.close(lock)
            raise CimlError(f"{folder / _RUN}: cannot be read ({error})") from None
        return cls(folder, plan, lock)

    def add_start(self, recorder_us: int) -> None:
        """Notes a start of the recorder, whose samples begin at the log's end. Raises `OSError`."""
        start = Start(self.log.stat().st_size if self.log.exists() else 0, recorder_us)
        with (self.folder / _STARTS).open("a") as file:
            file.write(json.dumps(asdict(start)) + "\n")

    def starts(self) -> list[Start]:
        """The starts of the recorder, one at least, in their order."""
        found = []
        with contextlib.suppress(OSError, ValueError, TypeError):  # a full disk may have cut the last
            for line in (self.folder / _STARTS).read_text().splitlines():
                found.append(Start(**json.loads(line)))
        return found or [Start(0, self.plan.mention.start_us or 0)]

    def write_end(self, end: End) -> None:
        """Notes how the command ended. Raises `OSError`."""
        _write(self.folder / _END, asdict(end))

    def end(self) -> End | None:
        """How the command ended, or None where nobody could say."""
        try:
            return End(**json.loads((self.folder / _END).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def remove(self) -> None:
        """Removes it: all of it has arrived."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Lets another process have it."""
        os.close(self.lock)


def leftovers(spool: Path) -> Iterator[Path]:
    """The folders of recordings, oldest first; those that are being recorded are among them."""
    with contextlib.suppress(OSError):
        yield from sorted(entry for entry in spool.iterdir() if entry.is_dir())


def default_spool() -> Path:
    """``$CIML_SPOOL``, else a folder of the user's own: below the state folder, or where there is no home, in /tmp."""
    named = os.environ.get("CIML_SPOOL")
    if named:
        return Path(named).absolute()
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    if os.path.isabs(state) and os.access(_first_that_exists(Path(state)), os.W_OK | os.X_OK):
        return Path(state) / "ciml" / "record"
    return Path("/tmp") / f"ciml-record-{os.getuid()}"  # noqa: S108  # `check_owner` looks whose it is


def check_owner(spool: Path) -> None:
    """Raises `CimlError` where the spool is another user's: what is sent from it would be theirs."""
    with contextlib.suppress(FileNotFoundError):
        if spool.stat().st_uid not in (os.getuid(), 0):
            raise CimlError(f"{spool} belongs to another user; name a spool of your own by --spool")


def _first_that_exists(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock until the last process that has it ends; None where it is taken."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _write(path: Path, content: Any) -> None:
    staged = path.with_suffix(".new")
    staged.write_text(json.dumps(content))
    staged.replace(path)
