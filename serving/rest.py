"""The REST API of TensorFlow Serving: status, metadata and predict, with Prometheus' metrics and health beside them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from serving.errors import RequestError, invalid
from serving.grpc_service import fill_metadata, fill_status
from serving.manager import ModelManager
from serving.metrics import CONTENT_TYPE, Metrics
from serving.rest_json import parse_body, read_inputs, write_outputs

_LOG = logging.getLogger(__name__)
_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(_MODEL + r":(?P<method>predict|classify|regress)")
_STATUS = re.compile(_MODEL + r"(?P<metadata>/metadata)?")
#: Status and metadata answers are for people, too.
_INDENT = 1


def rest_app(manager: ModelManager, metrics: Metrics, *, max_bytes: int) -> Starlette:
    """The ASGI application.

    Args:
      max_bytes: the largest body of a request.
    """
    api = _Api(manager, metrics, max_bytes)
    return Starlette(
        routes=[
            Route("/v1/{path:path}", _guarded(api.handle), methods=["GET", "POST", "PUT", "DELETE", "PATCH"]),
            Route("/monitoring/prometheus/metrics", api.metrics, methods=["GET"]),
            Route("/healthz", api.alive, methods=["GET"]),
            Route("/readyz", api.ready, methods=["GET"]),
        ]
    )


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
            return _error("the request failed inside of the server; see its log", 500)

    return guarded


class _Api:
    def __init__(self, manager: ModelManager, metrics: Metrics, max_bytes: int) -> None:
        self._manager, self._metrics, self._max_bytes = manager, metrics, max_bytes

    async def handle(self, request: Request) -> Response:
        path = request.url.path
        if request.method == "POST" and (match := _PREDICT.fullmatch(path)):
            body = await self._body(request)
            return await run_in_threadpool(self._predict, match, body)
        if request.method == "GET" and (match := _STATUS.fullmatch(path)):
            if match["metadata"]:
                return await run_in_threadpool(self._metadata, match)
            return self._status(match)
        raise invalid(f"Malformed request: {request.method} {path[:200]}")

    async def _body(self, request: Request) -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._max_bytes:
                raise invalid(f"the request is larger than {self._max_bytes} bytes")
            parts.append(part)
        return b"".join(parts)

    def _predict(self, match: re.Match[str], body: bytes) -> Response:
        name, version, label = _spec(match)
        with self._metrics.request(name, "rest_predict"):
            if match["method"] != "predict":
                raise RequestError("UNIMPLEMENTED", f"{match['method']} is not implemented; use predict")
            value, form, signature_name = parse_body(body)
            with self._manager.lease(name, version, label) as (_, model):
                if signature_name and signature_name not in model.signatures:
                    raise invalid(f'Serving signature name: "{signature_name}" not found in signature def')
                inputs = read_inputs(value, form, model.signature(signature_name))
                outputs = model.predict(signature_name, inputs)
            return _json(write_outputs(outputs, form))

    def _status(self, match: re.Match[str]) -> Response:
        name, version, label = _spec(match)
        with self._metrics.request(name, "rest_status"):
            response = get_model_status_pb2.GetModelStatusResponse()
            fill_status(response, self._manager.status(name, version, label))
            # Codes that are zero are printed as well: "status": {"error_code": "OK", "error_message": ""}
            return _json(_proto_json(response))

    def _metadata(self, match: re.Match[str]) -> Response:
        name, version, label = _spec(match)
        with self._metrics.request(name, "rest_metadata"):
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            with self._manager.lease(name, version, label) as (number, model):
                fill_metadata(response, name, number, model.signature_defs)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            response.metadata["signature_def"].Unpack(signatures)
            answer = {
                "model_spec": json.loads(_proto_json(response.model_spec)),
                "metadata": {"signature_def": json.loads(_proto_json(signatures))},
            }
            return _json(json.dumps(answer, indent=_INDENT))

    async def metrics(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def alive(self, _: Request) -> Response:
        return _json('{"alive": true}')

    async def ready(self, _: Request) -> Response:
        ready = self._manager.ready
        return _json(json.dumps({"ready": ready}), 200 if ready else 503)


def _spec(match: re.Match[str]) -> tuple[str, int | None, str]:
    version: Any = match["version"]
    return match["name"], (int(version) if version else None), match["label"] or ""


def _proto_json(message: Any) -> str:
    return str(
        json_format.MessageToJson(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=_INDENT
        )
    )
