"""Secrets in Google's Secret Manager, which processes read by name.

Everyone who may view a project and its bucket can read a job description of Dataflow. So it contains only the names of
secrets, and workers read the content with their service account.
"""

from __future__ import annotations

import re
from typing import Any

from ciml.errors import CimlError, EngineError, MissingExtraError

_NAME = re.compile(r"projects/[a-z0-9][a-z0-9.:-]{0,99}/secrets/[A-Za-z0-9_-]{1,255}(/versions/(latest|[0-9]{1,9}))?")
_TIMEOUT_S = 30.0


def check_secret_name(name: str) -> None:
    """Raise `ValueError` unless it is ``projects/PROJECT/secrets/SECRET``, optionally with ``/versions/VERSION``."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r:.120} is not the name of a secret; give projects/PROJECT/secrets/SECRET, optionally with "
            "/versions/VERSION"
        )


def read_secret(name: str) -> str:
    """Return the content of a secret's version, the latest by default, as text.

    Args:
      name: see `check_secret_name`.

    Raises:
      CimlError: it does not exist, this process may not read it, it is not UTF-8, or ciml[dataflow] is not installed.
      EngineError: Secret Manager does not answer. The message never contains the content.
    """
    try:
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
    except ImportError:
        raise MissingExtraError("dataflow") from None
    version = name if "/versions/" in name else f"{name}/versions/latest"
    try:
        answer = _client().access_secret_version(request={"name": version}, timeout=_TIMEOUT_S)
        return bytes(answer.payload.data).decode()
    except (exceptions.NotFound, exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise CimlError(
            f"secret {version} cannot be read ({type(error).__name__}): create it, and give the role "
            "roles/secretmanager.secretAccessor to the account of this process"
        ) from None
    except (exceptions.GoogleAPICallError, GoogleAuthError) as error:
        raise EngineError(f"secret {version}: Secret Manager does not answer: {error!s:.200}") from None
    except UnicodeDecodeError:
        raise CimlError(f"secret {version}: not UTF-8; store text, one NAME=VALUE per line") from None


def _client() -> Any:
    from google.cloud import secretmanager

    return secretmanager.SecretManagerServiceClient()
