"""``ciml migrate``: whether this version reads a data root completely, and what of it an upgrade would rewrite."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.cli.options import Json, require_data
from ciml.cli.output import print_lines, print_table
from ciml.errors import IntegrityError
from ciml.options import argument, flag, option

if TYPE_CHECKING:
    from ciml.services.stored.findings import RootFindings


class MigrateOptions(Json):
    """Options of ``ciml migrate``.

    Attributes:
      apply: Rewrite the files of the table, after verifying all.
    """

    data: str | None = argument("[DATA]", "place", required=False)
    data_path: str | None = option(kind="new data")
    apply: bool = flag()


@make_command("migrate")
def command(options: MigrateOptions) -> int:
    """Verify a data root; rewrite data of older versions.

    It lists all objects below DATA by kind and format, reads each as other commands do, and compares it with its
    digests, counts and manifest. Without --apply nothing is changed. The checkpoints of version 0.1 are made again,
    because they have no trust of runs, and deltas that an older version wrote after a newer one get a digest. It can
    run while services run; stop them for --apply. The exit code is 4 if an object is damaged or cannot be read.

    \b
    Example:
      ciml migrate data
      ciml migrate data --apply
      ciml migrate s3://bucket/data --json
    """
    from ciml.cli.output import bars
    from ciml.data_root import DataRoot
    from ciml.services.stored.examine import examine, rewrite, seal_older

    place = options.data or options.data_path
    if place is None:
        raise click.UsageError("give a data root: ciml migrate DATA")
    require_data(place)
    data = DataRoot.open(place)
    rewritten = None
    failure = None
    with bars() as progress:
        findings = examine(data, progress)
        if options.apply and findings.number and (sealed := seal_older(data)):
            click.echo(f"{sealed:,} deltas of an older version have a digest now.", err=options.json)
            findings = examine(data, progress)
        if options.apply:
            try:
                rewritten = rewrite(data, findings, progress)
            except IntegrityError as error:
                failure = error
    more = {} if rewritten is None else {"rewritten": rewritten}
    options.show(
        findings, partial(_print_findings, rewritten, options.apply), lambda findings: findings_json(findings) | more
    )
    if failure is not None:
        raise failure
    return IntegrityError.exit_code if findings.number else 0


def findings_json(findings: RootFindings) -> dict[str, Any]:
    """Return findings as JSON; ``verified`` is null for objects that are not read."""
    return {
        "kinds": {
            kind: {
                "formats": findings.formats_of(kind),
                "objects": findings.objects[kind],
                "verified": findings.verified(kind),
                "broken": findings.broken[kind],
                "to_rewrite": findings.rewritten[kind],
            }
            for kind in findings.present()
        },
        "broken": findings.number,
        "to_rewrite": findings.rewritten.total(),
        "faults": findings.findings,
        "notes": findings.notes,
    }


def _print_findings(rewritten: int | None, applied: bool, findings: RootFindings) -> None:
    rows = []
    for kind in findings.present():
        formats = findings.formats_of(kind)
        verified = findings.verified(kind)
        shown = ", ".join(formats)
        if len(formats) > 1:
            shown = ", ".join(f"{name}: {number:,}" for name, number in formats.items())
        counts = (findings.broken[kind], findings.rewritten[kind])
        rows.append((kind, shown or "-", findings.objects[kind], "not read" if verified is None else verified, *counts))
    print_table(("what", "format", "objects", "verified", "broken", "to rewrite"), rows)
    print_lines(findings.lines())
    faults = f"{findings.number:,} faults" if findings.number else "all readable and as written"
    remaining = "nothing to rewrite"
    if number := findings.rewritten.total():
        remaining = f"{number:,} to rewrite" if applied else f"{number:,} to rewrite (--apply)"
        if rewritten is not None:
            remaining = f"rewritten: {rewritten:,} checkpoints, verified again"
    click.echo(f"{findings.objects.total():,} objects: {faults}; {remaining}.")
