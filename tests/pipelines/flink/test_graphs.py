"""Each pipeline's portable graph needs Python workers alone, and every engine takes it; options of jobs on Flink."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from concurrent import futures
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import apache_beam as beam
import grpc
import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.portability.api import beam_job_api_pb2, beam_runner_api_pb2
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from apache_beam.runners.portability.fn_api_runner import translations
from apache_beam.runners.portability.portable_runner import PortableRunner
from click.testing import CliRunner

from ciml.cli.commands.operate.describe import graph
from ciml.pipelines.flink import jobs, submit
from ciml.pipelines.flink.jobs import Job, RestJob, cancel_job, forget_job
from ciml.pipelines.flink.submit import FlinkJob, flink_options, run_bounded
from ciml.pipelines.graphs import PIPELINES, as_dot, as_text, foreign_parts, is_unbounded, portable, stages

Build = Callable[[beam.Pipeline], object]
FOR_EVER = {"ingest", "predict"}
#: What Beam's Flink runner 2.62 and Dataflow know how to do.
KNOWN_REQUIREMENTS = {"beam:requirement:pardo:splittable_dofn:v1", "beam:requirement:pardo:stateful:v1"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a graph needs no network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    # the one question that Dataflow's options ask before anything is submitted: a bucket's policy, to warn of its price
    monkeypatch.setattr(GoogleCloudOptions, "_warn_if_soft_delete_policy_enabled", lambda *_: None)


def test_a_planted_stage_of_another_language_is_found() -> None:
    proto = portable(PIPELINES["ingest"][0])
    java = proto.components.environments["java"]
    java.urn = "beam:env:docker:v1"
    java.capabilities.append("beam:version:sdk_base:apache/beam_java17_sdk:2.77.0")
    stage = proto.components.transforms["java"]
    stage.unique_name = "Java"
    stage.environment_id = "java"
    stage.spec.urn = "beam:transform:org.apache.beam:kafka_read_with_metadata:v1"
    assert foreign_parts(proto) == [
        "Java: its environment java is not Python's",
        f"Java: {stage.spec.urn} is from another language",
    ]


@pytest.mark.parametrize(("field", "value"), [("urn", "beam:dofn:javasdk:0.1"), ("urn", "")])
def test_a_planted_function_of_another_language_is_found(field: str, value: str) -> None:
    proto = portable(PIPELINES["backfill"][0])
    name, stage = next((key, one) for key, one in proto.components.transforms.items() if one.unique_name == "Settle")
    payload = beam_runner_api_pb2.ParDoPayload.FromString(stage.spec.payload)
    setattr(payload.do_fn, field, value)
    proto.components.transforms[name].spec.payload = payload.SerializeToString()
    assert foreign_parts(proto) == [f"Settle: its function is {value}"]


def test_a_planted_coder_of_another_language_is_found() -> None:
    proto = portable(PIPELINES["backfill"][0])
    name = next(iter(proto.components.coders))
    proto.components.coders[name].spec.urn = "beam:coder:javasdk:0.1"
    assert foreign_parts(proto) == [f"coder {name}: beam:coder:javasdk:0.1 is from another language"]


@pytest.mark.parametrize("name", PIPELINES)
def test_each_is_python_alone_and_every_engine_takes_it(name: str) -> None:
    build = PIPELINES[name][0]
    proto = portable(build)
    assert foreign_parts(proto) == []
    assert is_unbounded(proto) == (name in FOR_EVER)
    assert set(proto.requirements) <= KNOWN_REQUIREMENTS
    # a stage comes after those that it reads; what begins anything is an impulse
    seen: set[str] = set()
    for stage, kind, reads in stages(proto):
        assert seen.issuperset(reads)
        assert bool(reads) != (kind == "Impulse"), stage
        seen.add(stage)
    assert as_text(name, proto).count("\n") == len(seen)
    dot = as_dot(proto)
    assert dot.count("{") == dot.count("}")
    assert dot.count(" -> ") >= len(seen) - 1
    flink = as_flink_is_given_it(build, unbounded=name in FOR_EVER)
    assert foreign_parts(flink) == []
    fused = translations.create_and_optimize_stages(
        flink, translations.standard_optimize_phases(), translations.KNOWN_COMPOSITES
    )[1]
    assert 0 < len(fused) < len(seen) * 2
    job = dataflow_job(build, unbounded=name in FOR_EVER)
    assert foreign_parts(job.proto_pipeline) == []
    images = {_image(one) for one in job.proto_pipeline.components.environments.values()}
    assert images == {"registry.example.org/ciml/worker:1"}


def as_flink_is_given_it(build: Build, *, unbounded: bool) -> Any:
    """What `PortableRunner` sends to Flink's job server."""
    options = flink_options("flink:8099", "graph", workers="localhost:50000", streaming=unbounded)
    pipeline = beam.Pipeline(options=options)
    build(pipeline)
    proto = PortableRunner().get_proto_pipeline(pipeline, options)
    environments = {one.urn for one in proto.components.environments.values()}
    assert environments == {"beam:env:external:v1"}
    return proto


def dataflow_job(build: Build, *, unbounded: bool) -> Any:
    """What `DataflowRunner` would submit, short of staging it."""
    flags = [
        "--project=project", "--region=europe-west1", "--temp_location=gs://bucket/temp", "--job_name=graph",
        "--dry_run=True",
        "--sdk_container_image=registry.example.org/ciml/worker:1", "--sdk_location=container",
        *(["--streaming", "--enable_streaming_engine"] if unbounded else []),
    ]  # fmt: skip
    pipeline = beam.Pipeline(runner=DataflowRunner(), options=PipelineOptions(flags))
    build(pipeline)
    return pipeline.run().job


def _image(environment: Any) -> str:
    return str(beam_runner_api_pb2.DockerPayload.FromString(environment.payload).container_image)


def test_the_command_prints_each_form(tmp_path: Any) -> None:
    text = CliRunner().invoke(graph, ["backfill"]).output
    assert text.splitlines()[0] == "backfill: bounded, 4 stages, only Python workers"
    assert text.splitlines()[-1].split() == ["4", "ParDo", "Settle", "<-", "3"]
    assert CliRunner().invoke(graph, ["backfill", "--format", "dot"]).output.startswith("digraph G {")
    described = json.loads(CliRunner().invoke(graph, ["backfill", "--format", "json"]).output)
    assert "Settle" in {
        one["uniqueName"] for one in described["components"]["transforms"].values() if "uniqueName" in one
    }
    out = tmp_path / "graph.pb"
    assert CliRunner().invoke(graph, ["backfill", "--format", "proto", "--output", str(out)]).exit_code == 0
    assert foreign_parts(beam_runner_api_pb2.Pipeline.FromString(out.read_bytes())) == []
    wrong = CliRunner().invoke(graph, ["nothing"])
    assert wrong.exit_code == 2
    for name in PIPELINES:
        assert name in wrong.output


# --- options of jobs, and the messages to Flink's job server, without either


@pytest.mark.parametrize("workers", [None, "pool:50000"])
def test_workers_decide_on_the_environment_and_on_chaining(workers: str | None) -> None:
    """Without chaining the operators of a job keep their names, by which a savepoint finds them."""
    options = flink_options("jobs:8099", "ingest", workers=workers).get_all_options(retain_unknown_options=True)
    assert options["environment_type"] == ("EXTERNAL" if workers else "LOOPBACK")
    assert options["environment_config"] == workers
    assert bool(options.get("operator_chaining")) == (workers is not None)
    assert options["finish_bundle_before_checkpointing"]


@pytest.mark.parametrize(("workers", "steps"), [(None, ["cancel_orphans", "run"]), ("pool:50000", ["run"])])
def test_jobs_of_ended_processes_are_cancelled_before_one_with_workers_in_this_process(
    workers: str | None, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Mock()
    monkeypatch.setattr(submit, "cancel_orphans", calls.cancel_orphans)
    monkeypatch.setattr(submit.beam, "Pipeline", lambda **_: Mock(run=calls.run))
    FlinkJob(Mock(), flink_options("jobs:8099", "ingest", workers=workers))
    assert [name for name, *_ in calls.mock_calls] == steps


def test_a_job_is_cancelled_when_its_wait_ends_by_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Mock(over=False)
    monkeypatch.setattr(submit, "FlinkJob", lambda *_: job)
    with pytest.raises(KeyboardInterrupt):
        run_bounded(Mock(), "flink", "jobs:8099", "backfill", poll=Mock(side_effect=KeyboardInterrupt))
    job.cancel.assert_called_once_with()


@pytest.mark.parametrize(("starts_s", "cancelled_s"), [(0.0, 0.0), (3.0, 3.0), (float("inf"), 15.0)])
def test_a_job_is_cancelled_when_flink_has_it(
    starts_s: float, cancelled_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier, its submission would start it after the cancel. If Flink does not get it, the wait ends."""
    clock = SimpleNamespace(now_s=0.0, monotonic=lambda: clock.now_s)
    requests: list[float] = []

    def sleep(pause_s: float) -> None:
        clock.now_s += pause_s

    def list_flink_jobs(_: str) -> list[RestJob]:
        has_job = clock.now_s >= starts_s and not requests
        return [RestJob("flink", "7", "ingest", "RUNNING", 0.0, True)] if has_job else []

    clock.sleep = sleep
    monkeypatch.setattr(jobs, "time", clock)
    monkeypatch.setattr(jobs, "list_jobs", lambda _: [Job("1", "ingest", "CANCELLED" if requests else "RUNNING")])
    monkeypatch.setattr(jobs, "list_flink_jobs", list_flink_jobs)
    monkeypatch.setattr(jobs, "_request_cancel", lambda *_: requests.append(clock.now_s))
    assert cancel_job("jobs:8099", "1").over
    assert requests == [pytest.approx(cancelled_s, abs=0.2)]


@pytest.mark.parametrize("length", [1, 127, 128, 300])
def test_a_job_of_any_id_is_forgotten(length: int) -> None:
    cancelled: list[str] = []

    def cancel(data: bytes, _: Any) -> bytes:
        cancelled.append(beam_job_api_pb2.CancelJobRequest.FromString(data).job_id)
        return b""

    name = "org.apache.beam.model.job_management.v1.JobService"
    handler = grpc.method_handlers_generic_handler(name, {"Cancel": grpc.unary_unary_rpc_method_handler(cancel)})
    server = grpc.server(futures.ThreadPoolExecutor(1), [handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        forget_job(f"127.0.0.1:{port}", "x" * length)
    finally:
        server.stop(0).wait()
    assert cancelled == ["x" * length]
