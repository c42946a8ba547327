"""The requests that `Intake` reads at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from ciml.http.intake import Intake, RequestError


async def late() -> AsyncIterator[bytes]:
    """Yield nothing, and take some time to end once cancelled."""
    try:
        await asyncio.sleep(60)
        yield b""
    finally:
        await asyncio.sleep(0.1)


async def quick() -> AsyncIterator[bytes]:
    yield b"body"


@pytest.mark.parametrize(("body_s", "status"), [(0.01, "expired meanwhile"), (60.0, "is read")])
def test_a_request_that_is_rejected_as_the_oldest_affects_no_other(body_s: float, status: str) -> None:
    async def read_both() -> bytes:
        intake = Intake(body_s=body_s, max_bytes=100, max_reading=1)
        with intake.hold() as first, intake.hold() as second:
            oldest = asyncio.create_task(intake.read(first, late()))
            await asyncio.sleep(0.05)
            body = await intake.read(second, quick())
            with pytest.raises(RequestError, match="dropped as the oldest of 1 incomplete requests"):
                await oldest
        return body

    assert asyncio.run(read_both()) == b"body", status
