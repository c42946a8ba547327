"""A model version in memory: its signatures, its calls, and how it is closed."""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.errors import IntegrityError
from ciml.http.errors import RequestError, invalid
from serving.server.tensors import declared, from_protos

if TYPE_CHECKING:
    from numpy.typing import NDArray


DEFAULT_SIGNATURE = "serving_default"
_NAMES_SHOWN = 10
_LOG = logging.getLogger(__name__)

#: Dtype and shape of an input, as a request declares them.
Declared = tuple[str, tuple[int, ...]]


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
            and all(want in (-1, have) for want, have in zip(self.shape, shape, strict=True))
        )
        if not fits:
            raise invalid(f"input {self.name!r}: has shape {list(shape)}, expects {list(self.shape or ())}")


@dataclass(frozen=True)
class Signature:
    """A signature: its inputs and outputs by name, and its callable."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    run: Callable[..., Sequence[NDArray[Any]]]

    @property
    def batched(self) -> bool:
        """Whether the first dimension of every input is the number of rows."""
        return all(one.shape is not None and one.shape[:1] == (-1,) for one in self.inputs.values())

    def check_names(self, sent: Collection[str]) -> None:
        """Raise `RequestError` unless ``sent`` are exactly the inputs' names."""
        extra, missing = sorted(set(sent) - set(self.inputs)), sorted(set(self.inputs) - set(sent))
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
    """A version in memory. `predict` is thread-safe until `close`."""

    def __init__(self, session: Any, meta_graph: Any, source: str, max_rows: int, call_s: float) -> None:
        self.source = source
        self.loaded_at = time.time()
        self.signature_defs: Mapping[str, Any] = {
            name: one for name, one in meta_graph.signature_def.items() if not name.startswith("__saved_model")
        }
        self._max_rows = max_rows
        self._call_s = call_s
        self._session = session
        self._idle = threading.Condition()
        self._running = 0
        self._closed = False
        self.signatures = {name: _signature(session, name, one) for name, one in self.signature_defs.items()}

    def signature(self, name: str) -> Signature:
        """Return a signature by name; "" is the default one. Raises `RequestError`, FAILED_PRECONDITION."""
        found = self.signatures.get(name or DEFAULT_SIGNATURE)
        if found is None:
            raise RequestError("FAILED_PRECONDITION", f'Serving signature key "{name or DEFAULT_SIGNATURE}" not found.')
        return found

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
        import tensorflow as tf

        signature = self.signature(signature_name)
        signature.check({name: _declared(array) for name, array in inputs.items()}, self._max_rows)
        for name in output_filter:
            if name not in signature.outputs:
                known = ",".join(sorted(signature.outputs))
                raise invalid(
                    f"output tensor alias not found in signature: {name} Outputs expected to be in {{{known}}}."
                )
        if len(set(output_filter)) != len(output_filter):
            raise invalid(f"duplicate output tensor alias in {list(output_filter)}")
        feeds = [inputs[name] for name in signature.inputs]
        # An abandoned call must not occupy the threads of later ones.
        limit_s = self._call_s if timeout_s is None else min(self._call_s, timeout_s)
        options = tf.compat.v1.RunOptions(timeout_in_ms=max(int(limit_s * 1000), 1))
        try:
            values = dict(zip(signature.outputs, signature.run(*feeds, options=options), strict=True))
        except tf.errors.InvalidArgumentError as error:
            raise invalid(one_line(error.message)) from None
        except UnicodeDecodeError:
            # TensorFlow quotes the input in its error, and then cannot decode the error.
            raise invalid(f"signature {signature.name!r} rejects the inputs: they are not valid UTF-8") from None
        except tf.errors.DeadlineExceededError:
            raise RequestError(
                "DEADLINE_EXCEEDED", f"signature {signature.name!r} takes longer than {limit_s:.3g} s for one call"
            ) from None
        except tf.errors.OpError as error:
            code = "RESOURCE_EXHAUSTED" if isinstance(error, tf.errors.ResourceExhaustedError) else "INTERNAL"
            raise RequestError(code, one_line(error.message)) from None
        return {name: np.asarray(values[name]) for name in (output_filter or values)}

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
        self._session.close()
        self.signatures = {}
        self._session = None
        gc.collect()
        _trim()


def _signature(session: Any, name: str, definition: Any) -> Signature:
    import tensorflow as tf

    def specs(infos: Mapping[str, Any]) -> dict[str, TensorSpec]:
        found = {}
        for key in sorted(infos):
            info = infos[key]
            if not info.name:
                raise IntegrityError(f"signature {name!r}: {key!r} is not a dense tensor")
            shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
            found[key] = TensorSpec(key, info.name, tf.as_dtype(info.dtype).name, shape)
        return found

    inputs, outputs = specs(definition.inputs), specs(definition.outputs)
    run = session.make_callable(
        [one.tensor for one in outputs.values()], [one.tensor for one in inputs.values()], accept_options=True
    )
    return Signature(name, inputs, outputs, run)


def _declared(array: NDArray[Any]) -> Declared:
    return ("string" if array.dtype.kind in "OSU" else array.dtype.name), array.shape


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())[:500]


def _trim() -> None:
    # glibc keeps freed memory; without this a server that swaps models hourly seems to leak.
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        _LOG.debug("malloc_trim is not available")
