"""A small client of a model server, ciml's or TensorFlow Serving: predict and status over gRPC, without TensorFlow."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import tenacity

from ciml.errors import EngineError
from ciml.limits import MAX_ANSWER_BYTES
from ciml.serving.description import DESCRIBE, ROW
from ciml.serving.registry import STABLE
from ciml.serving.wire import PredictRequest, PredictResponse, StatusRequest, StatusResponse

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
#: TensorFlow Serving's number of the state of an available version.
AVAILABLE = 30
#: TensorFlow's numbers of the dtypes.
_DTYPES = {"float32": 1, "int32": 3}
#: The field of a Tensor message with the values of a dtype, and the type of their array.
_VALUES: dict[int, tuple[str, Any]] = {
    1: ("float_val", np.float32),
    2: ("double_val", np.float64),
    3: ("int_val", np.int32),
    7: ("string_val", object),
}


#: The model may be too slow, or its answer too large, for this request; or the server is busy. A few retries may help.
#: A ciml server that is busy answers UNAVAILABLE; earlier versions answered RESOURCE_EXHAUSTED.
_DOUBTFUL = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED})
#: The server is unreachable, busy or too slow: a retry may help. Other statuses are final.
_TRANSIENT = _DOUBTFUL | {grpc.StatusCode.UNAVAILABLE}
#: The server answered with an error about this request: a retry fails too.
_FAILED = _DOUBTFUL | {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
}


def put_array(request: Any, name: str, array: NDArray[Any]) -> None:
    """Add a float32 or int32 array to a PredictRequest."""
    entry = request.inputs.add(key=name)
    entry.value.dtype = _DTYPES[array.dtype.name]
    for size in array.shape:
        entry.value.tensor_shape.dim.add(size=size)
    entry.value.tensor_content = np.ascontiguousarray(array).tobytes()


def get_values(tensor: Any) -> NDArray[Any]:
    """Return the values of a Tensor message whose values are in the field of their type, as TensorFlow Serving answers.

    Raises:
      ValueError: its dtype is not string, int32, float32 or float64, or its values do not fill its shape.
    """
    field, dtype = _VALUES.get(tensor.dtype, ("", object))
    if not field:
        raise ValueError(f"values of the unknown dtype {tensor.dtype}")
    values = np.array(getattr(tensor, field), dtype)
    return values.reshape([dim.size for dim in tensor.tensor_shape.dim])


def get_floats(response: Any, name: str) -> NDArray[np.float32]:
    """Return a float32 output of a PredictResponse. Raises `KeyError` if it is missing, `ValueError` if malformed."""
    for entry in response.outputs:
        if entry.key == name:
            tensor = entry.value
            if tensor.dtype != _DTYPES["float32"]:
                raise ValueError(f"output {name!r} is not float32")
            shape = [dim.size for dim in tensor.tensor_shape.dim]
            if tensor.tensor_content:
                return np.frombuffer(tensor.tensor_content, np.float32).reshape(shape)
            return np.array(tensor.float_val, np.float32).reshape(shape)
    raise KeyError(name)


class NotServedError(EngineError):
    """The server serves no such model, version or label at present."""


class FailedCallError(EngineError):
    """The model fails or times out for these runs. Other runs may succeed."""


@dataclass(frozen=True)
class ClientPolicy:
    """Timeouts and retries of a client.

    Attributes:
      timeout_s: limit of one call. A batch of 256 runs takes milliseconds; the rest allows for a model swap.
      slow_tries: attempts after which a prediction fails that times out, or exhausts a resource such as memory.
      budget_s: limit of all attempts of a call together, while the server is unreachable.
      first_wait_s, most_wait_s: first and longest wait between attempts; the wait doubles, with jitter.
    """

    timeout_s: float = 10.0
    slow_tries: int = 2
    budget_s: float = 120.0
    first_wait_s: float = 0.1
    most_wait_s: float = 5.0


@dataclass(frozen=True)
class Prediction:
    """The answer to a batch.

    Attributes:
      probabilities: float32 [rows, classes].
      version: the version that answered, from the response.
      seconds: duration of the successful call.
    """

    probabilities: NDArray[np.float32]
    version: int
    seconds: float


class ModelClient:
    """A connection to a model server. Thread-safe; create it after a fork.

    Args:
      address: ``host:port`` of the server's gRPC.
      model: the model's name.
      policy: timeouts and retries.
    """

    def __init__(self, address: str, model: str, policy: ClientPolicy | None = None) -> None:
        self.address = address
        self.model = model
        self._policy = policy or ClientPolicy()
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
                ("grpc.enable_http_proxy", 0),
                # gRPC waits up to two minutes between attempts to connect; a server restarts in seconds.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 2000),
            ],
        )
        self._predict = self._call(PREDICT, PredictRequest, PredictResponse)
        self._status = self._call(STATUS, StatusRequest, StatusResponse)

    def _call(self, method: str, request: Any, response: Any) -> Any:
        return self._channel.unary_unary(
            method, request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )

    def predict(
        self,
        inputs: NDArray[np.float32],
        n_windows: NDArray[np.int32],
        *,
        version: int | None = None,
        label: str = STABLE,
        timeout_s: float | None = None,
    ) -> Prediction:
        """Query the class probabilities of runs.

        Args:
          inputs: float32 [rows, L, features], not normalised.
          n_windows: int32 [rows].
          version: the version to query; by default the one that ``label`` names.
          timeout_s: limit of a call, which is then attempted once; by default the policy's.

        Raises:
          NotServedError: if the server has no such model, version or label.
          FailedCallError: if the model answers with an error or too late.
          EngineError: if the server does not answer within the budget, or answers with another error.
        """
        choice = {"version_label": label} if version is None else {"version": {"value": version}}
        request = PredictRequest(model_spec={"name": self.model, **choice})
        put_array(request, "inputs", inputs)
        put_array(request, "n_windows", n_windows)
        seconds_each, tries = (timeout_s, 1) if timeout_s else (self._policy.timeout_s, self._policy.slow_tries)
        response, seconds = self._retried(lambda: self._predict(request, timeout=seconds_each), tries)
        try:
            probabilities = get_floats(response, "probabilities")
        except (KeyError, ValueError) as error:
            raise EngineError(
                f"{self.address}: the answer of model {self.model} has no probabilities: {error}"
            ) from None
        if len(probabilities) != len(inputs):
            raise EngineError(f"{self.address}: {len(probabilities)} answers for {len(inputs)} runs")
        return Prediction(probabilities, response.model_spec.version.value, seconds)

    def describe(self, *, version: int | None = None, label: str = STABLE) -> tuple[dict[str, Any], int]:
        """Query the signature ``describe``.

        Args:
          version: the version to query; by default the one that ``label`` names, or the latest for the label "".

        Returns:
          The outputs of a row by name (`ciml.serving.description.describe_values`), and the version that answered.

        Raises:
          NotServedError: if the server has no such model, version or label.
          FailedCallError: if the version has no such signature, or fails.
          EngineError: as `predict`.
        """
        choice: dict[str, Any] = {"version_label": label} if label else {}
        if version is not None:
            choice = {"version": {"value": version}}
        request = PredictRequest(model_spec={"name": self.model, "signature_name": DESCRIBE, **choice})
        put_array(request, ROW, np.zeros(1, np.int32))
        response, _ = self._retried(lambda: self._predict(request, timeout=self._policy.timeout_s), 1)
        try:
            outputs = {entry.key: get_values(entry.value)[0] for entry in response.outputs}
        except (ValueError, IndexError) as error:
            raise EngineError(f"{self.address}: model {self.model} answers {DESCRIBE!r} with {error}") from None
        return outputs, int(response.model_spec.version.value)

    def served_version(self, label: str = STABLE) -> int:
        """Return the version that a label names. Raises as `predict` does."""
        for version, state, _ in self.statuses(label):
            if state == AVAILABLE:
                return version
        raise NotServedError(f"{self.address}: no version of model {self.model} is available under {label}")

    def statuses(self, label: str = "") -> list[tuple[int, int, str]]:
        """Return (version, state in TensorFlow Serving's numbers, error) of all versions, or of that with a label.

        Raises as `predict` does.
        """
        request = StatusRequest(model_spec={"name": self.model, "version_label": label})
        response, _ = self._retried(lambda: self._status(request, timeout=self._policy.timeout_s))
        return [
            (int(status.version), int(status.state), status.status.error_message)
            for status in response.model_version_status
        ]

    def wait_until_served(self, version: int, timeout_s: float = 30.0, label: str = STABLE) -> None:
        """Wait until ``label`` names ``version`` on the server. Raises `EngineError` after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                served: int | None = self.served_version(label)
            except NotServedError:
                served = None
            if served == version:
                return
            if time.monotonic() > deadline:
                errors: dict[int, str] = {}
                with contextlib.suppress(NotServedError):
                    errors = {number: f": {error}" for number, _, error in self.statuses() if error}
                raise EngineError(
                    f"{self.address}: model {self.model} serves version {served} as {label} after {timeout_s:g} s, "
                    f"not {version}{errors.get(version, '')}"
                )
            time.sleep(0.1)

    def _retried(self, call: Callable[[], Any], slow_tries: int | None = None) -> tuple[Any, float]:
        """Return the answer and its duration. ``slow_tries`` limits the attempts that the model may have failed."""
        policy = self._policy
        slow = 0

        def is_transient(error: BaseException) -> bool:
            nonlocal slow
            if not isinstance(error, grpc.RpcError) or error.code() not in _TRANSIENT:
                return False
            slow += error.code() in _DOUBTFUL
            return slow_tries is None or slow < slow_tries

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            stop=tenacity.stop_after_delay(policy.budget_s),
            wait=tenacity.wait_exponential_jitter(policy.first_wait_s, policy.most_wait_s, jitter=policy.first_wait_s),
            reraise=True,
        )

        try:
            for attempt in retrying:
                with attempt:
                    started_s = time.perf_counter()
                    answer = call(), time.perf_counter() - started_s
        except grpc.RpcError as error:
            code = error.code()
            details = error.details() or ""
            if code is grpc.StatusCode.NOT_FOUND or "Unrecognized servable version label" in details:
                raise NotServedError(f"{self.address}: {details}") from None
            kind = FailedCallError if code in _FAILED else EngineError
            raise kind(f"model server {self.address}: {code.name}: {details}") from None
        return answer

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> ModelClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
