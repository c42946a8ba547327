"""``ciml runs verify`` and ``ciml runs compact``: maintenance of the raw store."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from ciml.cli.commands.data.tables import update_tables
from ciml.cli.options import data_path_option
from ciml.cli.param_types import Duration
from ciml.data_root import DataRoot


@click.command("verify")
@data_path_option()
@click.option(
    "--sample", type=click.IntRange(0), metavar="N", help="Number of runs to read, chosen at random.  [default: all]"
)
@click.option("--seed", default=0, help="Random seed of --sample.")
@click.option("--grace", default="3d", type=Duration(), help="Age from which an unreferenced object is a finding.")
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def verify(data_path: str, sample: int | None, seed: int, grace: float, as_json: bool) -> int:
    """Verify all counts and digests of the raw store.

    It replays the manifest from the first delta, compares it with segments, checkpoints and index, and recounts the
    accounting. It reads each run, alone or in a pack, and reports unreferenced objects. It can run beside ingest and
    compaction. The exit code is 4 with findings.

    \b
    Example:
      ciml runs verify --data-path data
      ciml runs verify --sample 1000 --json --data-path s3://bucket/data
    """
    from ciml.cli.progress import bars
    from ciml.runs.verify import verify_raw

    with bars() as progress:
        found = verify_raw(DataRoot.open(data_path).raw, sample=sample, seed=seed, grace_s=grace, progress=progress)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return 4 if found.number else 0
    for line in found.findings:
        click.echo(f"BROKEN {line}")
    if found.number > len(found.findings):
        click.echo(f"BROKEN and {found.number - len(found.findings):,} more")
    for line in found.notes:
        click.echo(f"note: {line}")
    counted = f"{found.records:,} records of {found.runs:,} runs in {found.version:,} versions"
    read = (
        f"{found.read:,} of {found.objects:,} raw objects read"
        if sample is not None
        else (f"{found.packed:,} runs in {found.packs:,} packs and {found.single:,} objects read")
    )
    click.echo(f"{counted}; {read}: {f'{found.number:,} findings' if found.number else 'all as committed'}.")
    return 4 if found.number else 0


@click.command("compact")
@data_path_option()
@click.option(
    "--older-than",
    default="1d",
    type=Duration(),
    help="Age after a day's end (UTC) from which it is packed.",
)
@click.option("--grace", default="1d", type=Duration(), help="Time for which unneeded objects are kept.")
@click.option("--min-runs", default=2, type=click.IntRange(1), help="Minimum runs of a job and day to pack.")
@click.option(
    "--pack-size",
    default=32,
    type=click.IntRange(1, 1024),
    metavar="MIB",
    help="Approximate maximum size of a pack, in MiB.",
)
@click.option(
    "--everything",
    is_flag=True,
    help="Collect garbage in all folders, and renew packs of older versions.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def compact(
    data_path: str, older_than: float, grace: float, min_runs: int, pack_size: int, everything: bool, as_json: bool
) -> int:
    """Pack runs of past days and collect garbage.

    Each job and day becomes a pack, and unneeded objects are removed. Interrupted and concurrent compactions are safe;
    runs stay readable throughout. The exit code is 4 if runs or packs are broken; those are left in place.

    \b
    Example:
      ciml runs compact --data-path data
      ciml runs compact --older-than 7d --grace 2d --json --data-path s3://bucket/data
    """
    from ciml.cli.progress import bars
    from ciml.runs.compact import compact as run

    data = DataRoot.open(data_path)
    with bars() as progress:
        done = run(
            data.raw,
            older_than_s=older_than,
            grace_s=grace,
            min_runs=min_runs,
            pack_bytes=pack_size << 20,
            everything=everything,
            progress=progress,
        )
    update_tables(data, ("raw", "runs", "dead_letters"))
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
    if swept.held:
        click.echo(f"kept: {swept.held:,} replaced packs for readers of the table raw")
    return 4 if faults else 0
