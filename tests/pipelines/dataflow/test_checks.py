"""A job refers to places that workers reach, and holds names of secrets alone."""

from __future__ import annotations

import base64
import bz2
import zlib
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.kafka import KafkaOptions
from ciml.pipelines.dataflow.job import holds, unpacked
from ciml.pipelines.dataflow.settings import (
    DataflowSettings,
    check_beam_options,
    check_fetch,
    check_on_s3,
    kafka_of_workers,
    secrets_here,
)
from ciml.pipelines.graphs import portable
from ciml.pipelines.ingest.committer import IngestConfig
from ciml.pipelines.ingest.pipeline import build_ingest
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.storage import LocalStore, open_store
from ciml.transforms.fetch.policy import Credential, FetchPolicy
from tests.pipelines.dataflow.test_settings import MINIMAL

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
    elements = portable(lambda pipeline: pipeline | beam.Create([replace(SETTINGS_KAFKA, bootstrap=secret)]))
    assert holds(elements.SerializeToString(), [secret.encode()])


SETTINGS_KAFKA = KafkaOptions("kafka:9092")


def test_packed_data_is_unpacked_at_any_depth() -> None:
    inner = b"(" + base64.b64encode(zlib.compress(b"the secret", 9)) + b"Trailing"
    outer = b"\x0a\x50" + base64.b64encode(bz2.compress(inner)) + b"AB"
    assert b"the secret" in list(unpacked(outer))
    assert holds(outer, [b"secret"])
    assert not holds(outer, [])
    assert list(unpacked(b"QlpoOTFBWSZTW but not packed")) == [b"QlpoOTFBWSZTW but not packed"]
