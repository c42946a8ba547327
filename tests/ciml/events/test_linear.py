"""Hostile events take time in proportion to their size."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from ciml.errors import RejectedInput
from ciml.events.cloudevents import FINISHED, decode_message
from ciml.events.records import Message
from tests.growth import assert_linear


def envelope(data: str) -> bytes:
    fields = json.dumps({"specversion": "1.0", "id": "e", "source": "zuul", "type": FINISHED})
    return f'{fields[:-1]}, "data": {data}}}'.encode()


def run(**more: str) -> str:
    fields = {"id": '"r"', "job": '"j"', "result": '"SUCCESS"', "end_time": "1795521600", **more}
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"


SHAPES: dict[str, Callable[[int], bytes]] = {
    "all keys twice": lambda n: b"{" + b",".join(b'"%d":1' % (i % (n // 2)) for i in range(n)) + b"}",
    "the last key twice": lambda n: b"{" + b",".join(b'"%d":1' % min(i, n - 2) for i in range(n)) + b"}",
    "brackets": lambda n: b"[" * n,
    "objects in objects": lambda n: b'{"a":' * n + b"1" + b"}" * n,
    "wide lists": lambda n: envelope("[" + "[[]]," * n + "0]"),
    "whole numbers without end": lambda n: envelope("9" * n),
    "many long whole numbers": lambda n: envelope("[" + ("9" * 999 + ",") * (n // 999) + "0]"),
    "a fraction without end": lambda n: envelope("0." + "3" * n),
    "lone surrogates": lambda n: envelope('"' + "\\ud800" * n + '"'),
    "no end of a text": lambda n: envelope('"' + "\\" * n),
    "a time without end": lambda n: envelope(run(start_time='"' + "2026-" * n + '"')),
    "a result without end": lambda n: envelope(run(result='"' + "A_" * 500 + '"', more='"' + "x" * n + '"')),
    "many labels": lambda n: envelope(run(labels="{" + ",".join(f'"{i}":1' for i in range(n)) + "}")),
    "control characters": lambda n: envelope(run(job='"' + "\\u202e" * n + '"')),
    "many runs": lambda n: envelope('{"runs":[' + ",".join(["{}"] * n) + "]}"),
    "not UTF-8": lambda n: b'{"a":"' + b"\xff" * n,
}


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Disable garbage collection: it takes time for all objects of the process, at any moment."""
    gc.disable()
    yield
    gc.enable()


def decode(message: Message) -> None:
    with suppress(RejectedInput):
        decode_message(message)


@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_is_linear(shape: str) -> None:
    size = 2000
    assert len(SHAPES[shape](8 * size)) < 1 << 20
    assert_linear(lambda n: Message(0, SHAPES[shape](n)), decode, size)
