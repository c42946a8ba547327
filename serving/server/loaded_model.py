"""A model version in memory: its signatures, its calls and its end."""

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
from serving.server.errors import RequestError, invalid
from serving.server.tensors import declared, from_protos

if TYPE_CHECKING:
    from numpy.typing import NDArray


DEFAULT_SIGNATURE = "serving_default"


_NAMES_SHOWN = 10


_LOG = logging.getLogger(__name__)


#: The type and the shape of an input, as a request declares them.
Declared = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a signature. In ``shape`` -1 is any size; None is any rank."""

    name: str
    tensor: str
    dtype: str
    shape: tuple[int, ...] | None

    def check(self, dtype: str, shape: Sequence[int]) -> None:
        """Raise `RequestError` when a tensor of this type and shape is no such input."""
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
    """A signature: its inputs and outputs by name, and the call itself."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    run: Callable[..., Sequence[NDArray[Any]]]

    @property
    def batched(self) -> bool:
        """Whether the first dimension of every input is the number of rows."""
        return all(one.shape is not None and one.shape[:1] == (-1,) for one in self.inputs.values())

    def check_names(self, sent: Collection[str]) -> None:
        """Raise `RequestError` unless ``sent`` are the names of the inputs."""
        extra, missing = sorted(set(sent) - set(self.inputs)), sorted(set(self.inputs) - set(sent))
        if extra or missing:
            raise invalid(
                f"input size does not match signature: {len(sent)}!={len(self.inputs)}. Expected: "
                f"{{{','.join(sorted(self.inputs))}}}. Missing but required: {{{','.join(missing)}}}. "
                f"Sent extra: {{{','.join(extra[:_NAMES_SHOWN])}}}."
            )

    def check(self, declared: Mapping[str, Declared], max_rows: int) -> None:
        """Raise `RequestError` unless inputs of these types and shapes may be fed."""
        self.check_names(declared)
        for name, spec in self.inputs.items():
            spec.check(*declared[name])
        if self.batched and self.inputs:
            rows = {declared[name][1][0] for name in self.inputs}
            if len(rows) > 1:
                shapes = ", ".join(f"{name} {list(declared[name][1])}" for name in self.inputs)
                raise invalid(f"the inputs have different numbers of rows: {shapes}")
            if max(rows) > max_rows:
                raise invalid(f"a batch of {max(rows)} rows; at most {max_rows} (MAX_REQUEST_ROWS)")


class LoadedModel:
    """A version in memory. `predict` may be called from any thread until `close`."""

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
        """Return the signature of that name, the default one for "". Raises `RequestError`, FAILED_PRECONDITION."""
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
          output_filter: the outputs that are wanted, in their order; all of them without.
          timeout_s: how long the client waits, seconds; the model's own limit is not exceeded.

        Raises:
          RequestError: INVALID_ARGUMENT when the inputs do not fit, FAILED_PRECONDITION without such a signature,
            DEADLINE_EXCEEDED when it takes too long.
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
        # A call that the client no longer waits for must not take the threads of those that come after it.
        limit_s = self._call_s if timeout_s is None else min(self._call_s, timeout_s)
        options = tf.compat.v1.RunOptions(timeout_in_ms=max(int(limit_s * 1000), 1))
        try:
            values = dict(zip(signature.outputs, signature.run(*feeds, options=options), strict=True))
        except tf.errors.InvalidArgumentError as error:
            raise invalid(one_line(error.message)) from None
        except UnicodeDecodeError:
            # TensorFlow quotes the input in its error, and then cannot decode the error.
            raise invalid(f"signature {signature.name!r} rejects the inputs, which are not UTF-8") from None
        except tf.errors.DeadlineExceededError:
            raise RequestError(
                "DEADLINE_EXCEEDED", f"signature {signature.name!r} takes longer than {limit_s:.3g} s for one call"
            ) from None
        except tf.errors.OpError as error:
            code = "RESOURCE_EXHAUSTED" if isinstance(error, tf.errors.ResourceExhaustedError) else "INTERNAL"
            raise RequestError(code, one_line(error.message)) from None
        return {name: np.asarray(values[name]) for name in (output_filter or values)}

    def unpack(self, signature_name: str, protos: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Return the arrays that TensorProtos hold, once their names, types, shapes and sizes have been found right.

        Raises:
          RequestError: as `predict` does.
        """
        signature = self.signature(signature_name)
        signature.check_names(protos)
        signature.check({name: declared(name, proto) for name, proto in protos.items()}, self._max_rows)
        return from_protos(protos)

    def acquire(self) -> bool:
        """Keep the model from being closed until `release`. False where it is closed already."""
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
        """Give the memory back, once the requests that run now are answered (or ``wait_s`` have passed)."""
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
                raise IntegrityError(f"signature {name!r}: {key!r} is no dense tensor")
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
    # glibc keeps freed memory; without this a server that swaps models every hour looks as if it leaked.
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        _LOG.debug("no malloc_trim here")
