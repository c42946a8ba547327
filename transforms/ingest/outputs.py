"""Fetch and store the outputs of runs whose telemetry is stored. No fault of an output changes the fate of its run."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

from ciml.errors import RejectedInput
from ciml.events.records import Origin, Outcome, OutputFile, PendingRun, RawFile
from ciml.http.addresses import Address
from ciml.limits import LARGE_OUTPUT_BYTES
from ciml.runs.outputs import store_output
from ciml.storage import Store
from ciml.transforms.fetch.outputs import fetch_outputs, output_addresses
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.guard import attempt
from ciml.transforms.logs.prepare import prepare_output

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
        if outcome.kind != "run" or outcome.file is None or outcome.output is not None or pending is None:
            continue
        facts = pending.mention
        addresses = attempt("output", output_addresses, policy, facts, pending.address, pending.output_address)
        if isinstance(addresses, RejectedInput):
            outputs[index] = OutputFile(missing=addresses.reason)
        elif addresses:  # repeats of an event share an output
            requests.setdefault((outcome.file.path, tuple(addresses)), []).append(index)
    files = [RawFile(path, "", 0, 0) for path, _ in requests]

    def store(index: int, chunks: Iterable[bytes]) -> OutputFile:
        return _prepare_and_store(chunks, policy, raw, files[index])

    fetched = fetch_outputs([addresses for _, addresses in requests], policy, store, batch_s) if requests else []
    for indices, result in zip(requests.values(), fetched, strict=True):
        output = result if isinstance(result, OutputFile) else OutputFile(missing=result.reason)
        outputs |= dict.fromkeys(indices, output)
    return [
        outcome.replace(output=outputs[index]) if index in outputs else outcome
        for index, outcome in enumerate(outcomes)
    ]


def _prepare_and_store(chunks: Iterable[bytes], policy: FetchPolicy, raw: Store, run: RawFile) -> OutputFile:
    with _Turn() as turn:
        prepared = prepare_output(chunks, policy.max_output_bytes, turn.grow)
        return store_output(raw, run, prepared)


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
