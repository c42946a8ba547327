"""The images, built by buildah without a daemon from deploy/images/Dockerfile, and run as their configuration says.

The base is a Debian of mmdebstrap in place of python:3.11-slim, which only a registry has. A container runs as the
image's user, on a read-only root file system with a /tmp. CIML_IMAGES names the images to build: worker takes long.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ciml.version import __version__
from tests.project.release import build, copy_of_checkout
from tests.project.test_release import EPOCH

pytestmark = [pytest.mark.interop, pytest.mark.timeout(3600)]
IMAGES = os.environ.get("CIML_IMAGES", "recorder services").split()
BASE = "localhost/ciml-test-base:bookworm"
#: A program of each image, which uses what the image is for.
PROGRAMS = {
    "recorder": "import ciml.recorder.sampler, confluent_kafka, dool",
    "services": (
        "import ciml.services.ingest, ciml.services.predict, ciml.services.receivers, ciml.services.feedback, "
        "ciml.engines.flink.worker_pool, ciml.runs.compact"
    ),
    "serve": "import ciml.serving.server.rest, ciml.serving.server.model.loaded_model",
    "worker": "import ciml.training.refresh, ciml.training.export, ciml.serving.server.rest, ciml.services.trainer, "
    "ciml.pipelines.ingest",
}


def run(*words: str | Path, folder: Path | None = None) -> str:
    """Run a program; its storage is a folder of buildah's own default."""
    env = {**os.environ, "STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
    done = subprocess.run([str(word) for word in words], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]} {done.stderr[-4000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> None:
    missing = [name for name in ("buildah", "mmdebstrap", "unshare") if shutil.which(name) is None]
    if missing or os.geteuid():
        pytest.fail(f"this needs root and {', '.join(missing)}: apt-get install buildah mmdebstrap")
    if BASE.rpartition(":")[0] in run("buildah", "images", "--format", "{{.Name}}"):
        return
    tree = tmp_path_factory.mktemp("base") / "base.tar"
    packages = "python3,python3-pip,python3-venv,ca-certificates"
    run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", "bookworm", tree)
    container = run("buildah", "from", "scratch")
    run("buildah", "add", "--quiet", container, tree, "/")
    run("buildah", "commit", "--quiet", "--rm", container, BASE)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the wheel in dist/, as `make dist` leaves it."""
    folder = copy_of_checkout(tmp_path_factory.mktemp("context") / "source")
    (folder / "dist").mkdir()
    build(folder, folder / "dist", EPOCH)
    return folder


@contextmanager
def container_of(image: str) -> Iterator[Path]:
    """The root file system of a container. Container and image are removed afterwards: images have gigabytes."""
    container = run("buildah", "from", "--pull-never", image)
    try:
        yield Path(run("buildah", "mount", container))
    finally:
        run("buildah", "rm", container)
        run("buildah", "rmi", image)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.usefixtures("base")
def test_an_image_is_built_and_its_commands_run(image: str, context: Path) -> None:
    tag = f"localhost/ciml-test-{image}:{__version__}"
    # Certificates of this machine, where its package index has others than the base.
    certificate = os.environ.get("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")
    run(
        "buildah", "bud", "-f", "deploy/images/Dockerfile", "-v", f"{certificate}:{certificate}:ro",
        "--build-arg", f"PIP_CERT={certificate}", "--build-arg", f"BASE={BASE}", "--build-arg", f"IMAGE={image}",
        "-t", tag, ".", folder=context,
    )  # fmt: skip
    config = json.loads(run("buildah", "inspect", "--type", "image", tag))["OCIv1"]["config"]
    assert config["User"] == "10001:10001"
    assert config["Labels"]["org.opencontainers.image.title"] == f"ciml-{image}"
    assert config["Cmd"] == ["ciml", "--help"]
    environment = dict(each.split("=", 1) for each in config["Env"])

    with container_of(tag) as root:
        size = run("du", "-sx", "--block-size=1MB", root).split()[0]
        libraries = run("du", "-sx", "--block-size=1MB", root / "opt" / "ciml").split()[0]
        app = run("du", "-sx", "--block-size=1MB", root / "opt" / "app").split()[0]
        print(f"\n| `{image}` | {size} MB, libraries {libraries} MB, ciml {app} MB |")

        def contained(*words: str) -> subprocess.CompletedProcess[str]:
            script = (
                'mount --rbind "$1" "$1" && mount -o remount,bind,ro "$1" && mount -t tmpfs tmpfs "$1/tmp" && '
                'mount -t proc proc "$1/proc" && mount --bind /dev "$1/dev" && root=$1 && shift && '
                'exec chroot --userspec=10001:10001 "$root" "$@"'
            )
            variables = [f"{name}={value}" for name, value in environment.items()]
            inside = ["/usr/bin/env", "-i", "-C", config["WorkingDir"], *variables, *words]
            line = ["unshare", "--mount", "sh", "-ec", script, "sh", str(root), *inside]
            return subprocess.run(line, capture_output=True, text=True)

        assert not (root / "opt/ciml/bin/pip").exists()
        assert contained("id", "-u").stdout == "10001\n"
        for place in ("/new", "/opt/app/new", "/var/lib/ciml/new"):
            assert "Read-only file system" in contained("touch", place).stderr, place
        assert contained("touch", "/tmp/new").returncode == 0
        assert contained("ciml", "--version").stdout.startswith(f"ciml {__version__}")
        shown = contained(*config["Cmd"])
        assert "record" in shown.stdout, shown.stderr
        done = contained("python", "-c", PROGRAMS[image])
        assert done.returncode == 0, done.stderr
        if image == "recorder":
            places = ["--log-dir", "/tmp/logs", "--spool", "/tmp/spool"]
            done = contained("ciml", "record", *places, "--job", "unit", "--", "sleep", "1.5")
            assert done.returncode == 0, done.stderr
