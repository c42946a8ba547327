"""Credentials of log hosts: tokens and passwords in files and variables, which are read for each request.

A policy is pickled, compared and shown. So it holds the names of these files and variables, and never their content.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable

from ciml.errors import CimlError
from ciml.limits import MAX_SECRET_BYTES
from ciml.settings import Settings, checked
from ciml.transforms.fetch.addresses import Address, HostRule, host_rule

_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,99}")
#: Headers that frame a request, or that ciml sets itself.
_TAKEN = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept", "accept-encoding", "te"})
_TOKEN = re.compile(rb"[\x21-\x7e]+")
_PREFIX = re.compile(r"[\x20-\x7e]*")


class Credential(Settings, frozen=True):
    """The credential of one host: a token in a header, or a user and a password.

    Attributes:
      host: ``host[:port]``, exactly; it is sent there over https and nowhere else.
      header: name of the header of a token: ``Authorization``, or ``PRIVATE-TOKEN`` for GitLab.
      prefix: text before the token; ``Bearer `` by default in ``Authorization``, nothing in another header.
      token_file, token_env: the file, or the environment variable, that holds the token.
      user, password_file: for basic authentication: the user, and the file that holds the password.

    Raises:
      ValueError: not exactly one secret is named, or a name is malformed.
    """

    what = "credential"

    host: str
    header: str = "Authorization"
    prefix: str | None = None
    token_file: str = ""
    token_env: str = ""
    user: str = ""
    password_file: str = ""

    def __post_init__(self) -> None:
        checked("host: ", host_rule, self.host)
        if self.rule.scheme != "https" or self.rule.host.startswith("*."):
            raise ValueError(f"host: {self.host!r:.120} must be one host over https, without a wildcard")
        if sum(map(bool, (self.token_file, self.token_env, self.password_file))) != 1:
            raise ValueError("name one of token_file, token_env, and user with password_file")
        if bool(self.user) != bool(self.password_file):
            raise ValueError("user and password_file belong together")
        if ":" in self.user or not self.user.isprintable():
            raise ValueError("user: must be printable, without a colon")
        if not _HEADER.fullmatch(self.header) or self.header.lower() in _TAKEN:
            raise ValueError(f"header: {self.header!r:.120} is not a header for credentials")
        if self.user and (self.header != "Authorization" or self.prefix is not None):
            raise ValueError("user: basic authentication has neither header nor prefix")
        if self.prefix is not None and not _PREFIX.fullmatch(self.prefix):
            raise ValueError("prefix: must be printable ASCII")

    @property
    def rule(self) -> HostRule:
        """The host, parsed."""
        return host_rule(self.host)

    def read(self) -> tuple[bytes, bytes]:
        """Return the header (name, value), with the secret as it is now: a rotated one is read again.

        Raises:
          CimlError: it cannot be read, or is no token. The message never holds it.
        """
        where = self.token_file or self.password_file
        secret = self._of_file(where) if where else os.environ.get(self.token_env, "").encode(errors="surrogateescape")
        secret = secret.rstrip(b"\r\n")
        where = where or self.token_env
        if not secret:
            if self.token_env and self.token_env not in os.environ:
                raise CimlError(f"the credential of {self.host}: the variable {self.token_env} is not set")
            raise CimlError(f"the credential of {self.host}: {where} is empty")
        if self.user:
            return b"Authorization", b"Basic " + base64.b64encode(self.user.encode() + b":" + secret)
        if not _TOKEN.fullmatch(secret):
            raise CimlError(
                f"the credential of {self.host}: {where or self.token_env} holds no token of printable ASCII"
            )
        prefix = self.prefix if self.prefix is not None else "Bearer " if self.header == "Authorization" else ""
        return self.header.encode(), prefix.encode() + secret

    def _of_file(self, path: str) -> bytes:
        try:
            with open(path, "rb") as file:
                secret = file.read(MAX_SECRET_BYTES + 1)
        except OSError as error:
            raise CimlError(f"the credential of {self.host} cannot be read: {path}: {error.strerror}") from None
        if len(secret) > MAX_SECRET_BYTES:
            raise CimlError(
                f"the credential of {self.host} cannot be read: {path} has more than {MAX_SECRET_BYTES} bytes"
            )
        return secret


def credential_of(credentials: Iterable[Credential], address: Address) -> Credential | None:
    """Return the credential of an address's host, None where there is none or the connection is not encrypted."""
    for each in credentials:
        rule = each.rule
        if (address.scheme, address.host, address.port) == ("https", rule.host, rule.port):
            return each
    return None
