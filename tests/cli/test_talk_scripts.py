"""The console scripts of the talk take what is pasted from its slides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.s3_options import s3_options
from cli.talk_scripts import undashed

SCRIPTS = Path(sys.executable).parent
CORPUS = Path(__file__).resolve().parents[2] / "examples/corpus"


@pytest.mark.parametrize(
    ("pasted", "meant"),
    [
        (["—dataset", "a"], ["--dataset", "a"]),
        (["–dataset=a—b"], ["--dataset=a—b"]),
        (["–h"], ["-h"]),
        (["—-seal"], ["--seal"]),
        (["--slicer", "-100:", "–5", "—"], ["--slicer", "-100:", "–5", "—"]),
    ],
)
def test_a_dash_of_a_slide_is_an_option(pasted: list[str], meant: list[str]):
    assert undashed(pasted) == meant


def test_s3_options_say_where_and_who(monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "before")

    @click.command()
    @s3_options
    def show() -> None:
        import os

        click.echo(f"{os.environ['AWS_PROFILE']} {os.environ['AWS_ENDPOINT_URL_S3']}")

    runner = CliRunner()
    assert runner.invoke(show, []).output == "before before\n"
    assert runner.invoke(show, ["--s3-profile", "ci", "--s3-url", "http://s3:9000"]).output == "ci http://s3:9000\n"


def test_cache_data_is_backfill_by_the_words_of_the_talk(tmp_path: Path):
    pasted = ["—build-name", "hadoop-terasort", "—limit", "20", "—data-path", str(tmp_path / "data")]
    done = subprocess.run(
        [SCRIPTS / "ciml-cache-data", CORPUS / "builds.jsonl", "—logs", CORPUS, *pasted],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "20 runs." in done.stdout
    wrong = subprocess.run([SCRIPTS / "ciml-cache-data", "nowhere.jsonl"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--logs" in wrong.stderr
