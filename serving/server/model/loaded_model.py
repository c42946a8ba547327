"""A model version that answers calls: its signatures, the checks of their inputs, and how it is closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ciml.http.intake import RequestError, invalid
from ciml.serving.server.tensors import declared, from_protos

if TYPE_CHECKING:
    from numpy.typing import NDArray


DEFAULT_SIGNATURE = "serving_default"
_NAMES_SHOWN = 10

#: Dtype and shape of an input, as a request declares them.
Declared = tuple[str, tuple[int, ...]]
#: Runs a signature: (arrays in the order of its inputs, time limit in seconds) -> arrays in the order of its outputs.
#: Raises `RequestError`.
Run = Callable[["Sequence[NDArray[Any]]", float], "Sequence[NDArray[Any]]"]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a signature. In ``shape``, -1 means any size; None means any rank."""

    name: str
    tensor: str
    dtype: str
    shape: tuple[int, ...] | None

    def check(self, dtype: str, shape: Sequence[int]) -> None:
        """Raise `RequestError` if a tensor of this dtype and shape does not fit."""
        if dtype != self.dtype:
            raise invalid(f"input {self.name!r}: expects {self.dtype} but {dtype} is provided")
        fits = self.shape is None or (
            len(shape) == len(self.shape)
            and all(expected in (-1, have) for expected, have in zip(self.shape, shape, strict=True))
        )
        if not fits:
            raise invalid(f"input {self.name!r}: has shape {list(shape)}, expects {list(self.shape or ())}")


@dataclass(frozen=True)
class Signature:
    """A signature: its inputs and outputs by name, and the function that runs it."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    run: Run

    @property
    def batched(self) -> bool:
        """Whether the first dimension of every input is the number of rows."""
        return all(spec.shape is not None and spec.shape[:1] == (-1,) for spec in self.inputs.values())

    def check_names(self, sent: Collection[str]) -> None:
        """Raise `RequestError` unless ``sent`` are exactly the inputs' names."""
        extra = sorted(set(sent) - set(self.inputs))
        missing = sorted(set(self.inputs) - set(sent))
        if extra or missing:
            raise invalid(
                f"input size does not match signature: {len(sent)}!={len(self.inputs)}. Expected: "
                f"{{{','.join(sorted(self.inputs))}}}. Missing but required: {{{','.join(missing)}}}. "
                f"Sent extra: {{{','.join(extra[:_NAMES_SHOWN])}}}."
            )

    def check(self, declared: Mapping[str, Declared], max_rows: int) -> None:
        """Raise `RequestError` unless inputs of these dtypes and shapes fit."""
        self.check_names(declared)
        for name, spec in self.inputs.items():
            spec.check(*declared[name])
        if self.batched and self.inputs:
            rows = {declared[name][1][0] for name in self.inputs}
            if len(rows) > 1:
                shapes = ", ".join(f"{name} {list(declared[name][1])}" for name in self.inputs)
                raise invalid(f"inputs have different numbers of rows: {shapes}")
            if max(rows) > max_rows:
                raise invalid(f"batch of {max(rows)} rows exceeds {max_rows} (MAX_REQUEST_ROWS)")


class LoadedModel:
    """A version that answers calls. `predict` is thread-safe until `close`.

    Args:
      source: its folder.
      signatures: by name.
      definitions: a serialized SignatureDef by the signature's name.
      max_rows: the largest batch of one request.
      call_s: limit of a call, seconds.
      free: frees what the model holds.
      has_ended: whether its process ended by itself or by its limits, so that it answers no call any more.
    """

    def __init__(
        self,
        source: str,
        signatures: Mapping[str, Signature],
        definitions: Mapping[str, bytes],
        *,
        max_rows: int,
        call_s: float,
        free: Callable[[], object],
        has_ended: Callable[[], bool],
    ) -> None:
        self.source = source
        self.loaded_at = time.time()
        self.signatures = signatures
        self._definitions = definitions
        self._max_rows = max_rows
        self._call_s = call_s
        self._free = free
        self._has_ended = has_ended
        self._idle = threading.Condition()
        self._running = 0
        self._closed = False

    @property
    def ended(self) -> bool:
        """Whether its process has ended: it must be loaded again."""
        return self._has_ended()

    @property
    def signature_defs(self) -> dict[str, Any]:
        """The SignatureDef of each signature, by name."""
        from tensorflow.core.protobuf import meta_graph_pb2

        return {name: meta_graph_pb2.SignatureDef.FromString(data) for name, data in self._definitions.items()}

    def signature(self, name: str) -> Signature:
        """Return a signature by name; "" is the default one. Raises `RequestError`, FAILED_PRECONDITION."""
        signature = self.signatures.get(name or DEFAULT_SIGNATURE)
        if signature is None:
            raise RequestError("FAILED_PRECONDITION", f'Serving signature key "{name or DEFAULT_SIGNATURE}" not found.')
        return signature

    def predict(
        self,
        signature_name: str,
        inputs: Mapping[str, NDArray[Any]],
        output_filter: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Run a signature.

        Args:
          signature_name: "" for ``serving_default``.
          inputs: an array for each input of the signature.
          output_filter: names of the requested outputs, in order; empty means all.
          timeout_s: how long the client waits, seconds, up to the model's own limit.

        Raises:
          RequestError: INVALID_ARGUMENT if the inputs do not fit, FAILED_PRECONDITION without such a signature,
            DEADLINE_EXCEEDED if it takes too long.
        """
        signature = self.signature(signature_name)
        signature.check({name: _declared(array) for name, array in inputs.items()}, self._max_rows)
        for name in output_filter:
            if name not in signature.outputs:
                outputs = ",".join(sorted(signature.outputs))
                raise invalid(
                    f"output tensor alias not found in signature: {name} Outputs expected to be in {{{outputs}}}."
                )
        if len(set(output_filter)) != len(output_filter):
            raise invalid(f"duplicate output tensor alias in {list(output_filter)}")
        feeds = [inputs[name] for name in signature.inputs]
        # An abandoned call must not occupy the threads of later ones.
        limit_s = self._call_s if timeout_s is None else min(self._call_s, timeout_s)
        values = dict(zip(signature.outputs, signature.run(feeds, max(limit_s, 0.001)), strict=True))
        return {name: values[name] for name in (output_filter or values)}

    def unpack(self, signature_name: str, protos: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Check names, dtypes, shapes and sizes of TensorProtos, and return their arrays.

        Raises:
          RequestError: as `predict` does.
        """
        signature = self.signature(signature_name)
        signature.check_names(protos)
        signature.check({name: declared(name, proto) for name, proto in protos.items()}, self._max_rows)
        return from_protos(protos)

    def acquire(self) -> bool:
        """Prevent closing until `release`. Return False if the model is closed already."""
        with self._idle:
            if self._closed:
                return False
            self._running += 1
            return True

    def release(self) -> None:
        with self._idle:
            self._running -= 1
            self._idle.notify_all()

    def close(self, wait_s: float = 30.0) -> None:
        """Free the memory once running requests have ended, or after ``wait_s`` seconds."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: self._running == 0, timeout=wait_s)
        self._free()
        self.signatures = {}


def _declared(array: NDArray[Any]) -> Declared:
    return ("string" if array.dtype.kind in "OSU" else array.dtype.name), array.shape


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())[:500]
