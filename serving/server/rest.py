"""TensorFlow Serving's REST API (status, metadata, predict), and endpoints for metrics and health."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow_serving.apis import get_model_metadata_pb2

from ciml.http.intake import Intake, RequestError, Workers, invalid
from ciml.serving.server.json_tensors import parse_body, read_inputs, write_outputs
from ciml.serving.server.manager import ModelChoice, ModelManager, VersionStatus
from ciml.serving.server.metrics import CONTENT_TYPE, Metrics

_LOG = logging.getLogger(__name__)
_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(_MODEL + r":(?P<method>predict|classify|regress)")
_STATUS = re.compile(_MODEL + r"(?P<metadata>/metadata)?")
#: Status and metadata are indented for people.
_INDENT = 1


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
                # Without a body, the request has 0 bytes and counts as small.
                return await self.workers.run(0, lambda: self._metadata(status_match))
            return self._status(status_match)
        raise invalid(f"Malformed request: {request.method} {path[:200]}")

    def _predict(self, match: re.Match[str], data: bytes) -> Response:
        choice = _choice(match)
        with self.metrics.request(choice.name, "rest_predict"):
            if match["method"] != "predict":
                raise RequestError("UNIMPLEMENTED", f"{match['method']} is not implemented; use predict")
            body = parse_body(data)
            with self.manager.lease(*choice) as (_, model):
                if body.signature_name and body.signature_name not in model.signatures:
                    raise invalid(f'Serving signature name: "{body.signature_name}" not found in signature def')
                inputs = read_inputs(body, model.signature(body.signature_name))
                outputs = model.predict(body.signature_name, inputs)
            return _json(write_outputs(outputs, body.form))

    def _status(self, match: re.Match[str]) -> Response:
        choice = _choice(match)
        with self.metrics.request(choice.name, "rest_status"):
            statuses = [_status_json(status) for status in self.manager.status(*choice)]
            return _json(json.dumps({"model_version_status": statuses}, indent=_INDENT))

    def _metadata(self, match: re.Match[str]) -> Response:
        choice = _choice(match)
        with self.metrics.request(choice.name, "rest_metadata"):
            definitions = get_model_metadata_pb2.SignatureDefMap()
            with self.manager.lease(*choice) as (number, model):
                for name, signature in model.signatures.items():
                    definitions.signature_def[name].ParseFromString(signature.definition)
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
