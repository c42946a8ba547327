"""Model servers at an address: TensorFlow Serving's REST and gRPC APIs, with limits for hostile answers.

`connect` returns a `Server` for one model. ``serving_default`` is queried for probabilities, and ``describe`` for what
a client needs to prepare a log (`ciml.serving.description`).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec
import numpy as np

from ciml.errors import CimlError, EngineError, RejectedInput
from ciml.limits import MAX_REQUEST_BYTES
from ciml.serving.client import ClientPolicy, FailedCallError, ModelClient, NotServedError
from ciml.serving.decimals import shortest_decimals
from ciml.serving.description import DESCRIBE
from ciml.serving.model_files import check_model_name
from ciml.serving.registry import STABLE

if TYPE_CHECKING:
    from numpy.typing import NDArray

_REST_PATH = re.compile(
    r"(?P<prefix>.*?)(?:/v1(?:/models(?:/(?P<model>[^/:]+)"
    r"(?:/versions/(?P<version>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?(?::predict|/metadata)?)?)?)?/?"
)
_GRPC = re.compile(r"grpc://(?P<address>[^/?#@\\]+:[0-9]{1,5})(?:/(?P<model>[^/:]+))?/?")
_EXAMPLE = "http://127.0.0.1:8501/v1/models/NAME or grpc://127.0.0.1:8500/NAME"
#: Bytes of a value in the JSON of a request: a float32 as its shortest decimal, a comma, and brackets.
_VALUE_BYTES = 17
#: Statuses of a model that fails for its inputs (INTERNAL, DEADLINE_EXCEEDED), not of a server that is unavailable.
_FAILED_STATUSES = (500, 504)


@dataclass(frozen=True)
class ServedModel:
    """A model on a model server.

    Attributes:
      url: address of the server, without the model: ``http://host:port``, ``https://…`` or ``grpc://host:port``.
      model: the model's name; "" asks the server for its only model, which ``ciml serve`` answers over REST.
      version: the version; None for the one that ``label`` names.
      label: the label; "" for the latest version; None for ``stable``, or the latest where there is no such label.
    """

    url: str
    model: str = ""
    version: int | None = None
    label: str | None = None

    def __str__(self) -> str:
        return f"model {self.model} at {self.url}"


def parse_url(url: str, model: str = "", version: int | None = None, label: str | None = None) -> ServedModel:
    """Parse the address of a model server, which may name the model, its version and its label.

    Args:
      url: ``http://HOST:PORT``, ``https://…``, each optionally with ``/v1/models/NAME`` and ``/versions/N`` or
        ``/labels/LABEL``; or ``grpc://HOST:PORT`` or ``grpc://HOST:PORT/NAME``.
      model, version, label: where the address does not name them.

    Raises:
      CimlError: the address is malformed, or contradicts the other arguments.
    """
    grpc = _GRPC.fullmatch(url)
    parts = None if grpc else _split_url(url)
    match = grpc or (_REST_PATH.fullmatch(parts.path) if parts else None)
    if match is None:
        raise CimlError(f"{url!r:.200} is not the address of a model server; want {_EXAMPLE}")
    named = {name: value for name, value in match.groupdict().items() if value}
    if model and named.get("model", model) != model:
        raise CimlError(f"the address names the model {named['model']!r}, not {model!r}")
    if (version is not None or label is not None) and {"version", "label"} & named.keys():
        raise CimlError("the address names a version or a label already; omit the other")
    model = model or named.get("model", "")
    base = f"grpc://{named['address']}" if grpc else f"{parts.scheme}://{parts.netloc}{named.get('prefix', '')}"  # type: ignore[union-attr]
    version = int(named["version"]) if "version" in named else version
    return ServedModel(base, model and check_model_name(model), version, named.get("label", label))


def _split_url(url: str) -> Any:
    """Return the parts of an http address; None if it is none, or has a user, a query or a fragment."""
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if plain and not (parts.query or parts.fragment or "@" in parts.netloc) else None


class Described(NamedTuple):
    """The answer of ``describe``: its outputs by name, and the version that answered."""

    outputs: Mapping[str, Any]
    version: int


class NotDescribedError(CimlError):
    """A served version has no signature ``describe``."""

    def __init__(self, served: ServedModel) -> None:
        super().__init__(
            f"{served} does not describe itself: it has no signature {DESCRIBE!r}, because an earlier version of ciml "
            "or another program trained it. Train it again by ciml refresh, or predict from its data root: --data-path"
        )


class Server(Protocol):
    """A model on a server. Thread-safe until `close`."""

    served: ServedModel

    def describe(self) -> Described:
        """Query the signature ``describe`` of the version to use.

        Raises:
          NotServedError: the server has no such model, version or label.
          NotDescribedError: the version has no such signature.
          EngineError: the server is unavailable, or answers with something else.
        """

    def probabilities(
        self, inputs: NDArray[np.float32], n_windows: NDArray[np.int32], version: int
    ) -> NDArray[np.float32]:
        """Query the probabilities [rows, classes] of inputs [rows, L, F] and n_windows [rows].

        Raises:
          NotServedError: the server has no such version any more.
          FailedCallError: the model fails for these runs.
          EngineError: the server is unavailable, or answers with something else.
        """

    def max_rows(self, row_values: int) -> int:
        """Return the number of rows that fit one request, for runs of L * F values."""

    def close(self) -> None:
        """Close the connections."""


def connect(served: ServedModel, timeout_s: float) -> Server:
    """Return the server of a model. Nothing is sent yet, except to ask a server for its only model.

    Args:
      served: the model.
      timeout_s: limit of one request, seconds.

    Raises:
      CimlError: no model is named, and the server does not list exactly one.
    """
    if served.url.startswith("grpc://"):
        if not served.model:
            raise CimlError(f"name the model on {served.url}: {served.url}/NAME, or --model NAME")
        return GrpcServer(served, timeout_s)
    return RestServer(served, timeout_s)


def label_choices(served: ServedModel) -> tuple[str, ...]:
    """Return the labels to try in order; "" means the latest version."""
    return (STABLE, "") if served.label is None else (served.label,)


class GrpcServer:
    """A model over gRPC."""

    def __init__(self, served: ServedModel, timeout_s: float) -> None:
        self.served = served
        policy = ClientPolicy(timeout_s=timeout_s, slow_tries=1, budget_s=timeout_s)
        self._client = ModelClient(served.url.removeprefix("grpc://"), served.model, policy)

    def describe(self) -> Described:
        labels = label_choices(self.served) if self.served.version is None else ("",)
        for label in labels:
            try:
                return Described(*self._client.describe(version=self.served.version, label=label))
            except NotServedError:
                if label == labels[-1]:
                    raise
            except EngineError as error:
                if "Serving signature" in str(error):  # `Serving signature key "describe" not found.`
                    raise NotDescribedError(self.served) from None
                raise
        raise AssertionError("the last label raises")

    def probabilities(
        self, inputs: NDArray[np.float32], n_windows: NDArray[np.int32], version: int
    ) -> NDArray[np.float32]:
        return self._client.predict(inputs, n_windows, version=version).probabilities

    def max_rows(self, row_values: int) -> int:
        return max(1, MAX_REQUEST_BYTES // 2 // (4 * row_values))

    def close(self) -> None:
        self._client.close()


class _Models(msgspec.Struct):
    models: list[str]


class _Spec(msgspec.Struct):
    version: str


class _Metadata(msgspec.Struct):
    model_spec: _Spec
    metadata: dict[str, dict[str, dict[str, msgspec.Raw]]]


class _Rows(msgspec.Struct):
    predictions: list[dict[str, Any]]


class _Columns(msgspec.Struct):
    outputs: list[list[float]] | dict[str, Any]


class RestServer:
    """A model over REST. Redirects are not followed, and no proxy is used."""

    def __init__(self, served: ServedModel, timeout_s: float) -> None:
        from ciml.http.outgoing import tls_context
        from ciml.integrations.http import Rest

        class Limited(Rest):
            call_s = timeout_s

        try:
            self._rest = Limited(served.url, tls_context(""), lambda: b"", "the server wants credentials", lambda _: {})
        except RejectedInput as error:
            raise CimlError(f"{served.url!r:.200} is not the address of a model server: {error.detail}") from None
        self._lock = threading.Lock()  # one thread uses `Rest`
        self.served = served if served.model else replace(served, model=self._only_model(served))

    def _only_model(self, served: ServedModel) -> str:
        try:
            names = self._get("/v1/models", _Models).models
        except (NotServedError, FailedCallError):
            names = []  # TensorFlow Serving has no list of models
        if len(names) == 1:
            return check_model_name(names[0])
        choices = f"; choose from {', '.join(sorted(names))}"[:500] if names else ""
        raise CimlError(f"name the model on {served.url}: {served.url}/v1/models/NAME, or --model NAME{choices}")

    def _get(self, path: str, kind: Any, body: object = None) -> Any:
        """Return the answer to GET, or with a body to POST, as the type ``kind``."""
        from ciml.integrations.http import Refused

        if not self._lock.acquire(timeout=self._rest.call_s):
            raise EngineError(f"{self.served.url}: requests of other threads took {self._rest.call_s:g} s")
        try:
            if body is None:
                return self._rest.get(path, kind)
            return self._rest.send("POST", path, kind, body, changes=False)
        except Refused as error:
            missing = error.reason == "not_found" or "Unrecognized servable version label" in str(error)
            raise (NotServedError if missing else FailedCallError)(str(error)) from None
        finally:
            self._lock.release()

    def _metadata(self) -> _Metadata:
        path = f"/v1/models/{self.served.model}"
        if self.served.version is not None:
            metadata: _Metadata = self._get(f"{path}/versions/{self.served.version}/metadata", _Metadata)
            return metadata
        *first_labels, last_label = label_choices(self.served)
        for label in first_labels:
            try:
                return self._get(f"{path}/labels/{label}/metadata", _Metadata)  # type: ignore[no-any-return]
            except (NotServedError, FailedCallError):
                continue
        return self._get(f"{path}/labels/{last_label}/metadata" if last_label else f"{path}/metadata", _Metadata)  # type: ignore[no-any-return]

    def describe(self) -> Described:
        metadata = self._metadata()
        version = metadata.model_spec.version
        signatures = metadata.metadata.get("signature_def", {}).get("signature_def", {})
        if not (version.isascii() and version.isdigit() and len(version) < 19):
            raise EngineError(f"{self.served}: {version!r:.40} is not a version")
        if DESCRIBE not in signatures:
            raise NotDescribedError(self.served)
        rows = self._predict(int(version), {"signature_name": DESCRIBE, "instances": [0]}, _Rows).predictions
        if len(rows) != 1:
            raise EngineError(f"{self.served}: {len(rows)} descriptions for one row")
        return Described(rows[0], int(version))

    def _predict(self, version: int, body: object, kind: Any) -> Any:
        from ciml.integrations.http import FailedAnswer

        try:
            return self._get(f"/v1/models/{self.served.model}/versions/{version}:predict", kind, body)
        except FailedAnswer as error:
            if error.status not in _FAILED_STATUSES:
                raise
            raise FailedCallError(str(error)) from None

    def probabilities(
        self, inputs: NDArray[np.float32], n_windows: NDArray[np.int32], version: int
    ) -> NDArray[np.float32]:
        columns = {"inputs": shortest_decimals(inputs).tolist(), "n_windows": n_windows.tolist()}
        outputs = self._predict(version, {"inputs": columns}, _Columns).outputs
        if isinstance(outputs, dict):
            outputs = outputs.get("probabilities", [])
        try:
            answers = np.array(outputs, np.float32)
        except (ValueError, TypeError, OverflowError):
            answers = np.zeros(0, np.float32)
        if answers.shape[:1] != (len(inputs),):
            raise EngineError(f"{self.served}: the answer has no probabilities of {len(inputs)} runs")
        return answers

    def max_rows(self, row_values: int) -> int:
        return max(1, MAX_REQUEST_BYTES // 2 // (_VALUE_BYTES * row_values))

    def close(self) -> None:
        self._rest.close()
