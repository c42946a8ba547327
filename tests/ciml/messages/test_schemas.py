"""The schemas are those of docs/schemas, follow from the types, accept real messages, and reject wrong ones."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from jsonschema import Draft202012Validator

from ciml.cli.main import cli
from ciml.errors import CimlError
from ciml.messages import schema, schema_text, schema_titles
from tests.ciml.messages.made import made, values
from tests.messages import check_message, fault

ROOT = Path(__file__).parents[3]
NAMES = list(schema_titles())
every_schema = pytest.mark.parametrize("name", NAMES)


def test_the_files_are_those_that_the_types_give() -> None:
    """`ciml schema --output docs/schemas` writes them."""
    assert {path.name: path.read_text() for path in (ROOT / "docs/schemas").iterdir()} == {
        f"{name}.json": schema_text(name) for name in NAMES
    }
    text = (ROOT / "docs/schemas.md").read_text()
    assert [name for name in NAMES if f"[`{name}`](schemas/{name}.json)" not in text] == []
    with pytest.raises(CimlError, match="no schema 'x'; choose from ci-events, ci-events-headers, samples"):
        schema("x")


@every_schema
def test_a_schema_is_one_and_all_its_references_are_in_it(name: str) -> None:
    found = schema(name)
    Draft202012Validator.check_schema(found)
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(found)))
    assert references == {f"#/$defs/{each}" for each in found["$defs"]}


def test_each_topic_of_a_command_has_a_schema() -> None:
    named = set[str]()
    for command in _commands(cli):
        for option in command.params:
            if "--dead-letters-topic" in option.opts and command.name in ("run", "ingest"):
                named.add("dead-letters")  # the only one that is not published without being asked for
            elif any(name.endswith("topic") for name in option.opts) and isinstance(option.default, str):
                named.add(option.default)
    assert named == {name for name in NAMES if not name.endswith("-headers")}


@pytest.mark.parametrize("topic", sorted(made()))
def test_a_message_of_each_form_follows_its_schema(topic: str) -> None:
    messages = made()[topic]
    for message in messages:
        check_message(topic, message)
    decoded = [json.loads(message.value or b"null") for message in messages if message.value != b"no JSON"]
    forms = {json.dumps(sorted(value)) for value in decoded}
    assert len(forms) >= {"windows": 1, "runs": 2}.get(topic, 2)


@every_schema
def test_a_wrong_message_does_not_follow_its_schema(name: str) -> None:
    """Each required field is taken away, and each field gets a value of another type."""
    tried = 0
    for value in values(name):
        assert not fault(name, value)
        for path, wrong in _spoiled(name, value):
            assert fault(name, wrong), f"{name}: {path}: {json.dumps(wrong)[:300]}"
            tried += 1
    assert tried >= 2


@every_schema
def test_a_consumer_may_meet_new_fields(name: str) -> None:
    for value in values(name):
        wider = {**value, "added_later": "x" if name.endswith("-headers") else {"of": ["any", "kind"]}}
        assert not fault(name, wider)
        assert fault(name, wider, closed=True)


WRONG: dict[str, dict[str, Any]] = {
    "runs": {"digest": "A" * 64, "raw_version": 0, "reclaim": False},
    "runs-headers": {"manifest": "v4"},
    "dead-letters": {"state": "lost", "origin": ["ci-events", 0]},
    "predictions": {"probabilities": {"code": "0.5"}},
    "predictions-headers": {"ce_type": "dev.ciml.prediction.v2"},
    "windows": {"pane": "last", "values": [1.5, None], "day": "26.11.2026"},
    "live-examples": {"standing": "over", "values": [1.5]},
    "samples": {"samples": [[0, 1_795_518_000_000_000, True]], "recorder_us": 1_795_518_000},
    "ci-events": {"specversion": "0.3", "data": {"runs": []}},
    "ci-events-headers": {"ciml_auth": "HMAC SHA"},
}


@pytest.mark.parametrize("name", WRONG)
def test_planted_values_are_found(name: str) -> None:
    for field, wrong in WRONG[name].items():
        value = next(each for each in values(name) if field in each or field == "reclaim")
        assert fault(name, {**value, field: wrong}), field


@pytest.mark.parametrize(
    "without", [("result", "outcome"), ("start_time", "end_time"), ("id",), ("job",)], ids=lambda names: "+".join(names)
)
def test_a_finished_run_needs_a_result_and_a_time(without: tuple[str, ...]) -> None:
    value = next(values("ci-events"))
    assert not fault("ci-events", value)
    data = {key: each for key, each in value["data"].items() if key not in without}
    assert fault("ci-events", {**value, "data": data})


def _commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _commands(below)


def _spoiled(name: str, value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield copies of a value with a fault, and where it is."""
    found = schema(name)
    forms = [found["$defs"][ref["$ref"].rpartition("/")[2]] for ref in found.get("anyOf", [found])]
    (form, *_) = [each for each in forms if set(each.get("required", ())) <= value.keys() and value.keys() <= {
        *each["properties"], *(key for key in value if key.startswith("ciml_header_"))
    }] or [None]  # fmt: skip
    if form is None or not form["properties"]:
        return
    for key in form.get("required", ()) if value.keys() != {"content-type"} else ():  # without it the event is bare
        yield f"without {key}", {other: each for other, each in value.items() if other != key}
    for key in value:
        wrong = copy.deepcopy(value)
        wrong[key] = 5 if name.endswith("-headers") else [{}] if not isinstance(value[key], list) else {"x": 1}
        yield f"type of {key}", wrong
