"""JSON of TensorFlow Serving's REST API, to arrays and back: rows ("instances") or columns ("inputs").

Error messages are those of TensorFlow Serving, its typing errors included, where it has the same check.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ciml.http.intake import invalid, too_large
from ciml.limits import MAX_JSON_CONTAINERS, MAX_JSON_VALUES, MAX_TENSOR_RANK
from ciml.serving.server.model.messages import STRING, Signature, TensorSpec, numpy_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

Format = Literal["instances", "inputs"]
#: Accepted Python types of JSON values, by the kind of the input's numpy dtype.
_LEAVES: dict[str, set[type]] = {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}}
#: Numbers that are converted to text at a time: each takes 128 bytes.
_BLOCK = 1 << 16


class PredictBody(NamedTuple):
    """The body of a predict request.

    Attributes:
      content: the rows or columns, as parsed from JSON.
      form: which of them.
      signature_name: "" for the default signature.
    """

    content: Any
    form: Format
    signature_name: str


def parse_body(body: bytes) -> PredictBody:
    """Parse the body of a predict request, except its values. Raises `RequestError`."""
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
        return PredictBody(value["instances"], "instances", signature)
    if "inputs" in value:
        return PredictBody(value["inputs"], "inputs", signature)
    raise invalid("Missing 'inputs' or 'instances' key")


def _check_size(body: bytes) -> None:
    # Two bytes can become an object of 32 bytes, three bytes a list or object of 230. Signs inside strings count too;
    # numbers and base64 contain none.
    for subject, number, maximum, limit in (
        ("values", body.count(b","), MAX_JSON_VALUES, "MAX_JSON_VALUES"),
        ("lists and objects", body.count(b"[") + body.count(b"{"), MAX_JSON_CONTAINERS, "MAX_JSON_CONTAINERS"),
    ):
        if number > maximum:
            raise too_large(f"the body has {number} {subject}; at most {maximum} ({limit})")


def read_inputs(body: PredictBody, signature: Signature) -> dict[str, NDArray[Any]]:
    """Return the arrays of a predict request, by input. Raises `RequestError`, INVALID_ARGUMENT."""
    names = sorted(signature.inputs)
    read_columns = _columns_of_rows if body.form == "instances" else _columns
    columns = read_columns(body.content, names)
    return {name: _array(columns[name], signature.inputs[name]) for name in names}


def _is_named(item: Any) -> bool:
    return isinstance(item, dict) and not _is_base64(item)


def _is_base64(item: Any) -> bool:
    return isinstance(item, dict) and len(item) == 1 and isinstance(item.get("b64"), str)


def _columns_of_rows(rows: list[Any], names: list[str]) -> dict[str, list[Any]]:
    named = _is_named(rows[0])
    if not named and len(names) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple "
            "input tensors required as per tensorinfo_map"
        )
    for number, row in enumerate(rows):
        if _is_named(row) != named:
            expected, present = ("object", "list") if named else ("value/list", "object")
            raise invalid(f"Expecting {expected} but got {present} at item {number} of input list")
        if named and sorted(row) != names:
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. "
                f"JSON object: keys must be equal to: {','.join(names)}"
            )
    return {name: [row[name] for row in rows] if named else rows for name in names}


def _columns(content: Any, names: list[str]) -> Mapping[str, Any]:
    if not _is_named(content):
        if len(names) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple "
                "input tensors required as per tensorinfo_map"
            )
        return {names[0]: content}
    for name in names:
        if name not in content:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    if extra := sorted(set(content) - set(names)):
        raise invalid(f"'inputs' object has no input named {extra[0][:100]}: choose from {','.join(names)}")
    columns: Mapping[str, Any] = content
    return columns


def _array(value: Any, spec: TensorSpec) -> NDArray[Any]:
    """Return a dense array from nested lists, all leaves of the input's type: 1 is not a bool, "1" is not a number."""
    shape = _shape(value, spec.name)
    leaves = _leaves(value, shape, spec.name)
    values = _strings(leaves, spec.name) if spec.dtype == STRING else _numbers(leaves, spec)
    return values.reshape(shape)


def _shape(value: Any, name: str) -> list[int]:
    """Return the sizes of the nested lists along their first items."""
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > MAX_TENSOR_RANK:
            raise invalid(f"input {name!r}: more than {MAX_TENSOR_RANK} dimensions (MAX_TENSOR_RANK)")
        if not value:
            break
        value = value[0]
    return shape


def _strings(leaves: list[Any], name: str) -> NDArray[Any]:
    texts = np.empty(len(leaves), dtype=object)  # of pointers, so that a long string does not widen the others
    texts[:] = [_bytes(leaf, name) for leaf in leaves]
    return texts


def _numbers(leaves: list[Any], spec: TensorSpec) -> NDArray[Any]:
    dtype = numpy_dtype(spec.dtype)
    # Checked before numpy converts them: it would make every string as wide as the longest.
    if not set(map(type, leaves)) <= _LEAVES.get(dtype.kind, set()):
        raise invalid(f"input {spec.name!r}: JSON Value is not of expected type: {spec.dtype}")
    try:
        exact = np.array(leaves, dtype if dtype.kind in "iub" else np.float64)
    except OverflowError:
        raise invalid(f"input {spec.name!r}: a JSON value is out of the range of {spec.dtype}") from None
    with np.errstate(over="ignore"):
        rounded = exact.astype(dtype)
    if dtype.kind == "f" and not np.array_equal(np.isinf(rounded), np.isinf(exact)):
        raise invalid(f"input {spec.name!r}: Cannot convert JSON value to {spec.dtype} without loss of precision.")
    return rounded


def _leaves(value: Any, shape: list[int], name: str) -> list[Any]:
    """Return the leaves of nested lists in row-major order. Raises `RequestError` unless the lists have this shape."""
    level = [value]
    for size in shape:
        if not all(type(item) is list and len(item) == size for item in level):
            raise invalid(f"input {name!r}: Encountered list at unexpected size or level: want a dense tensor")
        level = list(itertools.chain.from_iterable(level))
    if list in set(map(type, level)):
        raise invalid(f"input {name!r}: Encountered list at unexpected size or level: want a dense tensor")
    return level


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
    columns = {name: _listed(name, array) for name, array in sorted(outputs.items())}
    if form == "instances":
        _check_row_counts(outputs)
    if len(columns) == 1:
        (content,) = columns.values()
    elif form == "inputs":
        content = columns
    else:
        content = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    key = "outputs" if form == "inputs" else "predictions"
    return json.dumps({key: content}, separators=(",", ":")).encode()


def _check_row_counts(outputs: Mapping[str, NDArray[Any]]) -> None:
    rows: int | None = None
    for name, array in outputs.items():
        if not array.shape:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if rows is not None and array.shape[0] != rows:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {array.shape[0]}")
        rows = array.shape[0]


def _listed(name: str, array: NDArray[Any]) -> Any:
    """Return an array as nested lists. A float32 becomes the shortest decimal that reads back as the same float32."""
    if array.dtype == object:
        texts = [_text(name, text) for text in array.ravel()]
        array = np.empty(array.shape, object)
        array.ravel()[:] = texts
    if array.dtype == np.float32:
        numbers = np.empty(array.size)
        flat = array.ravel()
        for start in range(0, array.size, _BLOCK):
            numbers[start : start + _BLOCK] = flat[start : start + _BLOCK].astype("U32").astype(np.float64)
        array = numbers.reshape(array.shape)
    return array.tolist()


def _text(name: str, text: bytes) -> Any:
    return {"b64": base64.b64encode(text).decode()} if name.endswith("_bytes") else text.decode("utf-8", "replace")
