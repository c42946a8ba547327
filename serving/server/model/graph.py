"""The TensorFlow operations that a model may contain: computations without side effects.

A SavedModel is a program. An operation that is not listed here (file access, Python functions, sockets, data pipelines,
custom kernels) rejects the whole model before any of it runs. The operations of checkpoints are allowed only where the
saving or restoring nodes reach them.

A model's graph in this process: it is checked, restored in a session of its own, and run.

A session owns its graph, variables and thread-safe callables. The SavedModel's object graph, which names Python
classes, is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.errors import IntegrityError
from ciml.http.intake import RequestError, invalid
from ciml.limits import MAX_JSON_VALUES, MAX_TENSOR_BYTES
from ciml.serving.model_files import LAST_FILE
from ciml.serving.server.model.loaded_model import one_line
from ciml.serving.server.model.messages import SignatureDescription, TensorDescription
from ciml.tensorflow import load_tensorflow

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COMPUTING = """
NoOp Const Placeholder PlaceholderWithDefault Identity IdentityN StopGradient PreventGradient EnsureShape Shape ShapeN
Size Rank Assert CheckNumerics Snapshot PartitionedCall StatefulPartitionedCall StatelessPartitionedCall If
StatelessIf While StatelessWhile Case StatelessCase Switch Merge Enter Exit NextIteration LoopCond VarHandleOp
ReadVariableOp AssignVariableOp AssignAddVariableOp VarIsInitializedOp ResourceGather ResourceGatherNd VariableShape
Reshape Squeeze ExpandDims Concat ConcatV2 Pack Unpack Split SplitV Slice StridedSlice Gather GatherV2 GatherNd Tile
Transpose Pad PadV2 MirrorPad Fill ZerosLike OnesLike Range LinSpace OneHot Reverse ReverseV2 ReverseSequence Where
Select SelectV2 BroadcastTo BroadcastArgs BroadcastGradientArgs InvertPermutation MatrixBandPart MatrixDiag
MatrixDiagV3 MatrixDiagPart MatrixDiagPartV3 SpaceToBatchND BatchToSpaceND SpaceToDepth DepthToSpace TopK TopKV2
Unique UniqueV2 ScatterNd TensorScatterUpdate TensorScatterAdd DynamicStitch DynamicPartition Roll Bitcast DeepCopy
Add AddV2 AddN Sub Mul MulNoNan Div RealDiv FloorDiv TruncateDiv DivNoNan Mod FloorMod TruncateMod Maximum Minimum Neg
Abs Sign Square Sqrt Rsqrt Exp Expm1 Log Log1p Pow Inv Reciprocal Erf Erfc Erfinv Ndtri Tanh Sigmoid Sin Cos Tan Asin
Acos Atan Atan2 Sinh Cosh Asinh Acosh Atanh Floor Ceil Round Rint ClipByValue SquaredDifference Cast MatMul
BatchMatMul BatchMatMulV2 BatchMatMulV3 Einsum Sum Mean Prod Max Min All Any ArgMax ArgMin EuclideanNorm Cumsum
Cumprod CumulativeLogsumexp Bincount DenseBincount Bucketize Equal NotEqual ApproximateEqual Less LessEqual Greater
GreaterEqual LogicalAnd LogicalOr LogicalNot IsNan IsInf IsFinite Xlogy Xlog1py Xdivy Lgamma Digamma Igamma Igammac
NextAfter SegmentSum SegmentMean SegmentMax SegmentMin UnsortedSegmentSum UnsortedSegmentMax UnsortedSegmentMin
UnsortedSegmentProd BitwiseAnd BitwiseOr BitwiseXor LeftShift RightShift SearchSorted LowerBound UpperBound BiasAdd
BiasAddV1 Relu Relu6 LeakyRelu Elu Selu Softplus Softsign Softmax LogSoftmax Conv2D Conv3D DepthwiseConv2dNative
MaxPool MaxPoolV2 MaxPool3D AvgPool AvgPool3D FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 L2Loss LRN InTopK
InTopKV2 SoftmaxCrossEntropyWithLogits SparseSoftmaxCrossEntropyWithLogits TensorListFromTensor TensorListReserve
TensorListStack TensorListSetItem TensorListGetItem TensorListElementShape TensorListLength TensorListPushBack
TensorListPopBack TensorListGather TensorListConcatV2 TensorListSplit TensorListResize EmptyTensorList TensorArrayV3
TensorArrayReadV3 TensorArrayWriteV3 TensorArrayGatherV3 TensorArrayScatterV3 TensorArraySizeV3 StatelessRandomUniform
StatelessRandomUniformV2 StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomGetKeyCounter
StatelessRandomGetAlg StatelessRandomGetKeyCounterAlg RandomUniform RandomStandardNormal TruncatedNormal ParseExample
ParseExampleV2 ParseSingleExample ParseSequenceExampleV2 SparseToDense SparseTensorDenseMatMul SparseReshape
SparseFillEmptyRows AsString StringToNumber StringJoin StringLength StringLower StringStrip StringToHashBucketFast
HashTableV2 LookupTableFindV2 LookupTableSizeV2 LookupTableImportV2 InitializeTableV2
"""
#: Operations that compute.
COMPUTING = frozenset(_COMPUTING.split())
#: Additional operations that restore a checkpoint from the file that the loader names.
_RESTORING = frozenset({"RestoreV2"})
#: Additional operations that save one. The server never saves; no other node may reach them.
_SAVING = frozenset({"SaveV2", "MergeV2Checkpoints", "ShardedFilename", "StaticRegexFullMatch", "DisableCopyOnRead"})


def check_ops(meta_graph: Any) -> None:
    """Check every operation of a model: of its graph, and of all functions, used or not.

    Args:
      meta_graph: a ``tensorflow.MetaGraphDef``.

    Raises:
      IntegrityError: naming the first forbidden or misplaced operation.
    """
    graph = _Graph(meta_graph.graph_def)
    forbidden = graph.all_ops() - COMPUTING - _RESTORING - _SAVING
    if forbidden:
        raise IntegrityError(f"operation {min(forbidden)} is not allowed in a model")
    outputs = [info.name for signature in meta_graph.signature_def.values() for info in signature.outputs.values()]
    initial = [
        name
        for key in ("saved_model_main_op", "legacy_init_op")
        if key in meta_graph.collection_def
        for name in meta_graph.collection_def[key].node_list.value
    ]
    restore = [meta_graph.saver_def.restore_op_name] if meta_graph.saver_def.restore_op_name else []
    for roots, allowed, place in (
        ([*outputs, *initial], COMPUTING, "serving"),
        (restore, COMPUTING | _RESTORING, "restoring"),
    ):
        misplaced = graph.reached_ops(roots) - allowed
        if misplaced:
            raise IntegrityError(f"operation {min(misplaced)} is not allowed for {place} a model")


class _Graph:
    """Nodes and functions of a GraphDef by name."""

    def __init__(self, graph_def: Any) -> None:
        self._nodes: Mapping[str, Any] = _by_name("node", ((node.name, node) for node in graph_def.node))
        library = graph_def.library.function
        bodies = ((function.signature.name, function.node_def) for function in library)
        self._functions: Mapping[str, Any] = _by_name("function", bodies)
        for name in self._functions:
            if is_operation(name):
                raise IntegrityError(f"function {name} has the name of an operation")
        # Functions with the same ``api_implements``: TensorFlow may run any of them for another.
        self._alike: dict[str, str] = {}
        self._implementations: dict[str, set[str]] = {}
        for function in library:
            name = function.signature.name
            if "api_implements" in function.attr:
                interface = function.attr["api_implements"].s.decode(errors="replace")
                self._alike[name] = interface
                self._implementations.setdefault(interface, set()).add(name)

    def all_ops(self) -> set[str]:
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
        pending = [node]
        while pending:
            node = pending.pop()
            called = set(_called(node))
            if node.op in self._functions:
                called.add(node.op)
            else:
                ops.add(node.op)
            for name in list(called):
                called |= self._implementations.get(self._alike.get(name, ""), set())
            for name in called & set(self._functions) - functions:
                functions.add(name)
                pending += self._functions[name]


def is_operation(name: str) -> bool:
    """Return whether TensorFlow has an operation of that name; a function of the same name is ambiguous."""
    from tensorflow.python.framework import op_def_registry

    return name in COMPUTING | _RESTORING | _SAVING or op_def_registry.get(name) is not None


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


def _called(holder: Any) -> Iterable[str]:
    """Yield the functions named by a node's attributes, nested ones included."""
    for value in holder.attr.values():
        functions = [value.func] if value.HasField("func") else value.list.func if value.HasField("list") else ()
        for function in functions:
            yield function.name
            yield from _called(function)


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
