"""A recording holds files of its own and nothing else; what stays in the spool is reported."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import EngineError
from ciml.limits import MAX_RECORDING_FILE_BYTES, MAX_RECORDING_LOG_BYTES
from ciml.recorder import Settings
from ciml.recorder.spool.flush import send_leftovers
from ciml.recorder.spool.recording import Destination
from tests.recorder.planted import T0_US, TELEMETRY, plant, planted_facts
from tests.recorder.recorded import record
from tests.recorder.test_spool import NOBODY, bind_by_permissions, logs_of, record_beside

FILES_OF_A_RECORDING = (
    "dstat-csv_log.txt", "run.json", "end.json", "starts", "seal.json", "lock", "run.json.new", "end.json.new",
    "seal.json.new",
)  # fmt: skip
#: Something else in the place of a file of a recording.
IN_PLACE: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to("../../outside"),
    "dangling link": lambda path: path.symlink_to("../../nowhere"),
    "second name": lambda path: path.hardlink_to(path.parents[2] / "outside"),
    "folder": lambda path: path.mkdir(),
    "fifo": os.mkfifo,
    "large": lambda path: path.write_bytes(b"") or os.truncate(path, limit_of(path) + 1),
}


def limit_of(path: Path) -> int:
    return MAX_RECORDING_LOG_BYTES if path.name.endswith(".txt") else MAX_RECORDING_FILE_BYTES


def in_place(kind: str, name: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        IN_PLACE[kind](folder / name)

    return spoil


def link_folder(folder: Path) -> None:
    folder.rename(folder.parents[1] / "elsewhere")
    folder.symlink_to(folder.parents[1] / "elsewhere")


def link_to_itself(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder)


def no_run(folder: Path) -> None:
    (folder / "run.json").unlink()
    os.utime(folder, (T0_US // 10**6 - 10**8,) * 2)


def with_run(mention: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "run.json").write_text(json.dumps({"mention": mention}))


def of_another_user(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, NOBODY, NOBODY)


SPOILED: dict[str, Callable[[Path], object]] = {
    **{f"{kind} {name}": in_place(kind, name) for kind in IN_PLACE for name in FILES_OF_A_RECORDING},
    "link of a folder": link_folder,
    "link to itself": link_to_itself,
    "no run": no_run,
    "folder of another user": of_another_user,
    "log of another user": lambda folder: of_another_user(folder / "dstat-csv_log.txt"),
    "unknown file": lambda folder: (folder / "more").mkdir(),
    "broken run": lambda folder: (folder / "run.json").write_text('{"mention": {'),
    "deep run": lambda folder: (folder / "run.json").write_text("[" * 100_000),
    "run of other types": with_run({**planted_facts(), "start_us": 10**30, "labels": [1]}),
    "run that leads upward": with_run({**planted_facts(), "run_id": "../../x"}),
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_what_is_no_recording_is_reported_and_left_as_it_is_and_the_next_one_is_sent(
    tmp_path: Path, spoiled: str, capfd: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    (tmp_path / "outside").write_bytes(TELEMETRY)
    folder = plant(tmp_path / "spool", log_dir=str(logs))
    plant(tmp_path / "spool", f"{T0_US + 1}-1", log_dir=str(logs), mention=planted_facts("good"))
    (folder / "lock").touch()
    SPOILED[spoiled](folder)
    there = None if spoiled == "link to itself" else sorted(os.listdir(folder))
    with pytest.raises(EngineError, match=r"^1 recordings not sent, kept in .*; 1 sent$"):
        send_leftovers(Settings(tmp_path / "spool"), Destination())
    assert str(folder) in capfd.readouterr().err
    assert list((tmp_path / "spool").iterdir()) == [folder]
    assert there is None or sorted(os.listdir(folder)) == there
    assert logs_of(logs) == ["zuul~good~1"]


def test_what_is_sent_and_cannot_be_removed_is_reported(tmp_path: Path) -> None:
    spool, logs = tmp_path / "spool", tmp_path / "logs"
    folder = plant(spool, log_dir=str(logs))
    (folder / "lock").touch()
    folder.chmod(0o500)
    sent = record(spool, "--send", command=[], preexec_fn=bind_by_permissions)
    beside = record_beside(spool, logs, preexec_fn=bind_by_permissions)
    folder.chmod(0o700)
    assert logs_of(logs) == ["zuul~own~1", "zuul~planted~1"]
    assert list(spool.iterdir()) == [folder]
    stays = f"cannot remove {folder} (Permission denied)"
    assert f"(not sealed), but {stays}\n" in sent.stderr
    assert f"ciml: 1 recordings sent, but 1 of them cannot be removed from {spool}\n" in sent.stderr
    assert sent.returncode == 3
    assert beside.returncode == 0
    assert f"ciml record: zuul~planted~1 sent, but {stays}\n" in beside.stderr


def test_an_own_recording_that_cannot_be_removed_is_reported(tmp_path: Path) -> None:
    spool, logs = tmp_path / "spool", tmp_path / "logs"
    made = "mkdir $(echo SPOOL/*)/seal.json.new; sleep 1.2; exit 5".replace("SPOOL", str(spool))
    own = ("--log-dir", str(logs), "--job", "job", "--source", "zuul", "--run-id", "own")
    done = record(spool, *own, command=["sh", "-c", made], env={"CIML_DOOL": ""})
    (folder,) = spool.iterdir()
    assert logs_of(logs) == ["zuul~own~1"]
    assert done.returncode == 5
    assert done.stderr.endswith(f"ciml record: everything was sent, but cannot remove {folder} (Is a directory)\n")
