"""A model's graph in this process: `Graph` checks its operations, restores it in its own session, and runs it.

A SavedModel is a program. `check_ops` rejects the whole model, before any of it runs, for an operation that
``allowed_ops.toml`` does not list: file access, Python functions, sockets, data pipelines, custom kernels. Operations
of checkpoints are allowed only where the saving or restoring nodes reach them. The SavedModel's object graph, which
names Python classes, is never read.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.errors import IntegrityError
from ciml.http.intake import RequestError, invalid
from ciml.limits import MAX_JSON_VALUES, MAX_TENSOR_BYTES
from ciml.serving.model_files import LAST_FILE
from ciml.serving.server.model.messages import STRING, Signature, TensorSpec, numpy_dtype, one_line
from ciml.tensorflow import load_tensorflow

if TYPE_CHECKING:
    from numpy.typing import NDArray


_OPS = tomllib.loads(Path(__file__).with_name("allowed_ops.toml").read_text())
_COMPUTING = frozenset(_OPS["computing"])
_RESTORING = _COMPUTING | set(_OPS["restoring"])
_ALLOWED = _RESTORING | set(_OPS["saving"])


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
                name: _signature(name, definition)
                for name, definition in meta_graph.signature_def.items()
                if not name.startswith("__saved_model")
            }
            self._runs = {name: self._callable(signature) for name, signature in self.signatures.items()}
        except (tf.errors.OpError, ValueError, KeyError, RuntimeError, TypeError, MemoryError) as error:
            raise IntegrityError(f"{where} cannot be loaded: {one_line(str(error))}") from error

    def _callable(self, signature: Signature) -> Callable[..., Sequence[Any]]:
        run: Callable[..., Sequence[Any]] = self._session.make_callable(
            [tensor.tensor for tensor in signature.outputs.values()],
            [tensor.tensor for tensor in signature.inputs.values()],
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
          RequestError: INVALID_ARGUMENT if it rejects the inputs, DEADLINE_EXCEEDED if it takes too long, INTERNAL if
            it returns too much.
          Exception: it fails otherwise, or memory runs out.
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
            message = f"signature {name!r} takes longer than {limit_s:.3g} s for one call"
            raise RequestError("DEADLINE_EXCEEDED", message) from None
        _check_size(name, values)
        return values


def _check_size(name: str, values: Sequence[NDArray[Any]]) -> None:
    size = sum(value.nbytes for value in values if value.dtype.kind != "O")
    for texts in values:
        if texts.dtype.kind != "O":
            continue
        if texts.size > MAX_JSON_VALUES:
            raise RequestError("INTERNAL", f"signature {name!r} returns {texts.size} texts")
        size += sum(map(len, texts.ravel()))
    if size > MAX_TENSOR_BYTES:
        message = f"signature {name!r} returns {size} bytes; at most {MAX_TENSOR_BYTES} (MAX_TENSOR_BYTES)"
        raise RequestError("INTERNAL", message)


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


def _signature(name: str, definition: Any) -> Signature:
    inputs = {key: _tensor_spec(name, key, definition.inputs[key]) for key in sorted(definition.inputs)}
    outputs = {key: _tensor_spec(name, key, definition.outputs[key]) for key in sorted(definition.outputs)}
    return Signature(name, inputs, outputs, definition.SerializeToString(deterministic=True))


def _tensor_spec(signature: str, name: str, info: Any) -> TensorSpec:
    import tensorflow as tf

    if not info.name:
        raise IntegrityError(f"signature {signature!r}: {name!r} is not a dense tensor")
    dtype = tf.as_dtype(info.dtype).name
    if dtype != STRING:
        numpy_dtype(dtype)  # raises TypeError for a type whose values have no arrays
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(name, info.name, dtype, shape)


def check_ops(meta_graph: Any) -> None:
    """Check every operation of a model: of its graph, and of all functions, used or not.

    Args:
      meta_graph: a ``tensorflow.MetaGraphDef``.

    Raises:
      IntegrityError: naming the first forbidden or misplaced operation.
    """
    graph = _GraphIndex(meta_graph.graph_def)
    forbidden = graph.all_ops() - _ALLOWED
    if forbidden:
        raise IntegrityError(f"operation {min(forbidden)} is not allowed in a model")
    serving_roots = [
        info.name for signature in meta_graph.signature_def.values() for info in signature.outputs.values()
    ]
    for key in ("saved_model_main_op", "legacy_init_op"):
        if key in meta_graph.collection_def:
            serving_roots += meta_graph.collection_def[key].node_list.value
    restore_op = meta_graph.saver_def.restore_op_name
    for roots, allowed, purpose in (
        (serving_roots, _COMPUTING, "serving"),
        ([restore_op] if restore_op else [], _RESTORING, "restoring"),
    ):
        misplaced = graph.reached_ops(roots) - allowed
        if misplaced:
            raise IntegrityError(f"operation {min(misplaced)} is not allowed for {purpose} a model")


class _GraphIndex:
    """Nodes and functions of a GraphDef by name."""

    def __init__(self, graph_def: Any) -> None:
        from tensorflow.python.framework import op_def_registry

        self._nodes: Mapping[str, Any] = _by_name("node", ((node.name, node) for node in graph_def.node))
        library = graph_def.library.function
        bodies = ((function.signature.name, function.node_def) for function in library)
        self._functions: Mapping[str, Any] = _by_name("function", bodies)
        for name in self._functions:  # such a call would be ambiguous
            if name in _ALLOWED or op_def_registry.get(name) is not None:
                raise IntegrityError(f"function {name} has the name of an operation")
        # TensorFlow may run any function of an interface (``api_implements``) in place of another.
        self._interfaces: dict[str, str] = {}
        self._implementations: dict[str, set[str]] = {}
        for function in library:
            name = function.signature.name
            if "api_implements" in function.attr:
                interface = function.attr["api_implements"].s.decode(errors="replace")
                self._interfaces[name] = interface
                self._implementations.setdefault(interface, set()).add(name)

    def all_ops(self) -> set[str]:
        """Return all operations of the graph and of its functions, used or not."""
        nodes = [*self._nodes.values(), *(node for body in self._functions.values() for node in body)]
        return {node.op for node in nodes} - set(self._functions)

    def reached_ops(self, roots: Iterable[str]) -> set[str]:
        """Return the operations that run when the nodes or tensors ``roots`` are evaluated."""
        ops: set[str] = set()
        functions: set[str] = set()
        visited: set[str] = set()
        pending = [_node_name(root) for root in roots]
        while pending:
            name = pending.pop()
            if name in visited:
                continue
            visited.add(name)
            if name not in self._nodes:
                raise IntegrityError(f"the model's graph has no node {name[:100]!r}")
            node = self._nodes[name]
            pending += [_node_name(input_name) for input_name in node.input]
            self._enter(node, ops, functions)
        return ops

    def _enter(self, node: Any, ops: set[str], functions: set[str]) -> None:
        """Add a node's operation to ``ops``, or its functions to ``functions`` and their operations to ``ops``."""
        pending = [node]
        while pending:
            node = pending.pop()
            called = set(_called(node))
            if node.op in self._functions:
                called.add(node.op)
            else:
                ops.add(node.op)
            for name in list(called):
                called |= self._implementations.get(self._interfaces.get(name, ""), set())
            for name in called & set(self._functions) - functions:
                functions.add(name)
                pending += self._functions[name]


def _by_name(kind: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a mapping. Raises `IntegrityError` for a duplicate name, which is ambiguous."""
    by_name: dict[str, Any] = {}
    for name, value in pairs:
        if name in by_name:
            raise IntegrityError(f"two {kind}s are named {name[:100]!r}")
        by_name[name] = value
    return by_name


def _node_name(tensor: str) -> str:
    return tensor.removeprefix("^").split(":", 1)[0]


def _called(node: Any) -> Iterable[str]:
    """Yield the functions named by a node's attributes, nested ones included."""
    for value in node.attr.values():
        functions = [value.func] if value.HasField("func") else value.list.func if value.HasField("list") else ()
        for function in functions:
            yield function.name
            yield from _called(function)
