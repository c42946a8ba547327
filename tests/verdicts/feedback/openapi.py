"""GitHub's own description of its REST API, and a check of requests and answers against it.

The document is that of the npm package @octokit/openapi, which publishes GitHub's. It is fetched once, at the first
test that needs it, into the user's cache; its version and digest are fixed here. Nothing of it is part of ciml.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import lru_cache, reduce
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
    """Return the document's file; npm fetches it where it is missing. Raises `RuntimeError` for another document."""
    cache = os.environ.get("CIML_CACHE")
    path = (Path(cache) if cache else user_cache_path("ciml")) / "openapi" / f"{SHA256[:16]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=path.parent) as work:
        if not path.exists():
            subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=work, check=True)
            (packed,) = Path(work).glob("*.tgz")
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
    """The operations of a document of OpenAPI 3.0."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._registry: Registry[Any] = Registry().with_resource(_WHERE, DRAFT4.create_resource(document))
        self._paths = [
            (re.compile(_PLACE.sub(r"(?P<\1>[^/]+)", re.escape(path).replace(r"\{", "{").replace(r"\}", "}"))), path)
            for path in sorted(document["paths"], key=lambda path: (len(_PLACE.findall(path)), path))
        ]

    def example(self, name: str) -> Any:
        """Return a copy of one of the document's examples."""
        return deepcopy(self._document["components"]["examples"][name]["value"])

    def check_request(self, method: str, path: str, query: Mapping[str, str], body: Any) -> None:
        """Check a request; its path is percent-encoded. Raises `ContractError` if GitHub does not describe it."""
        template, values = self._template(method, path)
        where, place = f"{method} {template}", ("paths", template, method.lower())
        operation = self._at(*place)
        given = {("path", name): text for name, text in values.items()}
        given |= {("query", name): text for name, text in query.items()}
        for parameter in map(self._resolved, operation.get("parameters", [])):
            text = given.pop((parameter["in"], parameter["name"]), None)
            if text is not None:
                is_number = parameter["schema"].get("type") == "integer" and re.fullmatch(r"-?\d+", text)
                self._check(f"{where}: {parameter['name']}", parameter["schema"], int(text) if is_number else text)
            elif parameter.get("required") and parameter["in"] != "header":
                raise ContractError(f"{where}: lacks {parameter['name']}")
        if given:
            raise ContractError(f"{where}: the query has no {sorted(given)}")
        described = operation.get("requestBody", {})
        content = described.get("content", {}).get("application/json")
        if (body is None and described.get("required")) or (body is not None and content is None):
            raise ContractError(f"{where}: {'has no' if body is None else 'expects no'} body")
        if body is not None:
            self._check(f"{where}: body", content["schema"], body)
            if unknown := body.keys() - set(self._names(content["schema"])):
                raise ContractError(f"{where}: body: GitHub knows no {sorted(unknown)}")

    def check_answer(self, method: str, path: str, status: int, body: Any) -> None:
        """Check an answer. Raises `ContractError` if the operation has no such status, or another body.

        An error that an operation does not list is described in prose alone; its body is GitHub's basic error.
        """
        template, _ = self._template(method, path)
        where, responses = f"{method} {template}: {status}", self._at("paths", template, method.lower(), "responses")
        schema: Mapping[str, Any] = {"$ref": "#/components/schemas/basic-error"}
        if str(status) in responses:
            schema = self._resolved(responses[str(status)])["content"]["application/json"]["schema"]
        elif status < 400:
            raise ContractError(f"{where} is not among {sorted(responses)}")
        self._check(where, schema, body)

    def _template(self, method: str, path: str) -> tuple[str, Mapping[str, str]]:
        for pattern, template in self._paths:
            match = pattern.fullmatch(path)
            if match and method.lower() in self._document["paths"][template]:
                return template, match.groupdict()
        raise ContractError(f"{method} {path}: GitHub has no such operation")

    def _check(self, where: str, schema: Mapping[str, Any], value: Any) -> None:
        absolute = json.loads(json.dumps(schema).replace('"#/', f'"{_WHERE}#/'))
        validator = OAS30Validator(absolute, registry=self._registry, format_checker=oas30_format_checker)
        error = next(iter(validator.iter_errors(value)), None)
        if error is not None:
            raise ContractError(f"{where}: {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}")

    def _names(self, schema: Mapping[str, Any]) -> Iterator[str]:
        schema = self._resolved(schema)
        yield from schema.get("properties", ())
        for each in (part for key in ("oneOf", "anyOf", "allOf") for part in schema.get(key, ())):
            yield from self._names(each)

    def _resolved(self, value: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._at(*value["$ref"].removeprefix("#/").split("/")) if "$ref" in value else value

    def _at(self, *place: str) -> Any:
        return reduce(lambda value, key: value[key], place, self._document)
