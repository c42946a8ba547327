"""Jobs as Beam's own Dataflow runner describes them: options, image, staged pipeline, and no secret."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from apache_beam.internal import pickler
from apache_beam.portability.api import beam_runner_api_pb2 as api
from click.testing import CliRunner, Result
from google.cloud.dataflow import Job
from google.protobuf.json_format import MessageToJson, ParseDict

from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.kafka import KafkaOptions
from ciml.pipelines.dataflow.checks import unpacked
from ciml.pipelines.graphs import PIPELINES, foreign_parts, is_unbounded, portable, stages
from ciml.version import __version__
from tests.pipelines.backfill.backfilling import listed
from tests.pipelines.dataflow.cloud import BUCKET, IMAGE, dataflow_api, gcs_emulator, write_settings
from tests.pipelines.datasets.dataset_scenes import runs
from tests.runs.scenes import RawStore

pytestmark = [pytest.mark.engines, pytest.mark.whole]

S3_SECRET, KAFKA_SECRET, TOKEN = "planted-s3-1b7f02c4", "planted-kafka-95d0e6", "planted-token-aa31"
PROJECT = "projects/ci-project"
AT_GCS = f"gs://{BUCKET}/templates/job.json"


@pytest.fixture(scope="module")
def gcs() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, gcs_emulator(patch) as client:
        yield client


@pytest.fixture
def secrets(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Secrets of this process; the file of Kafka's."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
    monkeypatch.setenv("LOGS_TOKEN", TOKEN)
    path = tmp_path / "kafka.properties"
    path.write_text(f"sasl.username=ciml\nsasl.password={KAFKA_SECRET}\n")
    return path


@pytest.fixture
def ciml(gcs: Any, secrets: Path, tmp_path: Path) -> Callable[..., Result]:
    """Call ``ciml`` with ``--runner dataflow``."""

    def call(*words: str, **changes: str) -> Result:
        settings = write_settings(tmp_path, **changes)
        flags = ["--runner", "dataflow", "--dataflow", str(settings), "--beam-option=--no_auth"]
        return CliRunner().invoke(cli, [*words, *flags])

    return call


def events_of(kafka: str, secrets: Path, topic: Callable[..., str], s3: Any, tmp_path: Path) -> list[str]:
    """The words of an ingest of two partitions."""
    policy = tmp_path / "fetch.toml"
    policy.write_text(
        'hosts = ["logs.example.org"]\n[[credentials]]\nhost = "logs.example.org"\ntoken_env = "LOGS_TOKEN"\n'
    )
    return [
        "ingest", "--data-path", f"{s3.bucket()}/data", "--kafka", kafka, "--kafka-config", str(secrets),
        "--topic", topic(2, "events"), "--runs-topic", topic(1, "runs"), "--fetch-policy", str(policy),
    ]  # fmt: skip


def check_job(gcs: Any, job: dict[str, Any], graph: str, *, name: str) -> api.Pipeline:
    """A job has the settings of the file, its pipeline those stages of a graph, and neither has a secret."""
    streaming = is_unbounded(portable(PIPELINES[graph][0]))
    environment = job["environment"]
    (pool,) = environment["workerPools"]
    (image,) = pool["sdkHarnessContainerImages"]
    options = environment["sdkPipelineOptions"]["options"]
    assert (job["name"], job["type"]) == (name, "JOB_TYPE_STREAMING" if streaming else "JOB_TYPE_BATCH")
    assert job["labels"] == {"team": "ci", "ciml-version": __version__.replace(".", "-")}
    assert environment["version"]["job_type"] == ("FNAPI_STREAMING" if streaming else "FNAPI_BATCH")
    assert ("enable_streaming_engine" in environment["experiments"]) == streaming
    assert "use_runner_v2" in environment["experiments"]
    assert environment["serviceAccountEmail"] == "ciml@ci-project.iam.gserviceaccount.com"
    assert environment["tempStoragePrefix"].startswith(f"storage.googleapis.com/{BUCKET}/temp/{name}.")
    assert (image["containerImage"], pool["workerHarnessContainerImage"]) == (IMAGE, IMAGE)
    assert image["useSingleCorePerContainer"]  # a process for each core
    assert "packages" not in pool  # nothing is installed when a worker starts
    assert (pool["machineType"], pool["autoscalingSettings"]["maxNumWorkers"]) == ("e2-standard-2", 3)
    assert (pool["network"], pool["subnetwork"]) == ("ci", "regions/europe-west1/subnetworks/ci")
    assert pool["ipConfiguration"] == "WORKER_IP_PRIVATE"
    assert (options["project"], options["region"]) == ("ci-project", "europe-west1")
    assert options["pipelineUrl"].startswith(f"gs://{BUCKET}/staging/{name}.")
    assert "ciml.pipelines.dataflow.worker" in options["beam_plugins"]
    assert options["ciml_version"] == __version__
    assert options["ciml_environment_secret"] == "projects/ci-project/secrets/ciml-environment"
    bucket, _, path = options["pipelineUrl"].removeprefix("gs://").partition("/")
    data = gcs.bucket(bucket).blob(path).download_as_bytes()
    assert hashlib.sha256(data).hexdigest() == options["pipelineProtoHash"]
    proto = api.Pipeline.FromString(data)
    check_graph(proto, graph)
    everything = [*unpacked(data), *unpacked(json.dumps(job).encode())]
    for secret in (S3_SECRET, KAFKA_SECRET, TOKEN):
        assert not [part for part in everything if secret.encode() in part], secret
    return proto


def check_graph(proto: api.Pipeline, graph: str) -> None:
    """The stages, kinds and inputs are those of the local graph, in one environment: the image, with nothing to add."""
    local = portable(PIPELINES[graph][0])
    assert sorted(stages(proto)) == sorted(stages(local))
    assert foreign_parts(proto) == []
    assert set(proto.requirements) == set(local.requirements)
    (environment,) = {one.SerializeToString(deterministic=True) for one in proto.components.environments.values()}
    docker = api.Environment.FromString(environment)
    assert docker.urn == "beam:env:docker:v1"
    assert api.DockerPayload.FromString(docker.payload).container_image == IMAGE
    assert not docker.dependencies
    mine = {one for each in local.components.environments.values() for one in each.capabilities}
    assert set(docker.capabilities) == mine | {"beam:protocol:sibling_workers:v1"}  # which Beam adds for any container


def test_an_ingest(
    ciml: Callable[..., Result], gcs: Any, kafka: str, secrets: Path, topic: Callable[..., str], s3: Any, tmp_path: Path
) -> None:
    words = events_of(kafka, secrets, topic, s3, tmp_path)
    target = tmp_path / "ingest.json"
    done = ciml(*words, "--template", str(target), "--job-name", "ciml-ingest")
    assert done.exit_code == 0, done.output
    job = json.loads(target.read_text())
    proto = check_job(gcs, job, "ingest", name="ciml-ingest")
    (commit,) = [one.spec for one in proto.components.transforms.values() if one.unique_name == "Commit"]
    config = pickler.loads(api.ParDoPayload.FromString(commit.payload).do_fn.payload)[0]._processor.config
    assert config.kafka == KafkaOptions("kafka.example.org:9093", secret=f"{PROJECT}/secrets/ciml-kafka/versions/3")
    assert config.maintains  # no supervisor does
    assert kafka.encode() not in b"\n".join(unpacked(proto.SerializeToString()))
    assert [path.name for path in tmp_path.iterdir() if "ingest.json" in path.name] == ["ingest.json"]
    assert job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"] in done.output
    copied = f"gs://{BUCKET}/staging/templates/ingest.json"
    lines = done.output.splitlines()
    assert re.fullmatch(r"  pipeline  gs://\S+/pipeline\.pb, 0\.[0-9] MB", lines.pop())
    assert lines == [
        f"ciml-ingest: job description in {target}; nothing runs",
        f"  copy      gcloud storage cp {target} {copied}",
        f"  run       gcloud dataflow jobs run ciml-ingest --gcs-location={copied} --project=ci-project "
        f"--region=europe-west1 --staging-location=gs://{BUCKET}/temp --worker-machine-type=e2-standard-2 "
        "--max-workers=3 --service-account-email=ciml@ci-project.iam.gserviceaccount.com --network=ci "
        "--subnetwork=regions/europe-west1/subnetworks/ci --disable-public-ips",
    ]


def test_a_submission_an_update_and_their_errors(
    ciml: Callable[..., Result], gcs: Any, kafka: str, secrets: Path, topic: Callable[..., str], s3: Any, tmp_path: Path
) -> None:
    words = events_of(kafka, secrets, topic, s3, tmp_path)
    with dataflow_api() as service:
        words += ["--submit", "--job-name", "ci", f"--beam-option=--dataflow_endpoint={service.endpoint}"]
        done = ciml(*words)
        assert done.exit_code == 0, done.output
        check_job(gcs, json.loads(MessageToJson(ParseDict(service.jobs[0], Job()._pb))), "ingest", name="ci")
        assert done.output.splitlines()[:4] == [
            "ci: submitted as job job-1",
            "  watch     https://console.cloud.google.com/dataflow/jobs/europe-west1/job-1?project=ci-project",
            "  stop      gcloud dataflow jobs drain job-1 --project=ci-project --region=europe-west1",
            "  replace   the same command with --update",
        ]
        missing = ciml(*words, "--update")
        assert (missing.exit_code, missing.output) == (
            2, "ciml: --update: no job ci runs in ci-project, europe-west1; leave --update out to start one\n"
        )  # fmt: skip
        assert len(service.jobs) == 1
        service.running["ci"] = "job-1"
        replaced = ciml(*words, "--update")
        assert replaced.exit_code == 0, replaced.output
        assert (service.jobs[1]["replaceJobId"], service.jobs[1]["name"]) == ("job-1", "ci")
        service.fault = (403, "the caller has no permission")
        failed = ciml(*words)
        assert (failed.exit_code, failed.output.count("\n")) == (3, 1)
        assert re.match(r"ciml: Google Cloud rejects job ci: 403 .*the caller has no permission", failed.output)


def test_without_credentials(gcs: Any, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    data = DataRoot.open(f"{s3.bucket()}/data")
    RawStore(data).add(runs(1, 9))
    words = ["dataset", "build", "--dataset", "cpu", "--data-path", data.url, "--runner", "dataflow"]
    words += ["--template", AT_GCS]
    done = CliRunner().invoke(cli, [*words, "--dataflow", str(write_settings(tmp_path))])
    assert (done.exit_code, done.output.count("\n")) == (3, 1)
    assert done.output.startswith("ciml: no access to Google Cloud: ")
    assert done.output.endswith("log in: gcloud auth application-default login\n")


def test_predictions(
    ciml: Callable[..., Result], gcs: Any, kafka: str, secrets: Path, topic: Callable[..., str], s3: Any, tmp_path: Path
) -> None:
    data = DataRoot.open(f"{s3.bucket()}/data")
    RawStore(data).add(runs(1, 1))
    words = ["predict", "stream", "--data-path", data.url, "--kafka", kafka, "--kafka-config", str(secrets)]
    words += ["--runs-topic", topic(2, "runs"), "--model", "status", "--server", "models.example.org:8500"]
    done = ciml(*words, "--template", str(tmp_path / "predict.json"))
    assert done.exit_code == 0, done.output
    check_job(gcs, json.loads((tmp_path / "predict.json").read_text()), "predict", name="ciml-predict-status")


def test_a_backfill(ciml: Callable[..., Result], gcs: Any, s3: Any, tmp_path: Path) -> None:
    made = listed(tmp_path / "logs", runs=12, tricks=False)
    bucket = s3.bucket()
    for path in [made.path, *made.folder.rglob("*.gz")]:
        key = f"ci/{path.relative_to(made.folder)}"
        boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=path.read_bytes())
    words = ["backfill", f"{bucket}/ci/builds.jsonl", "--logs", f"{bucket}/ci", "--data-path", f"{bucket}/data"]
    done = ciml(*words, "--template", AT_GCS)
    assert done.exit_code == 0, done.output
    job = json.loads(gcs.bucket(BUCKET).blob("templates/job.json").download_as_bytes())
    check_job(gcs, job, "backfill", name="ciml-backfill-builds")
    lines = done.output.splitlines()
    assert lines[0] == f"{bucket}/ci/builds.jsonl: 12 of 12 lines to settle"
    assert lines[1] == f"ciml-backfill-builds: job description in {AT_GCS}; nothing runs"
    assert lines[2].startswith(f"  run       gcloud dataflow jobs run ciml-backfill-builds --gcs-location={AT_GCS} ")
    assert lines[-1] == f"  then      ciml {' '.join(words)} --dry-run"
    assert not DataRoot.open(f"{bucket}/data").exists()
    settled = CliRunner().invoke(cli, words)
    assert settled.exit_code == 0, settled.output
    nothing = ciml(*words, "--template", AT_GCS)
    assert nothing.output == f"{bucket}/ci/builds.jsonl: all selected lines are settled already\n"


def test_a_data_set(ciml: Callable[..., Result], gcs: Any, s3: Any, tmp_path: Path) -> None:
    data = DataRoot.open(f"{s3.bucket()}/data")
    RawStore(data).add(runs(1, 9))
    target = tmp_path / "dataset.json"
    words = ["--template", str(target), "--data-path", data.url]
    done = ciml("dataset", "build", "--dataset", "cpu", "--max-windows", "4", *words)
    assert done.exit_code == 0, done.output
    proto = check_job(gcs, json.loads(target.read_text()), "dataset-alone", name="ciml-dataset-cpu")
    assert "CommitSpans/commit" in [stage for stage, _, _ in stages(proto)]
    assert done.output.splitlines()[0] == "cpu: 9 runs for 1 span"
    assert done.output.splitlines()[-1] == f"  then      ciml dataset show cpu --data-path {data.url}"
    for option, reason in ((f"--label=key={S3_SECRET}", "would hold a secret of this process"),
                           (f"--s3_secret_access_key={S3_SECRET}", "its value would stand in the job")):  # fmt: skip
        wrong = ciml("dataset", "update", "cpu", "--seal", f"--beam-option={option}", *words)
        assert (wrong.exit_code, reason in wrong.output, S3_SECRET in wrong.output) == (2, True, False), wrong.output
    state = data.dataset("cpu").state()
    assert (state.version, state.spans) == (1, {})  # created; the job commits its spans
    again = ciml("dataset", "update", "cpu", "--seal", *words)
    assert again.exit_code == 0, again.output
    assert again.output.splitlines()[0] == "cpu: 9 runs for 1 span"
    waiting = ciml("dataset", "update", "cpu", *words)
    assert waiting.output == "cpu: nothing to build; 9 runs wait for the next span\n"
