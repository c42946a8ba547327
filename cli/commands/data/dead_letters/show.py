"""``ciml dead-letters list``, ``count`` and ``show``."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.commands.data.dead_letters.filters import choice_of, choice_options
from ciml.cli.options import data_path_option
from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.events.listing import TOPIC, is_listing

if TYPE_CHECKING:
    from ciml.runs.dead_letters import DeadLetter
    from ciml.storage import Store

_SHORT = len(TOPIC) + 8  # of a listing's digest, enough to distinguish it


def _found(data_path: str, everything: bool, **filters: Any) -> Iterator[DeadLetter]:
    """Yield the open dead letters of the filters, or all of them, the oldest first."""
    from ciml.runs.dead_letters import all_dead_letters, open_dead_letters, open_keys
    from ciml.runs.state import open_raw

    choice = choice_of(**filters)
    log, state = open_raw(DataRoot.open(data_path).raw)
    return all_dead_letters(log, choice) if everything else open_dead_letters(log, open_keys(state, choice), choice)


@click.command("list")
@data_path_option()
@choice_options
@click.option("--all", "everything", is_flag=True, help="Include closed dead letters and their outcomes.")
@click.option("--last", default=20, type=click.IntRange(1), help="Maximum number of dead letters.")
@click.option("--json", "as_json", is_flag=True, help="JSON output of all, one object a line.")
def list_command(data_path: str, everything: bool, last: int, as_json: bool, **filters: Any) -> None:
    """List open dead letters, the latest last.

    \b
    Example:
      ciml dead-letters list --data-path data
      ciml dead-letters list --reason log_not_found --since 1d --json --data-path data
    """
    dead_letters = _found(data_path, everything, **filters)
    now_us = time.time_ns() // 1000
    if as_json:
        for dead_letter in dead_letters:
            click.echo(json.dumps(dead_letter.to_json(now_us)))
        return
    count = 0

    def counted() -> Iterator[DeadLetter]:
        nonlocal count
        for dead_letter in dead_letters:
            count += 1
            yield dead_letter

    shown = deque(counted(), maxlen=last)
    if not shown:
        click.echo("No dead letters." if everything else "No open dead letters.")
        return
    _print_rows(shown, now_us, everything)
    if count > len(shown):
        click.echo(f"{count - len(shown):,} older ones are not shown; show them by --last {count} or --json.")


def _print_rows(dead_letters: Iterable[DeadLetter], now_us: int, everything: bool) -> None:
    """Print one line each, in columns."""
    rows = []
    for one in dead_letters:
        facts = one.to_json(now_us)
        row = [_age(facts["age_s"]), facts["reason"], _origin(one), facts["run_id"] or "-", facts["build_name"] or "-"]
        if everything:
            row.append(", ".join(one.became) if one.closed else "open")
        rows.append([*row, facts["detail"]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _origin(dead_letter: DeadLetter) -> str:
    origin = dead_letter.key[0]
    topic = origin.topic[:_SHORT] if is_listing(origin.topic) else origin.topic
    return f"{topic}:{origin.partition}:{origin.offset}"


def _age(seconds: int) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{max(seconds, 0)} s"


@click.command("count")
@data_path_option()
@choice_options
@click.option("--by-job", is_flag=True, help="Count by reason and job.")
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def count(data_path: str, by_job: bool, as_json: bool, **filters: Any) -> None:
    """Count open dead letters by reason.

    \b
    Example:
      ciml dead-letters count --data-path data
      ciml dead-letters count --by-job --since 7d --data-path data
    """
    counts: Counter[tuple[str, str]] = Counter()
    if by_job or any(filters.values()):
        for one in _found(data_path, False, **filters):
            counts[one.outcome.reason, one.job if by_job else ""] += 1
    else:  # the manifest's own sums
        from ciml.runs.state import open_raw

        _, state = open_raw(DataRoot.open(data_path).raw)
        counts.update({(reason, ""): n for (kind, reason), n in state.counts.items() if kind == "dead_letter"})
    rows = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    if as_json:
        listed = [{"reason": reason, **({"job": job} if by_job else {}), "letters": n} for (reason, job), n in rows]
        click.echo(json.dumps({"letters": counts.total(), "by": listed}, indent=2))
        return
    for (reason, job), number in rows:
        click.echo(f"{number:>10,} {reason}{f'  {job}' if by_job else ''}")
    click.echo(f"{counts.total():>10,} open dead letters")


@click.command("show")
@click.argument("origin", metavar="TOPIC:PARTITION:OFFSET")
@click.argument("run_id", metavar="[RUN]", default="*")
@data_path_option()
def show(origin: str, run_id: str, data_path: str) -> None:
    """Show the open dead letters of an origin.

    It shows their reasons and the message, from which secrets were removed.

    \b
    Example:
      ciml dead-letters show ci-events:0:1234 --data-path data
    """
    from ciml.pipelines.ingest.replay import chosen
    from ciml.runs.dead_letters import Choice

    topic, partition, offset = _parsed_origin(origin)
    raw = DataRoot.open(data_path).raw
    choice = Choice(topics=(_literal(topic) + ("*" if is_listing(topic) else ""),), runs=(run_id,))
    now_us = time.time_ns() // 1000
    found = [one for one in chosen(raw, choice) if one.key[0].partition == partition and one.key[0].offset == offset]
    if not found:
        raise CimlError(f"no open dead letter of {origin}; list them by ciml dead-letters list")
    for one in found:
        value = one.to_json(now_us)
        value["time"] = datetime.fromtimestamp(one.time_us / 1e6, UTC).isoformat(timespec="seconds")
        click.echo(json.dumps({**value, "message": _message(raw, one)}, indent=2, ensure_ascii=True))


def _parsed_origin(text: str) -> tuple[str, int, int]:
    topic, _, rest = text.rpartition(":")
    topic, _, partition = topic.rpartition(":")
    if not topic or not partition.isdecimal() or not rest.isdecimal():
        raise click.UsageError(f"invalid origin {text!r}; give TOPIC:PARTITION:OFFSET as in ciml dead-letters list")
    return topic, int(partition), int(rest)


def _literal(text: str) -> str:
    """Return a glob that matches only a text."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def _message(raw: Store, dead_letter: DeadLetter) -> Any:
    """Return the stored message, readable."""
    from ciml.events.payloads import message_of, read_payload

    payload = dead_letter.outcome.payload
    whole = read_payload(raw, payload) if payload else None
    if whole is None or "value" not in whole:
        return dict(whole) if whole else None
    message = message_of(whole, dead_letter.key[0].offset)
    return {
        "value": None if message.value is None else message.value.decode("utf-8", "backslashreplace"),
        "headers": [
            [name, None if value is None else value.decode("utf-8", "backslashreplace")]
            for name, value in message.headers
        ],
        "timestamp_ms": message.timestamp_ms,
    }
