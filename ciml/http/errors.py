"""Errors of requests: the name of a gRPC status code, and a message that says what to change."""

from __future__ import annotations

#: HTTP status by gRPC status, as TensorFlow Serving maps them.
HTTP_STATUS = {
    "OK": 200,
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 503,
    "FAILED_PRECONDITION": 412,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
}

_MESSAGE_CHARS = 1000


class RequestError(Exception):
    """A failed request: ``code`` names a gRPC status, ``http_status`` is the HTTP status."""

    def __init__(self, code: str, message: str, http_status: int | None = None) -> None:
        # gRPC sends the message in a header of limited size, and it may quote the client's input.
        message = message if len(message) <= _MESSAGE_CHARS else message[:_MESSAGE_CHARS] + "…"
        super().__init__(message)
        self.code = code
        self.message = message
        self.http_status = http_status or HTTP_STATUS.get(code, 500)


def invalid(message: str) -> RequestError:
    """Return an INVALID_ARGUMENT error: the same request fails again."""
    return RequestError("INVALID_ARGUMENT", message)


def too_large(message: str) -> RequestError:
    """Return an INVALID_ARGUMENT error (HTTP 413) whose message names the exceeded limit."""
    return RequestError("INVALID_ARGUMENT", message, http_status=413)


def not_found(message: str) -> RequestError:
    """Return a NOT_FOUND error: no such model or version (yet)."""
    return RequestError("NOT_FOUND", message)
