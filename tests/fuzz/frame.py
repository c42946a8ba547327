"""The frame of all fuzz tests: how many inputs are tried, which are remembered, and how many there were."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, seed, settings
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase, MultiplexedDatabase, ReadOnlyDatabase

from tests.tier import tries

ROOT = Path(__file__).parents[2]
SEEDS = ROOT / "tests" / "fuzz" / "seeds"
#: Where a long run remembers its failures while it runs, and shrinks them.
WORK = ROOT / ".hypothesis" / "fuzz"
#: "test" (short, repeatable) or "fuzz" (long, random).
PROFILE = os.environ.get("CIML_FUZZ", "test")
EXAMPLES = {"test": tries(100), "fuzz": int(os.environ.get("CIML_FUZZ_EXAMPLES", "20000"))}

_tried = 0


def tried() -> int:
    """Returns how many inputs this process has given to fuzz tests."""
    return _tried


def database(profile: str, seeds: Path = SEEDS, work: Path = WORK) -> ExampleDatabase:
    """Returns the inputs to replay: the committed seeds, which are never changed, and what a long run found so far."""
    committed = ReadOnlyDatabase(DirectoryBasedExampleDatabase(seeds))
    return MultiplexedDatabase(DirectoryBasedExampleDatabase(work), committed) if profile == "fuzz" else committed


def frame(
    profile: str, base: ExampleDatabase, examples: int | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns the decorator of a profile. It stands above ``@given``."""
    chosen = settings(
        max_examples=examples or EXAMPLES[profile],
        database=base,
        deadline=None,
        derandomize=False,  # which would leave the seeds out; a fixed seed repeats the inputs as well
        print_blob=True,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture),
    )

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        handle: Any = test
        inner = handle.hypothesis.inner_test

        @functools.wraps(inner)
        def counted(*arguments: Any, **named: Any) -> Any:
            global _tried
            _tried += 1
            return inner(*arguments, **named)

        handle.hypothesis.inner_test = counted
        handle._hypothesis_internal_database_key = key(
            test
        )  # else a digest of the test's text: an edit loses the seeds
        if profile == "test":
            handle = seed(zlib.crc32(key(test)))(handle)
        return chosen(handle)

    return decorate


def key(test: Callable[..., Any]) -> bytes:
    """Returns the name under which a test's inputs are kept."""
    return f"{test.__module__}.{test.__qualname__}".encode()


def keep_failures(test: Callable[..., Any], seeds: Path = SEEDS, work: Path = WORK) -> int:
    """Copies the inputs on which a test fails to its seeds; returns how many there are."""
    found = list(DirectoryBasedExampleDatabase(work).fetch(key(test)))
    for each in found:
        DirectoryBasedExampleDatabase(seeds).save(key(test), each)
    return len(found)


fuzz = frame(PROFILE, database(PROFILE))
