"""The fetch policy: allowed addresses of logs, limits of size and time, and the delays of retries."""

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
      hosts: ``[scheme://]host[:port]`` of the allowed hosts: https by default, the scheme's own port
        by default; ``*.`` before a host allows every host below it. Names must resolve to public addresses; an IP
        address may be private.
      private_hosts: as ``hosts``, for names that may resolve to private addresses (never to link-local or metadata
        ones).
      file_roots: folders below which files may be read. Symlinks may lead from one path below them to another;
        nothing outside is accessed.
      s3_prefixes: ``s3://bucket/prefix`` below which objects may be read, with the credentials of the process.
      ca_file: certificates (PEM) of a private authority, trusted beside the usual ones.
      threads: number of concurrent fetches. Threads mostly wait, so there are more than cores.
      max_wire_bytes: limit of transferred bytes of a log. Two hours of dstat are 0.2 MB in gzip.
      max_bytes: limit of unpacked bytes of a log. A day of dstat, one sample a second of 60 columns, is 25 MB.
      max_batch_bytes: limit of unpacked logs that a batch holds at once, bytes; the others wait until these are
        parsed and stored. It determines memory: see docs/limits.md.
      connect_s: time limit of a connection, and of resolving a name, s.
      read_s: time limit of waiting for the next bytes, s.
      total_s: time limit of one log, s.
      batch_s: time limit of a batch, s; logs not started by then are fetched later. A batch takes at most batch_s +
        total_s.
      delays_s: delay before each further try of an unavailable log, s. After the last one, the run is a dead letter. ()
        makes it one at once: for listings of files.
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
                    raise CimlError(f"fetch policy: {spec.name} must be a list of {word}")
                object.__setattr__(self, spec.name, tuple(value))
            elif isinstance(spec.default, str):
                if not isinstance(value, str):
                    raise CimlError(f"fetch policy: {spec.name} must be a text")
            elif isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise CimlError(f"fetch policy: {spec.name} must be a number above 0")
        if self.max_batch_bytes < self.max_bytes:
            raise CimlError("fetch policy: max_batch_bytes must be at least max_bytes, so that the largest log fits")
        if any(delay < 0 for delay in self.delays_s):
            raise CimlError("fetch policy: delays_s must not be negative")
        _ = self.rules, self.roots, self.prefixes

    @cached_property
    def rules(self) -> tuple[HostRule, ...]:
        """The allowed hosts, parsed."""
        return tuple(host_rule(text) for text in self.hosts) + tuple(
            host_rule(text, True) for text in self.private_hosts
        )

    @cached_property
    def roots(self) -> tuple[tuple[str, str], ...]:
        """(path as given, resolved path) of each file root, both absolute with a final slash."""
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
                raise CimlError(f"fetch policy: {text!r} is not s3://bucket/prefix")
            found.append((bucket, f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""))
        return tuple(found)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, **options: Any) -> FetchPolicy:
        """Load a TOML file whose keys are the attributes; ``options`` take precedence over the file.

        Raises:
          CimlError: one line, for an unreadable file, an unknown key or an invalid value.
        """
        stored = read_toml(path) if path is not None else {}
        known = [spec.name for spec in fields(cls)]
        for key in (*stored, *options):
            if key not in known:
                raise CimlError(f"{path or 'fetch policy'}: unknown key {key!r}; choose from {', '.join(known)}")
        return cls(**{**stored, **options})

    def allowing(self, *, hosts: tuple[str, ...] = (), roots: tuple[str, ...] = ()) -> FetchPolicy:
        """Allow further locations; those of ``roots`` that start with ``s3://`` are prefixes."""
        return replace(
            self,
            hosts=self.hosts + hosts,
            file_roots=self.file_roots + tuple(root for root in roots if not root.startswith("s3://")),
            s3_prefixes=self.s3_prefixes + tuple(root for root in roots if root.startswith("s3://")),
        )
