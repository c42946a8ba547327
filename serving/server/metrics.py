"""The model server's metrics, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import generate_latest

from ciml.http.intake import RequestError
from ciml.metrics import Board, Family, metric, registry_of

if TYPE_CHECKING:
    from ciml.serving.server.manager import ModelManager

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

REQUESTS = metric("ciml_model_requests_total")
REJECTIONS = metric("ciml_model_rejections_total")
REQUEST_SECONDS = metric("ciml_model_request_seconds")
LOADS = metric("ciml_model_loads_total")
LOAD_SECONDS = metric("ciml_model_load_seconds")
CONFIG_ERRORS = metric("ciml_model_config_errors_total")
INFO = metric("ciml_model_info")
AGE = metric("ciml_model_age_seconds")


class Metrics:
    """Counts requests and loads. Labels hold no client input except the names of served models.

    Attributes:
      registry: Prometheus registry of all metrics.
    """

    def __init__(self) -> None:
        self.registry = registry_of()
        self._requests = REQUESTS.counter(self.registry)
        self._rejections = REJECTIONS.counter(self.registry)
        self._loads = LOADS.counter(self.registry)
        self._seconds = REQUEST_SECONDS.histogram(self.registry)
        self._load_seconds = LOAD_SECONDS.histogram(self.registry)
        self._config_errors = CONFIG_ERRORS.counter(self.registry)
        self._manager: ModelManager | None = None

    def watch(self, manager: ModelManager) -> None:
        """Add the metrics of served versions: labels and age."""
        self._manager = manager
        self.registry.register(_Served(manager))

    @contextmanager
    def request(self, model: str, api: str) -> Iterator[None]:
        """Measure the block. An exception is counted by its status and raised again."""
        served = self._manager.names() if self._manager else ()
        label = model if model in served else "unknown"  # client input as a label would be unbounded
        started_s = time.perf_counter()
        code = "OK"
        try:
            yield
        except RequestError as error:
            code = error.code
            raise
        except BaseException:
            code = "INTERNAL"
            raise
        finally:
            self._requests.labels(label, api, code).inc()
            self._seconds.labels(label, api).observe(time.perf_counter() - started_s)

    @contextmanager
    def rejections(self, api: str) -> Iterator[None]:
        """Count the rejection of a request by a limit, before any work on it; `request` counts the others."""
        try:
            yield
        except RequestError as error:
            if error.limit:
                self._rejections.labels(api, error.limit).inc()
            raise

    def record_load(self, model: str, outcome: str, seconds: float) -> None:
        """Count a load by its outcome: ``loaded``, ``refused`` (may not be served) or ``failed``."""
        self._loads.labels(model, outcome).inc()
        self._load_seconds.labels(model).observe(seconds)

    def config_error(self) -> None:
        self._config_errors.inc()

    def text(self) -> bytes:
        """Return all metrics in the text format."""
        return generate_latest(self.registry)


class _Served(Board):
    """The labels and ages of the served versions, which are read from the model manager at each scrape."""

    def __init__(self, manager: ModelManager) -> None:
        super().__init__()
        self._manager = manager

    def collect(self) -> Iterator[Family]:
        info: dict[tuple[str, str, str], int] = {}
        age: dict[tuple[str, str], float] = {}
        now = time.time()
        for name in self._manager.names():
            labels_by_version: dict[int, list[str]] = {}
            for label, version in self._manager.labels(name).items():
                labels_by_version.setdefault(version, []).append(label)
            for version, loaded_at in self._manager.available(name).items():
                for label in labels_by_version.get(version, [""]):
                    info[name, str(version), label] = 1
                age[name, str(version)] = now - loaded_at
        yield INFO.of(info)
        yield AGE.of(age)
