"""TensorFlow Serving's REST API (status, metadata, predict), and endpoints for metrics and health.

Requests and responses hold rows ("instances") or columns ("inputs") as JSON.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from ciml.http.intake import Intake, RequestError, Workers, invalid, too_large
from ciml.limits import MAX_JSON_CONTAINERS, MAX_JSON_VALUES, MAX_TENSOR_RANK
from ciml.serving.server.grpc_service import fill_metadata, fill_status
from ciml.serving.server.manager import ModelManager
from ciml.serving.server.metrics import CONTENT_TYPE, Metrics
from ciml.serving.server.model.messages import STRING, Signature, TensorSpec, numpy_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

Format = Literal["instances", "inputs"]
#: Accepted Python types of JSON values, by the kind of the input's numpy dtype.
_LEAVES: dict[str, set[type]] = {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}}

_LOG = logging.getLogger(__name__)
_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(_MODEL + r":(?P<method>predict|classify|regress)")
_STATUS = re.compile(_MODEL + r"(?P<metadata>/metadata)?")
#: Status and metadata are indented for people.
_INDENT = 1
_BLOCK = 1 << 16


def parse_body(body: bytes) -> tuple[dict[str, Any], Format, str]:
    """Return (JSON object, format, signature name or "") of a predict request. Raises `RequestError`."""
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
        return value, "instances", signature
    if "inputs" in value:
        return value, "inputs", signature
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


def read_inputs(value: Mapping[str, Any], form: Format, signature: Signature) -> dict[str, NDArray[Any]]:
    """Return the arrays of a parsed predict request, by input. Raises `RequestError`, INVALID_ARGUMENT."""
    names = sorted(signature.inputs)
    columns = _columns_of_rows(value[form], names) if form == "instances" else _columns(value[form], names)
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
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        if len(shape) > MAX_TENSOR_RANK:
            raise invalid(f"input {spec.name!r}: more than {MAX_TENSOR_RANK} dimensions (MAX_TENSOR_RANK)")
        if not first:
            break
        first = first[0]
    leaves = _leaves(value, shape, spec.name)
    if spec.dtype == STRING:
        array = np.empty(len(leaves), dtype=object)  # of pointers, so that a long string does not widen the others
        array[:] = [_bytes(leaf, spec.name) for leaf in leaves]
        return array.reshape(shape)
    target = numpy_dtype(spec.dtype)
    # Checked before numpy converts them: it would make every string as wide as the longest.
    if not set(map(type, leaves)) <= _LEAVES.get(target.kind, set()):
        raise invalid(f"input {spec.name!r}: JSON Value is not of expected type: {spec.dtype}")
    try:
        array = np.array(leaves, target if target.kind in "iub" else np.float64)
    except OverflowError:
        raise invalid(f"input {spec.name!r}: a JSON value is out of the range of {spec.dtype}") from None
    with np.errstate(over="ignore"):
        cast = array.astype(target)
    if target.kind == "f" and not np.array_equal(np.isinf(cast), np.isinf(array)):
        raise invalid(f"input {spec.name!r}: Cannot convert JSON value to {spec.dtype} without loss of precision.")
    return cast.reshape(shape)


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
    values = {name: _listed(name, array) for name, array in sorted(outputs.items())}
    single = next(iter(values.values())) if len(values) == 1 else None
    if form == "inputs":
        answer: Any = {"outputs": values if single is None else single}
    else:
        sizes = {name: array.shape[:1] for name, array in outputs.items()}
        for name, size in sizes.items():
            if not size:
                raise invalid(f"Tensor name: {name} has no shape information ")
            if size != next(iter(sizes.values())):
                raise invalid(f"Tensor name: {name} has inconsistent batch size: {size[0]}")
        if single is None:
            single = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        answer = {"predictions": single}
    return json.dumps(answer, indent=None, separators=(",", ":")).encode()


def _listed(name: str, array: NDArray[Any]) -> Any:
    """Return an array as nested lists. A float32 becomes the shortest decimal that reads back as the same float32."""
    if array.dtype == object:
        texts = [_text(name, text) for text in array.ravel()]
        array = np.empty(array.shape, object)
        array.ravel()[:] = texts
    if array.dtype == np.float32:
        numbers = np.empty(array.size)
        flat = array.ravel()
        for start in range(0, array.size, _BLOCK):  # a number takes 128 bytes as text
            numbers[start : start + _BLOCK] = flat[start : start + _BLOCK].astype("U32").astype(np.float64)
        array = numbers.reshape(array.shape)
    return array.tolist()


def _text(name: str, text: bytes) -> Any:
    return {"b64": base64.b64encode(text).decode()} if name.endswith("_bytes") else text.decode("utf-8", "replace")


def _json(body: bytes | str, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _error(message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps({"error": message}), status, headers, media_type="application/json")


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
            with self.intake.hold() as held:
                try:
                    body = await self.intake.read(held, request.stream())
                except RequestError as error:
                    # The rest of the body may still arrive and must not be read as the next request.
                    return _error(error.message, error.http_status, {"connection": "close"})
                return await self.workers.run(len(body), lambda: self._predict(match, body))
        status_match = _STATUS.fullmatch(path) if request.method == "GET" else None
        if status_match is not None:
            if status_match["metadata"]:
                return await self.workers.run(0, lambda: self._metadata(status_match))
            return self._status(status_match)
        raise invalid(f"Malformed request: {request.method} {path[:200]}")

    def _predict(self, match: re.Match[str], body: bytes) -> Response:
        name, version, label = _spec(match)
        with self.metrics.request(name, "rest_predict"):
            if match["method"] != "predict":
                raise RequestError("UNIMPLEMENTED", f"{match['method']} is not implemented; use predict")
            value, form, signature_name = parse_body(body)
            with self.manager.lease(name, version, label) as (_, model):
                if signature_name and signature_name not in model.signatures:
                    raise invalid(f'Serving signature name: "{signature_name}" not found in signature def')
                inputs = read_inputs(value, form, model.signature(signature_name))
                outputs = model.predict(signature_name, inputs)
            return _json(write_outputs(outputs, form))

    def _status(self, match: re.Match[str]) -> Response:
        name, version, label = _spec(match)
        with self.metrics.request(name, "rest_status"):
            response = get_model_status_pb2.GetModelStatusResponse()
            fill_status(response, self.manager.status(name, version, label))
            return _json(_proto_json(response))

    def _metadata(self, match: re.Match[str]) -> Response:
        name, version, label = _spec(match)
        with self.metrics.request(name, "rest_metadata"):
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            with self.manager.lease(name, version, label) as (number, model):
                fill_metadata(response, name, number, model.signatures)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            response.metadata["signature_def"].Unpack(signatures)
            answer = {
                "model_spec": json.loads(_proto_json(response.model_spec)),
                "metadata": {"signature_def": json.loads(_proto_json(signatures))},
            }
            return _json(json.dumps(answer, indent=_INDENT))

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _alive(self, _: Request) -> Response:
        return _json('{"alive": true}')

    async def _ready(self, _: Request) -> Response:
        if self.manager.ready:
            return _json('{"ready": true}')
        return _json(json.dumps({"ready": False, "loading": self.manager.loading}), 503)


def _spec(match: re.Match[str]) -> tuple[str, int | None, str]:
    version: Any = match["version"]
    return match["name"], (int(version) if version else None), match["label"] or ""


def _proto_json(message: Any) -> str:
    return str(
        json_format.MessageToJson(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=_INDENT
        )
    )
