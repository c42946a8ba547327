"""``ciml runs verify`` and ``ciml runs compact``: the care of the raw store."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from cli.options import data_path_option, home_option
from cli.param_types import Duration


@click.command("verify", short_help="Check every number and digest of the raw store.")
@data_path_option()
@home_option
@click.option(
    "--sample", type=click.IntRange(0), metavar="N", help="Read N runs, chosen at random.  [default: read all]"
)
@click.option("--seed", default=0, show_default=True, help="Of the choice.")
@click.option(
    "--grace", default="3d", show_default=True, type=Duration(), help="What nobody names is a finding from this age on."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def verify(data_path: str, sample: int | None, seed: int, grace: float, as_json: bool, **_: Any) -> int:
    """Check every number and digest of DATA/raw; exit code 4 with findings.

    The manifest is replayed from its first delta, and compared with its segments, checkpoints and index. The accounting
    is counted anew. Each run that is named is there, alone or in a pack, with its rows and digest; and nothing lies
    around that nobody names. It may run beside ingest and compaction.

    \b
    Example:
      ciml runs verify --data-path data
      ciml runs verify --sample 1000 --json --data-path s3://bucket/data
    """
    from ciml.storage.open import open_store
    from cli.progress_bar import bars
    from pipelines.raw_store.verify import verify_raw

    with bars() as tell:
        found = verify_raw(open_store(data_path).child("raw"), sample=sample, seed=seed, grace_s=grace, progress=tell)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return 4 if found.number else 0
    for line in found.findings:
        click.echo(f"BROKEN {line}")
    if found.number > len(found.findings):
        click.echo(f"BROKEN and {found.number - len(found.findings):,} more")
    for line in found.notes:
        click.echo(f"note: {line}")
    said = f"{found.records:,} records of {found.runs:,} runs in {found.version:,} versions"
    read = (
        f"{found.read:,} of {found.objects:,} raw objects read"
        if sample is not None
        else (f"{found.packed:,} runs in {found.packs:,} packs and {found.single:,} objects read")
    )
    click.echo(f"{said}; {read}: {f'{found.number:,} findings' if found.number else 'all as committed'}.")
    return 4 if found.number else 0


@click.command("compact", short_help="Pack the runs of days that are over; remove what is not needed.")
@data_path_option()
@home_option
@click.option(
    "--older-than", default="1d", show_default=True, type=Duration(), help="Pack a day this long after its end (UTC)."
)
@click.option(
    "--grace", default="1d", show_default=True, type=Duration(), help="How long objects stay that are not needed."
)
@click.option(
    "--min-runs",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Fewer runs of a job and day stay as they are.",
)
@click.option(
    "--pack-size", default=32, show_default=True, type=click.IntRange(1, 1024), metavar="MIB", help="About the largest."
)
@click.option("--everything", is_flag=True, help="Look for packs to remove in every folder.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def compact(
    data_path: str,
    older_than: float,
    grace: float,
    min_runs: int,
    pack_size: int,
    everything: bool,
    as_json: bool,
    **_: Any,
) -> int:
    """Put the runs of each job and day that are over into packs, and remove objects that are no longer needed.

    Stop it at any time, run it twice at once: nothing is lost, and the next goes on from there. Runs stay readable
    under the same names throughout. It exits with 4 where runs or packs are broken; those stay as they are.

    \b
    Example:
      ciml runs compact --data-path data
      ciml runs compact --older-than 7d --grace 2d --json --data-path s3://bucket/data
    """
    from ciml.storage.open import open_store
    from cli.progress_bar import bars
    from pipelines.raw_store.compact import compact as run

    with bars() as tell:
        done = run(
            open_store(data_path).child("raw"),
            older_than_s=older_than,
            grace_s=grace,
            min_runs=min_runs,
            pack_bytes=pack_size << 20,
            everything=everything,
            progress=tell,
        )
    faults = [*done.packing.faults, *done.swept.faults]
    if as_json:
        click.echo(json.dumps(asdict(done), indent=2))
        return 4 if faults else 0
    for line in faults:
        click.echo(f"BROKEN {line}")
    packing, swept = done.packing, done.swept
    click.echo(
        f"{packing.runs:,} runs packed into {packing.packs:,} packs ({packing.packs_bytes:,} bytes), "
        f"{packing.merged:,} packs merged, {packing.alone:,} runs left alone; up to version {done.to_version:,}, "
        f"{done.waiting:,} folders of days that are not over"
    )
    click.echo(
        f"removed: {swept.objects:,} objects of packed runs ({swept.objects_bytes:,} bytes), {swept.packs:,} packs, "
        f"{swept.gone:,} unnamed objects; {swept.unnamed:,} more moved aside"
    )
    return 4 if faults else 0
