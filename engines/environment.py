"""Environment variables that decide where data are stored and whom ciml trusts.

A service records those of its start, without secrets, and each of its later processes uses them. A command uses the
local S3 endpoint where no other is configured.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import click

from ciml.engines import state

_PREFIXES = ("AWS_", "OPENLINEAGE_")
_NAMES = frozenset(
    "ALL_PROXY GOOGLE_APPLICATION_CREDENTIALS HTTPS_PROXY HTTP_PROXY NO_PROXY REQUESTS_CA_BUNDLE SSL_CERT_DIR "
    "SSL_CERT_FILE".split()
)
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|AUTHORIZATION|CREDENTIALS_")
_USER_IN_URL = re.compile(r"://[^/@]*@")
#: moto accepts any credentials; boto3 needs some.
S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_DEFAULT_REGION": "us-east-1"}
#: With one of these variables, S3 is configured.
_S3_NAMES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_ACCESS_KEY_ID")


def use_local_s3(engine: state.EngineState | None) -> bool:
    """Point this process's S3 clients to the local endpoint, if one runs and no other is configured.

    Args:
      engine: the recorded S3 endpoint; None without one.

    Returns:
      Whether it did. An endpoint, a profile or credentials in the environment take precedence.
    """
    if engine is None or any(os.environ.get(name) for name in _S3_NAMES):
        return False
    os.environ.update(s3_environment(engine.address))
    click.echo(f"S3 is the local endpoint {engine.address}", err=True)
    return True


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return the environment variables that point boto3, Beam and pyarrow to the S3 endpoint."""
    return {"AWS_ENDPOINT_URL_S3": endpoint, **S3_ENVIRONMENT}


def record_environment(environment: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the settings of an environment that are not secrets, and the names of those that are."""
    settings = {name: value for name, value in environment.items() if value and _is_setting(name)}
    secrets = tuple(sorted(name for name, value in settings.items() if _is_secret(name, value)))
    return {name: value for name, value in settings.items() if name not in secrets}, secrets


@contextmanager
def use_environment(settings: Mapping[str, str], secrets: Collection[str]) -> Iterator[None]:
    """Use recorded settings in this process, and no others, within the context.

    Args:
      settings: by name.
      secrets: names of variables that keep their present value.
    """
    before = dict(os.environ)
    for name in before:
        if _is_setting(name) and name not in settings and name not in secrets:
            del os.environ[name]
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _is_setting(name: str) -> bool:
    """Return whether a variable decides where a service stores data or whom it trusts."""
    return name.startswith(_PREFIXES) or name.upper() in _NAMES


def _is_secret(name: str, value: str) -> bool:
    if name.endswith("_FILE"):
        return False
    return _SECRET_NAME.search(name) is not None or _USER_IN_URL.search(value) is not None
