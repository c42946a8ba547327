"""Logs from objects in S3, within the common limits on time and bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ciml.errors import RejectedInput
from ciml.http.addresses import Address
from ciml.transforms.fetch.decompress import gunzip
from ciml.transforms.fetch.policy import FetchPolicy, LogUnavailableError

_PIECE = 1 << 18
_ATTEMPTS = 3  # requests of an object, by boto with its own pauses; all within the time limit of the fetch
_GONE = ("NoSuchKey", "404", "NotFound")


class S3Logs:
    """Fetches logs from S3, with the credentials and the endpoint of the environment. Safe for many threads.

    Args:
      policy: the limits; ``total_s`` includes boto's retries and a second try.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._client = self._new_client()

    def _new_client(self) -> Any:
        import boto3
        from botocore.config import Config

        policy = self._policy
        config = Config(
            connect_timeout=policy.connect_s,
            read_timeout=policy.read_s,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            max_pool_connections=2 * policy.threads,
            response_checksum_validation="when_required",  # a check would read the whole body, without a time limit
        )
        return boto3.session.Session().client("s3", config=config)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def fetch(self, address: Address, grow: Callable[[int], None] | None = None, end: float | None = None) -> bytes:
        """Fetch the log in an object, unpacked. A truncated response is retried once, at once.

        Args:
          address: an s3 address.
          grow: as in `ciml.transforms.fetch.decompress.gunzip`.
          end: when to stop, by ``time.monotonic``; after ``total_s`` by default.

        Raises:
          RejectedInput: ``log_too_large``, ``corrupt_gzip``.
          LogUnavailableError: ``log_not_found``, ``log_unavailable``, ``log_timeout``, ``log_cut``.
        """
        if end is None:
            end = time.monotonic() + self._policy.total_s
        try:
            return gunzip(self._wire(address, end), self._policy.max_bytes, grow)
        except LogUnavailableError as failure:
            if not failure.hiccup:
                raise
        return gunzip(self._wire(address, end), self._policy.max_bytes, grow)

    def _wire(self, address: Address, end: float) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError, TimeoutError

        answer = self._ask(address, end)
        body = answer["Body"]
        size = 0
        announced = int(answer["ContentLength"])
        try:
            if announced > self._policy.max_wire_bytes:
                raise RejectedInput(
                    "log_too_large", f"{announced} bytes announced, at most {self._policy.max_wire_bytes}"
                )
            while size < announced:
                body.set_socket_timeout(min(self._policy.read_s, _left(end)))
                # The bytes available after at most one wait: `body.read` waits for all requested bytes.
                piece = body._raw_stream.read1(min(_PIECE, announced - size))
                if not piece:
                    raise LogUnavailableError("log_cut", "the response ended before its announced length", hiccup=True)
                size += len(piece)
                yield piece
        except TimeoutError:
            raise LogUnavailableError("log_timeout", "no response in time") from None
        except (HTTPError, OSError) as error:
            raise LogUnavailableError("log_cut", f"{error!s:.200}", hiccup=True) from None
        finally:
            body.close()

    def _ask(self, address: Address, end: float) -> Any:
        """Request an object; return once its headers have arrived. A slow server is abandoned in its thread."""
        from botocore.exceptions import NoCredentialsError, PartialCredentialsError

        answers: list[Any] = []
        left_behind = threading.Event()

        def ask() -> None:
            try:
                answer = self._client.get_object(Bucket=address.host, Key=address.path)
            except (NoCredentialsError, PartialCredentialsError) as error:
                self._client = self._new_client()  # a client without credentials never looks for them again
                answers.append(error)
                return
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
            raise LogUnavailableError("log_timeout", "no response in time")
        if isinstance(answers[0], Exception):
            raise _failed(answers[0])
        return answers[0]


def _left(end: float) -> float:
    remaining = end - time.monotonic()
    if remaining <= 0:
        raise LogUnavailableError("log_timeout", "the time limit of the fetch was reached")
    return remaining


def _failed(error: Exception) -> Exception:
    """Convert a failed request to the log's error; return the error itself where S3 did not cause it."""
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
