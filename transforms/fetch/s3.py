"""Logs from objects in S3, within the limits on time and bytes that a log from anywhere has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ciml.errors import RejectedInput
from transforms.fetch.addresses import Address
from transforms.fetch.errors import LogUnavailableError
from transforms.fetch.gunzip import gunzip

_PIECE = 1 << 18
_ATTEMPTS = 3  # of asking for an object, by boto with pauses of its own; all within the time of the whole fetch
_GONE = ("NoSuchKey", "404", "NotFound")


class S3Logs:
    """Fetches logs from S3, with the credentials and the endpoint of the environment. Safe for many threads.

    Args:
      connect_s: time limit of one connection, s.
      read_s: of the wait for any next bytes, s.
      total_s: of the whole fetch, boto's tries and a second one included, s.
      max_wire_bytes: how many bytes may come over the wire.
      max_bytes: how many there may be unpacked.
      threads: how many will call at once.
    """

    def __init__(
        self, *, connect_s: float, read_s: float, total_s: float, max_wire_bytes: int, max_bytes: int, threads: int
    ) -> None:
        import boto3
        from botocore.config import Config

        self._read_s, self._total_s = read_s, total_s
        self._max_wire_bytes, self._max_bytes = max_wire_bytes, max_bytes
        config = Config(
            connect_timeout=connect_s,
            read_timeout=read_s,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            max_pool_connections=2 * threads,
            response_checksum_validation="when_required",  # a check would read the body whole, in a time of its own
        )
        self._client = boto3.session.Session().client("s3", config=config)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def fetch(self, address: Address, grow: Callable[[int], None] | None = None) -> bytes:
        """Return the log in an object, unpacked. An answer that is cut is tried once more at once.

        Args:
          address: of s3.
          grow: as in `transforms.fetch.gunzip.gunzip`.

        Raises:
          RejectedInput: ``log_too_large``, ``corrupt_gzip``.
          LogUnavailableError: ``log_not_found``, ``log_unavailable``, ``log_timeout``, ``log_cut``.
        """
        end = time.monotonic() + self._total_s
        try:
            return gunzip(self._wire(address, end), self._max_bytes, grow)
        except LogUnavailableError as failure:
            if not failure.hiccup:
                raise
        return gunzip(self._wire(address, end), self._max_bytes, grow)

    def _wire(self, address: Address, end: float) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError, TimeoutError

        answer = self._ask(address, end)
        body, size, announced = answer["Body"], 0, int(answer["ContentLength"])
        try:
            if announced > self._max_wire_bytes:
                raise RejectedInput("log_too_large", f"{announced} bytes announced, at most {self._max_wire_bytes}")
            while size < announced:
                body.set_socket_timeout(min(self._read_s, _left(end)))
                # What has come so far, by at most one wait: `body.read` waits for all that was asked for.
                piece = body._raw_stream.read1(min(_PIECE, announced - size))
                if not piece:
                    raise LogUnavailableError("log_cut", "the answer ended before its announced length", hiccup=True)
                size += len(piece)
                yield piece
        except TimeoutError:
            raise LogUnavailableError("log_timeout", "no answer in time") from None
        except (HTTPError, OSError) as error:
            raise LogUnavailableError("log_cut", f"{error!s:.200}", hiccup=True) from None
        finally:
            body.close()

    def _ask(self, address: Address, end: float) -> Any:
        """Return the object, once its headers have come. A server that is too slow is left behind in its thread."""
        answers: list[Any] = []
        left_behind = threading.Event()

        def ask() -> None:
            try:
                answer = self._client.get_object(Bucket=address.host, Key=address.path)
            except Exception as error:  # noqa: BLE001  # raised by the thread that waits
                answers.append(error)
                return
            if left_behind.is_set():
                answer["Body"].close()
            answers.append(answer)

        thread = threading.Thread(target=ask, name=f"s3 {address.host}", daemon=True)
        thread.start()
        thread.join(_left(end))
        if not answers:
            left_behind.set()
            raise LogUnavailableError("log_timeout", "no answer in time")
        if isinstance(answers[0], Exception):
            raise _failed(answers[0])
        return answers[0]


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise LogUnavailableError("log_timeout", "the time for the whole fetch is over")
    return left


def _failed(error: Exception) -> Exception:
    """What a failed request means for the log; the error itself where it is no answer of S3 and no failure of its."""
    from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, ReadTimeoutError

    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _GONE:
            return LogUnavailableError("log_not_found", "no such object")
        return LogUnavailableError("log_unavailable", f"answered {code:.80}")
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError):
        return LogUnavailableError("log_timeout", f"{error!s:.200}")
    if isinstance(error, BotoCoreError):
        return LogUnavailableError("log_unavailable", f"{error!s:.200}")
    return error
