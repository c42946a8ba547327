"""The fetch policy: the allowed locations of logs, credentials, limits, and the delays before retries.

Policies are pickled, compared and printed, so they name the files and variables that hold secrets but never contain the
secrets.
"""

from __future__ import annotations

import os
import re
import ssl
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec

from ciml.errors import CimlError, RejectedInput
from ciml.http.addresses import PORTS, Address, HostRule, host_rule, parse_address
from ciml.limits import (
    MAX_ARTIFACT_NAMES,
    MAX_BATCH_BYTES,
    MAX_LOG_BYTES,
    MAX_LOG_PATHS,
    MAX_OUTPUT_BYTES,
    MAX_WIRE_BYTES,
    MIN_OUTPUT_BYTES,
)
from ciml.settings import Settings, as_value_error, seconds_of
from ciml.transforms.fetch.credentials import Credential

#: Paths of logs in the folder of a run. devstack writes ``dstat-csv.log``; Zuul's log roles rename and may compress
#: it, and keep each host's files in a folder of its own. `ciml record` writes ``dstat-csv_log.txt.gz``.
LOG_PATHS = (
    "dstat-csv_log.txt.gz",
    "dstat-csv_log.txt",
    "controller/logs/dstat-csv_log.txt.gz",
    "controller/logs/dstat-csv_log.txt",
    "logs/dstat-csv_log.txt.gz",
    "logs/dstat-csv_log.txt",
    "dstat-csv.log",
    "controller/logs/dstat-csv.log",
    "logs/dstat-csv.log",
    "dstat.csv",
    "dool.csv",
)
#: Names of a job's artifact. Each names the job: the artifacts of all jobs of a workflow run are in one list.
ARTIFACT_NAMES = ("ciml-{id}", "ciml-{job}", "dstat-{id}", "dstat-{job}")
#: Paths of a job's output in the folder of a run, as Zuul and `ciml record` write them.
OUTPUT_PATHS = ("job-output.txt.gz", "job-output.txt", "console.log")
_ARTIFACT_WORDS = frozenset({"{id}", "{job}", "{attempt}"})
_POSITIVE = msgspec.Meta(gt=0)


class LogSettings(Settings, frozen=True):
    """The table ``[logs]``: what is kept of the outputs of jobs.

    Attributes:
      keep: time for which the text of an output is kept after the end of its day (UTC), such as ``30d``; its templates
        stay. `ciml.runs.compact` removes texts.
    """

    title = "fetch policy, logs"

    keep: str = "30d"

    def __post_init__(self) -> None:
        _ = self.keep_s  # parse now, so that an invalid value is reported on construction

    @cached_property
    def keep_s(self) -> float:
        """``keep`` in seconds."""
        return seconds_of(self.keep)


class FetchPolicy(Settings, frozen=True):
    """The options of `ciml.transforms.fetch.fetch.Fetcher`. By default no address is allowed.

    Attributes:
      hosts: ``[scheme://]host[:port]`` of the allowed hosts: https by default, the scheme's own port
        by default; ``*.`` before a host allows every host below it. Names must resolve to public addresses; an IP
        address may be private.
      private_hosts: as ``hosts``, for names that may resolve to private addresses (never to link-local or metadata
        ones).
      redirect_hosts: as ``hosts``, for hosts that are contacted only when an allowed host redirects to them: object
        stores with signed addresses, whose host all customers share.
      file_roots: folders in which files may be read. Symlinks may lead to another path in these folders; nothing
        outside is accessed.
      s3_prefixes: ``s3://bucket/prefix`` under which objects may be read, with the credentials of the process.
      log_paths: possible paths of a log in a folder, in the order in which they are tried. In an archive, the log is a
        file with one of these paths, or else with the last name of one in any folder.
      artifact_names: names of the artifact with a job's log, in order of preference, without regard to case and
        punctuation. ``{id}`` is the id of the job, ``{job}`` the name, ``{attempt}`` the attempt; ``*`` matches any
        characters.
      output_paths: possible paths of a job's output in a folder, in the order in which they are tried.
      without_output: globs of sources, or of ``source/project``, whose outputs are neither fetched nor stored. ``*``
        matches all.
      max_output_bytes: limit of the stored text of an output, bytes; of a longer text, head and tail are stored.
      logs: the table ``[logs]``.
      credentials: of log hosts; `ciml.transforms.fetch.credentials.Credential` documents the keys.
      ca_file: certificates (PEM) of a private authority, trusted next to the usual ones.
      threads: number of concurrent fetches. Threads mostly wait, so there are more than cores.
      max_wire_bytes: limit of transferred bytes of a log. Two hours of dstat are 0.2 MB in gzip.
      max_bytes: limit of unpacked bytes of a log. A day of dstat, one sample a second of 60 columns, is 25 MB.
      max_batch_bytes: limit of unpacked logs that a batch holds in memory, bytes; the others wait until these are
        parsed and stored. It determines memory: see docs/limits.md.
      connect_s: time limit of a connection, and of resolving a name, s.
      read_s: time limit of waiting for the next bytes, s.
      total_s: time limit of one log, s.
      batch_s: time limit of a batch, s; logs not started by then are fetched later. A batch takes at most batch_s +
        total_s.
      delays_s: delay before each further try of an unavailable log, s. After the last one, the run is a dead letter. ()
        makes it one immediately: for listings of files.
    """

    title = "fetch policy"

    hosts: tuple[str, ...] = ()
    private_hosts: tuple[str, ...] = ()
    redirect_hosts: tuple[str, ...] = ()
    file_roots: tuple[str, ...] = ()
    s3_prefixes: tuple[str, ...] = ()
    log_paths: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=MAX_LOG_PATHS)] = LOG_PATHS
    artifact_names: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_ARTIFACT_NAMES)] = ARTIFACT_NAMES
    output_paths: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_LOG_PATHS)] = OUTPUT_PATHS
    without_output: tuple[str, ...] = ()
    max_output_bytes: Annotated[int, msgspec.Meta(ge=MIN_OUTPUT_BYTES, le=MAX_OUTPUT_BYTES)] = MAX_OUTPUT_BYTES
    logs: LogSettings = LogSettings()
    credentials: tuple[Credential, ...] = ()
    ca_file: str = ""
    threads: Annotated[int, _POSITIVE] = 16
    max_wire_bytes: Annotated[int, _POSITIVE] = MAX_WIRE_BYTES
    max_bytes: Annotated[int, _POSITIVE] = MAX_LOG_BYTES
    max_batch_bytes: Annotated[int, _POSITIVE] = MAX_BATCH_BYTES
    connect_s: Annotated[float, _POSITIVE] = 5.0
    read_s: Annotated[float, _POSITIVE] = 10.0
    total_s: Annotated[float, _POSITIVE] = 30.0
    batch_s: Annotated[float, _POSITIVE] = 120.0
    delays_s: tuple[Annotated[float, msgspec.Meta(ge=0)], ...] = (10.0, 60.0, 300.0, 1800.0, 7200.0)

    def __post_init__(self) -> None:
        if self.max_batch_bytes < self.max_bytes:
            raise ValueError("max_batch_bytes: must be at least max_bytes, so that the largest log fits")
        for key, paths in {"log_paths": self.log_paths, "output_paths": self.output_paths}.items():
            for path in paths:
                if not path.isprintable() or len(path) > 200 or not {"", ".", ".."}.isdisjoint(path.split("/")):
                    raise ValueError(f"{key}: {path!r:.120} must be a relative path, such as logs/dstat.csv")
        for name in self.artifact_names:
            if not _placeholders(name) <= _ARTIFACT_WORDS:
                raise ValueError(f"artifact_names: {name!r:.120} may hold {{id}}, {{job}} and {{attempt}}")
        credentials_by_host = Counter(credential.rule for credential in self.credentials)
        for credential in self.credentials:
            if credentials_by_host[credential.rule] > 1:
                raise ValueError(f"credentials: two are of the host {credential.host}")
        with as_value_error():
            # Parse now, so that an invalid value is reported on construction.
            _ = self.redirect_rules, self.resolved_roots, self.parsed_prefixes

    @cached_property
    def host_rules(self) -> tuple[HostRule, ...]:
        """The allowed hosts, parsed."""
        private = tuple(host_rule(text, True) for text in self.private_hosts)
        return tuple(host_rule(text) for text in self.hosts) + private

    @cached_property
    def redirect_rules(self) -> tuple[HostRule, ...]:
        """The hosts that may be contacted after a redirect, parsed."""
        return self.host_rules + tuple(host_rule(text) for text in self.redirect_hosts)

    @cached_property
    def resolved_roots(self) -> tuple[tuple[str, str], ...]:
        """(path as given, resolved path) of each file root, both absolute with a final slash."""
        return tuple(
            (os.path.join(os.path.abspath(root), ""), os.path.join(os.path.realpath(root), ""))
            for root in self.file_roots
        )

    @cached_property
    def parsed_prefixes(self) -> tuple[tuple[str, str], ...]:
        """(bucket, key prefix) of each S3 prefix; the key prefix is "" or has a final slash."""
        prefixes = []
        for text in self.s3_prefixes:
            bucket, _, prefix = text.removeprefix("s3://").partition("/")
            if not text.startswith("s3://") or not bucket:
                raise CimlError(f"s3_prefixes: {text!r} is not s3://bucket/prefix")
            prefixes.append((bucket, f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""))
        return tuple(prefixes)

    def parse_allowed(self, text: str) -> Address:
        """Parse an address, and check it as far as this needs no request. A file is checked when it is opened.

        Raises:
          RejectedInput: ``bad_address``, ``address_not_allowed``.
        """
        address = parse_address(text)
        if address.scheme in PORTS:
            check_host(address, self.host_rules)
        elif address.scheme == "s3" and not any(
            address.host == bucket and address.path.startswith(key) for bucket, key in self.parsed_prefixes
        ):
            raise RejectedInput("address_not_allowed", "the object is not below an allowed prefix")
        return address

    @classmethod
    def of(cls, path: str | Path | None, **options: Any) -> FetchPolicy:
        """Return the policy of a TOML file, or the default policy without a file; ``options`` take precedence.

        Raises:
          CimlError: for an unreadable file, an unknown key or an invalid value.
        """
        return cls.from_json(options) if path is None else cls.load(path, **options)

    def problems(self) -> dict[str, str]:
        """Return the present faults of credentials and certificates, by host or key.

        A running ingest defers the logs that need them.
        """
        problems = {}
        for credential in self.credentials:
            try:
                credential.read()
            except CimlError as error:
                problems[credential.host] = str(error)
        if self.ca_file:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(self.ca_file)
            except (OSError, ssl.SSLError) as error:
                problems["ca_file"] = f"cannot read the certificates in {self.ca_file}: {error}"
        return problems

    def check(self) -> Self:
        """Return the policy. Raise `CimlError` if a credential or the certificates are unusable now."""
        problems = self.problems()
        if problems:
            raise CimlError("; ".join(problems.values()))
        return self

    def allowing(self, *, hosts: tuple[str, ...] = (), roots: tuple[str, ...] = ()) -> FetchPolicy:
        """Return a policy that also allows these locations; ``roots`` are folders and ``s3://`` prefixes."""
        folders = tuple(root for root in roots if not root.startswith("s3://"))
        prefixes = tuple(root for root in roots if root.startswith("s3://"))
        return self.replace(
            hosts=self.hosts + hosts, file_roots=self.file_roots + folders, s3_prefixes=self.s3_prefixes + prefixes
        )


def check_host(address: Address, rules: tuple[HostRule, ...]) -> None:
    """Raise `RejectedInput` ``address_not_allowed`` unless a rule allows the host of an address."""
    if not any(rule.matches(address.scheme, address.host, address.port) for rule in rules):
        raise RejectedInput("address_not_allowed", f"{address.origin} is not an allowed host")


def _placeholders(name: str) -> set[str]:
    """Return the parts of an artifact's name in braces, with the braces, of which one may be missing."""
    return set(re.findall(r"[{}][^{}]*[{}]?", name))
