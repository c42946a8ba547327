"""Where the output of a run's job is: at an address that its event or listing names, or next to its log."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from ciml.errors import LogUnavailableError, RejectedInput, drop_frames
from ciml.events.records import RunFacts
from ciml.events.redaction import REDACTED
from ciml.events.run_id import source_of
from ciml.globs import matches_any
from ciml.http.addresses import PORTS, Address, below
from ciml.limits import MAX_OUTPUT_WIRE_BYTES
from ciml.transforms.fetch.artifacts import JobFacts, job_facts
from ciml.transforms.fetch.fetch import shared_fetcher
from ciml.transforms.fetch.policy import OUTPUT_PATHS, FetchPolicy
from ciml.transforms.fetch.schedule import Budget, Download, Failure, Schedule
from ciml.transforms.guard import attempt

T = TypeVar("T")

#: The paths of logs of GitHub's and GitLab's API, and of a build of Jenkins, up to the part that names the log.
_GITHUB = re.compile(r"((?:/[^?]*)?/repos/[^/?]+/[^/?]+/actions)/runs/[0-9]+/artifacts")
_GITLAB = re.compile(r"((?:/[^?]*)?/api/v4/projects/[^/?]+/jobs/[0-9]+)/artifacts(?:/.*)?")
_JENKINS = re.compile(r"((?:/[^?]*)?/job/[^/?]+/[0-9]+)/artifact/")
#: A name that a message can show as it is, and the last parts of addresses of GitHub's and GitLab's API.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_OF_API = frozenset({"logs", "trace"})
_NO_FACTS = JobFacts("", "", 1, None, None)


def output_addresses(policy: FetchPolicy, facts: RunFacts, log: str = "", output: str = "") -> list[Address]:
    """Return the addresses at which the output of a run's job may be, in the order in which they are tried.

    Args:
      policy: the allowed addresses, and what is fetched.
      facts: of the run.
      log: the address of its log, where it is not in the facts.
      output: the address of the output, where it is not in the facts.

    Returns:
      No address if none can be derived, or the policy excludes the output of this source or project.

    Raises:
      RejectedInput: ``bad_address``, ``address_not_allowed``.
    """
    if not takes_output(policy, facts):
        return []
    if not output and REDACTED not in facts.output_url:  # a retry does not know its secret
        output = facts.output_url
    address = policy.parse_allowed(output or log or facts.log_url)
    if not output and (of_system := _of_system(address, facts)) is not None:
        return [of_system]
    if address.is_folder:
        return below(address, policy.output_paths)
    return _named(address, policy) if output else []


def _named(output: Address, policy: FetchPolicy) -> list[Address]:
    """Return the address of a named output; of one with a usual name all usual paths in its folder, this one first.

    Zuul names ``job-output.txt`` whether or not a role compresses it, and an operator may prefer another file.
    """
    folder, slash, name = output.path.rpartition("/")
    if name not in (*OUTPUT_PATHS, *policy.output_paths):
        return [output]
    paths = sorted(policy.output_paths, key=lambda path: path != name)
    return below(replace(output, path=folder + slash), paths)


def _of_system(log: Address, facts: RunFacts) -> Address | None:
    """Return the address at which a CI system has the output of a job, by the address of its log; None without one."""
    if log.scheme not in PORTS:
        return None
    if (match := _GITHUB.fullmatch(log.path)) and (job := job_facts(facts).id).isdecimal():
        return replace(log, path=f"{match[1]}/jobs/{job}/logs")
    if match := _GITLAB.fullmatch(log.path):
        return replace(log, path=f"{match[1]}/trace")
    if match := _JENKINS.fullmatch(log.path):
        return replace(log, path=f"{match[1]}/consoleText")
    return None


def file_name(address: Address) -> str:
    """Return the name of the file at an address, without ".gz"; "" for an address of an API, or an unusual name."""
    path = address.path.partition("?")[0] if address.scheme in PORTS else address.path
    name = path.rpartition("/")[2].removesuffix(".gz")
    return name if _FILE_NAME.fullmatch(name) and name not in _OF_API else ""


def takes_output(policy: FetchPolicy, facts: RunFacts) -> bool:
    """Return whether the outputs of a run's source and project are fetched."""
    if not policy.without_output:
        return True
    sources = {facts.source, source_of(facts.run_id)} - {""}
    names = [*sources, *(f"{source}/{facts.project}" for source in sources)]
    return not any(matches_any(policy.without_output, name) for name in names)


def fetch_outputs(
    requests: Sequence[Sequence[Address]],
    policy: FetchPolicy,
    consume: Callable[[int, Address, Iterable[bytes]], T],
    batch_s: float,
) -> list[T | Failure]:
    """Fetch outputs, `FetchPolicy.threads` at a time.

    Args:
      requests: the addresses of each output, at least one.
      policy: the allowed addresses, and the limits.
      consume: called with the index of a request, the address at which its output is, and its bytes, in chunks; it may
        be called again for a retry. Memory is its concern.
      batch_s: time after which no further output is started, s.

    Returns:
      For each request the result of ``consume``, or why there is none.

    Raises:
      EngineError: raised by ``consume``.
    """
    fetcher = shared_fetcher(policy)
    downloads = {Download(addresses[0], _NO_FACTS, is_signed=False): index for index, addresses in enumerate(requests)}
    results: list[T | Failure] = [LogUnavailableError("batch_full", "")] * len(requests)
    schedule = Schedule(list(downloads), policy.threads, batch_s, Budget(1 << 62, 1 << 62))

    def fetch(index: int) -> T | Failure:
        try:
            return fetcher.consume(requests[index], MAX_OUTPUT_WIRE_BYTES, partial(consume, index))
        except LogUnavailableError as failure:
            return failure

    def work() -> None:
        for download in schedule:
            index = downloads[download]
            result = attempt("output", fetch, index)
            results[index] = result
            if isinstance(result, RejectedInput | LogUnavailableError):
                drop_frames(result)
                download.failure = result

    threads = min(policy.threads, len(requests))
    with ThreadPoolExecutor(max(threads, 1), "output") as pool:
        for thread in [pool.submit(work) for _ in range(threads)]:
            thread.result()
    for download, index in downloads.items():
        if download.failure is not None:
            results[index] = download.failure
    return results
