"""``ciml adapter``: the adapters of CI systems, and what they make of a delivery."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ciml.cli.command import make_command
from ciml.cli.options import Json, JsonLines
from ciml.cli.output import print_columns
from ciml.options import argument, option, repeated

if TYPE_CHECKING:
    from ciml.events.records import FactUpdate, RunFacts
    from ciml.integrations.adapter import Delivery

#: Exit code for a delivery that becomes a dead letter.
_REJECTED = 2
#: Times in the facts of a run, and the names under which they are printed.
_TIMES = {"start_us": "start_time", "end_us": "end_time"}


@make_command("list")
def list_command(options: JsonLines) -> None:
    """List the adapters, installed ones too.

    \b
    Example:
      ciml adapter list
    """
    from ciml.integrations.registry import adapters

    named = [adapters()[name] for name in sorted(adapters())]
    rows = [{"name": adapter.name, "headers": adapter.headers, "signature": adapter.signature} for adapter in named]
    options.show_all(rows, _print_adapters)


def _print_adapters(adapters: list[dict[str, Any]]) -> None:
    rows = [
        (adapter["name"], ", ".join(adapter["headers"]) or "-", adapter["signature"] or "-") for adapter in adapters
    ]
    print_columns([("adapter", "headers", "signature"), *rows])


def _headers(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name.strip() or not text.isprintable():
            raise click.BadParameter(f"invalid header {text!r:.80}; give NAME=VALUE, printable", ctx, param)
        headers[name.strip().lower()] = value.strip()
    return headers


class TryOptions(Json):
    """Options of ``ciml adapter try``.

    Attributes:
      headers: Header of the delivery, or the topic of an MQTT message; may be repeated.
      source: Configured name of the source. [default: SYSTEM]
    """

    system: str = argument()
    file: BinaryIO = argument(kind=click.File("rb"))
    headers: dict[str, str] = repeated(_headers, metavar="NAME=VALUE")
    source: str | None = option(metavar="NAME")


@make_command("try")
def try_command(options: TryOptions) -> int:
    """Show what a delivery becomes.

    FILE is the raw body that SYSTEM sends, - for standard input. Nothing is stored. The exit code is 2 for a delivery
    that becomes a dead letter.

    \b
    Example:
      ciml adapter try github body.json --header x-github-event=workflow_job
      ciml adapter try zuul message.json --header topic=zuul/demo --json
    """
    from ciml.events.run_id import check_source_name
    from ciml.integrations.adapter import Delivery
    from ciml.integrations.registry import find_adapter
    from ciml.limits import MAX_MESSAGE_BYTES

    adapter = find_adapter(options.system)
    delivery = Delivery(options.file.read(MAX_MESSAGE_BYTES + 1), options.headers, "try")
    result = try_delivery(options.system, check_source_name(options.source or options.system), delivery)

    def print_result(result: Mapping[str, Any]) -> None:
        for line in _result_lines(result):
            click.echo(line)
        if "dead_letter" in result and (missing := set(adapter.headers) - options.headers.keys()):
            click.echo(f"The adapter reads headers that were not given: {', '.join(sorted(missing))}; give --header.")

    options.show(result, print_result)
    rejected = "dead_letter" in result or any("dead_letter" in run for run in result["runs"])
    return _REJECTED if rejected else 0


def try_delivery(system: str, source: str, delivery: Delivery) -> dict[str, Any]:
    """Return what ingest makes of a delivery, as JSON: ``event``, ``runs``, ``updates``, ``ignored``, ``dead_letter``.

    Each run has ``facts`` and exactly one of ``log`` (the address to fetch), ``ignored`` or ``dead_letter``.
    """
    from ciml.errors import RejectedInput
    from ciml.events.records import Batch, Message, OffsetRange
    from ciml.integrations.registry import delivered, find_adapter, read_event
    from ciml.transforms.ingest.decode import decode

    value, named = delivered(find_adapter(system), source, delivery.body, delivery.headers, "", delivery.id)
    message = Message(0, value, tuple(named))
    try:
        event = read_event(message)
    except RejectedInput as rejected:
        return {"runs": [], "updates": [], "dead_letter": f"{rejected.reason}: {rejected.detail}"}
    decoded = decode(Batch(OffsetRange("ci-events", "", 0, 0, 1), [message]), read_event=lambda *_: event)
    runs = [{"facts": _facts_json(outcome.mention), "log": outcome.mention.log_url} for outcome in decoded.pending_runs]
    for outcome in decoded.settled:
        if outcome.mention is not None:
            reason = f"{outcome.reason}: {outcome.detail}" if outcome.detail else outcome.reason
            runs.append({"facts": _facts_json(outcome.mention), outcome.kind: reason})
    result: dict[str, Any] = {
        "event": {"type": event.type, "time": _time_text(event.time_us)},
        "runs": runs,
        "updates": [_update_json(update) for update in event.updates],
    }
    if event.ignored:
        result["ignored"] = event.ignored
    return result


def _update_json(update: FactUpdate) -> dict[str, Any]:
    shown: dict[str, Any] = {"subject": update.subject, "facts": dict(update.facts)}
    if update.only:
        shown["only"] = dict(update.only)
    if update.by:
        shown["by"] = update.by
    return shown


def _facts_json(facts: RunFacts) -> dict[str, Any]:
    shown = facts.to_json()
    times = {name: _time_text(shown.pop(key, None)) for key, name in _TIMES.items()}
    return {"run_id": shown.pop("run_id"), "phase": shown.pop("phase"), **times, **shown}


def _time_text(micros: int | None) -> str | None:
    from ciml.events.fields import iso_time

    return None if micros is None else iso_time(micros)


def _result_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for people."""
    if event := result.get("event"):
        yield f"event {event['type']}" + (f" at {event['time']}" if event["time"] else "")
    for run in result["runs"]:
        yield f"run {run['facts']['run_id']}"
        yield from _fact_lines(
            {name: value for name, value in run["facts"].items() if name not in ("run_id", "log_url")}
        )
        if "log" in run:
            yield f"  its log is fetched: {run['log']}"
        else:
            yield f"  ignored: {run['ignored']}" if "ignored" in run else f"  dead letter: {run['dead_letter']}"
    for update in result["updates"]:
        yield f"update of the runs of {update['subject']}"
        qualifiers = {name: update[name] for name in ("by", "only") if name in update}
        yield from _fact_lines(update["facts"] | qualifiers)
    for name in ("ignored", "dead_letter"):
        if name in result:
            yield f"{name.replace('_', ' ')}: {result[name]}"


def _fact_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key}={item}" for key, item in value.items())
        elif isinstance(value, list | tuple):
            value = ", ".join(value)
        yield f"  {name:<{width}}  {value or '-'}"


@click.group("adapter", commands=[list_command, try_command])
def command() -> None:
    """List adapters of CI systems; try a delivery.

    An adapter turns what a CI system sends into runs and facts about them.

    \b
    Example:
      ciml adapter list
      ciml adapter try gitlab job.json
    """
