"""Messages between the server and the process of a model carry every array, and reject what is none."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe

import ml_dtypes
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from ciml.serving.server.model import messages
from ciml.serving.server.model.messages import Answer, Call, receive, send


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    one, other = Pipe()
    yield one, other
    one.close()
    other.close()


ARRAYS = {
    "floats": np.linspace(-1, 1, 12, dtype="f4").reshape(3, 4),
    "small floats": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "big-endian": np.arange(3, dtype=">i4"),
    "truths": np.array([True, False, True]),
    "complex": np.array([1 + 2j], "c8"),
    "a scalar": np.array(7, "i8"),
    "nothing": np.zeros((0, 5), "f8"),
    "a slice": np.arange(10, dtype="u2")[::3],
    "texts": np.array([[b"a", b"\xff\0"], [b"", b"x" * 1000]], object),
    "no texts": np.zeros((0,), object),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_arrives_as_it_was_sent(ends: tuple[Connection, Connection], name: str) -> None:
    array = ARRAYS[name]
    send(ends[0], Call("s", 1.5), [array, np.arange(3, dtype="i1")])
    head, (first, second) = receive(ends[1], Call)
    assert head == Call("s", 1.5)
    assert (first.dtype, first.shape) == (array.dtype, array.shape)
    assert first.tolist() == array.tolist()
    np.testing.assert_array_equal(second, [0, 1, 2])


def test_texts_of_python_are_sent_as_utf8(ends: tuple[Connection, Connection]) -> None:
    send(ends[0], Answer(), [np.array(["ä"]), np.array(["ö"], object), np.array([b"x"])])
    arrays = receive(ends[1], Answer)[1]
    assert [array.tolist() for array in arrays] == [["ä".encode()], ["ö".encode()], [b"x"]]


def frame(head: object, listed: object, data: bytes = b"") -> bytes:
    start = msgspec.msgpack.encode((head, listed))
    return len(start).to_bytes(8, "little") + start + bytes(-(8 + len(start)) % 16) + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 30,
        (1 << 62).to_bytes(8, "little"),
        frame({"code": 1}, []),
        frame({}, [["<f4", [4], 4]], b"abcd"),
        frame({}, [["<f4", [1 << 40, 1 << 40], 4]], b"abcd"),
        frame({}, [["<f4", [-1], 4]], b"abcd"),
        frame({}, [["|O", [1], 8]], b"abcdefgh"),
        frame({}, [["|V8", [1], 8]], b"abcdefgh"),
        frame({}, [["finfo", [1], 4]], b"abcd"),
        frame({}, [["__name__", [1], 4]], b"abcd"),
        frame({}, [["string", [2], 2]], b"\x91\xa0"),
        frame({}, [["string", [1], 4]], b"abcd"),
    ],
)
def test_a_malformed_frame_is_an_error_and_no_array(ends: tuple[Connection, Connection], data: bytes) -> None:
    ends[0].send_bytes(data)
    with pytest.raises((ValueError, TypeError)):
        receive(ends[1], Answer)


def test_a_frame_that_is_too_large_is_not_read() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(struct.pack("!i", messages.MAX_FRAME_BYTES + 1))
        with pytest.raises(OSError, match="bad message length"):
            receive(Connection(other.detach()), Answer)


def test_no_arrays_are_an_empty_list(ends: tuple[Connection, Connection]) -> None:
    arrays: list[NDArray[np.float32]] = []
    send(ends[0], Answer("INTERNAL", "x"), arrays)
    assert receive(ends[1], Answer) == (Answer("INTERNAL", "x"), [])
