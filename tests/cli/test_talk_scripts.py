"""The console scripts of the talk take what is pasted from its slides."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ciml.cli import talk_scripts
from ciml.cli.command import make_command
from ciml.cli.options import S3Environment
from ciml.cli.talk_scripts import undashed
from tests.corpus import CORPUS, builds

SCRIPTS = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]


#: The options of each script of the talk, and those that it got since; none may go.
OPTIONS = {
    "build_dataset": (
        "--aggregation-functions --build-name --class-label --class-map --data-path --dataset --definition"
        " --features-regex --force --home --jobs --listing --logs --max-windows --min-windows --no-force --no-visualize"
        " --runner --s3-profile --s3-url --sample-interval --sample-statistic --slicer --target-data-path --tdt-split"
        " --visualize"
    ),
    "cache_data": (
        "--beam-option --build-name --data-path --dry-run --fetch-policy --home --job --json --limit --logs --runner"
        " --runs-of --s3-profile --s3-url --skip-known --source --take-missing --trust-policy"
    ),
    "setup_experiment": (
        "--activation --batch-norm --batch-size --class-weights --data-path --dropout --early-stopping --epochs"
        " --estimator --experiment --force --hidden-layers --home --kernel-size --l2 --learning-rate --no-force"
        " --optimizer --parameter --s3-profile --s3-url --schedule --seed --steps -p"
    ),
    "train_model": (
        "--cross-validate --data-path --dataset --debug --eval-dataset --exclude --experiment --gpu --hold-out --home"
        " --json --no-debug --no-gpu --s3-profile --s3-url --tensorboard --trust-policy"
    ),
    "plot_data": (
        "--data-path --data-plots-folder --dataset --features-regex --output --s3-profile --s3-url --seed --zone"
    ),
}


@pytest.mark.parametrize("script", OPTIONS)
def test_a_script_keeps_its_options(script: str, monkeypatch: pytest.MonkeyPatch):
    run: list[click.Command] = []
    monkeypatch.setattr(talk_scripts, "main", run.append)
    getattr(talk_scripts, script)()
    (command,) = run
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts[f"ciml-{script.replace('_', '-')}"] == f"ciml.cli.talk_scripts:{script}"
    options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    assert set(OPTIONS[script].split()) - options == set()


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

    @make_command("show")
    def show(options: S3Environment) -> None:
        click.echo(f"{os.environ['AWS_PROFILE']} {os.environ['AWS_ENDPOINT_URL_S3']}")

    runner = CliRunner()
    assert runner.invoke(show, []).output == "before before\n"
    assert runner.invoke(show, ["--s3-profile", "ci", "--s3-url", "http://s3:9000"]).output == "ci http://s3:9000\n"


def test_cache_data_is_backfill_by_the_words_of_the_talk(tmp_path: Path):
    job = builds()[0]["build_name"]
    pasted = ["—build-name", job, "—limit", "20", "—data-path", str(tmp_path / "data")]
    command = [SCRIPTS / "ciml-cache-data", CORPUS / "builds.jsonl", "—logs", CORPUS, *pasted]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "20 runs." in done.stdout
