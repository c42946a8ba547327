"""The ``--dataflow`` file and its options of Beam; a job names places that workers reach, and holds no secret."""

from __future__ import annotations

import base64
import bz2
import zlib
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import Mock

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.kafka import KafkaOptions
from ciml.pipelines.dataflow import job
from ciml.pipelines.dataflow.checks import (
    check_beam_options,
    check_fetch,
    check_on_s3,
    holds,
    kafka_of_workers,
    secrets_here,
    unpacked,
)
from ciml.pipelines.dataflow.settings import (
    DataflowSettings,
    check_job_name,
    job_flags,
    job_name,
)
from ciml.pipelines.graphs import portable
from ciml.pipelines.ingest.committer import IngestConfig
from ciml.pipelines.ingest.pipeline import build_ingest
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.storage import LocalStore, open_store
from ciml.transforms.fetch.credentials import Credential
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.version import __version__
from tests.pipelines.dataflow.cloud import IMAGE, write_settings

MINIMAL = {
    "project": "ci-project", "region": "us-central1", "temp_location": "gs://ci-temp", "image": IMAGE,
    "environment_secret": "projects/ci-project/secrets/s",
}  # fmt: skip


def test_each_key_becomes_an_option_of_beam(tmp_path: Path) -> None:
    settings = DataflowSettings.load(write_settings(tmp_path))
    batch = job_flags(settings, "ciml-x", streaming=False)
    assert set(batch) == {
        "--runner=DataflowRunner", "--project=ci-project", "--region=europe-west1", "--job_name=ciml-x",
        "--temp_location=gs://ci-dataflow/temp", "--staging_location=gs://ci-dataflow/staging",
        f"--sdk_container_image={IMAGE}", "--sdk_location=container", "--machine_type=e2-standard-2",
        "--max_num_workers=3", "--service_account_email=ciml@ci-project.iam.gserviceaccount.com", "--network=ci",
        "--subnetwork=regions/europe-west1/subnetworks/ci", "--no_use_public_ips", "--label=team=ci",
        f"--label=ciml-version={__version__.replace('.', '-')}", "--beam_plugin=ciml.pipelines.dataflow.worker",
        "--no_save_main_session", "--experiment=disable_logging_submission_environment",
        f"--ciml_version={__version__}", "--ciml_environment_secret=projects/ci-project/secrets/ciml-environment",
    }  # fmt: skip
    assert job_flags(settings, "ciml-x", streaming=True) == [*batch, "--streaming", "--enable_streaming_engine"]


def test_keys_have_defaults() -> None:
    settings = DataflowSettings.from_json(MINIMAL)
    flags = job_flags(settings, "ciml-x", streaming=False)
    assert "--staging_location=gs://ci-temp" in flags
    left_out = ("--machine_type", "--max_num", "--service", "--network", "--subnetwork", "--no_use", "--streaming")
    assert not [flag for flag in flags if flag.startswith(left_out)]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("project", "", "project: '' is not valid; give the id of a project"),
        ("project", "My Project", "project: 'My Project' is not valid"),
        ("region", "europe", "region: 'europe' is not valid; give a region, such as europe-west1"),
        ("temp_location", "s3://ci/temp", "temp_location: 's3://ci/temp' is not valid; give gs://BUCKET"),
        ("temp_location", "/tmp", "Dataflow keeps its own files in GCS"),
        ("staging_location", "temp", "staging_location: 'temp' is not valid"),
        ("image", "ciml/dataflow", "image: 'ciml/dataflow' is not valid; give REGISTRY/NAME:TAG"),
        ("environment_secret", "", "environment_secret: '' is not the name of a secret"),
        ("environment_secret", "AKIA", "give projects/PROJECT/secrets/SECRET"),
        ("kafka_secret", "projects/p/secrets/s/versions/new", "secrets/s/versions/new' is not the name of a secret"),
        ("network", "ci --x", "network: 'ci --x' is not valid; give one word"),
        ("kafka", "host:9092 --x", "kafka: 'host:9092 --x' is not valid"),
        ("labels", ["Team=CI"], "labels: 'Team=CI' is not valid; give NAME=VALUE in lower case"),
        ("max_workers", 0, "max_workers: must be 1 to 1000"),
        ("streaming_engine", True, "streaming_engine"),
    ],
)
def test_a_bad_value_is_named(key: str, value: object, message: str) -> None:
    with pytest.raises(CimlError) as caught:
        DataflowSettings.from_json({**MINIMAL, key: value}, "dataflow.toml")
    assert str(caught.value).startswith("dataflow.toml: ")
    assert message in str(caught.value)


def test_names_of_jobs() -> None:
    assert job_name("ciml-ingest-ci.events_2") == "ciml-ingest-ci-events-2"
    assert len(job_name("ciml-dataset-" + "x" * 90)) == 63
    cut = job_name("x" * 62 + ".y")  # a name does not end with a dash
    for name in ("ciml-ingest", "a", cut):
        check_job_name(name)
    for name in ("", "Ciml", "ciml_x", "-ciml", "ciml-", "c" * 64, "ciml x"):
        with pytest.raises(ValueError, match="lower-case letters, digits and dashes"):
            check_job_name(name)


# --- places of workers, and secrets


SETTINGS = DataflowSettings.from_json(MINIMAL)
SECRET = DataflowSettings.from_json({**MINIMAL, "kafka_secret": "projects/ci-project/secrets/kafka"})


def test_only_s3_is_reached_by_workers() -> None:
    check_on_s3("s3://bucket/data", "--data-path")
    with pytest.raises(
        CimlError, match=r"--data-path data: a path of this machine.*aws s3 sync data s3://BUCKET/PREFIX"
    ):
        check_on_s3("data", "--data-path")
    with pytest.raises(CimlError, match=r"--logs gs://b/x: gs:// is not supported.*conditional writes of S3"):
        check_on_s3("gs://b/x", "--logs")
    with pytest.raises(CimlError, match=r"gs://b/x: not a store: ciml commits by conditional writes"):
        open_store("gs://b/x")


def test_a_fetch_policy_names_no_file_of_this_machine() -> None:
    check_fetch(FetchPolicy(hosts=("logs.example.org",), s3_prefixes=("s3://logs",)))
    check_fetch(FetchPolicy(credentials=(Credential("logs.example.org", token_env="LOGS_TOKEN"),)))
    with pytest.raises(CimlError, match=r"--allow-root /srv/logs: a path of this machine"):
        check_fetch(FetchPolicy(file_roots=("/srv/logs",)))
    for policy in (
        FetchPolicy(ca_file="/etc/ca.pem"),
        FetchPolicy(credentials=(Credential("logs.example.org", token_file="/etc/token"),)),
        FetchPolicy(credentials=(Credential("logs.example.org", user="ci", password_file="/etc/password"),)),
    ):
        with pytest.raises(CimlError, match=r"fetch policy: /etc/\S+ is a file of this machine.*use token_env"):
            check_fetch(policy)


@pytest.mark.parametrize("address", ["localhost:9092", "127.0.0.1:9092", "k1:9092,127.0.0.2:9092", "SSL://[::1]:9092"])
def test_a_broker_on_loopback_is_none_of_the_workers(address: str) -> None:
    with pytest.raises(CimlError, match=r"workers would look for the broker on themselves"):
        kafka_of_workers(KafkaOptions(address), SETTINGS)
    reached = SETTINGS.replace(kafka="kafka.example.org:9092")
    assert kafka_of_workers(KafkaOptions(address), reached).bootstrap == "kafka.example.org:9092"


@pytest.mark.parametrize(
    "name",
    ["sasl.password", "ssl.key.location", "ssl.key.pem", "ssl.keystore.location", "sasl.oauthbearer.client.secret"],
)
def test_a_secret_property_is_refused_unless_a_secret_is_named(name: str) -> None:
    kafka = KafkaOptions("kafka:9092", {"security.protocol": "SASL_SSL", name: "planted"})
    with pytest.raises(
        CimlError, match=rf"Kafka property {name} would stand in the job description.*kafka_secret"
    ) as caught:
        kafka_of_workers(kafka, SETTINGS)
    assert "planted" not in str(caught.value)
    assert kafka_of_workers(kafka, SECRET) == KafkaOptions("kafka:9092", secret="projects/ci-project/secrets/kafka")
    plain = KafkaOptions("kafka:9092", {"security.protocol": "SSL", "ssl.ca.location": "/etc/ssl/ca"}, 1024, 5.0)
    assert kafka_of_workers(plain, SETTINGS) == plain


@pytest.mark.parametrize("name", ["--s3_secret_access_key", "--s3_session_token", "--password"])
def test_an_option_of_beam_that_is_secret_is_refused(name: str) -> None:
    check_beam_options(["--dataflow_service_options=enable_prime", "--no_auth"])
    with pytest.raises(
        CimlError, match=rf"--beam-option {name}: its value would stand in the job description"
    ) as caught:
        check_beam_options(["--no_auth", f"{name}=hunter2"])
    assert "hunter2" not in str(caught.value)


def test_the_secrets_of_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("AWS_SECRET_ACCESS_KEY", "s3-key"), ("LOGS_TOKEN", "token"), ("AWS_SESSION_TOKEN", "")):
        monkeypatch.setenv(name, value)
    (tmp_path / "key").write_bytes(b"private")
    kafka = KafkaOptions("k:1", {"sasl.password": "word", "ssl.key.location": str(tmp_path / "key")})
    fetch = FetchPolicy(credentials=(Credential("logs.example.org", token_env="LOGS_TOKEN"),))
    assert set(secrets_here(kafka, fetch)) == {b"s3-key", b"token", b"word", b"private"}
    assert set(secrets_here()) == {b"s3-key"}


@pytest.mark.parametrize("secret", ["planted-1", "ünicode-secret"])
def test_a_planted_secret_is_found_in_a_pipeline(secret: str) -> None:
    """What Beam packs: the functions of stages, and elements within them."""

    def ingest(pipeline: beam.Pipeline, password: str) -> None:
        kafka = KafkaOptions("kafka:9092", {"sasl.password": password})
        config = IngestConfig(DataRoot(LocalStore("data")).raw, kafka=kafka)
        build_ingest(pipeline, config, [PartitionRead("ci-events", "T", 0, 0, None)])

    data = portable(lambda pipeline: ingest(pipeline, secret)).SerializeToString()
    assert secret.encode() not in data  # it is packed
    assert holds(data, [b"another", secret.encode()])
    assert not holds(portable(lambda pipeline: ingest(pipeline, "other")).SerializeToString(), [secret.encode()])
    elements = portable(lambda pipeline: pipeline | beam.Create([KafkaOptions(secret)]))
    assert holds(elements.SerializeToString(), [secret.encode()])


@pytest.mark.parametrize(
    ("keys", "message", "runs"),
    [
        ({"hidden": [b"planted"]}, "would hold a secret of this process", 0),
        ({"update": True}, "--update: no job ciml-x runs", 0),
        ({}, "folder: cannot be written: Is a directory", 1),
    ],
    ids=["secret", "no job to replace", "template"],
)
def test_a_job_is_checked_before_it_runs_and_an_error_leaves_no_file(
    keys: dict[str, Any], message: str, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "folder"
    template.mkdir()
    pipeline = Mock()
    pipeline.to_runner_api().SerializeToString.return_value = b"planted"

    def with_options(options: PipelineOptions) -> Mock:
        path = Path(options.view_as(GoogleCloudOptions).template_location)
        pipeline.run.side_effect = lambda: path.write_text("{}")
        return pipeline

    monkeypatch.setattr(job.beam, "Pipeline", with_options)
    monkeypatch.setattr(job, "_check_running", Mock(side_effect=CimlError("--update: no job ciml-x runs")))
    with pytest.raises(CimlError, match=message):
        job.launch(Mock(), SETTINGS, "ciml-x", streaming=False, template=str(template), extra=["--no_auth"], **keys)
    assert pipeline.run.call_count == runs
    assert list(tmp_path.iterdir()) == [template]


def test_packed_data_is_unpacked_at_any_depth() -> None:
    inner = b"(" + base64.b64encode(zlib.compress(b"the secret", 9)) + b"Trailing"
    outer = b"\x0a\x50" + base64.b64encode(bz2.compress(inner)) + b"AB"
    assert b"the secret" in list(unpacked(outer))
    assert holds(outer, [b"secret"])
    assert not holds(outer, [])
    assert list(unpacked(b"QlpoOTFBWSZTW but not packed")) == [b"QlpoOTFBWSZTW but not packed"]


@pytest.mark.parametrize("level", range(10))
def test_packed_data_is_found_whatever_its_first_bytes(level: int) -> None:
    """The second byte of zlib's header is the level, and the first bits of the data vary."""
    random = Random(1)
    for size in range(300):
        letters = random.sample(range(256), size % 200 + 1)
        beginning = bytes(random.choices(letters, k=size))
        text = beginning + beginning[: size // 3] + b"the secret"  # a repetition changes the first bits, too
        assert holds(base64.b64encode(zlib.compress(text, level)), [b"the secret"]), text


def test_a_false_beginning_does_not_hide_packed_data() -> None:
    assert holds(b"eJx1+" + base64.b64encode(zlib.compress(b"the secret", 9)), [b"the secret"])
