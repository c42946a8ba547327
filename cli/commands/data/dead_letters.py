"""``ciml dead-letters``: list, count, show and replay dead letters."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.cli.options import Data, Json, JsonLines
from ciml.cli.output import age_text, by_frequency, counted_bar, counts_text, print_columns
from ciml.cli.running import INTERRUPTED, stop_on_signals
from ciml.errors import CimlError
from ciml.events.listing import TOPIC, is_listing
from ciml.events.records import Origin, reasons_of, totals_of
from ciml.options import IngestPolicyOptions, argument, flag, option, repeated
from ciml.settings import pairs

if TYPE_CHECKING:
    from ciml.pipelines.ingest.replay import Preview, ReplayConfig, Replayed
    from ciml.runs.dead_letters import Choice, DeadLetter
    from ciml.storage import Store

#: Characters of a listing's topic that are printed, enough to distinguish its digest.
_SHORT = len(TOPIC) + 8
#: Exit code of a replay after which dead letters stay open.
_SOME_LEFT = 5
#: The remedy for a dead letter that is still open, by its reason.
_REMEDIES = {
    "address_not_allowed": "allow it by --allow-root or --allow-host; for a listing by --logs",
    "log_not_found": "for a listing, name the present folder of the logs by --logs",
}


class Filters(Data):
    """The filters of all commands. Times are ages in seconds.

    Attributes:
      reasons: Reason of the dead letters; may be repeated. [default: all]
      jobs: Job of the dead letters, '' for an unknown one; may be repeated. [default: all]
      topics: Topic of the dead letters, 'listing:*' for listings; may be repeated. [default: all]
      runs: Run id of the dead letters, '' for an undecoded one; may be repeated. [default: all]
      since: Maximum age, such as 7d. [default: none]
      until: Minimum age, such as 7d. [default: none]
    """

    reasons: tuple[str, ...] = repeated(metavar="GLOB")
    jobs: tuple[str, ...] = repeated(metavar="GLOB")
    topics: tuple[str, ...] = repeated(metavar="GLOB")
    runs: tuple[str, ...] = repeated(metavar="GLOB")
    since: float | None = option(kind="time")
    until: float | None = option(kind="time")

    def choice(self) -> Choice:
        """Return the filters with ages as times: ages are counted from now."""
        from ciml.runs.dead_letters import Choice

        now_us = time.time_ns() // 1000
        return Choice(
            self.reasons or ("*",),
            self.jobs or ("*",),
            self.topics or ("*",),
            self.runs or ("*",),
            since_us=None if self.since is None else now_us - round(self.since * 1e6),
            until_us=None if self.until is None else now_us - round(self.until * 1e6),
        )

    def dead_letters(self, everything: bool) -> Iterator[DeadLetter]:
        """Yield the matching dead letters, the oldest first: the open ones, or all with ``everything``."""
        from ciml.runs.dead_letters import all_dead_letters, open_dead_letters, open_keys
        from ciml.runs.state import open_raw

        choice = self.choice()
        log, state = open_raw(self.root.raw)
        return all_dead_letters(log, choice) if everything else open_dead_letters(log, open_keys(state, choice), choice)


class ListOptions(JsonLines, Filters):
    """Options of ``ciml dead-letters list``.

    Attributes:
      all: Include closed dead letters and their outcomes.
      last: Maximum number of dead letters.
      json: JSON output of all, one object per line.
    """

    all: bool = flag()
    last: int = option(20, "count")


@make_command("list")
def list_command(options: ListOptions) -> None:
    """List open dead letters, the latest last.

    \b
    Example:
      ciml dead-letters list --data-path data
      ciml dead-letters list --reason log_not_found --since 1d --json --data-path data
    """
    dead_letters = options.dead_letters(options.all)
    now_us = time.time_ns() // 1000
    if options.json:
        for dead_letter in dead_letters:
            click.echo(json.dumps(dead_letter.to_json(now_us)))
        return
    latest: deque[DeadLetter] = deque(maxlen=options.last)
    total = 0
    for dead_letter in dead_letters:
        latest.append(dead_letter)
        total += 1
    if not latest:
        click.echo("No dead letters." if options.all else "No open dead letters.")
        return
    _print_rows(latest, now_us, options.all)
    if total > len(latest):
        click.echo(f"{total - len(latest):,} older ones are not shown; show them by --last {total} or --json.")


def _print_rows(dead_letters: Iterable[DeadLetter], now_us: int, everything: bool) -> None:
    """Print a line per dead letter, in columns; with ``everything`` also its outcome."""
    rows = []
    for dead_letter in dead_letters:
        facts = dead_letter.to_json(now_us)
        row = [
            age_text(facts["age_s"]),
            facts["reason"],
            _origin_text(dead_letter.key[0]),
            facts["run_id"] or "-",
            facts["build_name"] or "-",
        ]
        if everything:
            row.append(", ".join(dead_letter.became) if dead_letter.closed else "open")
        rows.append([*row, facts["detail"]])
    print_columns(rows)


def _origin_text(origin: Origin) -> str:
    topic = origin.topic[:_SHORT] if is_listing(origin.topic) else origin.topic
    return f"{topic}:{origin.partition}:{origin.offset}"


class CountOptions(Json, Filters):
    """Options of ``ciml dead-letters count``.

    Attributes:
      by_job: Count by reason and job.
    """

    by_job: bool = flag()


@make_command("count")
def count(options: CountOptions) -> None:
    """Count open dead letters by reason.

    \b
    Example:
      ciml dead-letters count --data-path data
      ciml dead-letters count --by-job --since 7d --data-path data
    """
    from ciml.runs.dead_letters import Choice

    counts: Counter[tuple[str, str]] = Counter()
    by_job = options.by_job
    if by_job or options.choice() != Choice():
        for dead_letter in options.dead_letters(everything=False):
            counts[dead_letter.outcome.reason, dead_letter.job if by_job else ""] += 1
    else:  # the manifest has the sums by reason, so no dead letter is read
        from ciml.runs.state import open_raw

        _, state = open_raw(options.root.raw)
        counts.update({(reason, ""): n for (kind, reason), n in state.counts.items() if kind == "dead_letter"})
    rows = by_frequency(counts)
    if options.json:
        entries = []
        for (reason, job), number in rows:
            key = {"reason": reason, "job": job} if by_job else {"reason": reason}
            entries.append({**key, "letters": number})
        click.echo(json.dumps({"letters": counts.total(), "by": entries}, indent=2))
        return
    for (reason, job), number in rows:
        click.echo(f"{number:>10,} {reason}{f'  {job}' if by_job else ''}")
    click.echo(f"{counts.total():>10,} open dead letters")


def _parse_origin(ctx: click.Context, param: click.Parameter, value: str) -> Origin:
    """Return the origin of an argument, as `_origin_text` prints it; a callback of click."""
    topic_partition, _, offset = value.rpartition(":")
    topic, _, partition = topic_partition.rpartition(":")
    if not topic or not partition.isdecimal() or not offset.isdecimal():
        raise click.UsageError(f"invalid origin {value!r}; give TOPIC:PARTITION:OFFSET as in ciml dead-letters list")
    return Origin(topic, int(partition), int(offset))


class ShowOptions(Data):
    """Options of ``ciml dead-letters show``."""

    origin: Origin = argument("TOPIC:PARTITION:OFFSET", _parse_origin)
    run_glob: str = argument("[RUN]", default="*")


@make_command("show")
def show(options: ShowOptions) -> None:
    """Show the open dead letters of an origin.

    It shows their reasons and the message, from which secrets were removed.

    \b
    Example:
      ciml dead-letters show ci-events:0:1234 --data-path data
    """
    from ciml.runs.dead_letters import Choice, open_dead_letters, open_keys
    from ciml.runs.state import open_raw

    origin = options.origin
    raw = options.root.raw
    choice = Choice(runs=(options.run_glob,))
    now_us = time.time_ns() // 1000
    log, state = open_raw(raw)
    keys = [(key, version) for key, version in open_keys(state, choice) if _is_origin(key[0], origin)]
    matches = list(open_dead_letters(log, keys, choice))
    if not matches:
        raise CimlError(f"no open dead letter of {_origin_text(origin)}; list them by ciml dead-letters list")
    for dead_letter in matches:
        value = dead_letter.to_json(now_us)
        value["time"] = datetime.fromtimestamp(dead_letter.time_us / 1e6, UTC).isoformat(timespec="seconds")
        click.echo(json.dumps({**value, "message": _message(raw, dead_letter)}, indent=2, ensure_ascii=True))


def _is_origin(origin: Origin, named: Origin) -> bool:
    """Return whether an origin is the named one; the topic of a listing may be named as the list prints it, cut."""
    topic = origin.topic[: len(named.topic)] if is_listing(named.topic) else origin.topic
    return Origin(topic, origin.partition, origin.offset) == named


def _message(raw: Store, dead_letter: DeadLetter) -> Any:
    """Return the stored message as JSON, with escapes for bytes that are not UTF-8; None without one."""
    from ciml.events.payloads import message_of, read_payload

    payload = dead_letter.outcome.payload
    content = read_payload(raw, payload) if payload else None
    if content is None or "value" not in content:
        return dict(content) if content else None
    message = message_of(content, dead_letter.key[0].offset)
    return {
        "value": _message_text(message.value),
        "headers": [[name, _message_text(value)] for name, value in message.headers],
        "timestamp_ms": message.timestamp_ms,
    }


def _message_text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


class ReplayOptions(Json, IngestPolicyOptions, Filters):
    """Options of ``ciml dead-letters replay``.

    Attributes:
      limit: Maximum number of dead letters, the oldest first. [default: all]
      dry_run: Count the dead letters; replay nothing.
      logs: Present folder or s3:// prefix of a listing's logs; it becomes an allowed root.
      selection: Jobs of ciml ingest (--job there); others are ignored. [default: all]
    """

    limit: int | None = option(kind="count", metavar="N")
    dry_run: bool = flag()
    logs: str | None = option(kind="place", metavar="ROOT")
    selection: tuple[str, ...] = repeated(flags="--select", metavar="GLOB")

    def load_config(self) -> ReplayConfig:
        """Load the configuration of these options: it reads the policies and opens the raw store.

        Raises:
          CimlError: for an unreadable policy, an option that is not a pair, a missing folder of logs, or an unknown URL
            scheme.
        """
        from ciml.events.listing import logs_root
        from ciml.events.run_id import source_names
        from ciml.pipelines.ingest.replay import ReplayConfig
        from ciml.transforms.fetch.policy import FetchPolicy
        from ciml.transforms.ingest.decode import ALL_JOBS

        root = logs_root(self.logs) if self.logs else ""
        roots = (*self.roots, root) if root else self.roots
        return ReplayConfig(
            self.root.raw,
            self.choice(),
            limit=self.limit,
            selection=self.selection or ALL_JOBS,
            names=source_names(pairs("--source", self.sources)),
            trust=self.trust_of(self.root),
            fetch=FetchPolicy.of(self.fetch_policy).check().allowing(hosts=self.hosts, roots=roots),
            logs=root,
        )


@make_command("replay")
def replay_command(options: ReplayOptions) -> int:
    """Replay open dead letters.

    It applies the present policies and program. The commit of a result closes its dead letter; a dead letter that fails
    again stays open. Interrupted and concurrent replays are safe.

    \b
    Example:
      ciml dead-letters replay --reason address_not_allowed --allow-host logs.example.org --data-path data
      ciml dead-letters replay --topic 'listing:*' --logs /srv/logs --data-path data

    Exit codes: 0 all closed, 5 some stay open, 130 interrupted, 2 wrong use, 3 a store does not answer.
    """
    from ciml.pipelines.ingest.replay import preview, replay

    config = options.load_config()
    if options.dry_run:
        options.show(preview(config), _print_preview, _preview_json)
        return 0
    stop = stop_on_signals()
    with counted_bar("replay", "dead letters") as show:
        result = replay(
            config,
            stop=stop,
            report=lambda progress: show(progress.tried, progress.total, totals_of(progress.became)),
        )
    options.show(result, _print_replayed, _replayed_json)
    if not result.complete:
        return INTERRUPTED
    return _SOME_LEFT if result.still else 0


def _replayed_json(result: Replayed) -> dict[str, Any]:
    return {
        "tried": result.tried,
        "closed": result.closed,
        "became": reasons_of(result.became),
        "still_open": dict(result.still),
        "closed_by_others": result.elsewhere,
        "whole": result.complete,
    }


def _print_replayed(result: Replayed) -> None:
    counts = counts_text(totals_of(result.became))
    click.echo(f"{result.tried:,} dead letters replayed: {result.closed:,} closed{f' ({counts})' if counts else ''}")
    if result.elsewhere:
        click.echo(f"{result.elsewhere:,} were closed by a concurrent replay")
    for reason, number in by_frequency(result.still):
        detail = result.details.get(reason, "")
        click.echo(f"{number:>10,} stay open: {reason}{f' ({detail})' if detail else ''}")
        if reason in _REMEDIES:
            click.echo(f"{'':>11}{_REMEDIES[reason]}")


def _preview_json(preview: Preview) -> dict[str, Any]:
    return {"letters": preview.total, "reasons": dict(preview.reasons), "untried": dict(preview.untried)}


def _print_preview(preview: Preview) -> None:
    for reason, number in by_frequency(preview.reasons):
        click.echo(f"{number:>10,} {reason}")
    click.echo(f"{preview.total:>10,} dead letters would be replayed")
    for reason, number in preview.untried.items():
        click.echo(f"{number:>10,} of them cannot be replayed: {reason}")


@click.group("dead-letters", commands=[list_command, count, show, replay_command])
def command() -> None:
    """List, count, show and replay dead letters.

    A dead letter is an input that could not be used: an event, one run of an event, or a line of a listing. The raw
    manifest keeps it with its reason and all data for a replay.

    \b
    Example:
      ciml dead-letters count --data-path data
      ciml dead-letters replay --reason 'log_*' --allow-host logs.example.org --data-path data
    """
