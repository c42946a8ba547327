"""TensorFlow Serving's REST API (status, metadata, predict), and endpoints for metrics and health."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from ciml.http.errors import RequestError, invalid
from ciml.http.intake import Intake, Workers
from ciml.serving.server.grpc_service import fill_metadata, fill_status
from ciml.serving.server.manager import ModelManager
from ciml.serving.server.metrics import CONTENT_TYPE, Metrics
from ciml.serving.server.rest_json import parse_body, read_inputs, write_outputs

_LOG = logging.getLogger(__name__)
_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(_MODEL + r":(?P<method>predict|classify|regress)")
_STATUS = re.compile(_MODEL + r"(?P<metadata>/metadata)?")
#: Status and metadata are indented for people.
_INDENT = 1


def rest_app(manager: ModelManager, metrics: Metrics, intake: Intake, workers: Workers) -> Starlette:
    """Build the ASGI application.

    Args:
      intake: reads the bodies.
      workers: process the requests.
    """
    api = _Api(manager, metrics, intake, workers)
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


class _Api:
    def __init__(self, manager: ModelManager, metrics: Metrics, intake: Intake, workers: Workers) -> None:
        self._manager, self._metrics, self._intake, self._workers = manager, metrics, intake, workers

    async def handle(self, request: Request) -> Response:
        path = request.url.path
        match = _PREDICT.fullmatch(path) if request.method == "POST" else None
        if match is not None:
            with self._intake.hold() as held:
                try:
                    body = await self._intake.read(held, request.stream())
                except RequestError as error:
                    # The rest of the body may still arrive and must not be read as the next request.
                    return _error(error.message, error.http_status, {"connection": "close"})
                return await self._workers.run(len(body), lambda: self._predict(match, body))
        found = _STATUS.fullmatch(path) if request.method == "GET" else None
        if found is not None:
            if found["metadata"]:
                return await self._workers.run(0, lambda: self._metadata(found))
            return self._status(found)
        raise invalid(f"Malformed request: {request.method} {path[:200]}")

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
        if self._manager.ready:
            return _json('{"ready": true}')
        return _json(json.dumps({"ready": False, "loading": self._manager.loading}), 503)


def _spec(match: re.Match[str]) -> tuple[str, int | None, str]:
    version: Any = match["version"]
    return match["name"], (int(version) if version else None), match["label"] or ""


def _proto_json(message: Any) -> str:
    return str(
        json_format.MessageToJson(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=_INDENT
        )
    )
