"""Messages between the server and the process of a model carry every array, and reject what is none."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe

import ml_dtypes
import msgspec
import numpy as np
import pytest

from ciml.limits import MAX_MODEL_MEMORY_BYTES
from ciml.serving.server.model import messages
from ciml.serving.server.model.messages import Answer, Call, pack, receive, send, unpack


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
    dtype = "string" if array.dtype == object else array.dtype.name
    send(ends[0], Call("s", 1.5, [pack(array, dtype), pack(np.arange(3, dtype="i1"), "int8")]))
    call = receive(ends[1], Call)
    assert (call.signature, call.limit_s) == ("s", 1.5)
    first = unpack(call.inputs[0], dtype)
    assert (first.dtype, first.shape) == (array.dtype.newbyteorder("="), array.shape)
    assert first.tolist() == array.tolist()
    np.testing.assert_array_equal(unpack(call.inputs[1], "int8"), [0, 1, 2])


def test_texts_of_python_are_sent_as_utf8(ends: tuple[Connection, Connection]) -> None:
    arrays = [np.array(["ä"]), np.array(["ö"], object), np.array([b"x"])]
    send(ends[0], Answer([pack(array, "string") for array in arrays]))
    outputs = receive(ends[1], Answer).outputs
    assert [unpack(array, "string").tolist() for array in outputs] == [["ä".encode()], ["ö".encode()], [b"x"]]


def answer(*outputs: object) -> bytes:
    return msgspec.msgpack.encode({"outputs": outputs})


def test_a_message_beyond_the_buffer_of_a_socket_arrives_whole_and_cannot_be_written_to(
    ends: tuple[Connection, Connection],
) -> None:
    array = np.arange(1 << 20, dtype="i4")
    sender = threading.Thread(target=send, args=(ends[0], Answer([pack(array, "int32")])))
    sender.start()
    received = unpack(receive(ends[1], Answer).outputs[0], "int32")
    sender.join()
    np.testing.assert_array_equal(received, array)
    assert not received.flags.writeable


def test_a_message_that_is_cut_short_is_the_end(ends: tuple[Connection, Connection]) -> None:
    os.write(ends[0].fileno(), struct.pack("!i", 100) + b"x" * 99)
    ends[0].close()
    with pytest.raises(EOFError):
        receive(ends[1], Answer)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 30,
        msgspec.msgpack.encode({"code": 1}),
        answer([[4], "abcd"]),
        answer([[4], [1]]),
        answer([[4], b"abcd"]),
        answer([[1], b"abc"]),
        answer([[1 << 40, 1 << 40], b"abcd"]),
        answer([[-1], b"abcd"]),
        answer([[1], [b"abcd"]]),
    ],
)
def test_a_malformed_message_is_an_error_and_no_array(ends: tuple[Connection, Connection], data: bytes) -> None:
    ends[0].send_bytes(data)
    with pytest.raises(ValueError):  # noqa: PT011 - of msgspec or numpy
        unpack(receive(ends[1], Answer).outputs[0], "float32")


@pytest.mark.parametrize("array", [[[2], [b""]], [[1], b"abcd"]])
def test_malformed_texts_are_an_error(ends: tuple[Connection, Connection], array: object) -> None:
    ends[0].send_bytes(answer(array))
    with pytest.raises(ValueError, match=r"cannot reshape|not of type"):
        unpack(receive(ends[1], Answer).outputs[0], "string")


def test_a_frame_that_is_too_large_is_not_read() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(struct.pack("!i", messages.MAX_FRAME_BYTES + 1))
        with pytest.raises(OSError, match="bad message length"):
            receive(Connection(other.detach()), Answer)


def test_a_process_of_a_model_takes_limited_memory() -> None:
    code = "import os, resource as r, ciml.serving.server.model.worker as w; w._limit(os.getppid()); "
    code += "print(*r.getrlimit(r.RLIMIT_DATA))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{MAX_MODEL_MEMORY_BYTES} {MAX_MODEL_MEMORY_BYTES}\n"
