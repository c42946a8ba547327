"""What each extra brings is enough for its commands, and where one is missing, a line names it."""

from __future__ import annotations

import ast
import gzip
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from ciml.cli.main import cli
from ciml.events.samples import End, Samples
from ciml.extras import EXTRAS, missing_extra
from ciml.storage import open_store
from studies.many_runs import fill_store
from tests.ciml.api.made import write_log
from tests.pipelines.backfill.tables import make_runs, write_csv
from tests.pipelines.dataflow.cloud import write_settings
from tests.project.environment import (
    PROJECT,
    ROOT,
    distributions_of,
    make_environment,
    modules_of,
    owners_of_modules,
    requirements_of,
)
from tests.project.test_rooms import FOLDERS
from tests.recorder.test_delivery import heard
from tests.transforms.samples import corpus

MISSION = {"apache-beam", "tensorflow", "tensorflow-transform", "pyarrow", "confluent-kafka", "boto3"}


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The Python of an environment by the name of its extra; "" for the base."""
    made: dict[str, Path] = {}

    def environment(extra: str) -> Path:
        if extra not in made:
            made[extra] = make_environment(tmp_path_factory.mktemp("env") / "env", *filter(None, [extra]))
        return made[extra]

    return environment


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root of 20 runs."""
    data = tmp_path_factory.mktemp("data")
    runs, tables, _ = corpus(20)
    fill_store(open_store(data), zip(runs, tables, strict=True), per_folder=100)
    return data


def ciml(python: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "120"}
    return subprocess.run(
        [str(python), "-m", "ciml.cli.main", *arguments], capture_output=True, text=True, cwd=folder, env=env
    )


def imports(package: str) -> Iterator[tuple[str, str]]:
    """(file, top-level module) of each import of another project in a package."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "ciml":
                    yield str(path.relative_to(ROOT)), top


def test_the_table_is_what_pyproject_says() -> None:
    base = distributions_of()
    for module, extras in EXTRAS.items():
        names = owners_of_modules()[module]
        assert not names & base, f"{module} is in the base"
        for extra in extras:
            assert names & distributions_of(extra), f"{module} does not come with {extra}"
    for extra in set(PROJECT["optional-dependencies"]) - {"dev", "record", "all"}:
        for requirement in requirements_of(extra):
            if requirement.name != "ciml":
                modules = modules_of({canonicalize_name(requirement.name)})
                assert any(extra in EXTRAS.get(module, ()) for module in modules), f"{requirement} of {extra}"


def test_every_import_comes_with_the_base_or_a_known_extra() -> None:
    base = modules_of(distributions_of())
    assert {"confluent_kafka", "click"} <= base
    unknown = {(path, top) for package in FOLDERS for path, top in imports(package) if top not in base | set(EXTRAS)}
    assert unknown == set()


def test_a_recorder_imports_the_base_alone() -> None:
    assert {top for _, top in imports("recorder")} <= modules_of(distributions_of())


def test_the_six_libraries_are_locked() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert {name for name in MISSION if re.search(rf"^{name}(\[[a-z,]+\])?==", lock, re.M)} == MISSION


def test_all_is_every_extra_but_that_for_development() -> None:
    (one,) = requirements_of("all")
    assert one.name == "ciml"
    assert one.extras == set(PROJECT["optional-dependencies"]) - {"all", "dev"}


@pytest.mark.whole
def test_help_needs_the_base_alone(environments: Callable[[str], Path], tmp_path: Path) -> None:
    for arguments in ([], *([name] for group in cli.table.values() for name in group)):
        done = ciml(environments(""), *arguments, "--help", folder=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr)


def test_a_recording_needs_the_base_alone(environments: Callable[[str], Path], tmp_path: Path) -> None:
    done = ciml(
        environments(""), "record", "--log-dir", "logs", "--spool", "spool", "--job", "unit", "--", "sleep", "1.5",
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (log,) = tmp_path.glob("logs/unit/*/*.gz")
    assert gzip.decompress(log.read_bytes()).count(b"\n") >= 4
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.engines
def test_a_recording_reaches_a_broker_with_the_base_alone(
    kafka: str, topic: Callable[..., str], environments: Callable[[str], Path], tmp_path: Path
) -> None:
    samples, events = topic(name="samples"), topic(name="events")
    done = ciml(
        environments(""), "record", "--kafka", kafka, "--samples-topic", samples, "--topic", events, "--spool", "spool",
        "--run-id", "7", "--source", "zuul", "--", "sleep", "1.5", folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts, ends = heard(kafka, samples)
    assert isinstance(parts[0], Samples)
    assert ends == [End("zuul~7~1", parts[0].recorder_us, sum(part.sequence.size for part in parts))]


def test_schemas_need_the_base_alone(environments: Callable[[str], Path], tmp_path: Path) -> None:
    done = ciml(environments(""), "schema", "--output", "schemas", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "schemas").iterdir())) == 12


@pytest.mark.whole
def test_data_sets_need_their_extra_alone(environments: Callable[[str], Path], store: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text('class_label = "status"\nspan_runs = 10\n')
    data = ["--data-path", str(store)]
    for arguments, said in [
        (["runs"], "networkx-unit"),
        (["dataset", "create", "jobs", "--definition", "jobs.toml"], "jobs"),
        (["dataset", "update", "jobs"], "20 examples"),
        (["dataset", "verify", "jobs"], "20 examples"),
        (["drift", "jobs"], "span 1"),
    ]:
        done = ciml(environments("data"), *arguments, *data, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
    done = ciml(environments("data"), "migrate", str(ROOT / "tests/golden/data_root/data"), folder=tmp_path)
    assert "53 objects: all readable and as written" in done.stdout, done.stderr


@pytest.mark.whole
@pytest.mark.parametrize(
    ("extra", "kinds"),
    [
        ("pipelines", ("ingest", "predict", "live", "feedback")),
        ("receivers", ("webhooks", "mqtt", "gerrit")),
        ("train", ("trainer",)),
    ],
)
def test_services_need_their_extra_alone(
    environments: Callable[[str], Path], tmp_path: Path, extra: str, kinds: tuple[str, ...]
) -> None:
    modules = {"webhooks": "receivers", "mqtt": "receivers, ciml.integrations.mqtt"}
    modules["gerrit"] = "receivers, ciml.integrations.gerrit.session"
    imports_ = ", ".join(f"ciml.services.{modules.get(kind, kind)}" for kind in kinds)
    words = [str(environments(extra)), "-c", f"import {imports_}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""})
    assert done.returncode == 0, done.stderr


def test_dataflow_needs_its_extra(environments: Callable[[str], Path], tmp_path: Path) -> None:
    words = ["backfill", "s3://ci/x", "--logs", "s3://ci", "--data-path", "s3://ci/data", "--runner", "dataflow"]
    words += ["--dataflow", str(write_settings(tmp_path)), "--template", "job.json"]
    done = ciml(environments("pipelines"), *words, folder=tmp_path)
    assert (done.returncode, done.stderr) == (2, "ciml: this needs ciml[dataflow]: pip install 'ciml[dataflow]'\n")


def test_the_python_api_needs_the_extra_of_data_alone(environments: Callable[[str], Path], tmp_path: Path) -> None:
    """Logs, load, runs and arrays; a training and a model name the extra that they need."""
    (tmp_path / "logs").mkdir()
    rows = ["id,job,result,start,log"]
    for number in range(12):
        write_log(tmp_path / "logs" / f"{number}.csv", number)
        result = "FAILURE" if number % 2 else "SUCCESS"
        rows.append(f"a{number},unit,{result},2026-11-24T12:00:00Z,{number}.csv")
    (tmp_path / "results.csv").write_text("\n".join(rows) + "\n")
    code = """
import ciml
assert ciml.parse_log("logs/3.csv").num_rows == 60
data = ciml.open("data", create=True)
assert data.load("logs", "results.csv").totals["run"] == data.runs().num_rows == 12
X, y = data.define_dataset("status", features_regex="usr").to_numpy()
assert (X.shape, sorted(y)) == ((12, 6, 1), [0] * 6 + [1] * 6)
for call in (lambda: data.train("status"), lambda: data.model("status"), lambda: ciml.sklearn):
    try:
        call()
    except ciml.CimlError as error:
        print(error)
"""
    done = subprocess.run(
        [str(environments("data")), "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "this needs ciml[train]: pip install 'ciml[train]'\n" * 3


def test_own_logs_need_the_data_extra_alone(environments: Callable[[str], Path], tmp_path: Path) -> None:
    write_csv(tmp_path / "results.csv", make_runs(tmp_path, 4))
    done = ciml(
        environments("data"), "load", "logs", "--results", "results.csv", "--data-path", "data", folder=tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\n4 runs.\n" in done.stdout


def test_a_receiver_of_webhooks_needs_its_extra_alone(environments: Callable[[str], Path], tmp_path: Path) -> None:
    """It starts, answers and ends, without its broker; and its supervisor asks the broker first."""
    source = 'receiver = "webhooks"\nname = "hub"\nadapter = "probe"\nauth = "none"\n'
    (tmp_path / "receivers.toml").write_text(f"[webhooks]\nport = 0\n[[source]]\n{source}")
    code = """
import pathlib, urllib.request
from tests.integrations.receivers.probe import installed
from ciml.services.options import WebhooksOptions
with installed(pathlib.Path("probe")):
    service = WebhooksOptions(config="receivers.toml", kafka="127.0.0.1:1").service()
    service.open()
    print(urllib.request.urlopen(service.url + "/healthz").read().decode())
    service.close()
"""
    python, env = environments("receivers"), {"PATH": ""}
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == '{"alive": true}\n'
    arguments = ["service", "start", "webhooks", "--config", "receivers.toml", "--kafka", "127.0.0.1:1", "--home", "h"]
    env["PYTHONPATH"] = str(tmp_path / "probe")
    done = subprocess.run(
        [str(python), "-m", "ciml.cli.main", *arguments], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("ciml: Kafka at 127.0.0.1:1 does not answer")


@pytest.mark.parametrize(
    ("present", "arguments", "missing"),
    [
        ("", ["runs", "--data-path", "STORE"], "data"),
        ("", ["record", "--log-dir", "s3://logs/ci", "--", "true"], "data"),
        ("data", ["ingest", "--data-path", "STORE", "--kafka", "127.0.0.1:1", "--once"], "pipelines"),
        ("data", ["graph", "ingest"], "pipelines"),
        ("", ["receive", "webhooks", "--config", "receivers.toml", "--kafka", "127.0.0.1:1"], "receivers"),
        ("", ["receive", "mqtt", "--config", "receivers.toml", "--kafka", "127.0.0.1:1"], "receivers"),
        ("", ["receive", "gerrit", "--config", "receivers.toml", "--kafka", "127.0.0.1:1"], "receivers"),
        ("data", ["serve", "--data-path", "STORE"], "serve"),
        ("data", ["experiment", "define", "svm", "--estimator", "svm", "--data-path", "STORE"], "train"),
        ("data", ["plot", "plots", "--data-path", "STORE"], "reports"),
        ("data", ["cluster", "plots", "--data-path", "STORE"], "reports"),
        ("data", ["tables", "publish", "--data-path", "STORE"], "tables"),
        ("data", ["up", "s3", "--home", "home"], "local"),
        ("data", ["export", "mlflow", "--tracking-uri", "sqlite:///x.db", "--data-path", "STORE"], "mlflow"),
    ],
)
def test_a_missing_extra_is_one_line(
    environments: Callable[[str], Path], store: Path, tmp_path: Path, present: str, arguments: list[str], missing: str
) -> None:
    if missing == "reports":
        (tmp_path / "plots.toml").write_text('class_label = "status"\nspan_runs = 10\n')
        for step in (["create", "plots", "--definition", "plots.toml"], ["update", "plots"]):
            done = ciml(environments("data"), "dataset", *step, "--data-path", str(store), folder=tmp_path)
            assert done.returncode == 0, done.stderr
    (tmp_path / "receivers.toml").touch()
    arguments = [str(store) if each == "STORE" else each for each in arguments]
    done = ciml(environments(present), *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"ciml: this needs ciml[{missing}]: pip install 'ciml[{missing}]'\n"


def test_a_module_of_no_extra_is_an_internal_error() -> None:
    assert missing_extra(ModuleNotFoundError("No module named 'x'", name="x")) is None


@pytest.mark.parametrize(
    ("room", "extra"), [("serve", "serve"), ("train", "train"), ("data", "pipelines"), ("", "pipelines")]
)
def test_of_several_extras_of_a_module_that_of_the_importing_room_is_named_or_the_last(
    room: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert EXTRAS["grpc"] == ("serve", "train", "pipelines")
    monkeypatch.setitem(sys.modules, "ciml.room", types.SimpleNamespace(EXTRA=room))
    missing = "raise ModuleNotFoundError(\"No module named 'grpc.aio'\", name='grpc.aio')"
    with pytest.raises(ModuleNotFoundError) as caught:
        exec(missing, {"__name__": "ciml.room.inner"})
    error = missing_extra(caught.value)
    assert error is not None
    assert error.extra == extra
