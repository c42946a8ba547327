"""The model server's configuration: the text form of TensorFlow Serving's ModelServerConfig."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ciml.errors import CimlError

CONFIG_NAME = "models.config"
_HEADER = "# Written by ciml from the registry; `ciml models reconcile` rewrites it; manual changes are lost.\n"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class ModelEntry:
    """The versions of one model that the server serves.

    Attributes:
      name: the model's name in requests.
      base_path: the folder of its versions, absolute or ``s3://``.
      policy: ``specific`` serves ``versions``; ``latest`` the ``latest`` highest ones; ``all`` every one.
      versions: ascending; only for ``specific``.
      labels: versions by label. A label moves only to a loaded version.
    """

    name: str
    base_path: str
    policy: Literal["specific", "latest", "all"] = "specific"
    versions: tuple[int, ...] = ()
    latest: int = 1
    labels: Mapping[str, int] = field(default_factory=dict)


def check_model_name(name: str) -> str:
    """Return the name if it is safe in a path, a URL and a metric; else raise `CimlError`."""
    if not _NAME.fullmatch(name):
        raise CimlError(f"invalid model name {name!r:.120}: use up to 100 letters, digits, -, . or _")
    return name


def parse_config(text: str) -> tuple[ModelEntry, ...]:
    """Read a ModelServerConfig in text form.

    Raises:
      CimlError: if it is malformed, has no model_config_list, or uses an unsupported option.
    """
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except text_format.ParseError as error:
        raise CimlError(f"the model configuration is not a ModelServerConfig: {error}") from None
    return entries_of(config)


def entries_of(config: Any) -> tuple[ModelEntry, ...]:
    """Return the entries of a ModelServerConfig message. Raises `CimlError` as `parse_config` does."""
    if config.WhichOneof("config") != "model_config_list":
        # An empty file would otherwise mean "serve nothing", and a file cut short is empty.
        raise CimlError("the model configuration has no model_config_list")
    entries = [_entry(one) for one in config.model_config_list.config]
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        raise CimlError("the model configuration lists a model twice")
    return tuple(entries)


def _entry(one: Any) -> ModelEntry:
    name = check_model_name(one.name)
    if one.model_platform not in ("", "tensorflow"):
        raise CimlError(f"model {name}: unsupported platform {one.model_platform!r:.40}; use tensorflow")
    base_path: str = one.base_path
    if not base_path:
        raise CimlError(f"model {name}: base_path is missing")
    policy = one.model_version_policy
    kind = policy.WhichOneof("policy_choice") or "latest"
    return ModelEntry(
        name=name,
        base_path=base_path,
        policy=kind,  # type: ignore[arg-type]
        versions=tuple(sorted(set(policy.specific.versions))) if kind == "specific" else (),
        latest=max(policy.latest.num_versions, 1),
        labels=dict(one.version_labels),
    )


def render_config(entries: Iterable[ModelEntry]) -> str:
    """Return the text form of ``entries``, which must have the policy ``specific``. Deterministic."""
    lines = [_HEADER + "model_config_list {"]
    for entry in sorted(entries, key=lambda one: one.name):
        lines += [
            "  config {",
            f"    name: {_quoted(entry.name)}",
            f"    base_path: {_quoted(entry.base_path)}",
            '    model_platform: "tensorflow"',
            "    model_version_policy { specific { "
            + " ".join(f"versions: {version}" for version in sorted(entry.versions))
            + " } }",
            *(
                f"    version_labels {{ key: {_quoted(label)} value: {version} }}"
                for label, version in sorted(entry.labels.items())
            ),
            "  }",
        ]
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    if any(ord(character) < 32 for character in text):
        raise CimlError(f"invalid name or path {text!r:.120}: contains a control character")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
