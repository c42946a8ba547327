from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ciml.engines import jars

ROOT = Path(__file__).resolve().parents[2]
FAKE_MAVEN = """#!/bin/sh
echo "$@" >> {calls}
for word in "$@"; do case $word in -DoutputDirectory=*) out=${{word#*=}};; esac; done
sleep 0.3
mkdir -p "$out" && touch "$out/b.jar" "$out/a.jar"
exit {code}
"""


def fake_maven(folder: Path, code: int = 0, words: str = "") -> Path:
    """A folder for PATH with an mvn that makes two jars, and a file that lists its calls."""
    programs = folder / "bin"
    programs.mkdir()
    text = FAKE_MAVEN.format(calls=folder / "calls", code=code)
    (programs / "mvn").write_text(text.replace("mkdir", f"echo '{words}'\nmkdir") if words else text)
    (programs / "mvn").chmod(0o755)
    return programs


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CIML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_jars_are_fetched_once_and_named_in_order(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", f"{fake_maven(tmp_path)}:{os.environ['PATH']}")
    messages: list[str] = []
    first = jars.class_path("kafka", messages.append)
    folder = jars.jar_folder("kafka")
    assert first == f"{folder}/a.jar:{folder}/b.jar"
    assert jars.class_path("kafka", messages.append) == first
    assert messages == ["fetching the jars of kafka by Maven (once)"]
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_two_processes_fetch_once(tmp_path: Path, cache: Path):
    code = "from ciml.engines import jars; print(jars.class_path('flink'))"
    environment = {**os.environ, "PATH": f"{fake_maven(tmp_path)}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {one.communicate(timeout=60)[0] for one in both}
    assert len(said) == 1
    assert said.pop().count(".jar") == 2
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_a_failed_fetch_leaves_nothing_and_says_why(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    programs = fake_maven(tmp_path, code=1, words="[ERROR] Could not resolve dependencies")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(jars.NoJava, match="Maven failed to fetch the jars of kafka: Could not resolve dependencies"):
        jars.class_path("kafka")
    assert [path.name for path in (cache / "jars").iterdir() if path.is_dir()] == []


def test_without_maven_it_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(jars.NoJava, match=r"install Maven \(mvn\) to fetch them"):
        jars.class_path("kafka")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"CIML_NO_JAVA": "1"}, "CIML_NO_JAVA is set"),
        ({"PATH": "/nowhere"}, "no Java in PATH"),
        ({"JAVA_HOME": "/nowhere"}, "no Java under JAVA_HOME (/nowhere)"),
    ],
)
def test_no_java_is_one_line(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str):
    for name in ("CIML_NO_JAVA", "JAVA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(jars.NoJava) as error:
        jars.find_java()
    assert str(error.value) == said


def test_an_old_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CIML_NO_JAVA", raising=False)
    (tmp_path / "bin").mkdir()
    java = tmp_path / "bin" / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(jars.NoJava, match=r"is version 11; Java 17 or later is needed"):
        jars.find_java()


@pytest.mark.parametrize("name", ["kafka", "flink"])
def test_the_poms_of_deploy_are_the_package_s(name: str):
    deployed = ROOT / "deploy" / name / "pom.xml"
    assert deployed.read_bytes() == jars.pom(name)
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    wanted = {
        dependency.findtext("m:artifactId", "", space): dependency.findtext("m:version", "", space)
        for dependency in ET.fromstring(jars.pom(name)).iterfind("m:dependencies/m:dependency", space)
    }
    main = {"kafka": {"kafka_2.13": "4.1.1"}, "flink": {"beam-runners-flink-1.19": "2.62.0"}}[name]
    assert wanted == {**main, "slf4j-simple": "1.7.36"}


@pytest.mark.engines
def test_maven_fetches_a_broker_s_jars(cache: Path):
    """The real thing; with a local Maven repository it takes seconds."""
    jars.find_java()
    names = [os.path.basename(path) for path in jars.class_path("kafka").split(os.pathsep)]
    assert len(names) == 46
    assert {"kafka_2.13-4.1.1.jar", "kafka-clients-4.1.1.jar", "slf4j-simple-1.7.36.jar"} <= set(names)
