"""One world for all tests of this folder, in which all services work; each test breaks something and repairs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ciml.cli.demo.corpus import corpus_folder
from ciml.engines.processes import free_ports
from tests.corpus import builds
from tests.interop.prometheus.world import World, failing, world

PREDICT, TRAINER, MODELS = "ciml-predict-cause", "ciml-trainer-cause", "ciml-models"
INGEST, WEBHOOKS, MQTT, FEEDBACK = "ciml-ingest", "ciml-webhooks", "ciml-mqtt", "ciml-feedback"


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world whose services do not run yet."""
    with world(tmp_path_factory.mktemp("world")) as one:
        yield one


def start_serving(one: World) -> None:
    """Start the model server, and predict."""
    one.ports["grpc"], one.ports["rest"] = free_ports(2)
    ports = ("--grpc-port", str(one.ports["grpc"]), "--rest-port", str(one.ports["rest"]))
    one.start(MODELS, "serve", "--data-path", "data", *ports)
    one.service(
        PREDICT, "predict", "--model", "cause", "--server", f"127.0.0.1:{one.ports['grpc']}", "--data-path", "data",
        "--engine", "micro-batches",
    )  # fmt: skip


def start_trainer(one: World) -> None:
    """Start the trainer, which may push a model that memory alone beats.

    The world contains copies of the recorded runs, so the run of nearest memory has nearly always the same cause.
    """
    experiment = str(corpus_folder().parent / "cause-experiment.toml")
    options = ("--experiment", experiment, "--accept-baseline", "memory")
    one.service(TRAINER, "trainer", "--dataset", "cause", "--data-path", "data", *options)


def start_others(one: World) -> None:
    one.start(WEBHOOKS, "receive", "webhooks", "--config", "receivers.toml")
    one.start(MQTT, "receive", "mqtt", "--config", "receivers.toml")
    one.service(INGEST, "ingest", "--data-path", "data", "--engine", "micro-batches", "--fetch-policy", "fetch.toml")
    one.service(FEEDBACK, "feedback", "--config", "feedback.toml", "--data-path", "data")


def _is_served(one: World) -> bool:
    """Whether a model is served. On a busy machine the gate refuses a slow one: then the trainer tries again."""
    refused = sum(value for _, value in one.prometheus.query('ciml_training_candidates_total{verdict="refused"}'))
    if refused > one.excluded:
        known = [line["build_uuid"] for line in builds() if "cause" in line and line["attempt"] == 1]
        run = f"backfill~{known[one.excluded]}.0~1"
        one.ciml("exclude", "--run", run, "--reason", "the trainer tries again", "--data-path", "data")
        one.excluded += 1
    return one.prometheus.query('ciml_model_info{model="cause"}') != []


@pytest.fixture(scope="session")
def steady(bare: World) -> World:
    """The world in which all services work: a model is served, and verdicts are posted on a change."""
    one = bare
    for job, start in ((MODELS, start_serving), (TRAINER, start_trainer), (INGEST, start_others)):
        if job not in one.running:
            start(one)
    one.until(lambda: _is_served(one), "no model is served", 900)
    for job in (INGEST, PREDICT, FEEDBACK, TRAINER):
        one.until(lambda job=job: one.health(job) == "running", f"{job} does not run", 120)  # type: ignore[misc]
    for number in range(12):
        one.deliver(one.failed(number))
    for sample in [each for each in one.samples if each not in failing(one.samples)][:4]:
        one.deliver(one.facts(sample))
    one.until(lambda: one.github.messages(7) != [], "no message is posted", 180)
    one.prometheus.wait_for_quiet(most_s=180)
    return one
