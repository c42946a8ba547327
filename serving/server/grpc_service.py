"""TensorFlow Serving's PredictionService and ModelService over gRPC.

A PredictRequest is parsed step by step, with limits on the number, names, types and shapes of its inputs. Parsed in one
step, 16 MiB of empty inputs become 1.4 GiB. Here nested messages are kept as bytes until they are counted, and a step
parses only the fields that it uses.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from ciml.errors import CimlError, EngineError
from ciml.http.intake import Intake, RequestError, Workers, invalid, too_large
from ciml.limits import LARGE_REQUEST_BYTES, MAX_REQUEST_INPUTS, MAX_STREAMS, MAX_TENSOR_RANK
from ciml.serving.model_files import ModelEntry, entries_of
from ciml.serving.server.grpc_connections import UNCOUNTED, GrpcConnections
from ciml.serving.server.manager import ModelChoice, ModelManager, VersionStatus
from ciml.serving.server.metrics import Metrics
from ciml.serving.server.model.loaded_model import DEFAULT_SIGNATURE
from ciml.serving.server.model.messages import Signature, definitions_of
from ciml.serving.server.model.tensors import fill_tensor
from ciml.serving.wire import (
    MetadataRequest,
    MetadataResponse,
    ModelSpec,
    PredictResponse,
    ReloadRequest,
    RequestHead,
    RequestInput,
    StatusRequest,
    StatusResponse,
    Tensor,
    TensorHead,
)

_LOG = logging.getLogger(__name__)
_CODES = {code.name: code for code in grpc.StatusCode}
_STATUS_NUMBERS = {code.name: code.value[0] for code in grpc.StatusCode}
_IDLE_MS = 60_000
#: A dimension takes at most 14 bytes, and in 50 more a name, which is ignored.
_MAX_SHAPE_BYTES = (14 + 50) * MAX_TENSOR_RANK
#: TensorFlow Serving's numbers of the states of a version.
_STATE_NUMBERS = {"START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50}
#: Applies a configuration and waits until it is served; raises `CimlError` on failure.
ApplyConfig = Callable[[Iterable[ModelEntry]], None]


@dataclass(frozen=True)
class PredictCall:
    """A request with unparsed tensors.

    Attributes:
      spec: names the model, its version or label, and the signature.
      inputs: a serialized TensorProto by name.
      output_filter: names of the requested outputs.
    """

    spec: Any
    inputs: Mapping[str, bytes]
    output_filter: tuple[str, ...]


def parse(kind: Any, data: bytes, subject: str = "the request") -> Any:
    """Parse a message. Raises `RequestError`, INVALID_ARGUMENT, if it is malformed."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise invalid(f"{subject} is not a {kind.DESCRIPTOR.name}") from None


def parse_predict(data: bytes) -> PredictCall:
    """Parse a PredictRequest except its tensors. Raises `RequestError`, INVALID_ARGUMENT."""
    head = parse(RequestHead, data)
    for subject, entries in (("inputs", head.inputs), ("output filters", head.output_filter)):
        if len(entries) > MAX_REQUEST_INPUTS:
            raise invalid(f"{len(entries)} {subject}; at most {MAX_REQUEST_INPUTS} (MAX_REQUEST_INPUTS)")
    inputs = [parse(RequestInput, entry, "an input") for entry in head.inputs]
    try:
        names = tuple(entry.decode() for entry in head.output_filter)
    except UnicodeDecodeError:
        raise invalid("an output filter name is not valid UTF-8") from None
    spec = parse(ModelSpec, head.model_spec)
    return PredictCall(spec, {entry.key: entry.value for entry in inputs}, names)


def parse_tensor(name: str, data: bytes) -> Any:
    """Parse the tensor of an input.

    Raises:
      RequestError: INVALID_ARGUMENT if it is malformed, or holds resources or variants.
    """
    head = parse(TensorHead, data, f"input {name!r}")
    if len(head.tensor_shape) > _MAX_SHAPE_BYTES:
        raise invalid(f"input {name!r}: a shape of {len(head.tensor_shape)} bytes; at most {_MAX_SHAPE_BYTES}")
    if head.resource_handle_val or head.variant_val:
        raise invalid(f"input {name!r}: holds resources or variants")
    return parse(Tensor, data, f"input {name!r}")


def choice_of(spec: Any) -> ModelChoice:
    """Return the choice of a ModelSpec. Raises `RequestError` without a name."""
    if not spec.name:
        raise invalid("Missing model name in ModelSpec")
    has_version = spec.WhichOneof("version_choice") == "version"
    return ModelChoice(spec.name, spec.version.value if has_version else None, spec.version_label)


def fill_status(response: Any, statuses: Iterable[VersionStatus]) -> None:
    for status in statuses:
        entry = response.model_version_status.add()
        entry.version = status.version
        entry.state = _STATE_NUMBERS[status.state]
        entry.status.error_code = _STATUS_NUMBERS[status.code]
        entry.status.error_message = status.message


def fill_metadata(response: Any, name: str, version: int, signatures: Mapping[str, Signature]) -> None:
    """Fill a response with a version's signatures."""
    response.model_spec.name = name
    response.model_spec.version.value = version
    packed = response.metadata["signature_def"]
    packed.type_url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    packed.value = definitions_of(signatures).SerializeToString()


@dataclass(frozen=True)
class GrpcApi:
    """The calls of PredictionService and ModelService. Classify, Regress and MultiInference answer UNIMPLEMENTED.

    Attributes:
      intake: reads the requests.
      workers: answer them.
      connections: counts and limits the open connections.
      apply_config: handler of HandleReloadConfigRequest; None rejects it.
    """

    manager: ModelManager
    metrics: Metrics
    intake: Intake
    workers: Workers
    connections: GrpcConnections
    apply_config: ApplyConfig | None

    async def serve(self, address: str, max_bytes: int, header_s: float) -> tuple[grpc.aio.Server, int]:
        """Start the gRPC server in the running event loop.

        Args:
          address: ``host:port``; port 0 lets the system choose.
          max_bytes: the largest request.
          header_s: limit for a handshake, seconds.

        Returns:
          The running server and its port.

        Raises:
          EngineError: if the port is in use.
        """
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.max_allowed_incoming_connections", self.connections.limiter.max_open + UNCOUNTED),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                ("grpc.server_handshake_timeout_ms", int(header_s * 1000)),
                ("grpc.max_connection_idle_ms", _IDLE_MS),
                # Detect clients that vanished, and close their connections.
                ("grpc.keepalive_time_ms", _IDLE_MS),
                ("grpc.keepalive_timeout_ms", int(header_s * 1000)),
            ]
        )
        calls = {
            "PredictionService": {
                "Predict": self._call("grpc_predict", self._predict),
                "GetModelMetadata": self._call("grpc_metadata", self._metadata),
            },
            "ModelService": {
                "GetModelStatus": self._call("grpc_status", self._status),
                "HandleReloadConfigRequest": self._call("grpc_reload", self._reload),
            },
        }
        server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(f"tensorflow.serving.{service}", handlers)
                for service, handlers in calls.items()
            ]
        )
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise EngineError(f"cannot listen on {address}: address already in use? ({error})") from None
        await server.start()
        return server, port

    def _call(self, api: str, work: Callable[[bytes, float | None], bytes]) -> grpc.RpcMethodHandler:
        """Return the handler of a unary call.

        It reads the call as a stream of one message, so that the read has a time limit: gRPC waits for the message of
        a unary call as long as the client keeps the connection.

        Args:
          api: the call's name in metrics and logs.
          work: answers a serialized request that the client waits for this long, seconds; None for no limit.
        """

        async def answer(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
            try:
                with self.metrics.rejections(api), self.intake.hold() as held:
                    data = await self.intake.read(held, messages, count=1)
                    with self.connections.request(context.peer()):
                        return await self.workers.run(len(data), lambda: work(data, context.time_remaining()))
            except RequestError as error:
                await context.abort(_CODES.get(error.code, grpc.StatusCode.UNKNOWN), error.message)
            except Exception:  # noqa: BLE001 - the client gets an answer, the log the traceback
                _LOG.exception("%s failed", api)
                await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the server's log")
            raise AssertionError("abort raises")

        return grpc.stream_unary_rpc_method_handler(answer)

    def _predict(self, data: bytes, deadline_in_s: float | None) -> bytes:
        call = parse_predict(data)
        with self.metrics.request(call.spec.name, "grpc_predict"):
            choice = choice_of(call.spec)
            signature = call.spec.signature_name
            response = PredictResponse()
            with self.manager.lease(choice) as (number, model):
                model.signature(signature).check_names(call.inputs)
                protos = {key: parse_tensor(key, tensor) for key, tensor in call.inputs.items()}
                outputs = model.predict(signature, model.unpack(signature, protos), call.output_filter, deadline_in_s)
            response.model_spec.name = choice.name
            response.model_spec.version.value = number
            response.model_spec.signature_name = signature or DEFAULT_SIGNATURE
            for key, array in outputs.items():
                fill_tensor(response.outputs.add(key=key).value, array)
        return bytes(response.SerializeToString())

    def _metadata(self, data: bytes, _: float | None) -> bytes:
        request = _parse_small(MetadataRequest, data)
        with self.metrics.request(request.model_spec.name, "grpc_metadata"):
            choice = choice_of(request.model_spec)
            if not request.metadata_field:
                raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
            for field in request.metadata_field:
                if field != "signature_def":
                    raise invalid(f"Metadata field {field} is not supported")
            response = MetadataResponse()
            with self.manager.lease(choice) as (number, model):
                fill_metadata(response, choice.name, number, model.signatures)
        return bytes(response.SerializeToString())

    def _status(self, data: bytes, _: float | None) -> bytes:
        request = _parse_small(StatusRequest, data)
        with self.metrics.request(request.model_spec.name, "grpc_status"):
            response = StatusResponse()
            fill_status(response, self.manager.status(choice_of(request.model_spec)))
        return bytes(response.SerializeToString())

    def _reload(self, data: bytes, _: float | None) -> bytes:
        with self.metrics.request("", "grpc_reload"):
            if self.apply_config is None:
                raise RequestError("PERMISSION_DENIED", "reconfiguration is disabled (--allow-reload)")
            request = _parse_small(ReloadRequest, data)
            try:
                self.apply_config(entries_of(parse(ModelServerConfig, request.config)))
            except EngineError as error:
                raise RequestError("UNAVAILABLE", str(error)) from None
            except CimlError as error:
                raise invalid(str(error)) from None
        return b""  # a ReloadConfigResponse whose status is OK


def _parse_small(kind: Any, data: bytes) -> Any:
    """Parse a message whose valid ones are small. Parsed, a message can take a hundred times its bytes."""
    if len(data) > LARGE_REQUEST_BYTES:
        raise too_large(f"{kind.DESCRIPTOR.name} of {len(data)} bytes exceeds {LARGE_REQUEST_BYTES} bytes")
    return parse(kind, data)
