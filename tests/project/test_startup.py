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

HEAVY = """
    tensorflow apache_beam keras tf_keras sklearn matplotlib moto pandas boto3 pydantic openlineage mlflow deltalake
""".split()


def loaded_by(code: str, packages: Sequence[str] = HEAVY) -> set[str]:
    """The heavy packages that a fresh interpreter holds after ``code``."""
    probe = f"{code}\nimport sys, json; print(json.dumps([n for n in {packages!r} if n in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(json.loads(out.stdout.splitlines()[-1]))


MODULES = """
    api datasets.definition events.cloudevents events.samples manifest.log storage telemetry trust
    runs.accounting runs.writer runs.tables.delta_log runs.tables.publish integrations.registry
    integrations.connect_files transforms.ingest.decode transforms.fetch.fetch transforms.parse.logs
    transforms.examples.downsample serving.client serving.predict.predictor
    api.predictions serving.predict.remote
    transforms.examples.prepare transforms.drift.compare transforms.drift.statistics transforms.results.convert
    transforms.results.table training.data.examples training.data.materialise training.data.snapshot
    training.evaluation.gate training.evaluation.metrics training.refresh pipelines.backfill.load
    pipelines.datasets.build pipelines.datasets.validate cli.commands.data.load cli.commands.data.drift
    cli.commands.data.tables cli.commands.operate.adapter cli.commands.operate.connect
""".split()


def test_pure_modules_are_light() -> None:
    heavy = loaded_by("\n".join(f"import ciml.{module}" for module in MODULES))
    culprits = [module for module in MODULES if heavy and loaded_by(f"import ciml.{module}")]
    assert heavy == set(), culprits


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


def test_parsing_logs_and_reading_outputs_import_no_pandas() -> None:
    code = """
from ciml.telemetry import find_anomalies
from ciml.transforms.logs.prepare import prepare_output
from ciml.transforms.logs.ranking import excerpt, scan
from ciml.transforms.parse.logs import Log, parse_logs
from tests.golden.make_logs import all_logs
for table in parse_logs([Log(log.data, log.start_us, log.end_us) for log in all_logs()]):
    find_anomalies(table)
text = b"\\x1b[31mpassword=hunter2\\x1b[0m\\n10%\\r100%\\nE   KeyError: 1\\n"
assert prepare_output([text]).file.lines == 4
assert excerpt(scan(text), 20)[0].text == "E   KeyError: 1"
"""
    assert loaded_by(code) == set()


def test_probe_sees_a_heavy_import() -> None:
    assert loaded_by("import pandas") >= {"pandas"}


def test_a_model_server_leaves_tensorflow_to_the_process_of_models(tmp_path: Path) -> None:
    """It answers requests, and the other process loads models and calls them."""
    code = f"""
import json, urllib.request
from ciml.serving.server.server import ModelServer, ServerOptions
with ModelServer(ServerOptions({str(tmp_path / "models" / "models.config")!r}, grpc_port=0, rest_port=0)) as server:
    health = f"http://127.0.0.1:{{server.rest_port}}/v1/models/none"
    try:
        urllib.request.urlopen(health)
    except urllib.error.HTTPError as error:
        assert error.code == 404
"""
    assert loaded_by(code, (*HEAVY, "scipy", "httpcore")) == set()


@pytest.mark.whole
@pytest.mark.parametrize("legacy", ["0", "1"], ids=["Keras 3", "Keras 2"])
def test_tensorflow_comes_without_keras_until_it_is_used(legacy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", legacy)  # set by tf.Transform for its process and the children
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    code = f"""
import os, random, sys
import ciml.tensorflow as t
t.declare_own_process()
tf = t.load_tensorflow()
import ciml.serving.server.model.graph
assert {{'tensorflow'}} == {set(HEAVY)!r} & set(sys.modules), sys.modules
assert (os.environ['CUDA_VISIBLE_DEVICES'], os.environ['TF_ENABLE_ONEDNN_OPTS']) == ('7', '0')
if {legacy} == 0:  # the first import of Keras, which draws random numbers, comes before the seed
    random.seed(5)
    with t.seeded(3):
        drawn = random.random()
    assert random.random() == random.Random(5).random() and drawn == random.Random(3).random()
assert tf.keras.layers.Dense(1).units == 1
"""
    assert loaded_by(code) >= {"tensorflow", "keras" if legacy == "0" else "tf_keras"}


def cpu_seconds(*words: str) -> tuple[str, float]:
    """Return the output of a program, and the CPU seconds that it takes: not those of the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def test_import_ciml_is_light_and_quick() -> None:
    """Each name is imported on its first use, and a data set needs neither TensorFlow nor Beam."""
    light = (*HEAVY, "numpy", "pyarrow", "click")
    probe = f"import ciml, sys, json; print(json.dumps([n for n in {light!r} if n in sys.modules]))"
    out, took_s = cpu_seconds("-c", probe)
    assert json.loads(out) == []
    assert took_s < 0.2  # it takes 0.02 s
    parse = "ciml.parse_log('tests/golden/telemetry/dool.log')"
    assert loaded_by(f"import ciml; ciml.open, ciml.parse_log, ciml.Model; {parse}") == set()


def test_help_is_light_and_quick() -> None:
    assert loaded_by("import ciml.cli.main") == set()
    out, took_s = cpu_seconds("-m", "ciml", "--help")
    assert "ingest" in out
    assert took_s < 0.5
