"""What each extra brings is enough for its commands, and where one is missing, a line names it."""

from __future__ import annotations

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

from ciml.events.samples import End, Samples
from ciml.extras import EXTRAS, missing_extra
from ciml.storage import open_store
from studies.many_runs import fill_store
from tests.ciml.api.made import write_log
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
from tests.project.test_rooms import FOLDERS, ROOMS
from tests.recorder.test_delivery import heard
from tests.transforms.samples import corpus

MISSING = "ciml: this needs ciml[{0}]: pip install 'ciml[{0}]'\n"
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


def python(environment: Path, *words: str, folder: Path, code: int = 0, **env: str) -> str:
    """Return the output of a Python that ends with a code; the errors of one that fails as it should."""
    env = {"PATH": "", **env}
    done = subprocess.run([str(environment), *words], capture_output=True, text=True, cwd=folder, env=env)
    assert done.returncode == code, (words, done.stderr)
    return done.stderr if code else done.stdout


def ciml(environment: Path, *words: str, folder: Path, code: int = 0, **env: str) -> str:
    env = {"PATH": os.environ["PATH"], "COLUMNS": "120", **env}
    return python(environment, "-m", "ciml", *words, folder=folder, code=code, **env)


#: An import: a line that is nothing else. Ruff leaves one module a line.
IMPORT = re.compile(r"^[ \t]*(?:import (\w+)(?:\.\w+)*(?: as \w+)?(?: +#.*)?$|from (\w+)[\w.]* import )", re.MULTILINE)


def imports(package: str) -> Iterator[tuple[str, str]]:
    """(file, top-level module) of each import of another project in a package."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for match in IMPORT.finditer(path.read_text()):
            top = match[1] or match[2]
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
    code = """
from click.testing import CliRunner
from ciml.cli.main import cli
for words in ([], *([name] for group in cli.table.values() for name in group)):
    done = CliRunner().invoke(cli, [*words, "--help"])
    assert done.exit_code == 0, (words, done.output, done.exception)
print(len(cli.table))
"""
    assert int(python(environments(""), "-c", code, folder=tmp_path)) > 3


def test_a_recording_and_schemas_need_the_base_alone(environments: Callable[[str], Path], tmp_path: Path) -> None:
    words = ["record", "--log-dir", "logs", "--spool", "spool", "--job", "unit", "--", "sleep", "1.5"]
    ciml(environments(""), *words, folder=tmp_path)
    (log,) = tmp_path.glob("logs/unit/*/*.gz")
    assert gzip.decompress(log.read_bytes()).count(b"\n") >= 4
    assert list((tmp_path / "spool").iterdir()) == []
    ciml(environments(""), "schema", "--output", "schemas", folder=tmp_path)
    assert len(list((tmp_path / "schemas").iterdir())) == 12


@pytest.mark.engines
def test_a_recording_reaches_a_broker_with_the_base_alone(
    kafka: str, topic: Callable[..., str], environments: Callable[[str], Path], tmp_path: Path
) -> None:
    samples, events = topic(name="samples"), topic(name="events")
    ciml(
        environments(""), "record", "--kafka", kafka, "--samples-topic", samples, "--topic", events, "--spool", "spool",
        "--run-id", "7", "--source", "zuul", "--", "sleep", "1.5", folder=tmp_path,
    )  # fmt: skip
    parts, ends = heard(kafka, samples)
    assert isinstance(parts[0], Samples)
    assert ends == [End("zuul~7~1", parts[0].recorder_us, sum(part.sequence.size for part in parts))]


@pytest.mark.whole
def test_data_sets_need_their_extra_alone(environments: Callable[[str], Path], store: Path, tmp_path: Path) -> None:
    """Also where the project's own folders have the names of ciml's rooms, and come first."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text(f"raise SystemExit('{room} of the project was run')\n")
    (tmp_path / "jobs.toml").write_text('class_label = "status"\nspan_runs = 10\n')
    data = ["--data-path", str(store)]
    for words, said in [
        (["runs"], "networkx-unit"),
        (["dataset", "create", "jobs", "--definition", "jobs.toml"], "jobs"),
        (["dataset", "update", "jobs"], "20 examples"),
        (["dataset", "verify", "jobs"], "20 examples"),
        (["drift", "jobs"], "span 1"),
        (["plot", "jobs"], ""),
    ]:
        code = 0 if said else 2
        out = ciml(environments("data"), *words, *data, folder=tmp_path, code=code, PYTHONPATH=str(tmp_path))
        assert said in out
        assert code == 0 or out == MISSING.format("reports")
    migrated = ciml(environments("data"), "migrate", str(ROOT / "tests/golden/data_root/data"), folder=tmp_path)
    assert "53 objects: all readable and as written" in migrated


@pytest.mark.whole
@pytest.mark.parametrize(
    ("extra", "modules"),
    [
        ("pipelines", "services.ingest services.predict services.live services.feedback"),
        ("receivers", "services.receivers integrations.mqtt integrations.gerrit.session"),
        ("train", "services.trainer"),
    ],
)
def test_services_need_their_extra_alone(
    environments: Callable[[str], Path], tmp_path: Path, extra: str, modules: str
) -> None:
    imports = ", ".join(f"ciml.{module}" for module in modules.split())
    python(environments(extra), "-c", f"import {imports}", folder=tmp_path)


@pytest.mark.interop
def test_every_dofn_imports_beside_the_libraries_of_the_worker_image(tmp_path: Path) -> None:
    code = """
import importlib, inspect, pkgutil
import apache_beam as beam
import ciml
# Beam's workers have no library of receivers, and none of OpenLineage.
WITHOUT = ("ciml.integrations.mqtt", "ciml.integrations.gerrit.", "ciml.lineage.openlineage")
for module in pkgutil.walk_packages(ciml.__path__, "ciml."):
    if module.name.endswith("__main__") or module.name.startswith(WITHOUT):
        continue
    for kind in vars(importlib.import_module(module.name)).values():
        mine = inspect.isclass(kind) and kind.__module__ == module.name
        if mine and issubclass(kind, (beam.DoFn, beam.CombineFn)):
            print(module.name)
"""
    environment = make_environment(tmp_path / "env", "data", "pipelines", "train", "serve")
    found = python(environment, "-c", code, folder=tmp_path).split()
    assert "ciml.pipelines.kafka.source" in found
    assert len(found) >= 5


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
        print("ciml:", error)
"""
    assert python(environments("data"), "-c", code, folder=tmp_path) == MISSING.format("train") * 3
    words = ["load", "logs", "--results", "results.csv", "--data-path", "other"]
    assert "\n12 runs.\n" in ciml(environments("data"), *words, folder=tmp_path)


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
    assert python(environments("receivers"), "-c", code, folder=tmp_path) == '{"alive": true}\n'
    words = ["service", "start", "webhooks", "--config", "receivers.toml", "--kafka", "127.0.0.1:1", "--home", "h"]
    error = ciml(environments("receivers"), *words, folder=tmp_path, code=3, PYTHONPATH=str(tmp_path / "probe"))
    assert error.startswith("ciml: Kafka at 127.0.0.1:1 does not answer")


@pytest.mark.parametrize(
    ("present", "words", "missing"),
    [
        ("", "runs --data-path STORE", "data"),
        ("", "record --log-dir s3://logs/ci -- true", "data"),
        ("data", "ingest --data-path STORE --kafka 127.0.0.1:1 --once", "pipelines"),
        ("data", "graph ingest", "pipelines"),
        *(("", f"receive {kind} --config x.toml --kafka h:1", "receivers") for kind in ("webhooks", "mqtt", "gerrit")),
        ("data", "serve --data-path STORE", "serve"),
        ("data", "experiment define svm --estimator svm --data-path STORE", "train"),
        ("data", "tables publish --data-path STORE", "tables"),
        ("data", "up s3 --home home", "local"),
        ("data", "export mlflow --tracking-uri sqlite:///x.db --data-path STORE", "mlflow"),
        (
            "pipelines",
            "backfill s3://ci/x --logs s3://ci --data-path s3://ci/data --runner dataflow --dataflow SETTINGS"
            " --template job.json",
            "dataflow",
        ),
    ],
)
def test_a_missing_extra_is_one_line(
    environments: Callable[[str], Path], store: Path, tmp_path: Path, present: str, words: str, missing: str
) -> None:
    (tmp_path / "x.toml").touch()
    words = words.replace("STORE", str(store)).replace("SETTINGS", str(write_settings(tmp_path)))
    assert ciml(environments(present), *words.split(), folder=tmp_path, code=2) == MISSING.format(missing)


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
