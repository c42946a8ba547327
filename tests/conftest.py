"""Engines that tests share: one Kafka broker, one Flink and one S3 endpoint a session, started when first asked for."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from ciml.tensorflow import declare_own_process
from tests.tier import RANDOM, tries

# jsonschema's grammar of IRIs takes a second of each process that imports it; no schema here has their formats.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
declare_own_process()  # tests expect what the commands give: models that can be compared, and two threads
gc.disable()  # until all is collected: what is imported lives as long as the process
# No test decides by the clock: what is slow on a busy machine is not wrong. And none by chance: a change meets the same
# inputs as the one before it, and make fuzz looks for others.
hypothesis.settings.register_profile(
    "ciml",
    max_examples=tries(100),
    deadline=None,
    derandomize=not RANDOM,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ciml")

_HERE = Path(__file__).parent
_numbers = itertools.count(1)

#: Files that take half a minute or more, the longest first; files on one engine count together (`ON_ENGINE`).
LONGEST = (
    "tests/services/test_other_kinds.py",
    "tests/project/test_readme.py",
    "tests/pipelines/flink/test_cluster.py",
    "tests/services/test_ingest_service_flink.py",
    "tests/services/test_ingest_service.py",
    "tests/pipelines/ingest/test_memory.py",
    "tests/cli/demo/test_run.py",
    "tests/engines/test_cluster.py",
    "tests/project/test_own_logs.py",
    "tests/services/test_recovery.py",
    "tests/verdicts/feedback/test_service.py",
    "tests/verdicts/feedback/test_gerrit.py",
    "tests/ciml/api/test_examples.py",
    "tests/serving/test_hot_swap.py",
    "tests/serving/server/test_endless_models.py",
    "tests/simulation/test_simulation.py",
    "tests/project/test_extras.py",
    "tests/recorder/test_delivery.py",
    "tests/runs/tables/test_publish.py",
    "tests/runs/test_compact_faults.py",
    "tests/engines/test_engines.py",
    "tests/deploy/test_chart.py",
    "tests/deploy/test_tekton.py",
    "tests/training/conversion/test_estimators.py",
    "tests/training/test_calibrated.py",
    "tests/training/trainer/test_trainer.py",
    "tests/training/test_refresh.py",
    "tests/training/data/test_materialise.py",
    "tests/examples/test_examples.py",
    "tests/examples/test_own_logs.py",
    "tests/studies/test_verdicts.py",
    "tests/pipelines/test_hyperparameter_sweep.py",
    "tests/serving/server/test_slow_clients.py",
    "tests/faults/test_selection.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Wait for no disk: tests kill processes, not machines, and `tests.durable` forgets what was not synced."""
    if "not bench" in config.option.markexpr:
        os.fsync = os.fstat  # type: ignore[assignment]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip the folders of benchmarks and of slow proofs where their marks are deselected: imports take a second."""
    if collection_path.parent != _HERE or collection_path.name not in ("bench", "interop"):
        return None
    return True if f"not {collection_path.name}" in config.option.markexpr else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: the last ones determine when all processes are done."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute files as `tests.distribution` does, which is not imported where one process tests."""
    if config.option.dist != "loadfile":
        return None
    from tests.distribution import FilesByEngine

    return FilesByEngine(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Start one broker for all processes that test in parallel."""
    node.workerinput["kafka"] = _shared_kafka(node.config)


_SHARED_KAFKA = pytest.StashKey[str]()


def _shared_kafka(config: pytest.Config) -> str:
    """Return the address of the broker that this process runs for the others; "" if none needs it, or without Java."""
    if _SHARED_KAFKA not in config.stash:
        config.stash[_SHARED_KAFKA] = ""
        if "not engines" not in config.option.markexpr:
            from ciml import engines

            stack = ExitStack()
            config.add_cleanup(stack.close)
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="ciml-kafka-", ignore_cleanup_errors=True))
            running = stack.enter_context(engines.start(["kafka"], home, engines.Settings(tied=True)))
            config.stash[_SHARED_KAFKA] = "" if running.light else running.kafka
    return config.stash[_SHARED_KAFKA]


def pytest_collection_finish() -> None:
    """Collect garbage from here on, and never what was imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _connections_end() -> Iterator[None]:
    """Close what ciml keeps open for the rest of a process: for all tests, that is more than select(2) knows."""
    yield
    if reader := sys.modules.get("ciml.pipelines.kafka.reader"):
        reader.close_readers()
    if connect := sys.modules.get("ciml.kafka.connect"):
        connect._admin_clients.clear()
    if fetch := sys.modules.get("ciml.transforms.fetch.fetch"):
        while fetch._fetchers:
            fetch._fetchers.popitem()[1].close()


def _engine(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from ciml import engines

    home = tmp_path_factory.mktemp(f"engine-{name}")
    with engines.start([name], home=home, settings=engines.Settings(tied=True)) as running:
        if running.light and not os.environ.get("CIML_NO_JAVA"):
            # Where tests are made to count, a machine that cannot run them is a failure.
            (pytest.fail if os.environ.get("CI") else pytest.skip)("; ".join(running.notes))
        yield running


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The ``host:port`` of a real broker; of the mock broker when ``CIML_NO_JAVA`` is set.

    Processes that test in parallel share a broker. A test's topics and groups have names of their own.
    """
    if shared := getattr(request.config, "workerinput", {}).get("kafka"):
        yield shared
        return
    for running in _engine("kafka", tmp_path_factory):
        yield running.kafka


@pytest.fixture(scope="session")
def flink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The ``host:port`` of Beam's job server with Flink inside."""
    for running in _engine("flink", tmp_path_factory):
        if running.light:
            pytest.skip("Flink needs Java")
        yield running.flink


@pytest.fixture
def flink_jobs(flink: str) -> Iterator[str]:
    """As ``flink``, and cancels whatever the test left running there."""
    from tests.pipelines.flink.flink_state import cancel_all_jobs

    yield flink
    cancel_all_jobs(flink)


@dataclass(frozen=True)
class S3Endpoint:
    """A running S3 endpoint; the environment of the session points at it while it runs."""

    endpoint: str

    def bucket(self, name: str | None = None) -> str:
        """Makes a bucket (with a name of its own by default) and returns its ``s3://`` address."""
        import boto3

        chosen = name or f"bucket-{next(_numbers)}"
        boto3.client("s3").create_bucket(Bucket=chosen)
        return f"s3://{chosen}"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Endpoint]:
    """An S3 endpoint over HTTP; ``s3.bucket()`` makes a fresh bucket."""
    from ciml import engines

    for running in _engine("s3", tmp_path_factory):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in engines.s3_environment(running.s3).items():
                patch.setenv(name, value)
            patch.delenv("AWS_PROFILE", raising=False)
            patch.delenv("AWS_ENDPOINT_URL", raising=False)
            yield S3Endpoint(running.s3)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3: S3Endpoint) -> Iterator[Any]:
    """A standalone Flink cluster (one TaskManager, two slots) whose checkpoints and savepoints are on S3."""
    from ciml import engines
    from ciml.engines.jars import NoJava

    settings = engines.Settings(tied=True, state=f"{s3.bucket()}/flink")
    try:
        running = engines.start(["cluster"], tmp_path_factory.mktemp("engine-cluster"), settings)
    except NoJava as error:
        (pytest.fail if os.environ.get("CI") and not os.environ.get("CIML_NO_JAVA") else pytest.skip)(str(error))
    with running:
        yield running


@pytest.fixture
def topic(kafka: str) -> Callable[..., str]:
    """A factory of fresh topics: ``topic(partitions=1, name="events")`` returns the name it was given, made unique."""

    def make(partitions: int = 1, name: str = "topic") -> str:
        from ciml import engines

        unique = f"{name}-{os.getpid()}-{next(_numbers)}"
        engines.create_topics(kafka, {unique: partitions})
        return unique

    return make
