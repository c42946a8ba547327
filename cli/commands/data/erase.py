"""``ciml erase``: remove runs from a data root, with all that was recorded and derived from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.cli.options import Data, Json, Signed
from ciml.cli.output import minute_of, print_lines, print_warnings
from ciml.errors import CimlError, IntegrityError
from ciml.options import BrokerOptions, flag, option, repeated

if TYPE_CHECKING:
    from ciml.runs.erased import RunCriteria
    from ciml.services.stored.erase import Receipt


class EraseOptions(Data, Signed, Json, BrokerOptions):
    """Options of ``ciml erase``.

    Attributes:
      run_id: Run id, source~native id~attempt.
      owner: Who started the runs.
      change: Change of the runs.
      project: Project of the change.
      before_us: Runs that ended before TIME, ISO 8601; UTC without a zone.
      older_than: Runs that ended longer ago, such as 400d: for a retention, as a scheduled command.
      reason: Why, for readers of the receipt. It must not name the owner.
      apply: Erase. Without it, the runs are only counted.
      receipts: List the receipts of earlier erasures.
      topics: Topic whose records of the runs are removed, if --kafka is given; may be repeated.  [default: runs,
        predictions]
    """

    run_id: str = option("", flags="--run", metavar="ID")
    owner: str = option("", metavar="NAME")
    change: str = option("", metavar="ID")
    project: str = option("", metavar="NAME")
    before_us: int | None = option(kind="instant", flags="--before")
    older_than: float | None = option(kind="time")
    reason: str = option("", metavar="TEXT")
    apply: bool = flag()
    receipts: bool = flag()
    topics: tuple[str, ...] = repeated(flags="--topic", metavar="TOPIC")

    def criteria(self) -> RunCriteria:
        """Return the runs that the options name."""
        from ciml.runs.erased import RunCriteria

        if self.before_us is not None and self.older_than is not None:
            raise CimlError("erase: give --before or --older-than, not both")
        before_us = self.before_us
        if self.older_than is not None:
            before_us = int((time.time() - self.older_than) * 1e6)
        return RunCriteria(self.run_id, self.owner, self.change, self.project, before_us)


@make_command("erase")
def command(options: EraseOptions) -> int:
    """Erase runs and all derived data.

    It removes the telemetry, outputs, predictions, messages' contents, examples and stored events of all runs that
    match each option. What counts runs keeps a nameless entry for each. Then it searches every byte for the names, and
    leaves a receipt. Models are not changed: ciml purge withdraws those that learned from the runs; run it first.

    Services may run meanwhile. An erasure that was killed is completed by the next call. The exit code is 4 if a name
    is left, such as a word like the owner's name in the output of another run; each place is listed.

    \b
    Example:
      ciml erase --owner alice --data-path data
      ciml erase --owner alice --reason "request 17" --apply --kafka localhost:9092 --data-path data
      ciml erase --older-than 400d --reason retention --apply --data-path s3://bucket/data
    """
    from ciml.cli.output import bars
    from ciml.services.stored.erase import count_runs, erase, read_receipts
    from ciml.serving.registry import Signature

    data = options.root
    if options.receipts:
        options.show(read_receipts(data), _print_receipts, _to_json)
        return 0
    criteria = options.criteria()
    if not options.apply:
        with bars() as progress:
            number = count_runs(data, criteria, progress)
        options.show({"runs": number}, lambda _: click.echo(f"runs: {number:,}; --apply erases them permanently"), dict)
        return 0
    signed = Signature(options.signed_by(), options.reason)
    receipts = []
    is_left = False
    with bars() as progress:
        for receipt, remaining in erase(data, criteria, signed, progress, _topics_of(options)):
            receipts.append(receipt)
            print_warnings(f"a name may be left: {line}" for line in remaining)
            is_left = is_left or bool(remaining)
    options.show(receipts, _print_receipts, _to_json)
    return IntegrityError.exit_code if is_left else 0


def _to_json(receipts: list[Receipt]) -> list[dict[str, Any]]:
    return [asdict(receipt) for receipt in receipts]


def _topics_of(options: EraseOptions) -> Callable[[Collection[str]], None] | None:
    """Return the function that removes the records of runs from topics; None without a broker."""
    if options.kafka is None:
        return None
    from ciml.services.stored.erase import TOPICS, is_compacted, write_tombstones

    kafka = options.connection()
    topics = options.topics or TOPICS
    not_compacted = [topic for topic in topics if not is_compacted(kafka, topic)]

    def erase_topics(run_ids: Collection[str]) -> None:
        for topic in topics:
            write_tombstones(kafka, topic, run_ids)
        print_warnings(
            f"topic {topic} is not compacted, so tombstones remove nothing; set its cleanup.policy to compact"
            for topic in not_compacted
        )
        not_compacted.clear()

    return erase_topics


def _print_receipts(receipts: list[Receipt]) -> None:
    for receipt in receipts:
        print_lines([f"{minute_of(receipt.time_us)}  {receipt.author}", *receipt.lines()])
    if not receipts:
        click.echo("no run was erased")
