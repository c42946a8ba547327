"""An ingest that version 0.1.0 supervised: its files (``earlier/``) are read where they are."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from ciml.cli.commands.serve.service import command
from ciml.engines import processes
from ciml.engines.state import ProcessId
from ciml.services import control
from ciml.services.files import ServiceFiles, StartOptions
from ciml.services.jobs import job_name
from ciml.services.options import IngestOptions, options_of

EARLIER = Path(__file__).parent / "earlier"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return shutil.copytree(EARLIER, tmp_path / "home")


def test_its_files_are_read_where_they_are(home: Path) -> None:
    [files] = ServiceFiles.all(home)
    service = IngestOptions(
        data_path="data", kafka="127.0.0.1:9092", kafka_options=("client.id=secret",), topic="events", roots=("logs",),
        delays=(0.5, 0.5, 4.0),
    )  # fmt: skip
    assert files.options() == StartOptions(service, "micro-batches", cwd="/srv/ciml", metrics_port=0)
    assert (files.name, files.wanted(), files.status()["resubmitted"]) == ("one", "stop", 1)
    assert (files.recorded("worker"), files.report()["state"]) == ((4002, 1001.5), "ended")
    assert files.log("worker") == home / "logs" / "ingest-one-worker.log"
    # its files stay in the old folder, and a new service has the new one
    files.put_options(files.options())
    assert ServiceFiles(home, "one").options() == files.options()
    assert not (home / "services").exists()
    assert ServiceFiles(home, "two").folder == home / "services" / "two"


def test_its_jobs_on_flink_keep_their_name(home: Path) -> None:
    """So a running job is found and taken over; the digest is of the data root and the topic."""
    files = ServiceFiles(home, "one")
    options = files.options()
    service = options_of("ingest").from_json({**options.service.to_json(), "data_path": "s3://ci/data"})
    assert job_name(files, replace(options, service=service)) == "ciml-ingest-one-6063b034"


def test_its_status_is_shown(home: Path) -> None:
    done = CliRunner().invoke(command, ["status", "--json", "--home", str(home)], standalone_mode=False)
    assert done.return_value == 1
    seen = json.loads(done.output)["one"]
    assert (seen["health"], seen["why"], seen["resubmitted"]) == ("stopped", "as asked", 1)


def test_it_is_resumed_with_its_options(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ServiceFiles(home, "one")
    options = files.options()
    monkeypatch.setattr(control, "check", lambda *_: None)
    spawn = Mock(return_value=ProcessId(2**22 + 1, 1.0))
    monkeypatch.setattr(processes, "spawn", spawn)
    files.put_options(replace(options, cwd=str(tmp_path)))
    control.resume(files, None, 0.0, print)
    assert list(spawn.call_args.args[0][-3:]) == ["supervisor", str(home), "one"]
    assert (files.options(), files.wanted()) == (replace(options, cwd=str(tmp_path)), "run")
    assert files.status()["resubmitted"] == 1
