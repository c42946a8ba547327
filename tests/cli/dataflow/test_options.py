"""``--runner dataflow``: what is refused before anything is read, with the reason and what to do; and its report."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciml.cli.running import print_launched
from ciml.pipelines.dataflow.job import Launched
from ciml.pipelines.dataflow.settings import DataflowSettings
from tests.cli.calling import ciml
from tests.pipelines.dataflow.cloud import write_settings
from tests.pipelines.dataflow.test_settings import MINIMAL

BACKFILL = ["backfill", "s3://ci/builds.jsonl", "--logs", "s3://ci", "--data-path", "s3://ci/data"]
INGEST = ["ingest", "--data-path", "s3://ci/data", "--kafka", "kafka.example.org:9092"]
BUILD = ["dataset", "build", "--dataset", "cpu", "--data-path", "s3://ci/data"]
TEMPLATE = ["--template", "job.json"]


def refused(words: list[str]) -> str:
    return ciml(*words, code=2).output


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.delenv("CIML_DATAFLOW", raising=False)
    return ["--runner", "dataflow", "--dataflow", str(write_settings(tmp_path))]


@pytest.mark.parametrize("command", [BACKFILL, INGEST, BUILD])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("data", "--data-path data: a path of this machine, which Dataflow's workers do not have; copy it to S3"),
        ("gs://ci/data", "--data-path gs://ci/data: gs:// is not supported, on Dataflow neither: ciml commits by"),
    ],
)
def test_the_data_root_is_s3(command: list[str], place: str, message: str, job: list[str]) -> None:
    words = [place if word == "s3://ci/data" else word for word in command]
    assert message in refused([*words, *job, *TEMPLATE])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*BACKFILL[:1], "builds.jsonl", *BACKFILL[2:]], "LISTING builds.jsonl: a path of this machine"),
        ([*BACKFILL[:3], "/srv/logs", *BACKFILL[4:]], "--logs /srv/logs: a path of this machine"),
        ([*BUILD, "--target-data-path", "sets"], "--target-data-path sets: a path of this machine"),
        ([*BUILD, "--visualize"], "--visualize: plots need the finished data set"),
        ([*BUILD, "--listing", "s3://ci/x", "--logs", "s3://ci"], "--runner: not supported with --listing"),
        ([*INGEST, "--once"], "--once: not with --runner dataflow, whose job runs until it is drained"),
        ([*INGEST, "--until-idle", "1min"], "--until-idle: not with --runner dataflow"),
        ([*INGEST, "--allow-root", "/srv/logs"], "--allow-root /srv/logs"),
        ([*INGEST, "-X", "sasl.password=hunter2"], "Kafka property sasl.password would stand in the job description"),
        ([*INGEST[:-1], "127.0.0.1:9092"], "--kafka 127.0.0.1:9092: workers would look for the broker on themselves"),
        ([*INGEST, "--job-name", "Mine"], "--job-name: 'Mine' is not the name of a job"),
        ([*INGEST, "--update"], "--update: replaces a running job, so it needs --submit"),
        (["live", "--dataset", "cpu", *INGEST[1:]], "this service keeps its state in Flink"),
    ],
)
def test_what_a_job_cannot_have_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    settings = write_settings(tmp_path, kafka="", kafka_secret="")
    output = refused([*words, *TEMPLATE, "--runner", "dataflow", "--dataflow", str(settings)])
    assert message in output
    assert "hunter2" not in output


def test_a_job_is_either_written_or_submitted(job: list[str]) -> None:
    either = "--runner dataflow: give --template FILE or gs://OBJECT, or --submit"
    assert either in refused([*INGEST, *job])
    assert either in refused([*INGEST, *job, "--submit", *TEMPLATE])
    assert "give --dataflow FILE with project, region, image" in refused([*INGEST, "--runner", "dataflow", *TEMPLATE])


@pytest.mark.parametrize("command", [BACKFILL, INGEST, BUILD, ["live", "--dataset", "cpu", *INGEST[1:]]])
@pytest.mark.parametrize("option", ["--submit", "--template=x", "--job-name=x"])
def test_its_options_need_the_runner(command: list[str], option: str) -> None:
    name = option.partition("=")[0]
    assert refused([*command, option]) == f"ciml: {name}: only with --runner dataflow\n"


def test_a_file_of_settings_in_the_environment_changes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIML_DATAFLOW", str(write_settings(tmp_path)))
    words = ["backfill", str(tmp_path / "none.jsonl"), "--logs", str(tmp_path), "--data-path", str(tmp_path / "data")]
    assert refused(words) == f"ciml: {tmp_path}/none.jsonl: no such listing\n"
    job = ["--runner", "dataflow", *TEMPLATE]
    assert "--data-path data: a path of this machine" in refused([*BACKFILL[:-1], "data", *job])


def test_the_settings_are_checked(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, region='"Europe"')
    words = [*BACKFILL, "--runner", "dataflow", "--dataflow", str(settings), *TEMPLATE]
    assert refused(words).startswith(f"ciml: {settings}: region: 'Europe' is not valid")


def test_an_unknown_runner_is_named() -> None:
    assert "unknown runner 'spark'; choose from fnapi, flink, flink:HOST:PORT, dataflow" in refused(
        [*BACKFILL, "--runner", "spark"]
    )
    assert "unknown runner 'dataflow:x'" in refused([*BACKFILL, "--runner", "dataflow:x"])


@pytest.mark.parametrize("kind", ["ingest", "predict", "live"])
def test_a_supervised_service_has_none_of_the_options(kind: str) -> None:
    text = ciml("service", "start", kind, "--help").output
    assert "--engine" in text
    assert not [option for option in ("--runner", "--dataflow", "--template", "--submit", "--update") if option in text]


@pytest.mark.parametrize(("size", "warned"), [(10_000_000, False), (31_000_000, True)])
def test_a_large_pipeline_is_warned_of(size: int, warned: bool, capsys: pytest.CaptureFixture[str]) -> None:
    job = Launched("ciml-dataset-cpu", "", "job-1", "gs://ci-temp/pipeline.pb", size)
    print_launched(job, DataflowSettings.from_json(MINIMAL), streaming=False, then="ciml dataset show cpu")
    said = capsys.readouterr()
    assert said.out.splitlines()[-2:] == [
        f"  pipeline  gs://ci-temp/pipeline.pb, {size / 1e6:.1f} MB", "  then      ciml dataset show cpu",
    ]  # fmt: skip
    assert "  stop      gcloud dataflow jobs cancel job-1 --project=ci-project --region=us-central1" in said.out
    assert said.err.startswith("warning: the pipeline has 31 MB, and Dataflow documents 10 MB") == warned
