"""Options of jobs on Flink, and the messages to its job server, without either."""

from __future__ import annotations

from concurrent import futures
from typing import Any

import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2

from ciml.pipelines.flink.jobs import forget_job
from ciml.pipelines.flink.submit import flink_options


@pytest.mark.parametrize("workers", [None, "pool:50000"])
def test_workers_decide_on_the_environment_and_on_chaining(workers: str | None) -> None:
    """Without chaining the operators of a job keep their names, by which a savepoint finds them."""
    options = flink_options("jobs:8099", "ingest", workers=workers).get_all_options(retain_unknown_options=True)
    assert options["environment_type"] == ("EXTERNAL" if workers else "LOOPBACK")
    assert options["environment_config"] == workers
    assert bool(options.get("operator_chaining")) == (workers is not None)
    assert options["finish_bundle_before_checkpointing"]


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
