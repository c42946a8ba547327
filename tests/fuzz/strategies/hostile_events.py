"""Messages that any client may send to the topic of events: plain Python, the same message for a seed.

None of them becomes a row of the raw store: each is rejected as a whole or in each of its runs, or its log lies where
none may be fetched. `CANARY` stands where a secret would; nothing that is kept may hold it.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from typing import Any

CANARY = "c4n4ryZq7"
Header = tuple[str | bytes, bytes | None]
Parts = tuple[bytes | None, list[Header]]

STRUCTURED: Header = ("content-type", b"application/cloudevents+json")
URLS = (
    f"https://user:{CANARY}@logs.invalid/a.gz", f"https://user:{CANARY}/{CANARY}@logs.invalid/a.gz",
    f"https://logs.invalid/a.gz?X-Amz-Signature={CANARY}", f"https://logs.invalid/a.gz?token[]={CANARY}",
    f"https://logs.invalid/a?next=https%3A%2F%2Fh%2F%3Fsig%3D{CANARY}", f"//{CANARY}@logs.invalid",
    f"https://logs.invalid/a#access_token={CANARY}", f"password%253D{CANARY}", f"Authorization: Bearer {CANARY}",
)  # fmt: skip
TEXTS = (
    "",
    " ",
    "\u202e",
    "a\u200db",
    "\ud800",
    "\x00",
    "../../etc",
    "x" * 5000,
    "\u2028",
    "é" * 300,
    "~",
    "a b",
    "%",
    "-",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    [],
    {},
    -1,
    0,
    1.5,
    10**30,
    10**400,
    "9999-12-31T23:59:59-14:00",
    "0001-01-01T00:00:00+14:00",
)
TIMES_MS = (0, -1, -2, 1, 1_795_521_600_000, 4_102_444_800_000, 10**16, 2**62)


def run(number: int, **more: Any) -> dict[str, Any]:
    """A whole run, whose log may not be fetched."""
    return {
        "id": f"hostile-{number}", "job": "hostile", "result": "SUCCESS", "pipeline": "gate", "end_time": 1795521600,
        "log_url": "https://logs.invalid/dstat.gz", **more,
    }  # fmt: skip


def envelope(data: Any, number: int, **more: Any) -> dict[str, Any]:
    """An event in bare or structured mode."""
    fields = {"specversion": "1.0", "id": f"hostile-{number}", "source": "zuul", "type": "dev.ciml.run.finished.v1"}
    return {**fields, "data": data, **more}


def bare(data: Any, number: int, **more: Any) -> bytes:
    return json.dumps(envelope(data, number, **more)).encode()


def binary(number: int, *more: Header) -> list[Header]:
    names = {"specversion": "1.0", "id": f"hostile-{number}", "source": "zuul", "type": "dev.ciml.run.finished.v1"}
    return [*((f"ce_{name}", value.encode()) for name, value in names.items()), *more]


def _field(random: random.Random, number: int) -> Parts:
    """A field that holds what it may not, or a secret."""
    field = random.choice(
        ("id", "attempt", "job", "result", "outcome", "start_time", "end_time", "event", "labels", "branch")
    )
    return bare(run(number, **{field: random.choice((*TEXTS, *VALUES, *URLS))}), number), []


def _attribute(random: random.Random, number: int) -> Parts:
    field = random.choice(("id", "source", "type", "time", "specversion", "data", "data_base64"))
    return json.dumps({**envelope(run(number), number), field: random.choice((*TEXTS, *VALUES, *URLS))}).encode(), []


def _cut(random: random.Random, number: int) -> Parts:
    url = random.choice([url for url in URLS if not url.startswith("//")])  # cut before its @, that would be a host
    value = bare(run(number, log_url=url, labels={"password": CANARY}), number)
    return value[: random.randrange(len(value))], []


def _flipped(random: random.Random, number: int) -> Parts:
    value = bytearray(bare(run(number, log_url=random.choice(URLS)), number))
    end = value.index(b'"log_url"')
    for _ in range(random.randrange(1, 9)):
        value[random.randrange(end)] ^= 1 << random.randrange(8)
    return bytes(value), []


def _escaped(random: random.Random, number: int) -> Parts:
    """A secret whose name and signs are escaped, in a payload that is broken."""
    hidden = "".join(f"\\u{ord(letter):04x}" if random.random() < 0.5 else letter for letter in random.choice(URLS))
    return b'{"a": 1, "a": 2, "url": "' + hidden.encode() + b'"}', []


def _base64(random: random.Random, number: int) -> Parts:
    data = base64.b64encode(json.dumps(run(number, token=CANARY)).encode()).decode()
    return json.dumps({**envelope(None, number), "data_base64": data}).encode(), []


def _runs(random: random.Random, number: int) -> Parts:
    runs: list[Any] = [run(number * 1000 + at, log_url=random.choice(URLS)) for at in range(random.randrange(1, 9))]
    runs[random.randrange(len(runs))] = random.choice((*VALUES, run(number * 1000), {}))
    return bare({"runs": runs}, number), []


def _header(random: random.Random, number: int) -> Parts:
    name = random.choice(("content-type", "ce_id", "", "a\u202e", "traceparent"))
    secret = random.choice(("x-api-key", "token", "Authorization", "ce_token", "cookie", "x-hub-signature-256"))
    return bare(run(number), number), [(name, random.choice((None, b"", b"\xff"))), (secret, CANARY.encode())]


def _binary(random: random.Random, number: int) -> Parts:
    value = json.dumps(run(number, log_url=random.choice(URLS))).encode()
    return value, binary(
        number, (random.choice(("ce_id", "ce_x", "content-type")), random.choice((b"\xff", b"a\nb", b"text/html")))
    )


KINDS: dict[str, Callable[[random.Random, int], Parts]] = {
    "tombstone": lambda r, n: (None, []),
    "empty": lambda r, n: (b"", [STRUCTURED]),
    "noise": lambda r, n: (r.randbytes(r.randrange(1, 300)), []),
    "noise with headers": lambda r, n: (r.randbytes(40), binary(n)),
    "no object": lambda r, n: (r.choice((b"[]", b"17", b'"x"', b"null", b"true")), []),
    "a field": _field,
    "an attribute": _attribute,
    "cut": _cut,
    "flipped bits": _flipped,
    "escaped secrets": _escaped,
    "base64": _base64,
    "several runs": _runs,
    "too many runs": lambda r, n: (bare({"runs": [{}] * 1001}, n), []),
    "the same run twice": lambda r, n: (bare({"runs": [run(n), run(n)]}, n), []),
    "headers": _header,
    "binary": _binary,
    "a header name is not UTF-8": lambda r, n: (bare(run(n), n), [(r.choice((b"\xff", b"ce_\xe9", b"\xc3")), b"")]),
    "a header twice": lambda r, n: (json.dumps(run(n)).encode(), [*binary(n), *binary(n)]),
    "headers without number": lambda r, n: (bare(run(n), n), [("", None)] * r.choice((257, 3000))),
    "a huge header": lambda r, n: (b"{", [("ce_id", b"x" * r.choice((600, 100_000)))]),
    "another content type": lambda r, n: (b"x", [("content-type", r.choice((b"text/html", b"\xff" * 99)))]),
    "nested lists": lambda r, n: (b"[" * r.choice((33, 1000, 50_000)), []),
    "nested objects": lambda r, n: (b'{"a":' * 400 + b"1" + b"}" * 400, []),
    "a key twice": lambda r, n: (b"{" + b",".join(b'"%d":1' % min(i, 1998) for i in range(2000)) + b"}", []),
    "a huge number": lambda r, n: (b'{"a":' + b"9" * r.choice((1001, 5000, 50_000)) + b"}", []),
    "no number": lambda r, n: (b'{"a":' + r.choice((b"NaN", b"-Infinity", b"1e999", b"01", b"0x1", b"+1")) + b"}", []),
    "a byte order mark": lambda r, n: (b"\xef\xbb\xbf" + bare(run(n), n), []),
    "UTF-16": lambda r, n: (json.dumps(envelope(run(n, token=CANARY), n)).encode("utf-16"), []),
    "lone surrogates": lambda r, n: (bare(run(n, project="\ud800" * 40), n), []),
    "direction of writing": lambda r, n: (bare(run(n, job="ecin\u202e"), n), []),
    "many labels": lambda r, n: (bare(run(n, labels={f"l{i}": i for i in range(65)}), n), []),
    "a long text": lambda r, n: (bare(run(n, branch="x" * r.choice((1025, 200_000))), n), []),
    "another type": lambda r, n: (bare(run(n), n, type=f"https://u:{CANARY}@type"), []),
    "a secret for an id": lambda r, n: (bare(run(n, id=r.choice(URLS[:4])), n), []),
    "a forbidden log": lambda r, n: (bare(run(n, log_url=r.choice((*URLS, "file:///etc/shadow"))), n), []),
}  # fmt: skip


def hostile_event(seed: int) -> tuple[bytes | None, list[Header], int]:
    """A hostile message.

    Args:
      seed: the same seed gives the same message; consecutive ones take the kinds of `KINDS` in turn.

    Returns:
      (value, headers, CreateTime in epoch milliseconds, 0 for the present). A header's name may be bytes that are not
      UTF-8, which `tests.raw_producer` sends. A topic takes the times only with ``message.timestamp.after.max.ms`` and
      ``message.timestamp.before.max.ms`` at their greatest.
    """
    chosen = random.Random(seed)
    kind = list(KINDS.values())[seed % len(KINDS)]
    value, headers = kind(chosen, seed)
    return value, headers, chosen.choice(TIMES_MS)
