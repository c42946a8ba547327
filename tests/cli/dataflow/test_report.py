"""The report of a job warns of a pipeline that Dataflow may reject."""

from __future__ import annotations

import pytest

from ciml.cli.running import print_launched
from ciml.pipelines.dataflow.job import Launched
from ciml.pipelines.dataflow.settings import DataflowSettings
from tests.pipelines.dataflow.test_settings import MINIMAL


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
