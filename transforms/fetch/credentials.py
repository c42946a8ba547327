"""Credentials of log hosts: where their secrets are, and the header that carries them."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable

from ciml.errors import CimlError
from ciml.http.addresses import Address, HostRule, host_rule
from ciml.limits import MAX_SECRET_BYTES
from ciml.settings import Settings, as_value_error

_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,99}")
#: Headers that frame a request, or that ciml sets itself.
_RESERVED_HEADERS = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "accept", "accept-encoding", "te"}
)
_TOKEN = re.compile(rb"[\x21-\x7e]+")
_PREFIX = re.compile(r"[\x20-\x7e]*")


class Credential(Settings, frozen=True):
    """The credential of one host: a token in a header, or a user and a password.

    Attributes:
      host: exactly one ``host[:port]``. The credential is sent there over https and nowhere else.
      header: header of a token: ``Authorization``, or ``PRIVATE-TOKEN`` for GitLab.
      prefix: text before the token; ``Bearer `` by default in ``Authorization``, nothing in another header.
      token_file, token_env: the file, or the environment variable, that holds the token.
      user, password_file: for basic authentication: the user, and the file that holds the password.

    Raises:
      ValueError: a name is malformed, or not exactly one secret is named.
    """

    title = "credential"

    host: str
    header: str = "Authorization"
    prefix: str | None = None
    token_file: str = ""
    token_env: str = ""
    user: str = ""
    password_file: str = ""

    def __post_init__(self) -> None:
        with as_value_error("host: "):
            host_rule(self.host)
        if self.rule.scheme != "https" or self.rule.host.startswith("*."):
            raise ValueError(f"host: {self.host!r:.120} must be one host over https, without a wildcard")
        if sum(map(bool, (self.token_file, self.token_env, self.password_file))) != 1:
            raise ValueError("name one of token_file, token_env, and user with password_file")
        if bool(self.user) != bool(self.password_file):
            raise ValueError("user and password_file belong together")
        if ":" in self.user or not self.user.isprintable():
            raise ValueError("user: must be printable, without a colon")
        if not _HEADER.fullmatch(self.header) or self.header.lower() in _RESERVED_HEADERS:
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
        """Read the secret, and return the header (name, value). It is read each time, because secrets are rotated.

        Raises:
          CimlError: the secret cannot be read, or is not a token. The message never contains the secret.
        """
        path = self.token_file or self.password_file
        where = path or self.token_env
        secret = self._read_file(path) if path else self._read_variable(self.token_env)
        if len(secret) > MAX_SECRET_BYTES:
            raise CimlError(f"the credential of {self.host}: {where} has more than {MAX_SECRET_BYTES} bytes")
        secret = secret.rstrip(b"\r\n")
        if not secret:
            raise CimlError(f"the credential of {self.host}: {where} is empty")
        if self.user:
            return b"Authorization", b"Basic " + base64.b64encode(self.user.encode() + b":" + secret)
        if not _TOKEN.fullmatch(secret):
            raise CimlError(f"the credential of {self.host}: {where} holds no token of printable ASCII")
        prefix = self.prefix
        if prefix is None:
            prefix = "Bearer " if self.header == "Authorization" else ""
        return self.header.encode(), prefix.encode() + secret

    def _read_file(self, path: str) -> bytes:
        try:
            with open(path, "rb") as file:
                return file.read(MAX_SECRET_BYTES + 1)
        except OSError as error:
            raise CimlError(f"the credential of {self.host} cannot be read: {path}: {error.strerror}") from None

    def _read_variable(self, name: str) -> bytes:
        if name not in os.environ:
            raise CimlError(f"the credential of {self.host}: the variable {name} is not set")
        return os.environ[name].encode(errors="surrogateescape")


def credential_of(credentials: Iterable[Credential], address: Address) -> Credential | None:
    """Return the credential of the host of an address; None without one, or if the connection is not encrypted."""
    for credential in credentials:
        rule = credential.rule
        if (address.scheme, address.host, address.port) == ("https", rule.host, rule.port):
            return credential
    return None
