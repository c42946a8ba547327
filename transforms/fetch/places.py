"""Places of logs: an address leads to a log itself, to a folder of logs, or to an archive of a CI system."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import IO

from ciml.limits import MAX_ARTIFACTS_PAGES
from ciml.transforms.fetch import artifacts
from ciml.transforms.fetch.addresses import Address, below
from ciml.transforms.fetch.artifacts import Artifact, JobFacts
from ciml.transforms.fetch.errors import LogUnavailableError
from ciml.transforms.fetch.folders import first_found
from ciml.transforms.fetch.gunzip import gunzip
from ciml.transforms.fetch.http import HttpLogs
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.fetch.unzip import is_archive, unzip

_IN_MEMORY = 1 << 18  # of an archive; most are smaller. The rest is in an unnamed file
_PIECE = 1 << 18


def read_http(
    http: HttpLogs, policy: FetchPolicy, address: Address, job: JobFacts | None, grow: Callable[[int], None] | None
) -> bytes:
    """Fetch the log that an http or https address leads to, unpacked.

    Args:
      http: fetches each part; all together have the limits of one log.
      policy: names the paths of logs and the artifacts.
      address: of a log; of a folder, where it ends with a slash; GitHub's list of the artifacts of a workflow run; or
        GitLab's archive of a job.
      job: the job whose log it is, for a list of artifacts.
      grow: as in `ciml.transforms.fetch.gunzip.gunzip`.

    Raises:
      RejectedInput, LogUnavailableError: as `HttpLogs.fetch`, and ``corrupt_archive``.
    """
    with http.one_log():
        if address.is_folder:
            return first_found(below(address, policy.log_paths), lambda each: http.fetch(each, grow))
        if artifacts.is_artifact_list(address.path):
            return _archived(http, policy, _artifact(http, policy, address, job), grow)
        if artifacts.is_job_archive(address.path):
            return _archived(http, policy, address, grow)
        return http.fetch(address, grow)


def _artifact(http: HttpLogs, policy: FetchPolicy, address: Address, job: JobFacts | None) -> Address:
    """Return the address of the artifact with a job's log: on the API of its list, by the id in the list."""
    listed: list[Artifact] = []
    for number in range(1, MAX_ARTIFACTS_PAGES + 1):
        page = replace(address, path=f"{address.path}?per_page={artifacts.PAGE}&page={number}")
        found, more = artifacts.artifacts_on(http.page(page))
        listed += found
        if not more:
            break
    artifact = artifacts.artifact_of(job or JobFacts("", "", 1, None, None), listed, policy.artifact_names)
    actions = address.path.rpartition("/runs/")[0]
    return replace(address, path=f"{actions}/artifacts/{artifact.id}/zip")


def _archived(http: HttpLogs, policy: FetchPolicy, address: Address, grow: Callable[[int], None] | None) -> bytes:
    """Return the log in an archive, or the file itself where it is none: GitHub keeps a single file as it is."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        try:
            http.download(address, file)
            chunks = unzip(file, policy.log_paths) if is_archive(file) else _pieces(file)
            return gunzip(chunks, policy.max_bytes, grow)
        except OSError as error:
            raise LogUnavailableError("log_unavailable", f"cannot store the archive: {error.strerror}") from None


def _pieces(file: IO[bytes]) -> Iterable[bytes]:
    file.seek(0)
    return iter(lambda: file.read(_PIECE), b"")
