"""Options that the commands share which work in batch: where they run, and where the logs are."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from ciml.errors import CimlError
from cli.options import running_engines

F = TypeVar("F", bound=Callable[..., Any])


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """For what reads large manifests: some hundred thousand objects that stay, and no cycles. At the usual thresholds
    the garbage collector looks at them again and again, for a quarter of the time. Not for what runs for months: there,
    cycles would hold for longer what is large."""
    before = gc.get_threshold()
    gc.set_threshold(1_000_000, 50, 100)
    try:
        yield
    finally:
        gc.freeze()  # else the first collection after this looks at all of it
        gc.set_threshold(*before)


def _runner(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str | None, str]:
    if value is None or ctx.resilient_parsing:
        return None, ""
    name, _, endpoint = value.partition(":")
    if name not in ("fnapi", "flink") or (name == "fnapi" and endpoint):
        raise click.BadParameter(f"{value!r} is neither fnapi, flink nor flink:HOST:PORT", ctx, param)
    if name == "flink" and not endpoint:
        flink = running_engines(ctx).get("flink")
        if flink is None or flink.light:
            raise CimlError("no Flink runs here: start it (ciml up flink), or name one (--runner flink:HOST:PORT)")
        endpoint = flink.address
    return name, endpoint


def runner_option(command: F) -> F:
    """``--runner``, as ``runner``: (None, "fnapi" or "flink"; the job server's ``host:port``) of a batch pipeline."""
    return click.option(
        "--runner",
        metavar="fnapi|flink",
        callback=_runner,
        help="Run in Beam; flink:HOST:PORT names a job server.  [default: directly, without Beam]",
    )(command)


def logs_place(text: str) -> str:
    """The place of a listing's logs: an ``s3://`` prefix, or a folder as a full path.

    Raises:
      CimlError: it is neither, or the folder is not there.
    """
    if text.startswith("s3://"):
        return text
    if "://" in text or not Path(text).is_dir():
        raise CimlError(f"--logs {text}: want a folder that is there, or an s3:// prefix")
    return str(Path(text).resolve())
