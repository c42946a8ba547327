"""The model server's metrics, in Prometheus' own format."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from serving.errors import RequestError

if TYPE_CHECKING:
    from serving.manager import ModelManager

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """Counts requests and loads. No label holds what a client sent, but for the names of models that are served."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "ciml_model_requests_total", "Requests by status.", ["model", "api", "code"], registry=self._registry
        )
        self._seconds = Histogram(
            "ciml_model_request_seconds", "Time to answer.", ["model", "api"], buckets=_SECONDS, registry=self._registry
        )
        self._loads = Counter(
            "ciml_model_loads_total", "Attempts to load a version.", ["model", "outcome"], registry=self._registry
        )
        self._load_seconds = Histogram(
            "ciml_model_load_seconds", "Time to load and warm up a version.", ["model"], registry=self._registry
        )
        self._config_errors = Counter(
            "ciml_model_config_errors_total", "Configurations that were not taken.", registry=self._registry
        )
        self._manager: ModelManager | None = None

    def watch(self, manager: ModelManager) -> None:
        """Adds what is served now: versions, labels, age."""
        self._manager = manager
        self._registry.register(_Served(manager))

    @contextmanager
    def request(self, model: str, api: str) -> Iterator[None]:
        """Measures the block. A `RequestError` or another exception is counted by its status, and passed on."""
        served = self._manager.names() if self._manager else ()
        known = model if model in served else "unknown"  # labels of a client's choosing would have no bound
        began, code = time.perf_counter(), "OK"
        try:
            yield
        except RequestError as error:
            code = error.code
            raise
        except BaseException:
            code = "INTERNAL"
            raise
        finally:
            self._requests.labels(known, api, code).inc()
            self._seconds.labels(known, api).observe(time.perf_counter() - began)

    def loaded(self, model: str, outcome: str, seconds: float) -> None:
        """Counts an attempt to load: ``loaded``, ``refused`` (it may not be served) or ``failed``."""
        self._loads.labels(model, outcome).inc()
        self._load_seconds.labels(model).observe(seconds)

    def config_error(self) -> None:
        self._config_errors.inc()

    def text(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self._registry)


class _Served:
    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    def collect(self) -> Iterator[Any]:
        info = GaugeMetricFamily("ciml_model_info", "Versions that are served.", labels=["model", "version", "label"])
        age = GaugeMetricFamily(
            "ciml_model_age_seconds", "Time since the version was loaded.", labels=["model", "version"]
        )
        now = time.time()
        for name in self._manager.names():
            by_version: dict[int, list[str]] = {}
            for label, version in self._manager.labels(name).items():
                by_version.setdefault(version, []).append(label)
            for version, loaded_at in self._manager.available(name).items():
                for label in sorted(by_version.get(version, [""])):
                    info.add_metric([name, str(version), label], 1)
                age.add_metric([name, str(version)], now - loaded_at)
        yield info
        yield age
