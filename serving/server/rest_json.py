"""The JSON of TensorFlow Serving's REST API: rows ("instances") or columns ("inputs"), in requests and responses."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ciml.http.errors import invalid, too_large
from ciml.limits import MAX_JSON_CONTAINERS, MAX_JSON_VALUES, MAX_TENSOR_RANK
from ciml.serving.server.model.loaded_model import Signature, TensorSpec
from ciml.serving.server.tensors import plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

Format = Literal["instances", "inputs"]
#: Accepted Python types of JSON values, by the kind of the input's numpy dtype.
_LEAVES: dict[str, set[type]] = {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}}


def parse_body(body: bytes) -> tuple[dict[str, Any], Format, str]:
    """Return (JSON object, format, signature name or "") of a predict request. Raises `RequestError`."""
    _check_size(body)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"JSON Parse error: {error}") from None
    if not isinstance(value, dict):
        raise invalid("JSON Value: Is not object")
    signature = value.get("signature_name", "")
    if not isinstance(signature, str):
        raise invalid("JSON Value: not formatted correctly. 'signature_name' key must be a string value.")
    if "instances" in value and "inputs" in value:
        raise invalid("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    if "instances" in value:
        if not isinstance(value["instances"], list):
            raise invalid("Excepting 'instances' to be an list/array")
        if not value["instances"]:
            raise invalid("No values in 'instances' array")
        return value, "instances", signature
    if "inputs" in value:
        return value, "inputs", signature
    raise invalid("Missing 'inputs' or 'instances' key")


def _check_size(body: bytes) -> None:
    # Two bytes can become an object of 32 bytes, three bytes a list or object of 230. Signs inside strings count too;
    # numbers and base64 contain none.
    for what, found, most, limit in (
        ("values", body.count(b","), MAX_JSON_VALUES, "MAX_JSON_VALUES"),
        ("lists and objects", body.count(b"[") + body.count(b"{"), MAX_JSON_CONTAINERS, "MAX_JSON_CONTAINERS"),
    ):
        if found > most:
            raise too_large(f"the body has {found} {what}; at most {most} ({limit})")


def read_inputs(value: Mapping[str, Any], form: Format, signature: Signature) -> dict[str, NDArray[Any]]:
    """Return the arrays of a parsed predict request, by input. Raises `RequestError`, INVALID_ARGUMENT."""
    content = value[form]
    return _rows(content, signature) if form == "instances" else _columns(content, signature)


def _is_named(item: Any) -> bool:
    return isinstance(item, dict) and not _is_base64(item)


def _is_base64(item: Any) -> bool:
    return isinstance(item, dict) and len(item) == 1 and isinstance(item.get("b64"), str)


def _rows(rows: list[Any], signature: Signature) -> dict[str, NDArray[Any]]:
    names = sorted(signature.inputs)
    if not _is_named(rows[0]):
        if len(names) > 1:
            raise invalid(
                "instances is a plain list, but expecting list of objects as multiple "
                "input tensors required as per tensorinfo_map"
            )
        for number, row in enumerate(rows):
            if _is_named(row):
                raise invalid(f"Expecting value/list but got object at item {number} of input list")
        return {names[0]: _array(rows, signature.inputs[names[0]])}
    for number, row in enumerate(rows):
        if not _is_named(row):
            raise invalid(f"Expecting object but got list at item {number} of input list")
        if sorted(row) != names:
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. "
                f"JSON object: keys must be equal to: {','.join(names)}"
            )
    return {name: _array([row[name] for row in rows], signature.inputs[name]) for name in names}


def _columns(content: Any, signature: Signature) -> dict[str, NDArray[Any]]:
    names = sorted(signature.inputs)
    if not _is_named(content):
        if len(names) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple "
                "input tensors required as per tensorinfo_map"
            )
        return {names[0]: _array(content, signature.inputs[names[0]])}
    for name in names:
        if name not in content:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    extra = sorted(set(content) - set(names))
    if extra:
        raise invalid(f"'inputs' object has no input named {extra[0][:100]}: choose from {','.join(names)}")
    return {name: _array(content[name], signature.inputs[name]) for name in names}


def _array(value: Any, spec: TensorSpec) -> NDArray[Any]:
    """Return a dense array from nested lists, all leaves of the input's type: 1 is not a bool, "1" is not a number."""
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        if len(shape) > MAX_TENSOR_RANK:
            raise invalid(f"input {spec.name!r}: more than {MAX_TENSOR_RANK} dimensions (MAX_TENSOR_RANK)")
        if not first:
            break
        first = first[0]
    leaves = _leaves(value, shape, spec.name)
    if spec.dtype == "string":
        return _strings(leaves, shape, spec.name)
    try:
        target = np.dtype(spec.dtype)
    except TypeError:
        raise invalid(f"input {spec.name!r}: {spec.dtype} cannot be sent as JSON") from None
    # Checked before numpy converts them: it would make every string as wide as the longest.
    if not set(map(type, leaves)) <= _LEAVES.get(target.kind, set()):
        raise invalid(f"input {spec.name!r}: JSON Value is not of expected type: {spec.dtype}")
    try:
        array = np.array(leaves, target if target.kind in "iub" else np.float64)
    except OverflowError:
        raise invalid(f"input {spec.name!r}: a JSON value is out of the range of {spec.dtype}") from None
    with np.errstate(over="ignore"):
        cast = array.astype(target)
    if target.kind == "f" and not np.array_equal(np.isinf(cast), np.isinf(array)):
        raise invalid(f"input {spec.name!r}: Cannot convert JSON value to {spec.dtype} without loss of precision.")
    return cast.reshape(shape)


def _leaves(value: Any, shape: list[int], name: str) -> list[Any]:
    """Return the leaves of nested lists in row-major order. Raises `RequestError` unless the lists have this shape."""
    level = [value]
    for size in shape:
        if not all(type(one) is list and len(one) == size for one in level):
            raise invalid(f"input {name!r}: Encountered list at unexpected size or level: want a dense tensor")
        level = list(itertools.chain.from_iterable(level))
    if list in set(map(type, level)):
        raise invalid(f"input {name!r}: Encountered list at unexpected size or level: want a dense tensor")
    return level


def _strings(leaves: list[Any], shape: list[int], name: str) -> NDArray[Any]:
    array = np.empty(len(leaves), dtype=object)  # of pointers, so that a long string does not widen the others
    array[:] = [_bytes(one, name) for one in leaves]
    return array.reshape(shape)


def _bytes(leaf: Any, name: str) -> bytes:
    if isinstance(leaf, str):
        return leaf.encode("utf-8", "surrogatepass")
    if not _is_base64(leaf):
        raise invalid(f"input {name!r}: JSON Value is not of expected type: string")
    try:
        return base64.b64decode(leaf["b64"], validate=True)
    except ValueError:
        raise invalid("Unable to base64 decode") from None


def write_outputs(outputs: Mapping[str, NDArray[Any]], form: Format) -> bytes:
    """Render the response: ``predictions`` for rows, ``outputs`` for columns; a single output has no name.

    Raises:
      RequestError: INVALID_ARGUMENT if outputs cannot be arranged in rows.
    """
    values = {name: _listed(name, array) for name, array in sorted(outputs.items())}
    single = next(iter(values.values())) if len(values) == 1 else None
    if form == "inputs":
        answer: Any = {"outputs": values if single is None else single}
    else:
        sizes = {name: array.shape[0] if array.ndim else None for name, array in outputs.items()}
        for name, size in sizes.items():
            if size is None:
                raise invalid(f"Tensor name: {name} has no shape information ")
            if size != next(iter(sizes.values())):
                raise invalid(f"Tensor name: {name} has inconsistent batch size: {size}")
        rows = (
            single
            if single is not None
            else [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        )
        answer = {"predictions": rows}
    return json.dumps(answer, indent=None, separators=(",", ":")).encode()


def _listed(name: str, array: NDArray[Any]) -> Any:
    if array.dtype.kind not in "OS":
        return plain(array)
    if name.endswith("_bytes"):
        return _map(array.tolist(), lambda one: {"b64": base64.b64encode(one).decode()})
    return _map(array.tolist(), lambda one: one.decode("utf-8", "replace"))


def _map(value: Any, leaf: Any) -> Any:
    return [_map(one, leaf) for one in value] if isinstance(value, list) else leaf(value)
