"""PredictionService and ModelService over gRPC, as TensorFlow Serving has them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from ciml.errors import CimlError, EngineError
from serving.config import ModelEntry, entries_of
from serving.errors import RequestError, invalid
from serving.loader import DEFAULT_SIGNATURE
from serving.manager import ModelManager, VersionStatus
from serving.metrics import Metrics
from serving.tensors import to_proto

_LOG = logging.getLogger(__name__)
_CODES = {code.name: code for code in grpc.StatusCode}
_STATUS_NUMBERS = {code.name: code.value[0] for code in grpc.StatusCode}

#: Applies a configuration and waits until it is served; raises `CimlError` where that fails.
Reload = Callable[[Iterable[ModelEntry]], None]


def spec_of(spec: Any) -> tuple[str, int | None, str]:
    """(name, version or None, label or "") of a ModelSpec. Raises `RequestError` without a name."""
    if not spec.name:
        raise invalid("Missing model name in ModelSpec")
    choice = spec.WhichOneof("version_choice")
    return spec.name, (spec.version.value if choice == "version" else None), spec.version_label


def fill_status(response: Any, statuses: Iterable[VersionStatus]) -> None:
    """Fills a GetModelStatusResponse."""
    for one in statuses:
        entry = response.model_version_status.add()
        entry.version = one.version
        entry.state = get_model_status_pb2.ModelVersionStatus.State.Value(one.state)
        entry.status.error_code = _STATUS_NUMBERS[one.code]
        entry.status.error_message = one.message


def fill_metadata(response: Any, name: str, version: int, signature_defs: Any) -> None:
    """Fills a GetModelMetadataResponse with the signatures of a version."""
    response.model_spec.name = name
    response.model_spec.version.value = version
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for key, definition in signature_defs.items():
        signatures.signature_def[key].CopyFrom(definition)
    response.metadata["signature_def"].Pack(signatures)


class _Answers:
    """Turns exceptions into statuses, and counts."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def _answer(self, context: Any, model: str, api: str, work: Callable[[], Any]) -> Any:
        try:
            with self._metrics.request(model, api):
                return work()
        except RequestError as error:
            context.abort(_CODES.get(error.code, grpc.StatusCode.UNKNOWN), error.message)
        except Exception:  # noqa: BLE001 - the client gets an answer, the log the traceback
            _LOG.exception("%s of model %.100r failed", api, model)
            context.abort(grpc.StatusCode.INTERNAL, "the request failed inside of the server; see its log")


class PredictionService(_Answers, prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata. Classify, Regress and MultiInference answer UNIMPLEMENTED."""

    def __init__(self, manager: ModelManager, metrics: Metrics) -> None:
        super().__init__(metrics)
        self._manager = manager

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's own name
        return self._answer(context, request.model_spec.name, "grpc_predict", lambda: self._predict(request, context))

    def _predict(self, request: Any, context: Any) -> Any:
        name, version, label = spec_of(request.model_spec)
        response = predict_pb2.PredictResponse()
        with self._manager.lease(name, version, label) as (number, model):
            signature = request.model_spec.signature_name
            inputs = model.unpack(signature, request.inputs)
            outputs = model.predict(signature, inputs, request.output_filter, context.time_remaining())
        response.model_spec.name = name
        response.model_spec.version.value = number
        response.model_spec.signature_name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        for key, array in outputs.items():
            to_proto(array, response.outputs[key])
        return response

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer(context, request.model_spec.name, "grpc_metadata", lambda: self._metadata(request))

    def _metadata(self, request: Any) -> Any:
        name, version, label = spec_of(request.model_spec)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self._manager.lease(name, version, label) as (number, model):
            fill_metadata(response, name, number, model.signature_defs)
        return response


class ModelService(_Answers, model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus, and HandleReloadConfigRequest where it is allowed."""

    def __init__(self, manager: ModelManager, metrics: Metrics, reload: Reload | None) -> None:
        super().__init__(metrics)
        self._manager = manager
        self._reload = reload

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            response = get_model_status_pb2.GetModelStatusResponse()
            fill_status(response, self._manager.status(*spec_of(request.model_spec)))
            return response

        return self._answer(context, request.model_spec.name, "grpc_status", work)

    def HandleReloadConfigRequest(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            if self._reload is None:
                raise RequestError("PERMISSION_DENIED", "this server takes its configuration from its file alone")
            response = model_management_pb2.ReloadConfigResponse()
            try:
                self._reload(entries_of(request.config))
            except EngineError as error:
                raise RequestError("UNAVAILABLE", str(error)) from None
            except CimlError as error:
                raise invalid(str(error)) from None
            return response

        return self._answer(context, "", "grpc_reload", work)


def serve_grpc(
    manager: ModelManager, metrics: Metrics, address: str, *, reload: Reload | None, max_bytes: int, threads: int
) -> tuple[grpc.Server, int]:
    """Starts the gRPC server.

    Args:
      address: ``host:port``; port 0 lets the system choose.
      reload: what HandleReloadConfigRequest does; None refuses it.
      max_bytes: the largest request.
      threads: requests that are worked on at once; eight times as many wait, more are refused (RESOURCE_EXHAUSTED).

    Returns:
      The running server and its port.

    Raises:
      EngineError: when the port is taken.
    """
    server = grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
        maximum_concurrent_rpcs=threads * 9,
        options=[
            ("grpc.max_receive_message_length", max_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(manager, metrics), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(manager, metrics, reload), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise EngineError(f"cannot listen on {address}: address already in use? ({error})") from None
    server.start()
    return server, port
