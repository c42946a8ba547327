"""Bytes that are not the protocol, for every listener; and a client that sends them and waits for the end."""

from __future__ import annotations

import contextlib
import socket
import struct

_POST = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = bytes.fromhex("000000040000000000")

#: Malformed requests by name.
MALFORMED: dict[str, bytes] = {
    "chunk size of letters": _CHUNKED + b"zz\r\n",
    "chunk size too long": _CHUNKED + b"f" * 40 + b"\r\n",
    "negative chunk size": _CHUNKED + b"-1\r\n\r\n",
    "chunk without its end": _CHUNKED + b"1\r\nabc\r\n",
    "chunk extension of nulls": _CHUNKED + b"1;\0\0\r\na\r\n",
    "bad trailer": _CHUNKED + b"1\r\na\r\n0\r\n\0: x\r\n\r\n",
    "good chunk, then a bad one": _CHUNKED + b"2\r\n{}\r\nxyz\r\n",
    "two transfer encodings": _POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "length and chunks": _POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": _POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "length of letters": _POST + b"Content-Length: abc\r\n\r\n",
    "negative length": _POST + b"Content-Length: -1\r\n\r\n",
    "huge length": _POST + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n",
    "header without a colon": b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
    "header name of nulls": b"GET / HTTP/1.1\r\nHost: x\r\n\0\0: y\r\n\r\n",
    "header value of nulls": b"GET / HTTP/1.1\r\nHost: x\r\nX: \0\r\n\r\n",
    "header of high bytes": b"GET / HTTP/1.1\r\nHost: x\r\n\xff\xfe: y\r\n\r\n",
    "header too long": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "path of nulls": b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    "path of high bytes": b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "path of bad escapes": b"GET /%ff%00%zz HTTP/1.1\r\nHost: x\r\n\r\n",
    "query of bad escapes": b"GET /metrics?name[]=%ff&x=%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "version 9.9": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "version of letters": b"GET / HTTP/a.b\r\nHost: x\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "unknown method": b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
    "method of nulls": b"\0\0\0 / HTTP/1.1\r\nHost: x\r\n\r\n",
    "nulls": bytes(200),
    "high bytes": b"\xff" * 200,
    "lines": b"\r\n" * 200,
    "TLS": bytes.fromhex("160301006f0100006b0303") + bytes(100),
    "WebSocket": b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n\x81\x85",
    "HTTP/2 upgrade": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
    "HTTP/2 preface": _PREFACE,
    "HTTP/2 without settings": _PREFACE + b"\0" * 60,
    "HTTP/2 frame too large": _PREFACE + _SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1",
    "HTTP/2 headers of garbage": _PREFACE + _SETTINGS + bytes.fromhex("000010010500000001") + b"\xff" * 16,
    "HTTP/2 data on no stream": _PREFACE + _SETTINGS + bytes.fromhex("000004000100000005") + b"abcd",
    "HTTP/2 window of 0": _PREFACE + _SETTINGS + bytes.fromhex("00000408000000000000000000"),
    "HTTP/2 settings out of range": _PREFACE + bytes.fromhex("00000604000000000000040000ffff"),
    "expectation": _POST + b"Expect: 200-maybe\r\nContent-Length: 5\r\n\r\nhello",
    "request after a close": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" * 2,
    "pipelined garbage": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n\0\0\0\0",
    "body longer than its length": _POST + b"Content-Length: 2\r\n\r\n{}{}{}{}",
    "body cut short": _POST + b"Content-Length: 500\r\n\r\n{",
    "forged log lines": b"GET /\r\n2026-01-01 E forged\r\n HTTP/1.1\r\n\r\n",
}


def send(port: int, data: bytes, *, split: bool = False, reset: bool = False) -> bytes:
    """Send bytes, and return what is answered until the end of the connection.

    Args:
      split: await an answer to the header for a moment before the rest is sent.
      reset: end the connection at once instead of reading an answer.
    """
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        head, end, rest = data.partition(b"\r\n\r\n")
        client.sendall(head + end if split else data)
        if split:
            client.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                answer += client.recv(1 << 16)
            client.settimeout(5)
            client.sendall(rest)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return answer
        client.shutdown(socket.SHUT_WR)
        while part := client.recv(1 << 16):
            answer += part
    return answer
