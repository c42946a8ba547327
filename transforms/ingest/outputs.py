"""Fetch and store the outputs of runs whose telemetry is stored. No fault of an output changes the fate of its run."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from itertools import chain

from ciml.errors import RejectedInput
from ciml.events.records import Origin, Outcome, OutputFile, PendingRun, RawFile
from ciml.http.addresses import Address
from ciml.limits import LARGE_OUTPUT_BYTES, SMALL_OUTPUT_BYTES
from ciml.runs.outputs import PreparedOutput, store_output
from ciml.storage import Store
from ciml.transforms.fetch.decompress import gunzip
from ciml.transforms.fetch.outputs import fetch_outputs, file_name, output_addresses
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.guard import attempt, bisect
from ciml.transforms.logs.prepare import prepare_output, prepare_small

#: Small outputs that are prepared together, at most 4 MiB; and threads that store them.
_PREPARED_TOGETHER = 64
_STORE_THREADS = 8
#: An outcome's place in a batch: its origin and run id.
Key = tuple[Origin, str]

#: Held by the thread that prepares a large output.
_large_output_lock = threading.Lock()


def with_outputs(
    outcomes: Sequence[Outcome], pending_runs: Mapping[Key, PendingRun], policy: FetchPolicy, raw: Store, batch_s: float
) -> list[Outcome]:
    """Fetch and store the outputs of runs.

    Args:
      outcomes: those that are raw rows get an output: the stored one, or why there is none. It stays None for a run
        without an address of its output.
      pending_runs: the runs of the outcomes, by origin and run id.
      policy: the allowed addresses, and the limits.
      raw: the raw store.
      batch_s: time after which no further output is started, s.

    Raises:
      EngineError: the raw store does not answer.
    """
    outputs: dict[int, OutputFile] = {}
    requests: dict[tuple[str, tuple[Address, ...]], list[int]] = {}
    for index, outcome in enumerate(outcomes):
        pending = pending_runs.get((outcome.origin, outcome.run_id))
        if outcome.kind != "run" or outcome.file is None or pending is None:
            continue
        facts = pending.mention
        addresses = attempt("output", output_addresses, policy, facts, pending.address, pending.output_address)
        if isinstance(addresses, RejectedInput):
            outputs[index] = OutputFile(missing=addresses.reason)
        elif addresses:  # repeats of an event share an output
            requests.setdefault((outcome.file.path, tuple(addresses)), []).append(index)
    files = [RawFile(path, "", 0, 0) for path, _ in requests]

    names: dict[int, str] = {}

    def read(index: int, address: Address, chunks: Iterable[bytes]) -> OutputFile | bytes:
        names[index] = file_name(address)
        return _read(chunks, policy, raw, files[index])

    fetched = fetch_outputs([addresses for _, addresses in requests], policy, read, batch_s) if requests else []
    small = {index: result for index, result in enumerate(fetched) if isinstance(result, bytes)}
    stored = _store_small(small, raw, files)
    for index, (indices, result) in enumerate(zip(requests.values(), fetched, strict=True)):
        output = stored[index] if isinstance(result, bytes) else result
        if isinstance(output, OutputFile):
            output = output.replace(name=names[index])
        else:
            output = OutputFile(missing=output.reason)
        outputs |= dict.fromkeys(indices, output)
    return [
        outcome.replace(output=outputs[index]) if index in outputs else outcome
        for index, outcome in enumerate(outcomes)
    ]


def _read(chunks: Iterable[bytes], policy: FetchPolicy, raw: Store, run: RawFile) -> OutputFile | bytes:
    """Return an output, unpacked; store it if it is not small."""
    start = BytesIO()
    iterator = iter(chunks)
    for chunk in iterator:
        start.write(chunk)
        if start.tell() > SMALL_OUTPUT_BYTES:
            break
    else:
        with suppress(RejectedInput):  # it may be small as it is sent, and large unpacked
            return gunzip((start.getvalue(),), SMALL_OUTPUT_BYTES)
    with _Turn() as turn:
        prepared = prepare_output(chain((start.getvalue(),), iterator), policy.max_output_bytes, turn.grow)
        return store_output(raw, run, prepared)


def _store_small(
    outputs: Mapping[int, bytes], raw: Store, runs: Sequence[RawFile]
) -> dict[int, OutputFile | RejectedInput]:
    """Prepare and store small outputs together. One that makes this fail does not affect the others."""
    stored: dict[int, OutputFile | RejectedInput] = {}
    indices = list(outputs)

    def prepare(part: Sequence[int]) -> list[PreparedOutput]:
        return prepare_small([outputs[index] for index in part])

    def store(index: int, prepared: PreparedOutput) -> None:
        stored[index] = store_output(raw, runs[index], prepared)

    with ThreadPoolExecutor(_STORE_THREADS, "output") as pool:
        for start in range(0, len(indices), _PREPARED_TOGETHER):
            for part, result in bisect("output", indices[start : start + _PREPARED_TOGETHER], prepare):
                if isinstance(result, RejectedInput):
                    stored |= dict.fromkeys(part, result)
                else:
                    list(pool.map(store, part, result))  # raises the first error
    return stored


class _Turn:
    """The memory of one output. Beyond `LARGE_OUTPUT_BYTES`, it waits until no other thread has a large one."""

    def __init__(self) -> None:
        self._size = 0
        self._is_large = False

    def grow(self, size: int) -> None:
        self._size += size
        if self._size > LARGE_OUTPUT_BYTES and not self._is_large:
            _large_output_lock.acquire()
            self._is_large = True

    def __enter__(self) -> _Turn:
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_large:
            _large_output_lock.release()
