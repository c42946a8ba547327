"""Spark reads the same rows from the tables as ciml does, before and after a checkpoint.

PySpark and its jars are installed once into ``~/.cache/ciml/spark``, from PyPI and Maven. It needs Java 17 and Maven.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from ciml.data_root import DataRoot
from ciml.runs.tables import FOLDER, store_of
from ciml.runs.tables.delta_log import CHECKPOINT_EVERY
from ciml.runs.tables.publish import publish_tables
from tests.runs.compacting import run, squeeze
from tests.runs.tables.readers import Rows, ordered
from tests.runs.tables.scenes import expected, make_dataset, make_store
from tests.runs.tables.test_publish import TABLES

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1800)]

HERE = Path(__file__).parent
#: PySpark and Delta have to fit: Delta 4.3 is for Spark 4.1.
PYSPARK = "pyspark==4.1.*"


@pytest.fixture(scope="module")
def spark() -> tuple[Path, Path]:
    """The Python that has PySpark, and the folder of Delta's jars."""
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is missing: install Java 17 and Maven")
    folder = Path.home() / ".cache" / "ciml" / "spark"
    folder.parent.mkdir(parents=True, exist_ok=True)
    python, jars = folder / "bin" / "python", folder / "jars"
    with FileLock(folder.with_suffix(".lock")):
        if not jars.exists():
            uv = [sys.executable, "-m", "uv"]
            subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
            subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, PYSPARK], check=True)
            maven = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
            wanted = ["-DincludeGroupIds=io.delta,io.unitycatalog", f"-DoutputDirectory={folder / 'fetched'}"]
            subprocess.run([*maven, *wanted], check=True)
            (folder / "fetched").rename(jars)
    return python, jars


def read(spark: tuple[Path, Path], data: DataRoot) -> dict[str, Rows]:
    python, jars = spark
    command = [python, HERE / "read.py", jars, *(store_of(data, name).root for name in TABLES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("ROWS ")), None)
    assert line is not None, done.stderr[-3000:]
    found = dict(zip(TABLES, json.loads(line.removeprefix("ROWS ")), strict=True))
    assert all(table["count"] == len(table["rows"]) for table in found.values())
    return {name: ordered(table["columns"], table["rows"]) for name, table in found.items()}


def test_spark_reads_the_rows_that_ciml_reads(spark: tuple[Path, Path], tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path)
    raw = make_store(data)
    make_dataset(data)
    list(publish_tables(data))
    for number in range(20, 21 + CHECKPOINT_EVERY):
        raw.add([run(number)])
        squeeze(data.raw)
        list(publish_tables(data))
    folder = store_of(data, "raw")
    first = f"{FOLDER}/{CHECKPOINT_EVERY:020d}"
    assert f"{first}.checkpoint.parquet" in folder.list(FOLDER)
    for path in folder.list(FOLDER):
        if path < first:
            folder.delete(path)
    found = read(spark, data)
    for name in TABLES:
        assert found[name] == expected(data, name), name
    assert {name: len(rows) for name, rows in found.items()} == {
        "raw": 42 + 4 * (CHECKPOINT_EVERY + 1), "runs": 10 + CHECKPOINT_EVERY, "dead_letters": 3, "datasets/cpu": 8,
    }  # fmt: skip
