"""The ``--dataflow`` file: its keys, what is rejected, and the options of Beam that it becomes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciml.errors import CimlError
from ciml.pipelines.dataflow.settings import DataflowSettings, check_job_name, job_flags, job_name
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
        (
            "kafka_secret",
            "projects/p/secrets/s/versions/new",
            "kafka_secret: 'projects/p/secrets/s/versions/new' is not",
        ),
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
