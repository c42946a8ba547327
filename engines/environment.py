"""The environment of a service's start: recorded without secrets, and used by each of its later processes."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

_PREFIXES = ("AWS_", "OPENLINEAGE_")
_NAMES = frozenset(
    {
        "ALL_PROXY",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "NO_PROXY",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
    }
)
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|AUTHORIZATION|CREDENTIALS_")
_USER_IN_URL = re.compile(r"://[^/@]*@")


def is_setting(name: str) -> bool:
    """Return whether a variable decides where a service stores data or whom it trusts."""
    return name.startswith(_PREFIXES) or name.upper() in _NAMES


def recorded(environment: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return what to record of an environment.

    Returns:
      The settings without secrets, by name; and the names of the settings whose value is a secret.
    """
    settings = {name: value for name, value in environment.items() if value and is_setting(name)}
    secrets = tuple(sorted(name for name, value in settings.items() if _is_secret(name, value)))
    return {name: value for name, value in settings.items() if name not in secrets}, secrets


def _is_secret(name: str, value: str) -> bool:
    if name.endswith("_FILE"):
        return False
    return _SECRET_NAME.search(name) is not None or _USER_IN_URL.search(value) is not None


@contextmanager
def using(settings: Mapping[str, str], secrets: Collection[str]) -> Iterator[None]:
    """Use recorded settings in this process, and nothing else that `is_setting`, within the context.

    Args:
      settings: by name.
      secrets: names of variables that keep their present value.
    """
    before = dict(os.environ)
    for name in before:
        if is_setting(name) and name not in settings and name not in secrets:
            del os.environ[name]
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
