"""``ciml live``: what it needs, what it says, and its windows beside those of the stored runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.kafka import KafkaOptions
from ciml.pipelines.datasets.update import update_dataset
from ciml.pipelines.live import LiveConfig
from ciml.transforms.examples.prepare import make_examples
from ciml.transforms.live.windows import LiveDataset
from tests.pipelines.datasets.dataset_scenes import define, runs
from tests.pipelines.ingest.ingesting import MakeTopic, need_real
from tests.pipelines.live.living import Kept, send
from tests.runs.scenes import RawStore
from tests.transforms.live.live_scenes import arrivals, recorded


def ciml(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["live", *arguments])
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    """With a data set that was sealed, and one that has no columns yet."""
    data = DataRoot.open(tmp_path / "data")
    RawStore(data).add(runs(1, 6))
    define(data, "cpu", sample_interval="7s")
    define(data, "new")
    update_dataset(data.dataset("cpu"), seal=True)
    return data


def test_what_it_needs(data: DataRoot, tmp_path: Path) -> None:
    common = ["--data-path", data.url, "--kafka", "127.0.0.1:9", "--home", str(tmp_path)]
    assert "no data set 'none'" in ciml(*common, "--dataset", "none", exit_code=2).output
    assert "'new' has no columns before" in ciml(*common, "--dataset", "new", exit_code=2).output
    assert "cpu is named twice" in ciml(*common, "--dataset", "cpu", "--dataset", "cpu", exit_code=2).output
    assert "exclude each other" in ciml(*common, "--dataset", "cpu", "--once", "--until-idle", "1s", exit_code=2).output
    without = ciml(*common, "--dataset", "cpu", "--engine", "micro-batches", exit_code=2).output
    assert without.startswith("ciml: live windows need Flink")
    assert "must not be empty" in ciml(*common, "--dataset", "cpu", "--dead-letters-topic", "", exit_code=2).output


@pytest.mark.engines
@pytest.mark.timeout(120)
@pytest.mark.parametrize("engine", ["once", pytest.param("flink")])
def test_live_runs_equal_their_logs(
    data: DataRoot, kafka: str, topic: MakeTopic, engine: str, request: pytest.FixtureRequest
) -> None:
    need_real(kafka)
    names = {name: topic(1, name) for name in ("samples", "windows", "examples", "dead-letters")}
    rng = np.random.default_rng(1)
    for run, table in runs(1, 6):
        send(kafka, names["samples"], [(run.run_id, one) for _, one in arrivals(recorded(run.run_id, table), rng)])
    how = ["--once"]
    if engine == "flink":
        how = ["--engine", f"flink:{request.getfixturevalue('flink_jobs')}", "--until-idle", "4s"]
    options = [text for name, one in names.items() for text in (f"--{name}-topic", one)]
    done = ciml("--data-path", data.url, "--kafka", kafka, "--dataset", "cpu", *options, *how)
    assert "messages read; 0 to go" in done.stderr

    resolved = data.dataset("cpu").state().resolved
    assert resolved is not None
    config = LiveConfig(
        KafkaOptions(kafka), (LiveDataset("cpu", resolved),), *(names[name] for name in list(names)[:3]),
        dead_letters_topic=names["dead-letters"],
    )  # fmt: skip
    kept = Kept(config.kafka, config).look()
    made = make_examples([run for run, _ in runs(1, 6)], [table for _, table in runs(1, 6)], resolved).table
    assert kept.dead_letters == []
    assert {run_id: example["digest"] for (run_id, _), example in kept.examples.items()} == dict(
        zip(made.column("run_id").to_pylist(), made.column("digest").to_pylist(), strict=True)
    )
    assert {len(windows) for windows in kept.windows.values()} == {4}
    kept.close()
