"""``ciml adapter``: list the adapters of CI systems, and show the events that they make of a delivery."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ciml.cli.command import make_command
from ciml.cli.options import Json, JsonLines
from ciml.cli.output import print_columns, print_lines
from ciml.options import argument, option, repeated

if TYPE_CHECKING:
    from ciml.events.records import FactUpdate, RunFacts
    from ciml.integrations.adapter import Adapter, Delivery

#: Exit code for a delivery that becomes a dead letter.
_REJECTED = 2
#: Times in the facts of a run, and the names under which they are printed.
_TIMES = {"start_us": "start_time", "end_us": "end_time"}
#: The results of a run, by their keys in JSON: the words for people.
_RESULT_WORDS = {"log": "its log is fetched", "ignored": "ignored", "dead_letter": "dead letter"}


@make_command("list")
def list_command(options: JsonLines) -> None:
    """List the adapters, including those of installed packages.

    \b
    Example:
      ciml adapter list
    """
    from ciml.integrations.registry import adapters

    options.show_all([adapter for _, adapter in sorted(adapters().items())], _print_adapters, _adapter_json)


def _adapter_json(adapter: Adapter) -> dict[str, Any]:
    return {"name": adapter.name, "headers": adapter.headers, "signature": adapter.signature}


def _print_adapters(adapters: list[Adapter]) -> None:
    rows = [(adapter.name, ", ".join(adapter.headers) or "-", adapter.signature or "-") for adapter in adapters]
    print_columns([("adapter", "headers", "signature"), *rows])


def _parse_headers(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """Return the headers of a repeated option by lower-case name; a callback of click."""
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
    headers: dict[str, str] = repeated(_parse_headers, metavar="NAME=VALUE")
    source: str | None = option(metavar="NAME")


@make_command("try")
def try_command(options: TryOptions) -> int:
    """Show the runs and facts of a delivery.

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
    trial = try_delivery(adapter, check_source_name(options.source or options.system), delivery)

    def print_trial(trial: Mapping[str, Any]) -> None:
        print_lines(_trial_lines(trial))
        missing = sorted(set(adapter.headers) - options.headers.keys())
        if "dead_letter" in trial and missing:
            click.echo(f"The adapter reads headers that were not given: {', '.join(missing)}; give --header.")

    options.show(trial, print_trial)
    return _REJECTED if any("dead_letter" in result for result in (trial, *trial["runs"])) else 0


def try_delivery(adapter: Adapter, source: str, delivery: Delivery) -> dict[str, Any]:
    """Return the result of an ingest of a delivery whose sender was not proved. Nothing is stored.

    Returns:
      ``runs`` and ``updates`` with ``event`` and perhaps ``ignored``, or empty ones with ``dead_letter``. Each run has
      ``facts`` and exactly one of ``log`` (the address to fetch), ``ignored`` or ``dead_letter``.
    """
    from ciml.errors import RejectedInput
    from ciml.events.records import Batch, Message, OffsetRange
    from ciml.integrations.registry import delivered, read_event
    from ciml.transforms.ingest.decode import decode

    value, headers = delivered(adapter, source, delivery.body, delivery.headers, delivery_id=delivery.id)
    message = Message(0, value, tuple(headers))
    try:
        event = read_event(message)
    except RejectedInput as rejected:
        return {"runs": [], "updates": [], "dead_letter": f"{rejected.reason}: {rejected.detail}"}
    # `decode` takes a batch of a partition, and its outcomes lack the event's type and time: it gets the read event.
    batch = Batch(OffsetRange("ci-events", "", 0, 0, 1), [message])
    decoded = decode(batch, read_event=lambda *_: event)
    runs = [{"facts": _facts_json(run.mention), "log": run.mention.log_url} for run in decoded.pending_runs]
    for outcome in decoded.settled:
        if outcome.mention is None:
            continue  # an ignored event or its updates, which are in the event itself
        reason = f"{outcome.reason}: {outcome.detail}" if outcome.detail else outcome.reason
        result = "ignored" if outcome.kind == "ignored" else "dead_letter"
        runs.append({"facts": _facts_json(outcome.mention), result: reason})
    trial = {
        "event": {"type": event.type, "time": _time_text(event.time_us)},
        "runs": runs,
        "updates": [_update_json(update) for update in event.updates],
    }
    return trial | ({"ignored": event.ignored} if event.ignored else {})


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


def _trial_lines(trial: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for people."""
    if "dead_letter" in trial:
        yield f"dead letter: {trial['dead_letter']}"
        return
    event = trial["event"]
    yield f"event {event['type']} at {event['time']}" if event["time"] else f"event {event['type']}"
    for run in trial["runs"]:
        yield f"run {run['facts']['run_id']}"
        yield from _fact_lines({name: run["facts"][name] for name in run["facts"] if name not in ("run_id", "log_url")})
        yield from (f"  {word}: {run[result]}" for result, word in _RESULT_WORDS.items() if result in run)
    for update in trial["updates"]:
        yield f"update of the runs of {update['subject']}"
        yield from _fact_lines(update["facts"] | {name: update[name] for name in ("by", "only") if name in update})
    if "ignored" in trial:
        yield f"ignored: {trial['ignored']}"


def _fact_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        if isinstance(value, Mapping):
            text = ", ".join(f"{key}={item}" for key, item in value.items())
        else:
            text = ", ".join(value) if isinstance(value, (list, tuple)) else value
        yield f"  {name:<{width}}  {text or '-'}"


@click.group("adapter", commands=[list_command, try_command])
def command() -> None:
    """List adapters of CI systems; try a delivery.

    An adapter turns the deliveries of a CI system into runs and facts about them.

    \b
    Example:
      ciml adapter list
      ciml adapter try gitlab job.json
    """
