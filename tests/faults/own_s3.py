"""An S3 endpoint for each process that runs trials, and buckets in it."""

from __future__ import annotations

import atexit
import itertools
import os
import time
from pathlib import Path
from typing import Any

from ciml.engines import s3_environment
from ciml.engines.base import http_answers
from ciml.engines.processes import free_ports
from tests.faults.children import Program, python

_numbers = itertools.count(1)


class Endpoint:
    """moto's S3 in a process of its own; this process's own environment points at it."""

    def __init__(self, home: Path) -> None:
        port = free_ports(1)[0]
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.environment = s3_environment(self.url)
        self.process: Program = python("moto.server", "-H", "127.0.0.1", "-p", str(port), log=home / f"s3-{port}.log")
        deadline = time.monotonic() + 60
        while not http_answers(f"{self.url}/moto-api/"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no S3: {self.process.said()}")
            time.sleep(0.05)
        os.environ.update(self.environment)

    def client(self) -> Any:
        """A client of the endpoint itself, whatever stands before it."""
        import boto3

        return boto3.client("s3", endpoint_url=self.url)

    def bucket(self) -> str:
        """Makes a bucket and returns its address."""
        name = f"trial-{os.getpid()}-{next(_numbers)}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def copy(self, source: str, target: str) -> None:
        """Copies all objects below one ``s3://`` prefix to another."""
        client = self.client()
        (bucket, _, prefix), (to, _, folder) = (each.removeprefix("s3://").partition("/") for each in (source, target))
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            for item in page.get("Contents", ()):
                key = item["Key"]
                client.copy_object(Bucket=to, Key=f"{folder}/{key[len(prefix) + 1 :]}", CopySource=f"{bucket}/{key}")


_endpoints: dict[int, Endpoint] = {}


def own_s3(home: Path) -> Endpoint:
    """The endpoint of this process."""
    pid = os.getpid()
    found = _endpoints.get(pid)
    if found is None or found.process.poll() is not None:
        found = _endpoints[pid] = Endpoint(home)
        atexit.register(found.process.kill)
    return found
