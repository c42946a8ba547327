"""A model server under slow clients, attacks on its memory and good traffic: python -m tests.serving.siege

Slow clients hold connections: silent ones, half a header, half a body, and half a message over gRPC. One that is
closed comes back. The good requests come from an address of their own, on new connections over REST and on one
channel over gRPC. All on 127.0.0.0/8, and bounded in count and time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from tests.serving.models_fixture import columns, runs, save_model
from tests.serving.process import MIB, ServerProcess, server_process

_AWAY_S = 2.0  # until a closed slow client reconnects
_GOOD_TIMEOUT_S = 15.0
_HOST = "127.0.0.1"
_SLOW_HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
_POST = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
_SLOW = (b"", b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nX-Slow: ", *[_POST % 100_000 + b"{"] * 2)


@dataclass
class Siege:
    """The results.

    Attributes:
      good: good requests that were answered rightly.
      failures: what was wrong with the others.
      closed: the first lines of answers to slow clients and attackers.
      held: the most slow connections at once, as the clients see it; open: those of now.
      rss: the server's peak, bytes.
      seconds: the durations of good answers.
    """

    good: int = 0
    failures: list[str] = field(default_factory=list)
    closed: Counter[str] = field(default_factory=Counter)
    held: int = 0
    open: int = 0
    rss: int = 0
    seconds: list[float] = field(default_factory=list)


async def _forever(work: Callable[[], Awaitable[None]], every_s: float) -> None:
    while True:
        await work()
        await asyncio.sleep(every_s * random.uniform(0.5, 1.5))  # else all reconnect at once


async def _exchange(port: int, data: bytes, source: str = _HOST) -> tuple[str, bytes]:
    """Send bytes, and wait until the server closes; return the first line of its answer, and the body."""
    reader, writer = await asyncio.open_connection(_HOST, port, local_addr=(source, 0))
    try:
        writer.write(data)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    return head.partition(b"\r\n")[0].decode(errors="replace")[:60], body


async def _slow(siege: Siege, port: int, start: bytes, source: str) -> None:
    siege.open += 1
    siege.held = max(siege.held, siege.open)
    try:
        line, _ = await _exchange(port, start, source)
        siege.closed[line if line.startswith("HTTP") else "closed"] += 1
    except OSError as error:
        siege.closed[type(error).__name__] += 1
    finally:
        siege.open -= 1


async def _half_message(siege: Siege, predict: Any) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.sleep(3600)
        yield b""

    try:
        await predict(nothing())
    except grpc.aio.AioRpcError as error:
        siege.closed[f"{error.code().name}: {error.details()}"[:60]] += 1


async def _attack(siege: Siege, port: int, predict: Any) -> None:
    """Send a long string among short ones over REST, and many tensors that unpack to 64 MiB each over gRPC."""
    from tensorflow_serving.apis import predict_pb2

    body = {"signature_name": "several", "inputs": {"x": ["a"] * 8_000 + ["b" * 100_000], "s": ["a"]}}
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    for number in range(40):
        tensor = request.inputs[f"x{number}"]
        tensor.dtype = 1
        tensor.float_val.append(1.0)
        tensor.tensor_shape.dim.add().size = 16 * MIB
    try:
        data = json.dumps(body).encode()
        line, _ = await _exchange(port, _POST % len(data) + data)
        siege.closed[f"attack: {line}"] += 1
        await predict(request.SerializeToString(), timeout=_GOOD_TIMEOUT_S)
    except OSError as error:
        siege.closed[f"attack: {type(error).__name__}"] += 1
    except grpc.aio.AioRpcError as error:
        siege.closed[f"attack: {error.code().name}"] += 1


def _answer(data: bytes) -> Any:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    return tf.make_ndarray(predict_pb2.PredictResponse.FromString(data).outputs["probabilities"])


def _good_request() -> bytes:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    for name, array in zip(("inputs", "n_windows"), runs(2), strict=True):
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    data: bytes = request.SerializeToString()
    return data


async def besiege(server: ServerProcess, *, slow: int, seconds: float, rate: float) -> Siege:
    """Run a siege of ``slow`` connections and ``rate`` good requests per second."""
    siege = Siege()
    request = _good_request()
    body = json.dumps(columns(2)).encode()
    options = [("grpc.enable_http_proxy", 0)]
    address = f"{_HOST}:{server.grpc_port}"
    method = "/tensorflow.serving.PredictionService/Predict"
    async with (
        grpc.aio.insecure_channel(address, options) as channel,
        grpc.aio.insecure_channel(address, [*options, ("grpc.use_local_subchannel_pool", 1)]) as hostile,
    ):
        predict = channel.unary_unary(method)
        half = hostile.stream_unary(method)
        expected = _answer(await predict(request, timeout=_GOOD_TIMEOUT_S))
        server.reset_peak()

        async def ask(number: int) -> None:
            await asyncio.sleep(1.0 + number / rate)  # the slow ones come first
            began_s = time.monotonic()
            try:
                async with asyncio.timeout(_GOOD_TIMEOUT_S):
                    if number % 2:
                        found = _answer(await predict(request))
                    else:
                        status, answer = await _exchange(server.rest_port, _POST % len(body) + body)
                        assert " 200 " in status, f"{status} {answer[:200]!r}"
                        found = np.array(json.loads(answer)["outputs"], "f4")
                np.testing.assert_allclose(found, expected, atol=1e-6)
                siege.good += 1
                siege.seconds.append(time.monotonic() - began_s)
            except (OSError, TimeoutError, AssertionError, ValueError, grpc.aio.AioRpcError) as error:
                siege.failures.append(f"{'gRPC' if number % 2 else 'REST'} {type(error).__name__} {error}"[:300])

        attack = partial(_attack, siege, server.rest_port, hostile.unary_unary(method))
        background = [asyncio.create_task(_forever(attack, 0.5))]
        for number in range(slow):
            work = partial(_slow, siege, server.rest_port, _SLOW[number % 4], _SLOW_HOSTS[number % 3])
            if number % 10 == 9:
                work = partial(_half_message, siege, half)
            elif number % 10 == 8:
                work = partial(_slow, siege, server.grpc_port, b"", _HOST)
            background.append(asyncio.create_task(_forever(work, _AWAY_S)))
        await asyncio.gather(*map(ask, range(int(seconds * rate))))
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
    siege.rss = server.peak_rss()
    return siege


def main() -> int:
    """Run a siege; the exit code is 1 if a good request failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--files", type=int, default=1024, help="open files that the server may have")
    chosen = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, chosen.slow * 2 + 500), most))
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder), save_model(Path(folder, "models", "1")))
        with server_process(config, Path(folder, "log"), "--unverified", files=chosen.files) as server:
            siege = asyncio.run(besiege(server, slow=chosen.slow, seconds=chosen.seconds, rate=chosen.rate))
            rss = server.rss()
    print(f"{siege.good} good requests answered, {len(siege.failures)} failed {siege.failures[:5]}")
    print(f"answers took {np.quantile(siege.seconds, (0.5, 0.99, 1.0)).round(3)} s (median, 99 %, longest)")
    print(f"peak {siege.rss / MIB:.0f} MiB, at the end {rss / MIB:.0f} MiB; at most {siege.held} slow connections held")
    for answer, count in siege.closed.most_common():
        print(f"{count:>8,}  {answer}")
    return 1 if siege.failures else 0


def write_config(root: Path, model: Path) -> str:
    """Write a configuration that serves ``model`` (``…/<version>``) as m; return its path."""
    config = root / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "m" base_path: "{model.parent}" model_platform: "tensorflow" }} }}'
    )
    return str(config)


if __name__ == "__main__":
    sys.exit(main())
