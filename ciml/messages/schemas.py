"""The JSON Schemas of all topics, generated from the types of their messages.

A schema describes what this version publishes, and accepts what version 0.1 published. Fields are only added: none is
removed, renamed or given another type, and a required one stays required. So a consumer ignores unknown fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any

import msgspec

from ciml.errors import CimlError
from ciml.events.records import Origin, RunFacts
from ciml.events.samples import EndMessage, SamplesMessage
from ciml.messages import events, outputs
from ciml.verdicts import Verdict

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_FACTS, _ORIGIN = (RunFacts,), (Origin,)
_REQUIRED_ONE = (
    [{"required": ["result"]}, {"required": ["outcome"]}],
    [{"required": ["start_time"]}, {"required": ["end_time"]}],
)
#: What the types cannot express, by definition.
_RULES: Mapping[str, Mapping[str, Any]] = {
    "FinishedRun": {"allOf": [{"anyOf": choices} for choices in _REQUIRED_ONE]},
    "DeliveryHeaders": {"patternProperties": {"^ciml_header_": {"type": "string"}}},
    "NoHeaders": {"propertyNames": {"not": {"pattern": "^(ciml_|ce_|content-type$)"}}},
}


@dataclass(frozen=True)
class _Described:
    """What a schema describes.

    Attributes:
      title: in one line.
      forms: the types of the messages.
      more: types that the forms refer to.
    """

    title: str
    forms: tuple[Any, ...]
    more: tuple[Any, ...] = ()


#: By name: a topic's usual name is the schema of its values; with ``-headers``, that of its headers.
_SCHEMAS: Mapping[str, _Described] = {
    "ci-events": _Described(
        "An event of ciml's own on the topic ci-events; a delivery of a CI system has the system's own format.",
        (events.FinishedEvent, events.UnfinishedEvent),
        (events.EventRun, events.EventRuns, events.FinishedRun, events.FinishedRuns),
    ),
    "ci-events-headers": _Described(
        "Headers of a message of the topic ci-events.",
        (events.DeliveryHeaders, events.StructuredHeaders, events.BinaryHeaders, events.NoHeaders),
    ),
    "samples": _Described("Samples of a running job, or its end.", (SamplesMessage, EndMessage)),
    "runs": _Described("A run that was stored.", (outputs.RunAnnouncement,), _FACTS),
    "runs-headers": _Described("Headers of a message of the topic runs.", (outputs.ProjectionHeaders,)),
    "dead-letters": _Described(
        "A dead letter that was opened or closed.", (outputs.OpenDeadLetter, outputs.ClosedDeadLetter), _ORIGIN
    ),
    "dead-letters-headers": _Described("Headers of a message of the topic dead-letters.", (outputs.ProjectionHeaders,)),
    "predictions": _Described(
        "A prediction, with a verdict where the run failed.", (outputs.Prediction,), (*_FACTS, Verdict)
    ),
    "predictions-headers": _Described("Headers of a message of the topic predictions.", (outputs.PredictionHeaders,)),
    "windows": _Described("A window of a running job.", (outputs.Window,)),
    "live-examples": _Described("The example of a running job so far.", (outputs.LiveExample,)),
    "live-dead-letters": _Described(
        "Samples that could not be used.", (outputs.RejectedSamples, outputs.LateSamples), _ORIGIN
    ),
}  # fmt: skip


def schema_names() -> dict[str, str]:
    """Return the titles of all schemas by name."""
    return {name: one.title for name, one in _SCHEMAS.items()}


def schema(name: str) -> dict[str, Any]:
    """Return a JSON Schema of draft 2020-12.

    Args:
      name: the usual name of a topic, for its values; with ``-headers`` for its headers as an object of texts.

    Raises:
      CimlError: there is none of this name.

    Example:
      >>> schema("runs")["$defs"]["RunAnnouncement"]["required"]
      ['build_name', 'digest', 'path', 'raw_version', 'run_id']
    """
    if name not in _SCHEMAS:
        raise CimlError(f"no schema {name!r:.80}; choose from {', '.join(_SCHEMAS)}")
    one = _SCHEMAS[name]
    refs, found = msgspec.json.schema_components((*one.forms, *one.more), ref_template="#/$defs/{name}")
    forms = list(refs)[: len(one.forms)]
    for key, each in found.items():
        each |= _RULES.get(key, {})
        each["description"] = cleandoc(each["description"])
    made = {
        "$schema": DIALECT,
        "$id": f"urn:ciml:schema:{name}",
        "title": one.title,
        **({"anyOf": forms} if len(forms) > 1 else forms[0]),
        "$defs": dict(sorted(found.items())),
    }
    as_json: dict[str, Any] = json.loads(json.dumps(made))  # a default may be a tuple
    return as_json


def schema_text(name: str) -> str:
    """Return a schema as the text of its file."""
    return json.dumps(schema(name), indent=2, ensure_ascii=False) + "\n"
