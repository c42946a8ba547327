"""Options of batch commands: the runner and the folder of the logs."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ciml.cli.dataflow.options import DATAFLOW
from ciml.cli.options import Option, running_engines, s3_place
from ciml.errors import CimlError


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Raise the garbage collector's thresholds while large manifests are read.

    They make some hundred thousand objects that stay and form no cycles; at the usual thresholds the collector scans
    them repeatedly, for a quarter of the time. Not for long-running processes, where cycles would keep large objects.
    """
    before = gc.get_threshold()
    gc.set_threshold(1_000_000, 50, 100)
    try:
        yield
    finally:
        gc.freeze()  # else the first collection after this scans all of it
        gc.set_threshold(*before)


def _runner(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str | None, str]:
    if value is None or ctx.resilient_parsing:
        return None, ""
    name, _, endpoint = value.partition(":")
    if name not in ("fnapi", "flink", DATAFLOW) or (name != "flink" and endpoint):
        raise click.BadParameter(
            f"unknown runner {value!r}; choose from fnapi, flink, flink:HOST:PORT, dataflow", ctx, param
        )
    if name == "flink" and not endpoint:
        flink = running_engines(ctx).get("flink")
        if flink is None or flink.light:
            raise CimlError(
                "no Flink runs here: start it (ciml up flink) or name a job server (--runner flink:HOST:PORT)"
            )
        endpoint = flink.address
    return name, endpoint


#: ``--runner``, as ``runner``: (None, "fnapi", "flink" or "dataflow"; the job server's ``host:port``) of a batch
#: pipeline. Beside `ciml.cli.dataflow.options.dataflow_options`.
runner_option = click.option(
    "--runner",
    metavar="fnapi|flink|dataflow",
    callback=_runner,
    help="Beam runner; flink:HOST:PORT names a job server.  [default: none, without Beam]",
)


def logs_option(required: bool = False) -> Option:
    """``--logs``, as ``logs``: the text, for `ciml.pipelines.backfill.plan.logs_root`."""
    text = "Folder or s3:// prefix of the listing's log paths."
    return click.option("--logs", required=required, metavar="ROOT", callback=s3_place, help=text)
