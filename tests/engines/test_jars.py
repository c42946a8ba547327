from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ciml.engines import jars

ROOT = Path(__file__).resolve().parents[2]
MAVEN = """#!/bin/sh
echo "$@" >> {folder}/calls
for word in "$@"; do case $word in -DoutputDirectory=*) out=${{word#*=}};; esac; done
sleep 0.3
echo '[ERROR] Could not resolve dependencies'
mkdir -p "$out" && touch "$out/b.jar" "$out/a.jar"
exit {code}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CIML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jars"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_jars_are_fetched_once_and_named_in_order(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    program(tmp_path / "bin" / "mvn", MAVEN.format(folder=tmp_path, code=0))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    notes: list[str] = []
    with ThreadPoolExecutor(2) as pool:  # a file is locked for both
        paths = list(pool.map(lambda _: jars.class_path("kafka", notes.append), range(2)))
    folder = jars.jar_folder("kafka")
    assert [*paths, jars.class_path("kafka", notes.append)] == [f"{folder}/a.jar:{folder}/b.jar"] * 3
    assert notes == ["fetching the jars of kafka by Maven (once)"]
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_a_failed_fetch_leaves_nothing_and_names_the_reason(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(jars.NoJava, match=r"install Maven \(mvn\) to fetch them"):
        jars.class_path("kafka")
    monkeypatch.undo()
    monkeypatch.setenv("CIML_CACHE", str(cache.parent))
    program(tmp_path / "bin" / "mvn", MAVEN.format(folder=tmp_path, code=1))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with pytest.raises(jars.NoJava, match="Maven failed to fetch the jars of kafka: Could not resolve dependencies"):
        jars.class_path("kafka")
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CIML_NO_JAVA": "1"}, "CIML_NO_JAVA is set"),
        ({"PATH": "/nowhere"}, "no Java in PATH"),
        ({"JAVA_HOME": "/nowhere"}, "no Java under JAVA_HOME (/nowhere)"),
        ({"JAVA_HOME": "{home}"}, "{home}/bin/java is version 11; Java 17 or later is needed"),
    ],
)
def test_no_java_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
):
    program(tmp_path / "bin" / "java", "#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    for name in ("CIML_NO_JAVA", "JAVA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    with pytest.raises(jars.NoJava) as error:
        jars.find_java()
    assert str(error.value) == message.format(home=tmp_path)


@pytest.mark.parametrize(
    ("name", "artifact", "version"), [("kafka", "kafka_2.13", "4.1.1"), ("flink", "beam-runners-flink-1.19", "2.62.0")]
)
def test_the_poms_of_deploy_are_the_package_s(name: str, artifact: str, version: str):
    assert (ROOT / "deploy" / name / "pom.xml").read_bytes() == jars.pom(name)
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    dependencies = ET.fromstring(jars.pom(name)).iterfind("m:dependencies/m:dependency", space)
    assert {one.findtext("m:artifactId", "", space): one.findtext("m:version", "", space) for one in dependencies} == {
        artifact: version,
        "slf4j-simple": "1.7.36",
    }


@pytest.mark.engines
def test_maven_fetches_a_broker_s_jars(cache: Path):
    """By the local Maven repository, it takes seconds."""
    jars.find_java()
    names = [os.path.basename(path) for path in jars.class_path("kafka").split(os.pathsep)]
    assert len(names) == 46
    assert {"kafka_2.13-4.1.1.jar", "kafka-clients-4.1.1.jar", "slf4j-simple-1.7.36.jar"} <= set(names)
