"""``ciml backfill``: what it says, what it leaves behind, and how it ends."""

from __future__ import annotations

import gzip
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ciml.cli.commands.operate.backfill import BackfillOptions, summary_lines
from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.pipelines.backfill import backfill as module
from ciml.pipelines.backfill.plan import Tally, Work
from tests.cli.calling import ciml
from tests.pipelines.backfill.backfilling import listed, rows_of
from tests.pipelines.ingest.ingesting import account, raw_rows
from tests.project.test_startup import loaded_by


def test_from_the_command_line_and_again(tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=60)
    packed = tmp_path / "builds.jsonl.gz"
    packed.write_bytes(gzip.compress(made.path.read_bytes()))
    words = ["backfill", str(packed), "--logs", str(made.folder), "--data-path", str(tmp_path / "data")]
    words += ["--runs-of", "zuul"]
    dry = ciml(*words, "--dry-run").stdout
    assert "75 lines" in dry
    assert "line 5: broken_json: " in dry
    assert "run ids begin with zuul; nothing was done" in dry
    assert not (tmp_path / "data").exists()
    first, second = ciml(*words).stdout.splitlines()
    assert first.startswith("builds.jsonl.gz: 75 lines settled in ")
    assert first.endswith(
        " lines/s: 60 runs, 1 repeats, 1 corrections, 2 ignored, 10 dead letters. All 75 lines are settled."
    )
    assert second.startswith(
        "Dead letters by reason: bad_field 3, address_not_allowed 2, broken_json 2, corrupt_gzip 1, "
    )
    assert "ciml dead-letters list --data-path" in second
    rows_of(made, tmp_path / "data")
    assert ciml(*words).stdout == "builds.jsonl.gz: all 75 lines are settled already.\n"
    reported = json.loads(ciml(*words, "--json").stdout)
    assert (reported["lines"], reported["settled_before"], reported["settled"], reported["whole"]) == (75, 75, 75, True)


def test_results_for_programs(tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=20)
    words = ["backfill", str(made.path), "--logs", str(made.folder), "--data-path", str(tmp_path / "data"), "--json"]
    dry = json.loads(ciml(*words, "--dry-run", "--source", "old").stdout)
    assert dry["lines"] == 25
    assert dry["trust"] == [{"trusted": False, "rule": "no rule", "lines": 22}]
    assert dry["bad"] == {"broken_json": 1}
    assert {each["result"] for each in dry["take"]} == {"SUCCESS", "FAILURE"}
    reported = json.loads(ciml(*words, "--limit", "10", "--job", "*").stdout)
    assert (reported["settled"], reported["totals"]["run"]) == (10, 8)
    assert reported["reasons"] == {"dead_letter": {"broken_json": 1}, "repeat": {"run": 1}, "run": {"": 8}}
    assert reported["seconds"] > 0


@pytest.mark.parametrize(
    ("listing", "logs", "more", "message"),
    [
        ("none", "logs", [], "none: no such listing"),
        ("logs", "logs", [], "logs is not a regular file"),
        ("builds.jsonl", "none", [], "none: no such folder"),
        ("builds.jsonl", "builds.jsonl", [], "builds.jsonl: no such folder"),
        ("builds.jsonl", "https://h/x", [], "https://h/x: no such folder; name a folder or an s3:// prefix"),
        ("builds.jsonl", "logs", ["--source", "Old CI"], "'Old CI' is not a source name"),
        ("builds.jsonl", "logs", ["--runs-of", "//"], "'//' is not a source name"),
        ("builds.jsonl", "logs", [], "none of the first 12 logs exists"),
        ("builds.jsonl", "logs", ["--runner", "spark"], "unknown runner 'spark'"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, listing: str, logs: str, more: list[str], message: str) -> None:
    made = listed(tmp_path / "logs", runs=12, tricks=False)
    (tmp_path / "builds.jsonl").write_bytes(made.path.read_bytes())
    for path in (tmp_path / "logs").rglob("*.gz"):
        path.unlink()
    place = logs if "://" in logs else str(tmp_path / logs)
    words = ("backfill", str(tmp_path / listing), "--logs", place, "--data-path", str(tmp_path / "data"), *more)
    assert message in ciml(*words, code=2).stderr
    assert not (tmp_path / "data").exists()


def test_a_signal_ends_it_in_order_and_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = listed(tmp_path / "logs", runs=60, tricks=False)
    monkeypatch.setattr("ciml.events.listing.BLOCK_LINES", 10)
    data = tmp_path / "data"
    words = ["backfill", str(made.path), "--logs", str(made.folder), "--data-path", str(data), "--runs-of", "zuul"]
    take_work = module.take_work

    def with_a_signal(*given: Any) -> Iterator[Work]:
        for number, work in enumerate(take_work(*given)):
            yield work
            if number == 1:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(module, "take_work", with_a_signal)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        done = CliRunner().invoke(cli, words, standalone_mode=False)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert (done.return_value, done.exception) == (130, None), done.output
    assert "Interrupted: run the same command to continue." in done.stdout
    assert account(DataRoot.open(data).raw)[0].index.run_count() == 20
    monkeypatch.undo()
    assert "All 60 lines are settled." in ciml(*words).stdout
    state, deltas = account(DataRoot.open(data).raw)
    assert state.counts == made.expected
    assert raw_rows(deltas).keys() == made.runs


def test_the_final_summary() -> None:
    listing: Any = SimpleNamespace(url="x/builds.jsonl", lines=100)
    tally = Tally(100, 10, 40, 50, complete=False)
    tally.counts.update({("run", ""): 30, ("dead_letter", "log_not_found"): 7, ("dead_letter", "broken_json"): 3})
    assert [*summary_lines(listing, tally, 2.0, "data")] == [
        "builds.jsonl: 40 lines settled in 2.0 s, 20 lines/s: 30 runs, 10 dead letters. 50 of 100 lines are left. "
        "Interrupted: run the same command to continue.",
        "Dead letters by reason: log_not_found 7, broken_json 3; see: ciml dead-letters list --data-path data",
    ]


def test_a_job_named_all_has_its_own_row_in_the_survey(tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=2, tricks=False)
    listing = made.path
    lines = [{**json.loads(line), "build_name": "all"} for line in listing.read_text().splitlines()]
    listing.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["backfill", str(listing), "--logs", str(made.folder), "--data-path", str(tmp_path / "data"), "--dry-run"]
    rows = [line.split() for line in ciml(*words).stdout.splitlines() if line.startswith("│ all ")]
    assert [row[-2] for row in rows] == ["2", "2"]  # that of the job, and the sums


def test_what_the_options_mean(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "logs")
    config = BackfillOptions(
        data_path=str(tmp_path / "data"), logs=str(tmp_path / "link"), source="old", runs_of="zuul"
    ).load_config()
    assert (config.reading.source, config.reading.runs_of) == ("old", "zuul")
    with pytest.raises(CimlError, match=r"'https://zuul\.example\.org' is not a source name"):
        BackfillOptions(data_path="d", logs="s3://b/x", runs_of="https://zuul.example.org").load_config()
    assert config.fetch.file_roots == (config.reading.logs,) == (str(tmp_path / "logs"),)
    assert BackfillOptions(data_path="d", logs="s3://b/x").load_config().fetch.s3_prefixes == ("s3://b/x",)
    assert BackfillOptions(data_path="d", logs="s3://b/x").load_config().reading.runs_of == "backfill"
    with pytest.raises(CimlError):
        BackfillOptions(data_path="ftp://x", logs="s3://b/x").load_config()


def test_it_is_light_without_a_runner(tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=2, tricks=False)
    words = ["backfill", str(made.path), "--logs", str(made.folder), "--data-path", str(tmp_path / "data")]
    assert loaded_by(f"from ciml.cli.main import cli; cli.main({words!r}, standalone_mode=False)") == set()
