"""One API server for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deploy.definitions import flink_definitions, prometheus_definitions, tekton_definitions
from tests.interop.kubernetes.server import Cluster, running


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running server that has the resources of the Flink operator, the Prometheus operator and Tekton."""
    with running(tmp_path_factory.mktemp("kubernetes")) as one:
        one.define([*flink_definitions(), *prometheus_definitions(), *tekton_definitions()])
        yield one
