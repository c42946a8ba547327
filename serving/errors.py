"""What a request is answered with when it fails: a gRPC status code by name, and a line that says what to change."""

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


class RequestError(Exception):
    """A request that cannot be answered. ``code`` is the name of a gRPC status."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def http_status(self) -> int:
        return HTTP_STATUS.get(self.code, 500)


def invalid(message: str) -> RequestError:
    """The request is wrong, and stays so when it is tried again."""
    return RequestError("INVALID_ARGUMENT", message)


def not_found(message: str) -> RequestError:
    """There is no such model or version (yet)."""
    return RequestError("NOT_FOUND", message)
