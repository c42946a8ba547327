"""From where logs may be fetched, how large and how slow they may be, and when one is tried again."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from ciml.errors import CimlError
from ciml.limits import MAX_BATCH_BYTES, MAX_LOG_BYTES, MAX_WIRE_BYTES
from ciml.settings import read_toml
from transforms.fetch.addresses import HostRule, host_rule


@dataclass(frozen=True)
class FetchPolicy:
    """The options of `transforms.fetch.fetch.fetch`. By default no address is allowed.

    Attributes:
      hosts: ``[scheme://]host[:port]`` that logs may come from: https unless http is named, the scheme's own port
        unless one is named; ``*.`` before a host takes every host below it. Names must lead to public addresses; an IP
        address stands for itself, private or not.
      private_hosts: the same, for names that may lead to private addresses (never to link-local or metadata ones).
      file_roots: folders below which files may be read. Symlinks may lead from one place below them to another, and
        nothing outside is looked at.
      s3_prefixes: ``s3://bucket/prefix`` below which objects may be read, with the credentials of the process.
      ca_file: certificates (PEM) of a private authority, trusted beside the usual ones.
      threads: how many logs are fetched at once. A thread mostly waits, so it is more than there are cores.
      max_wire_bytes: how many bytes of a log may be transferred. Two hours of dstat are 0.2 MB in gzip.
      max_bytes: how many bytes a log may have unpacked. A day of dstat, one sample a second of 60 columns, is 25 MB.
      max_batch_bytes: how many bytes of unpacked logs a batch holds at once; what is beyond waits until these are
        parsed and stored. Memory follows from it: see docs/limits.md.
      connect_s: time limit of a connection, and of resolving a name, s.
      read_s: of the wait for the next bytes, s.
      total_s: of one log, s: a dripping one ends here.
      batch_s: of a batch, s; what has not begun by then is fetched later. So a batch takes at most batch_s + total_s.
      delays_s: how long to wait before each further try of a log that is not there, s. When they are spent, the run is
        a dead letter. () makes it one at once: for listings of files.
    """

    hosts: tuple[str, ...] = ()
    private_hosts: tuple[str, ...] = ()
    file_roots: tuple[str, ...] = ()
    s3_prefixes: tuple[str, ...] = ()
    ca_file: str = ""
    threads: int = 16
    max_wire_bytes: int = MAX_WIRE_BYTES
    max_bytes: int = MAX_LOG_BYTES
    max_batch_bytes: int = MAX_BATCH_BYTES
    connect_s: float = 5.0
    read_s: float = 10.0
    total_s: float = 30.0
    batch_s: float = 120.0
    delays_s: tuple[float, ...] = (10.0, 60.0, 300.0, 1800.0, 7200.0)

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(spec.default, tuple):
                kind, word = ((int, float), "numbers") if spec.name == "delays_s" else (str, "texts")
                if not isinstance(value, list | tuple) or not all(isinstance(item, kind) for item in value):
                    raise CimlError(f"fetch policy: {spec.name} is a list of {word}")
                object.__setattr__(self, spec.name, tuple(value))
            elif isinstance(spec.default, str):
                if not isinstance(value, str):
                    raise CimlError(f"fetch policy: {spec.name} is a text")
            elif isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise CimlError(f"fetch policy: {spec.name} is a number above 0")
        if self.max_batch_bytes < self.max_bytes:
            raise CimlError("fetch policy: max_batch_bytes is below max_bytes, so a large log would never fit")
        if any(delay < 0 for delay in self.delays_s):
            raise CimlError("fetch policy: delays_s are not negative")
        _ = self.rules, self.roots, self.prefixes

    @cached_property
    def rules(self) -> tuple[HostRule, ...]:
        """The allowed hosts, parsed."""
        return tuple(host_rule(text) for text in self.hosts) + tuple(
            host_rule(text, True) for text in self.private_hosts
        )

    @cached_property
    def roots(self) -> tuple[tuple[str, str], ...]:
        """(as it is named, with its own symlinks followed) of each file root, both absolute with a final slash."""
        return tuple(
            (os.path.join(os.path.abspath(root), ""), os.path.join(os.path.realpath(root), ""))
            for root in self.file_roots
        )

    @cached_property
    def prefixes(self) -> tuple[tuple[str, str], ...]:
        """(bucket, key prefix), the prefix "" or with a final slash."""
        found = []
        for text in self.s3_prefixes:
            bucket, _, prefix = text.removeprefix("s3://").partition("/")
            if not text.startswith("s3://") or not bucket:
                raise CimlError(f"fetch policy: {text!r} is no s3://bucket/prefix")
            found.append((bucket, f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""))
        return tuple(found)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, **options: Any) -> FetchPolicy:
        """Return the policy in a TOML file whose keys are the attributes; ``options`` go before what the file says.

        Raises:
          CimlError: one line, for a file that cannot be read, an unknown key or a value that is of no use.
        """
        said = read_toml(path) if path is not None else {}
        known = [spec.name for spec in fields(cls)]
        for key in (*said, *options):
            if key not in known:
                raise CimlError(f"{path or 'fetch policy'}: unknown key {key!r}; known are {', '.join(known)}")
        return cls(**{**said, **options})

    def allowing(self, *, hosts: tuple[str, ...] = (), roots: tuple[str, ...] = ()) -> FetchPolicy:
        """The same policy with further places allowed; of ``roots``, those that begin with ``s3://`` are prefixes."""
        return replace(
            self,
            hosts=self.hosts + hosts,
            file_roots=self.file_roots + tuple(root for root in roots if not root.startswith("s3://")),
            s3_prefixes=self.s3_prefixes + tuple(root for root in roots if root.startswith("s3://")),
        )
