"""Writes the files of a connection: receivers, policies, feedback and secret. Files are extended, never overwritten.

Keys, items and tables are added to the TOML text itself, so comments and own rules stay. Each result is parsed and
compared with the intended one.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ciml.errors import CimlError
from ciml.globs import crosses_slash
from ciml.integrations.config import SOURCES, TABLES, load_receivers
from ciml.integrations.connect import Connection, SecretFile
from ciml.settings import Settings, parse_toml
from ciml.storage.local import replace_file
from ciml.trust import PATH_GLOBS

RECEIVERS = "receivers.toml"
FETCH = "fetch.toml"
TRUST = "trust.toml"
FEEDBACK = "feedback.toml"
_SECRET_BYTES = 32
_COMMENT: Mapping[str, str] = {
    RECEIVERS: "# Sources of CI systems' deliveries, written by ciml connect. See docs/webhooks.md.\n",
    FETCH: "# Where logs may be fetched, written by ciml connect. See docs/fetch.md.\n",
    FEEDBACK: "# Messages on reviewed changes, written by ciml connect. See docs/feedback.md.\n"
    "# true: messages are printed, and no review system is called.\ndry_run = true\n",
}


def table(header: str, keys: Mapping[str, Any]) -> str:
    """Return a table as TOML; its values are texts, numbers, flags and lists of texts.

    Raises:
      CimlError: a text has a character that TOML cannot hold.
    """
    return f"{header}\n" + "".join(f"{key} = {_value(key, value)}\n" for key, value in keys.items())


def _value(key: str, value: Any) -> str:
    """Return a value as TOML, which permits neither DEL nor half of a character, as JSON does."""
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    try:
        text.encode()
        tomllib.loads(f"x = {text}")
    except ValueError:
        raise CimlError(f"{key}: {value!r:.120} cannot be written; use another name") from None
    return text


def with_table(text: str, header: str, keys: Mapping[str, Any]) -> str:
    """Return the text with a further table at its end."""
    return f"{text.rstrip()}\n\n{table(header, keys)}".lstrip("\n")


def without_blocks(text: str, header: str, keys: Mapping[str, Any]) -> str:
    """Return the text without the tables ``header`` that have these keys and values."""
    blocks = re.split(r"(?m)^(?=\[)", text)
    remaining = [block for block in blocks if not (block.startswith(header) and _has(block, keys))]
    return "".join(remaining)


def _has(block: str, keys: Mapping[str, Any]) -> bool:
    try:
        (table,) = tomllib.loads(block).values()
    except ValueError:
        return False
    table = table[0] if isinstance(table, list) else table
    return all(table.get(key) == value for key, value in keys.items())


def with_items(text: str, key: str, items: Sequence[str], where: Path) -> str:
    """Return the text with further items in a list at its top level, which is made where it is missing.

    Args:
      text: TOML.
      key: of the list.
      items: those that the list has already are left out.
      where: the file, for messages.

    Raises:
      CimlError: the list cannot be found in the text; one line that says what to add by hand.
    """
    before = tomllib.loads(text)
    present = before.get(key, [])
    new = [item for item in items if item not in present]
    if not new:
        return text
    added = ", ".join(_value(key, item) for item in new)
    if key in before:
        changed = re.sub(
            rf"(?m)^({key}\s*=\s*\[)", lambda found: f"{found[1]}{added}{', ' if present else ''}", text, count=1
        )
    else:
        changed = _on_top(text, f"{key} = [{added}]\n")
    try:
        same = tomllib.loads(changed) == {**before, key: [*new, *present]}
    except ValueError:
        same = False
    if not same:
        raise CimlError(f"{where}: {key}: cannot be extended by ciml; add {added} by hand")
    return changed


def with_key(text: str, key: str, value: str | int, where: Path) -> str:
    """Return the text with a key at its top level. Raises `CimlError` if it has another value."""
    before = tomllib.loads(text).get(key)
    if before not in (None, value):
        raise CimlError(f"{where}: {key} is {before!r} already; remove it, or add the content of {value} to that file")
    return text if before == value else _on_top(text, f"{key} = {_value(key, value)}\n")


def _on_top(text: str, line: str) -> str:
    """Return the text with a line after its first comment: before all tables, so it is a key of the top level."""
    comment = re.match(r"(?:#.*\n|\n)*", text)
    position = comment.end() if comment else 0
    return f"{text[:position]}{line}{text[position:]}"


@dataclass(frozen=True)
class Written:
    """A file, what became of it (``made``, ``extended``, ``unchanged``), and what to do about it ("" for nothing)."""

    path: Path
    change: str
    todo: str = ""


def write(folder: Path, connection: Connection, *, force: bool = False) -> list[Written]:
    """Write the files of a connection, each atomically; what is there already stays.

    Args:
      folder: of all files; it is made where it is missing, and its folder of secrets with the mode 0700.
      connection: what to write.
      force: replace a source of the same name and receiver that has other keys.

    Returns:
      All files, the secret first: a configuration that is read names no file that is missing.

    Raises:
      CimlError: a file cannot be read, extended or written, is a symlink, or has that source with other keys; or others
        may write to the folder of secrets. Nothing is written.
    """
    _check_places(folder, connection)
    texts = {name: _read(folder / name) for name in _EXTENDED_BY}
    new = {
        name: extended(texts[name] or "", connection, folder / name, force) for name, extended in _EXTENDED_BY.items()
    }
    if texts[RECEIVERS] is not None:
        load_receivers(folder / RECEIVERS)  # a fault that was there before is named in its own file
    changes = [_secret(folder, connection.secret)] if connection.secret else []
    for name, text in new.items():
        if text == (texts[name] or ""):
            concerned = text and (name != FEEDBACK or connection.feedback)
            changes += [Written(folder / name, "unchanged")] if concerned else []
            continue
        is_new = texts[name] is None
        mode = 0o644 if is_new else stat.S_IMODE((folder / name).stat().st_mode)
        _replace(folder / name, text.encode(), mode)
        changes.append(Written(folder / name, "made" if is_new else "extended"))
    return changes


def _receivers_text(text: str, connection: Connection, where: Path, force: bool) -> str:
    """Return the configuration of receivers with the source of a connection. Raises as `write`."""
    if connection.receiver not in SOURCES:
        raise CimlError(f"there is no receiver {connection.receiver!r}; choose from {', '.join(SOURCES)}")
    extended = _with_own_table(text or _COMMENT[RECEIVERS], "source", "receiver", connection.source, where, force)
    document = parse_toml(text, str(where))
    needed = connection.webhooks
    if not needed or dict(connection.source) in document.get("source", []):
        return extended
    if "webhooks" not in document:
        TABLES["webhooks"].from_json(needed, "[webhooks]")
        return with_table(extended, "[webhooks]", needed)
    if not needed.items() <= document["webhooks"].items():
        missing = ", ".join(f"{key} = {value}" for key, value in needed.items())
        raise CimlError(f"{where}: [webhooks]: set {missing}, the addresses of your proxies, and connect again")
    return extended


def _feedback_text(text: str, connection: Connection, where: Path, force: bool) -> str:
    """Return the configuration of feedback with the review system of a connection. Raises as `write`."""
    if not connection.feedback:
        return text
    return _with_own_table(text or _COMMENT[FEEDBACK], "system", "kind", connection.feedback, where, force)


def _with_own_table(text: str, name: str, selector: str, table: Mapping[str, Any], where: Path, force: bool) -> str:
    """Return the text with a table of a connection.

    Args:
      text: TOML.
      name: name of such tables, ``source`` or ``system``.
      selector: the key that names the class of the table.
      table: its keys.
      where: the file, for messages.
      force: replace a table of the same name that has other keys.

    Raises:
      CimlError: the table is invalid, or there is one with other keys and no ``force``.
    """
    from ciml.integrations.registry import kinds

    classes: Mapping[str, type[Settings]] = SOURCES if name == "source" else kinds()
    keys = {key: value for key, value in table.items() if key != selector}
    classes[table[selector]].from_json(keys, f"{name} {table['name']}")
    # Two receivers may have sources of one name: Zuul and its Gerrit.
    identity = {key: table[key] for key in ("name", *((selector,) if name == "source" else ()))}
    present = [entry for entry in parse_toml(text, str(where)).get(name, []) if identity.items() <= entry.items()]
    if dict(table) in present:
        return text
    if present and not force:
        differ = sorted(key for key in table.keys() | present[0].keys() if table.get(key) != present[0].get(key))
        raise CimlError(
            f"{where}: {name} {table['name']} is there with other values of {', '.join(differ)}; give --force to "
            f"replace it, or --name for another {name}"
        )
    if present:
        text = without_blocks(text, f"[[{name}]]", identity)
    return with_table(text, f"[[{name}]]", table)


def _fetch_text(text: str, connection: Connection, where: Path, force: bool) -> str:
    """Return the fetch policy with the places of a connection's logs. Raises as `write`."""
    if not connection.allowed and not connection.credential:
        return text
    document = parse_toml(text, str(where))
    text = text or _COMMENT[FETCH]
    for key, items in connection.allowed.items():
        text = with_items(text, key, items, where)
    if connection.ca_file:
        text = with_key(text, "ca_file", connection.ca_file, where)
    credential: dict[str, Any] = dict(connection.credential)
    if credential and not any(table.get("host") == credential["host"] for table in document.get("credentials", [])):
        credential["token_file"] = str(where.parent.absolute() / credential["token_file"])
        text = with_table(text, "[[credentials]]", credential)
    return text


def _trust_text(text: str, connection: Connection, where: Path, force: bool) -> str:
    """Return the trust policy with sample rules for a source, unless it has rules for it. Raises as `write`."""
    rules = parse_toml(text, str(where)).get("rule", [])
    if any(connection.name in _globs(own_rule) for own_rule in rules):
        return text
    sample = files("ciml.integrations").joinpath(f"trust_{connection.trust}.toml").read_text()
    sample = re.sub(r'(?m)^source = \["(?!backfill")[a-z]+"\]', f'source = ["{connection.name}"]', sample)
    if connection.trust == "mtls":  # one sample for several adapters
        sample = sample.replace('adapter = ["tekton"', f'adapter = ["{connection.source["adapter"]}"')
    if not text:
        return sample
    text = _with_path_globs(text, where)
    names = {own_rule.get("name") for own_rule in rules}
    for block in re.split(r"(?m)^(?=\[\[rule\]\])", sample)[1:]:
        (rule,) = tomllib.loads(block)["rule"]
        if rule["name"] == "listing" and "listing" in names:
            continue
        if rule["name"] in names:
            block = block.replace(f'"{rule["name"]}"', f'"{rule["name"]} ({connection.name})"', 1)
        text = f"{text.rstrip()}\n\n{block.rstrip()}\n"
    return text


def _with_path_globs(text: str, where: Path) -> str:
    """Return a policy in which * ends at a slash, unless that would change what its own rules match."""
    document = tomllib.loads(text)
    rules = document.get("rule", [])
    globs = [glob for rule in rules for fact in rule if fact not in ("name", "trusted") for glob in _globs(rule, fact)]
    if "globs" in document or "all" in globs or any(map(crosses_slash, globs)):
        return text
    return with_key(text, "globs", PATH_GLOBS, where)


def _globs(rule: Mapping[str, Any], fact: str = "source") -> list[str]:
    globs = rule.get(fact, [])
    return [globs] if isinstance(globs, str) else globs


#: Returns the text of each file with a connection. Its arguments: the text, the connection, the path, and whether to
#: replace a table of the same name that has other keys.
_EXTENDED_BY: Mapping[str, Callable[[str, Connection, Path, bool], str]] = {
    RECEIVERS: _receivers_text,
    FETCH: _fetch_text,
    TRUST: _trust_text,
    FEEDBACK: _feedback_text,
}


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CimlError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _check_places(folder: Path, connection: Connection) -> None:
    """Check that what is written stays in the folder, and that others cannot exchange a secret."""
    secret = folder / connection.secret.path if connection.secret else None
    for path in (
        *(folder / name for name in _EXTENDED_BY),
        *((secret, secret.parent) if secret else ()),
    ):
        if path.is_symlink():
            raise CimlError(f"{path} is a symlink to {os.readlink(path)}; connect with the --folder where the file is")
    if secret and secret.parent.exists() and secret.parent.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CimlError(f"{secret.parent}: others may write to the folder of secrets; chmod go-w it")


def _secret(folder: Path, secret: SecretFile) -> Written:
    path = folder / secret.path
    if path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
        todo = (
            f"others may read this secret (mode {mode:04o}): chmod 600" if mode & (stat.S_IRWXG | stat.S_IRWXO) else ""
        )
        return Written(path, "unchanged", todo)
    value = secrets.token_bytes(_SECRET_BYTES)
    text = secret.prefix + (base64.b64encode(value).decode() if secret.prefix else value.hex())
    is_new = _replace(path, text.encode() + b"\n", 0o600, exclusively=True)
    return Written(path, "made" if is_new else "unchanged")


def _replace(path: Path, content: bytes, mode: int, *, exclusively: bool = False) -> bool:
    """Write a file atomically; ``exclusively`` only where there is none. Return whether it was written."""
    try:
        path.parent.mkdir(mode=0o755 if mode & 0o077 else 0o700, parents=True, exist_ok=True)
        return replace_file(path, content, mode, exclusively=exclusively)
    except OSError as error:
        raise CimlError(f"{path}: {error.strerror}") from None
