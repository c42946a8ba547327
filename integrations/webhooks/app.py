"""The application of the receiver of webhooks: an endpoint for each configured source, and its answers.

The cheapest checks come first: path, method and headers before the body, and the signature before anything reads the
body. Only verified deliveries count towards the rate of a source, so a sender without a secret cannot use it up. A
delivery is accepted once within a window.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ciml.errors import CimlError, EngineError
from ciml.http.intake import Held, Intake, RequestError
from ciml.integrations.adapter import Adapter
from ciml.integrations.config import Receivers, WebhookSource
from ciml.integrations.producer import UNKNOWN, DeliveryProducer, ReceiverMetrics
from ciml.integrations.registry import delivered, find_adapter
from ciml.integrations.secrets import Secrets
from ciml.integrations.webhooks.signatures import SCHEMES, UNSIGNED, Claim, Scheme, client_scheme
from ciml.limits import MAX_KNOWN_DELIVERIES, MAX_SIGNATURE_AGE_S

_MTLS = "mtls"
_NONE = "none"
_OWN_PATHS = ("/healthz", "/readyz")
#: Bodies of HTML forms, which no adapter reads: GitHub sends one where its webhook has that content type.
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_AGAIN_S = 5  # for a sender that is asked to try again
#: The outcome of a delivery for metrics, by status; "rejected" for all others.
_OUTCOMES = {
    401: "unauthorized",
    404: "not_found",
    408: "slow",
    413: "too_large",
    429: "rate_limited",
    499: "disconnected",
    500: "internal_error",
    503: "unavailable",
}
#: Statuses that are not logged as warnings: the sender's connection, and Kafka's own warning.
_NOT_LOGGED = frozenset({499, 500, 503})
_log = logging.getLogger(__name__)

Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


@dataclass(frozen=True)
class Endpoint:
    """A source that the server answers.

    Attributes:
      source: its configuration.
      scheme: of its signatures.
      secrets: with which it signs; none for ``mtls`` and ``none``.
      adapter: reads its deliveries in ingest.
      bucket: limits its verified deliveries.
      proxies: whose requests may name a verified client; only for ``mtls``.
    """

    source: WebhookSource
    scheme: Scheme
    secrets: Secrets
    adapter: Adapter
    bucket: Bucket
    proxies: Networks = ()

    @property
    def name(self) -> str:
        return self.source.name

    def headers(self) -> frozenset[str]:
        """Return the names of the headers that are read: none of them may appear twice."""
        return frozenset((*self.scheme.headers, *self.scheme.ids, *self.adapter.headers))

    def claim(self, headers: Mapping[str, str], address: str) -> Claim | None:
        """Return what a request says about its sender; None if it cannot be true."""
        if self.source.auth == _MTLS and not _is_within(address, self.proxies):
            return None
        return self.scheme.read(headers, time.time())

    def is_proved(self, claim: Claim, body: bytes = b"") -> bool:
        """Return whether the sender is the source."""
        return claim.is_proved(body, self._keys())

    def _keys(self) -> list[bytes]:
        if self.scheme is UNSIGNED:
            return [b""]
        return [client.encode() for client in self.source.clients] or self.secrets.keys()


def make_endpoints(receivers: Receivers) -> dict[str, Endpoint]:
    """Return the endpoints by path.

    Raises:
      CimlError: one line that names the file, the source, the key and its value.
    """
    by_path: dict[str, Endpoint] = {}
    for source in receivers.of(WebhookSource):
        where = receivers.where(source)
        if source.posted_to in (*by_path, *_OWN_PATHS):
            raise CimlError(f"{where}: path: {source.posted_to} is in use already; choose another")
        by_path[source.posted_to] = _endpoint(receivers, source, where)
    return by_path


def _endpoint(receivers: Receivers, source: WebhookSource, where: str) -> Endpoint:
    adapter = find_adapter(source.adapter)
    auth = source.auth or adapter.signature
    if not auth:
        raise CimlError(
            f"{where}: auth is missing, and deliveries of {source.adapter} have no signature; choose {_MTLS}, bearer, "
            f"or {_NONE} for deliveries that anyone can send"
        )
    scheme = _scheme(source, auth, where)
    proxies = receivers.webhooks.proxies
    secrets = Secrets(where, source, receivers.file.parent, scheme.key)
    if bool(secrets) != (auth not in (_MTLS, _NONE)):
        problem = "has no use for secret_file and secret_env" if secrets else "needs secret_file or secret_env"
        raise CimlError(f"{where}: auth {auth} {problem}")
    if auth == _MTLS and not (source.client_header and source.clients and proxies):
        raise CimlError(f"{where}: auth {_MTLS} needs client_header, clients, and proxies of [webhooks]")
    if auth != _MTLS and (source.client_header or source.clients):
        raise CimlError(f"{where}: client_header and clients are of auth {_MTLS}, not {auth}")
    networks = tuple(map(ipaddress.ip_network, proxies)) if auth == _MTLS else ()
    return Endpoint(source.replace(auth=auth), scheme, secrets, adapter, Bucket(source.rate, source.burst), networks)


def _scheme(source: WebhookSource, auth: str, where: str) -> Scheme:
    if auth == _MTLS:
        return client_scheme(source.client_header.lower())
    if auth == _NONE:
        return UNSIGNED
    if auth not in SCHEMES:
        raise CimlError(f"{where}: auth: {auth!r:.80} is unknown; choose from {', '.join((*SCHEMES, _MTLS, _NONE))}")
    return SCHEMES[auth]


def _is_within(address: str, networks: Networks) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(ip in network for network in networks)


class _Answer(RequestError):
    """An answer other than 202."""

    def __init__(self, status: int, message: str, retry_s: float = 0.0) -> None:
        super().__init__("", message, status)
        self.retry_s = retry_s


class Answers:
    """The answers to all requests.

    Args:
      producer: to the topic of deliveries.
      intake: reads the bodies.
      metrics: of deliveries.
      unready: why deliveries cannot be acknowledged at present; "" if they can.
    """

    def __init__(
        self, producer: DeliveryProducer, intake: Intake, metrics: ReceiverMetrics, unready: Callable[[], str]
    ) -> None:
        self._producer = producer
        self._intake = intake
        self._metrics = metrics
        self._unready = unready
        self._replays = Replays(MAX_SIGNATURE_AGE_S, MAX_KNOWN_DELIVERIES)
        self._accepting: dict[bytes, asyncio.Task[None]] = {}

    def application(self, endpoints: Mapping[str, Endpoint]) -> Starlette:
        """Return the ASGI application of the sources by path."""
        routes = [Route(path, self.endpoint(endpoint), methods=["POST"]) for path, endpoint in endpoints.items()]
        routes += [Route("/healthz", self.alive, methods=["GET"]), Route("/readyz", self.ready, methods=["GET"])]
        starlette = Starlette(routes=routes, exception_handlers={HTTPException: self.unrouted})
        starlette.router.redirect_slashes = False
        return starlette

    def endpoint(self, endpoint: Endpoint) -> Callable[[Request], Any]:
        """Return what answers the deliveries of a source."""

        async def answer(request: Request) -> Response:
            began_s = time.perf_counter()
            try:
                with self._intake.hold(endpoint.source.max_bytes) as held:
                    outcome = await self._receive(request, endpoint, held)
            except RequestError as error:
                return self._reject(endpoint, error)
            except ClientDisconnect:
                return self._reject(endpoint, _Answer(499, "the sender disconnected"))
            except Exception:  # noqa: BLE001 - the sender gets an answer, the log the traceback
                _log.exception("a delivery of %s failed", endpoint.name)
                return self._reject(endpoint, _Answer(500, "internal error; see the receiver's log", _AGAIN_S))
            if outcome == "repeat":
                self._metrics.count(endpoint.name, outcome)
            else:
                self._metrics.acknowledged(endpoint.name, time.perf_counter() - began_s)
            return _json({"accepted": True}, 202)

        return answer

    async def _receive(self, request: Request, endpoint: Endpoint, held: Held) -> str:
        """Verify a delivery and produce it; return the outcome."""
        headers = _read_headers(request, endpoint)
        _check_headers(headers)
        self._intake.check_length(held, headers.get("content-length"))
        claim, body = await self._verify(request, endpoint, held, headers)
        identity = claim.identity(body)
        if not identity:
            await self._accept(endpoint, body, headers)
            return "accepted"
        key = endpoint.name.encode() + identity
        if self._replays.has(key, time.monotonic()):
            return "repeat"
        if key in self._accepting:
            await self._accepting[key]  # a copy has the outcome of the first
            return "repeat"
        accepting = self._accepting[key] = asyncio.create_task(self._accept(endpoint, body, headers))
        try:
            await accepting
        finally:
            del self._accepting[key]
        self._replays.add(key, time.monotonic())
        return "accepted"

    async def _accept(self, endpoint: Endpoint, body: bytes, headers: Mapping[str, str]) -> None:
        """Count a verified delivery towards the rate of its source, and produce it."""
        if wait_s := endpoint.bucket.take(time.monotonic()):
            raise _Answer(429, f"more than {endpoint.source.rate:g} deliveries a second", wait_s)
        value, message_headers = delivered(
            endpoint.adapter, endpoint.name, body, headers, endpoint.scheme.auth, endpoint.scheme.delivery_id(headers)
        )
        try:
            await self._producer.deliver(value, message_headers)
        except EngineError:
            raise _Answer(503, "the broker did not acknowledge the delivery; send it again", _AGAIN_S) from None
        except CimlError as error:
            _log.warning("%s", error)
            raise _Answer(413, "the broker rejects the delivery as too large") from None

    async def _verify(
        self, request: Request, endpoint: Endpoint, held: Held, headers: Mapping[str, str]
    ) -> tuple[Claim, bytes]:
        """Return the proved claim about the sender, and the body. It is not read if the headers alone disprove it."""
        claim = endpoint.claim(headers, request.client.host if request.client else "")
        if claim is None or not (endpoint.scheme.needs_body or endpoint.is_proved(claim)):
            raise _Answer(401, "unauthorized")
        body = await self._intake.read(held, request.stream())
        if endpoint.scheme.needs_body and not endpoint.is_proved(claim, body):
            raise _Answer(401, "unauthorized")
        if not body:
            raise _Answer(400, "the body is empty")
        return claim, body

    def _reject(self, endpoint: Endpoint, error: RequestError) -> Response:
        status = error.http_status
        retry_s = _AGAIN_S if status == 503 else 0.0
        if isinstance(error, _Answer):
            retry_s = error.retry_s
        if status in _NOT_LOGGED:
            self._metrics.count(endpoint.name, _OUTCOMES[status])
        else:
            outcome = _OUTCOMES.get(status, "rejected")
            self._metrics.count_rejected(endpoint.name, outcome, f"answered {status}: {error.message}")
        return _error(status, error.message, retry_s)

    async def unrouted(self, request: Request, error: Exception) -> Response:
        """Answer a request for an unknown path or with a wrong method. The body is not read."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        if status == 405:
            answer = _error(status, "use POST for deliveries, GET for /healthz and /readyz")
            answer.headers.update(getattr(error, "headers", None) or {})
            return answer
        self._metrics.count(UNKNOWN, _OUTCOMES.get(status, "rejected"))
        return _error(status, "no source has this path")

    async def alive(self, _: Request) -> Response:
        return _json({"alive": True})

    async def ready(self, _: Request) -> Response:
        why = self._unready()
        return _json({"ready": not why}, 503 if why else 200)


def _read_headers(request: Request, endpoint: Endpoint) -> dict[str, str]:
    """Return the request's headers by lower-case name."""
    headers: dict[str, str] = {}
    needed = endpoint.headers()
    for name, value in request.headers.items():
        if name in headers and name in needed:
            raise _Answer(400, f"the header {name} appears twice")
        headers[name] = value
    return headers


def _check_headers(headers: Mapping[str, str]) -> None:
    if headers.get("content-type", "").partition(";")[0].strip().lower() in _FORMS:
        raise _Answer(415, "want JSON as it is, not a form: choose the content type application/json at the sender")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise _Answer(415, "want a body without a content encoding")


def _json(value: dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(value), status, headers, media_type="application/json")


def _error(status: int, message: str, retry_s: float = 0.0) -> Response:
    return _json({"error": message}, status, {"retry-after": str(math.ceil(retry_s))} if retry_s else None)


class Replays:
    """The deliveries that were acknowledged lately.

    A delivery that was not acknowledged is none of them, so that its sender may send it again. A restart forgets all:
    exactness comes from the ids of events in ingest, and this only keeps copies out of the topic.

    Args:
      window_s: for which a delivery is remembered, seconds.
      most: the most deliveries; one more forgets the oldest.
    """

    def __init__(self, window_s: float, most: int) -> None:
        self._window_s = window_s
        self._most = most
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def has(self, key: bytes, now_s: float) -> bool:
        """Return whether the delivery was acknowledged within the window."""
        added_s = self._known.get(key)
        return added_s is not None and added_s >= now_s - self._window_s

    def __len__(self) -> int:
        return len(self._known)

    def add(self, key: bytes, now_s: float) -> None:
        """Remember an acknowledged delivery, and forget those before the window."""
        self._known[key] = now_s
        self._known.move_to_end(key)
        while len(self._known) > self._most or self._known[next(iter(self._known))] < now_s - self._window_s:
            self._known.popitem(last=False)


class Bucket:
    """A token bucket.

    Args:
      rate: tokens a second.
      burst: the most tokens; it starts with them.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._seen_s = 0.0

    def take(self, now_s: float) -> float:
        """Take a token; return 0, or the seconds until there is one."""
        self._tokens = min(self._burst, self._tokens + (now_s - self._seen_s) * self._rate)
        self._seen_s = now_s
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self._rate
        self._tokens -= 1.0
        return 0.0
