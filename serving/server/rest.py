"""TensorFlow Serving's REST API (status, metadata, predict), and endpoints for metrics and health.

A predict request has rows ("instances") or columns ("inputs"). Error messages are those of TensorFlow Serving, its
typing errors included, where it has the same check.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ciml.http.intake import Intake, RequestError, Workers, invalid, too_large
from ciml.limits import MAX_JSON_CONTAINERS, MAX_JSON_VALUES, MAX_TENSOR_RANK
from ciml.serving.decimals import shortest_decimals
from ciml.serving.server.manager import ModelChoice, ModelManager, VersionStatus
from ciml.serving.server.metrics import CONTENT_TYPE, Metrics
from ciml.serving.server.model.messages import STRING, Signature, TensorSpec, definitions_of, numpy_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)
_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(_MODEL + r":(?P<method>predict|classify|regress)")
_STATUS = re.compile(_MODEL + r"(?P<metadata>/metadata)?")
#: Status and metadata are indented for people.
_INDENT = 1
Format = Literal["instances", "inputs"]
#: Accepted Python types of JSON values, by the kind of the input's numpy dtype.
_LEAVES: dict[str, set[type]] = {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}}


def _json(body: bytes | str, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _error(message: str, status: int) -> Response:
    return _json(json.dumps({"error": message}), status)


def _guarded(handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        try:
            return await handle(request)
        except RequestError as error:
            return _error(error.message, error.http_status)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception:  # noqa: BLE001 - the client gets an answer, the log the traceback
            _LOG.exception("%s %.200r failed", request.method, request.url.path)
            return _error("internal error; see the server's log", 500)

    return guarded


@dataclass(frozen=True)
class RestApi:
    """The API as an ASGI application.

    Attributes:
      intake: reads the bodies.
      workers: process the requests.
    """

    manager: ModelManager
    metrics: Metrics
    intake: Intake
    workers: Workers

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/{path:path}", _guarded(self._handle), methods=["GET", "POST", "PUT", "DELETE", "PATCH"]),
                Route("/monitoring/prometheus/metrics", self._metrics, methods=["GET"]),
                Route("/healthz", self._alive, methods=["GET"]),
                Route("/readyz", self._ready, methods=["GET"]),
            ]
        )

    async def _handle(self, request: Request) -> Response:
        path = request.url.path
        match = _PREDICT.fullmatch(path) if request.method == "POST" else None
        if match is not None:
            with self.metrics.rejections("rest_predict"), self.intake.hold() as held:
                body = await self.intake.read(held, request.stream())
                return await self.workers.run(len(body), lambda: self._predict(match, body))
        status_match = _STATUS.fullmatch(path) if request.method == "GET" else None
        if status_match is not None:
            if status_match["metadata"]:
                with self.metrics.rejections("rest_metadata"):
                    # Without a body, the request has 0 bytes and counts as small.
                    return await self.workers.run(0, lambda: self._metadata(status_match))
            return self._status(status_match)
        if request.method == "GET" and path == "/v1/models":
            return _json(json.dumps({"models": self.manager.names()}))
        raise invalid(f"Malformed request: {request.method} {path[:200]}")

    def _predict(self, match: re.Match[str], data: bytes) -> Response:
        choice = _choice(match)
        with self.metrics.request(choice.name, "rest_predict"):
            if match["method"] != "predict":
                raise RequestError("UNIMPLEMENTED", f"{match['method']} is not implemented; use predict")
            body = parse_body(data)
            with self.manager.lease(choice) as (_, model):
                if body.signature_name and body.signature_name not in model.signatures:
                    raise invalid(f'Serving signature name: "{body.signature_name}" not found in signature def')
                inputs = read_inputs(body, model.signature(body.signature_name))
                outputs = model.predict(body.signature_name, inputs)
            return _json(write_outputs(outputs, body.form))

    def _status(self, match: re.Match[str]) -> Response:
        choice = _choice(match)
        with self.metrics.request(choice.name, "rest_status"):
            statuses = [_status_json(status) for status in self.manager.status(choice)]
            return _json(json.dumps({"model_version_status": statuses}, indent=_INDENT))

    def _metadata(self, match: re.Match[str]) -> Response:
        choice = _choice(match)
        with self.metrics.request(choice.name, "rest_metadata"):
            with self.manager.lease(choice) as (number, model):
                definitions = definitions_of(model.signatures)
            metadata = json_format.MessageToDict(
                definitions, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            spec = {"name": choice.name, "signature_name": "", "version": str(number)}
            answer = {"model_spec": spec, "metadata": {"signature_def": metadata}}
            return _json(json.dumps(answer, indent=_INDENT))

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _alive(self, _: Request) -> Response:
        return _json('{"alive": true}')

    async def _ready(self, _: Request) -> Response:
        if self.manager.ready:
            return _json('{"ready": true}')
        return _json(json.dumps({"ready": False, "loading": self.manager.loading}), 503)


def _choice(match: re.Match[str]) -> ModelChoice:
    version = match["version"]
    return ModelChoice(match["name"], int(version) if version else None, match["label"] or "")


def _status_json(status: VersionStatus) -> dict[str, Any]:
    error = {"error_code": status.code, "error_message": status.message}
    return {"version": str(status.version), "state": status.state, "status": error}


class PredictBody(NamedTuple):
    """The body of a predict request.

    Attributes:
      content: the rows or columns, as parsed from JSON.
      form: which of them.
      signature_name: "" for the default signature.
    """

    content: Any
    form: Format
    signature_name: str


def parse_body(body: bytes) -> PredictBody:
    """Parse the body of a predict request, except its values. Raises `RequestError`."""
    _check_size(body)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"JSON Parse error: {error}") from None
    if not isinstance(value, dict):
        raise invalid("JSON Value: Is not object")
    signature = value.get("signature_name", "")
    if not isinstance(signature, str):
        raise invalid("JSON Value: not formatted correctly. 'signature_name' key must be a string value.")
    if "instances" in value and "inputs" in value:
        raise invalid("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    if "instances" in value:
        if not isinstance(value["instances"], list):
            raise invalid("Excepting 'instances' to be an list/array")
        if not value["instances"]:
            raise invalid("No values in 'instances' array")
        return PredictBody(value["instances"], "instances", signature)
    if "inputs" in value:
        return PredictBody(value["inputs"], "inputs", signature)
    raise invalid("Missing 'inputs' or 'instances' key")


def _check_size(body: bytes) -> None:
    # Two bytes can become an object of 32 bytes, three bytes a list or object of 230. Signs inside strings count too;
    # numbers and base64 contain none.
    for subject, number, maximum, limit in (
        ("values", body.count(b","), MAX_JSON_VALUES, "MAX_JSON_VALUES"),
        ("lists and objects", body.count(b"[") + body.count(b"{"), MAX_JSON_CONTAINERS, "MAX_JSON_CONTAINERS"),
    ):
        if number > maximum:
            raise too_large(f"the body has {number} {subject}; at most {maximum} ({limit})")


def read_inputs(body: PredictBody, signature: Signature) -> dict[str, NDArray[Any]]:
    """Return the arrays of a predict request, by input. Raises `RequestError`, INVALID_ARGUMENT."""
    names = sorted(signature.inputs)
    read_columns = _columns_of_rows if body.form == "instances" else _columns
    columns = read_columns(body.content, names)
    return {name: _array(columns[name], signature.inputs[name]) for name in names}


def _is_named(item: Any) -> bool:
    return isinstance(item, dict) and not _is_base64(item)


def _is_base64(item: Any) -> bool:
    return isinstance(item, dict) and len(item) == 1 and isinstance(item.get("b64"), str)


def _columns_of_rows(rows: list[Any], names: list[str]) -> dict[str, list[Any]]:
    named = _is_named(rows[0])
    if not named and len(names) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple "
            "input tensors required as per tensorinfo_map"
        )
    for number, row in enumerate(rows):
        if _is_named(row) != named:
            expected, present = ("object", "list") if named else ("value/list", "object")
            raise invalid(f"Expecting {expected} but got {present} at item {number} of input list")
        if named and sorted(row) != names:
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. "
                f"JSON object: keys must be equal to: {','.join(names)}"
            )
    return {name: [row[name] for row in rows] if named else rows for name in names}


def _columns(content: Any, names: list[str]) -> Mapping[str, Any]:
    if not _is_named(content):
        if len(names) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple "
                "input tensors required as per tensorinfo_map"
            )
        if not names:
            raise invalid("'inputs' is a plain value/list, but the signature has no input")
        return {names[0]: content}
    for name in names:
        if name not in content:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    if extra := sorted(set(content) - set(names)):
        raise invalid(f"'inputs' object has no input named {extra[0][:100]}: choose from {','.join(names)}")
    columns: Mapping[str, Any] = content
    return columns


def _array(value: Any, spec: TensorSpec) -> NDArray[Any]:
    """Return a dense array from nested lists, all leaves of the input's type: 1 is not a bool, "1" is not a number."""
    shape = _shape(value, spec.name)
    leaves = _leaves(value, shape, spec.name)
    values = _strings(leaves, spec.name) if spec.dtype == STRING else _numbers(leaves, spec)
    return values.reshape(shape)


def _shape(value: Any, name: str) -> list[int]:
    """Return the sizes of the nested lists along their first items."""
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > MAX_TENSOR_RANK:
            raise invalid(f"input {name!r}: more than {MAX_TENSOR_RANK} dimensions (MAX_TENSOR_RANK)")
        if not value:
            break
        value = value[0]
    return shape


def _strings(leaves: list[Any], name: str) -> NDArray[Any]:
    texts = np.empty(len(leaves), dtype=object)  # of pointers, so that a long string does not widen the others
    texts[:] = [_bytes(leaf, name) for leaf in leaves]
    return texts


def _numbers(leaves: list[Any], spec: TensorSpec) -> NDArray[Any]:
    dtype = numpy_dtype(spec.dtype)
    # Checked before numpy converts them: it would make every string as wide as the longest.
    if not set(map(type, leaves)) <= _LEAVES.get(dtype.kind, set()):
        raise invalid(f"input {spec.name!r}: JSON Value is not of expected type: {spec.dtype}")
    try:
        exact = np.array(leaves, dtype if dtype.kind in "iub" else np.float64)
    except OverflowError:
        raise invalid(f"input {spec.name!r}: a JSON value is out of the range of {spec.dtype}") from None
    with np.errstate(over="ignore"):
        rounded = exact.astype(dtype)
    if dtype.kind == "f" and not np.array_equal(np.isinf(rounded), np.isinf(exact)):
        raise invalid(f"input {spec.name!r}: Cannot convert JSON value to {spec.dtype} without loss of precision.")
    return rounded


def _leaves(value: Any, shape: list[int], name: str) -> list[Any]:
    """Return the leaves of nested lists in row-major order. Raises `RequestError` unless the lists have this shape."""
    level = [value]
    for size in shape:
        if not all(type(item) is list and len(item) == size for item in level):
            raise invalid(f"input {name!r}: Encountered list at unexpected size or level: want a dense tensor")
        level = list(itertools.chain.from_iterable(level))
    if list in set(map(type, level)):
        raise invalid(f"input {name!r}: Encountered list at unexpected size or level: want a dense tensor")
    return level


def _bytes(leaf: Any, name: str) -> bytes:
    if isinstance(leaf, str):
        return leaf.encode("utf-8", "surrogatepass")
    if not _is_base64(leaf):
        raise invalid(f"input {name!r}: JSON Value is not of expected type: string")
    try:
        return base64.b64decode(leaf["b64"], validate=True)
    except ValueError:
        raise invalid("Unable to base64 decode") from None


def write_outputs(outputs: Mapping[str, NDArray[Any]], form: Format) -> bytes:
    """Render the response: ``predictions`` for rows, ``outputs`` for columns; a single output has no name.

    Raises:
      RequestError: INVALID_ARGUMENT if outputs cannot be arranged in rows.
    """
    columns = {name: _listed(name, array) for name, array in sorted(outputs.items())}
    if form == "instances":
        _check_row_counts(outputs)
    if len(columns) == 1:
        (content,) = columns.values()
    elif form == "inputs":
        content = columns
    else:
        content = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    key = "outputs" if form == "inputs" else "predictions"
    return json.dumps({key: content}, separators=(",", ":")).encode()


def _check_row_counts(outputs: Mapping[str, NDArray[Any]]) -> None:
    rows: int | None = None
    for name, array in outputs.items():
        if not array.shape:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if rows is not None and array.shape[0] != rows:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {array.shape[0]}")
        rows = array.shape[0]


def _listed(name: str, array: NDArray[Any]) -> Any:
    """Return an array as nested lists. A float32 becomes the shortest decimal that reads back as the same float32."""
    if array.dtype == object:
        texts = [_text(name, text) for text in array.ravel()]
        array = np.empty(array.shape, object)
        array.ravel()[:] = texts
    if array.dtype == np.float32:
        array = shortest_decimals(array)
    return array.tolist()


def _text(name: str, text: bytes) -> Any:
    return {"b64": base64.b64encode(text).decode()} if name.endswith("_bytes") else text.decode("utf-8", "replace")
