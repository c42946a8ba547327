"""A model's graph in this process: it is checked, restored in a session of its own, and run.

A session owns its graph, variables and thread-safe callables. The SavedModel's object graph, which names Python
classes, is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.errors import IntegrityError
from ciml.http.errors import RequestError, invalid
from ciml.limits import MAX_JSON_VALUES, MAX_TENSOR_BYTES
from ciml.serving.model_files import LAST_FILE
from ciml.serving.server.model.allowed_ops import check_ops
from ciml.serving.server.model.loaded_model import one_line
from ciml.serving.server.model.messages import SignatureDescription, TensorDescription
from ciml.tensorflow import load_tensorflow

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Graph:
    """The graph of a SavedModel. `run` is thread-safe.

    Args:
      folder: a private copy of the version.
      where: its name in errors.
      call_s: limit of restoring the variables, seconds.

    Raises:
      IntegrityError: it is corrupt, or holds a forbidden operation.
    """

    def __init__(self, folder: Path, where: str, call_s: float) -> None:
        tf = load_tensorflow()
        try:
            meta_graph = _checked_meta_graph(where, folder / LAST_FILE)
            config = tf.compat.v1.ConfigProto(operation_timeout_in_ms=int(call_s * 1000))
            self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
            with self._session.graph.as_default():
                tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(folder))
            self.signatures = {
                name: _description(name, definition)
                for name, definition in meta_graph.signature_def.items()
                if not name.startswith("__saved_model")
            }
            self._runs = {name: self._callable(signature) for name, signature in self.signatures.items()}
        except (tf.errors.OpError, ValueError, KeyError, RuntimeError, TypeError, MemoryError) as error:
            raise IntegrityError(f"{where} cannot be loaded: {one_line(str(error))}") from error

    def _callable(self, signature: SignatureDescription) -> Callable[..., Sequence[Any]]:
        run: Callable[..., Sequence[Any]] = self._session.make_callable(
            [tensor.tensor for tensor in signature.outputs],
            [tensor.tensor for tensor in signature.inputs],
            accept_options=True,
        )
        return run

    def run(self, name: str, feeds: Sequence[NDArray[Any]], limit_s: float) -> list[NDArray[Any]]:
        """Run a signature.

        Args:
          name: of the signature.
          feeds: arrays in the order of its inputs.
          limit_s: after which TensorFlow cancels the call between two operations, seconds.

        Raises:
          RequestError: INVALID_ARGUMENT if it rejects the inputs, DEADLINE_EXCEEDED if it takes too long.
        """
        tf = load_tensorflow()
        options = tf.compat.v1.RunOptions(timeout_in_ms=max(int(limit_s * 1000), 1))
        try:
            values = [np.asarray(value) for value in self._runs[name](*feeds, options=options)]
        except tf.errors.InvalidArgumentError as error:
            raise invalid(one_line(error.message)) from None
        except UnicodeDecodeError:
            # TensorFlow quotes the input in its error, and then cannot decode the error.
            raise invalid(f"signature {name!r} rejects the inputs: they are not valid UTF-8") from None
        except tf.errors.DeadlineExceededError:
            raise too_slow(name, limit_s) from None
        except tf.errors.OpError as error:
            code = "RESOURCE_EXHAUSTED" if isinstance(error, tf.errors.ResourceExhaustedError) else "INTERNAL"
            raise RequestError(code, one_line(error.message)) from None
        except MemoryError:
            raise RequestError("RESOURCE_EXHAUSTED", f"signature {name!r}: out of memory") from None
        _check_size(name, values)
        return values


def too_slow(name: str, limit_s: float) -> RequestError:
    """Return the error of a call that exceeds its time limit."""
    return RequestError("DEADLINE_EXCEEDED", f"signature {name!r} takes longer than {limit_s:.3g} s for one call")


def _check_size(name: str, values: Sequence[NDArray[Any]]) -> None:
    size = sum(value.nbytes for value in values if value.dtype.kind != "O")
    for texts in (value for value in values if value.dtype.kind == "O"):
        if texts.size > MAX_JSON_VALUES:
            raise RequestError("RESOURCE_EXHAUSTED", f"signature {name!r} returns {texts.size} texts")
        size += sum(map(len, texts.ravel()))
    if size > MAX_TENSOR_BYTES:
        message = f"signature {name!r} returns {size} bytes; at most {MAX_TENSOR_BYTES} (MAX_TENSOR_BYTES)"
        raise RequestError("RESOURCE_EXHAUSTED", message)


def _checked_meta_graph(where: str, file: Path) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    saved_model = saved_model_pb2.SavedModel()
    try:
        saved_model.ParseFromString(file.read_bytes())
    except DecodeError:
        raise IntegrityError(f"{where}/{LAST_FILE} is corrupt") from None
    graphs = [graph for graph in saved_model.meta_graphs if "serve" in graph.meta_info_def.tags]
    if len(graphs) != 1 or len(saved_model.meta_graphs) != 1:
        raise IntegrityError(f"{where} holds {len(saved_model.meta_graphs)} graphs; expected one, tagged serve")
    try:
        check_ops(graphs[0])
    except IntegrityError as error:
        raise IntegrityError(f"{where}: {error}") from None
    return graphs[0]


def _description(name: str, definition: Any) -> SignatureDescription:
    import tensorflow as tf

    def tensors(infos: Mapping[str, Any]) -> list[TensorDescription]:
        described = []
        for key in sorted(infos):
            info = infos[key]
            if not info.name:
                raise IntegrityError(f"signature {name!r}: {key!r} is not a dense tensor")
            shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
            described.append(TensorDescription(key, info.name, tf.as_dtype(info.dtype).name, shape))
        return described

    return SignatureDescription(
        tensors(definition.inputs), tensors(definition.outputs), definition.SerializeToString(deterministic=True)
    )
