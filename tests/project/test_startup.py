"""Start-up counts: what a command or a pure function must not pull in, and what `ciml --help` may cost."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ciml.storage import open_store
from studies.many_runs import fill_store
from tests.transforms.samples import corpus

HEAVY = (
    "tensorflow",
    "apache_beam",
    "keras",
    "tf_keras",
    "sklearn",
    "matplotlib",
    "moto",
    "pandas",
    "boto3",
    "pydantic",
    "openlineage",
    "mlflow",
    "deltalake",
)


def loaded_by(code: str, packages: Sequence[str] = HEAVY) -> set[str]:
    """The heavy packages that a fresh interpreter holds after ``code``."""
    probe = f"{code}\nimport sys, json; print(json.dumps([n for n in {packages!r} if n in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(json.loads(out.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module",
    [
        "ciml.runs.accounting",
        "ciml.datasets.definition",
        "ciml.events.cloudevents",
        "ciml.manifest.log",
        "ciml.events.samples",
        "ciml.storage",
        "ciml.telemetry",
        "ciml.transforms.ingest.decode",
        "ciml.trust",
        "ciml.transforms.fetch.fetch",
        "ciml.transforms.parse.logs",
        "ciml.transforms.examples.downsample",
        "ciml.transforms.examples.prepare",
        "ciml.transforms.drift.compare",
        "ciml.transforms.drift.statistics",
        "ciml.runs.writer",
        "ciml.transforms.results.convert",
        "ciml.transforms.results.table",
        "ciml.pipelines.backfill.load",
        "ciml.cli.commands.data.load",
        "ciml.pipelines.datasets.build",
        "ciml.pipelines.datasets.validate",
        "ciml.cli.commands.data.drift",
        "ciml.training.data.examples",
        "ciml.api",
        "ciml.integrations.registry",
        "ciml.cli.commands.operate.adapter",
        "ciml.cli.commands.operate.connect",
        "ciml.integrations.connect_files",
        "ciml.runs.tables.delta_log",
        "ciml.runs.tables.publish",
        "ciml.cli.commands.data.tables",
    ],
)
def test_pure_modules_are_light(module: str) -> None:
    assert loaded_by(f"import {module}") == set()


def test_building_a_data_set_from_packs_stays_light(tmp_path: Path) -> None:
    """pyarrow imports pandas as soon as it is asked for an array of Python's values."""
    runs, tables, _ = corpus(20)
    fill_store(open_store(tmp_path), zip(runs, tables, strict=True), per_folder=100)
    code = f"""
from ciml.datasets.definition import DatasetDefinition
from ciml.data_root import DataRoot
from ciml.pipelines.datasets.build import build_dataset
data = DataRoot.open({str(tmp_path)!r})
done = build_dataset(data, data, DatasetDefinition(name="x", slicer=":15", class_label="build_name", span_runs=10))
assert len(done.sealed) == 2 and len(done.state.span_of) == 15
"""
    assert loaded_by(code, (*HEAVY, "httpcore", "ciml.integrations")) == set()


def test_probe_sees_a_heavy_import() -> None:
    assert loaded_by("import sklearn") >= {"sklearn"}


@pytest.mark.whole
@pytest.mark.parametrize("legacy", ["0", "1"], ids=["Keras 3", "Keras 2"])
def test_tensorflow_comes_without_keras_until_it_is_used(legacy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", legacy)  # set by tf.Transform for its process and the children
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    load = "from ciml.tensorflow import load_tensorflow, own_process; own_process(); tf = load_tensorflow()"
    programs = "import ciml.serving.server.grpc_service"
    used = "tf_keras" if legacy == "1" else "keras"
    light = f"import sys; assert {{'tensorflow'}} == {set(HEAVY)!r} & set(sys.modules), sys.modules"
    kept = "import os; assert (os.environ['CUDA_VISIBLE_DEVICES'], os.environ['TF_ENABLE_ONEDNN_OPTS']) == ('7', '0')"
    dense = "assert tf.keras.layers.Dense(1).units == 1"
    assert loaded_by(f"{load}; {programs}; {light}; {kept}; {dense}") >= {"tensorflow", used}
    # The first import of Keras, which draws random numbers, comes before the seed.
    draw = """
import random
from ciml.tensorflow import seeded
random.seed(5)
with seeded(3):
    drawn = random.random()
assert random.random() == random.Random(5).random() and drawn == random.Random(3).random()
"""
    if legacy == "0":
        assert loaded_by(draw) >= {"keras"}


def test_import_ciml_is_light_and_quick() -> None:
    """Each name is imported on its first use, and a data set needs neither TensorFlow nor Beam."""
    light = (*HEAVY, "numpy", "pyarrow", "click")
    probe = f"import ciml, sys, json; print(json.dumps([n for n in {light!r} if n in sys.modules]))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert json.loads(done.stdout) == []
    # CPU seconds of the interpreter and the import together, which take 0.02 s.
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.2
    assert loaded_by("import ciml; ciml.open, ciml.parse_log, ciml.Model") == set()
    assert loaded_by("import ciml; ciml.parse_log('tests/golden/telemetry/dool.log')") == set()


def test_help_is_light_and_quick() -> None:
    assert loaded_by("import ciml.cli.main") == set()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "ciml.cli.main", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "ingest" in done.stdout
    # CPU seconds, not the clock: the contract with whoever types it, with room for a slow machine.
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.5
