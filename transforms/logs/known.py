"""What passing runs of jobs print, of the lines that could name a reason. A resolved definition has it.

Only digests are kept, so a model contains no text of an output.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from ciml.errors import CimlError
from ciml.limits import MAX_KNOWN_TEMPLATES, MAX_PROFILE_JOBS
from ciml.transforms.logs.features import VOCABULARY, telling_templates
from ciml.transforms.logs.templates import DIGEST_BYTES, template_digest

#: A job with fewer passing runs has the templates of all jobs.
MIN_RUNS = 5


class KnownTemplates:
    """Templates, by their digests. Of more than `MAX_KNOWN_TEMPLATES`, those with the least digests are known.

    Args:
      digests: of the templates, 8 bytes each.
    """

    def __init__(self, digests: Set[bytes]) -> None:
        self.digests = frozenset(_bounded(digests))

    def __contains__(self, template: object) -> bool:
        return template_digest(str(template)) in self.digests


@dataclass(frozen=True)
class KnownOutputs:
    """What passing runs print.

    Attributes:
      jobs: by job, for jobs of at least `MIN_RUNS` passing runs with an output.
      pooled: of all jobs.
      vocabulary: by which the lines were chosen, and the features of outputs made
        (`ciml.transforms.logs.features.VOCABULARY`); "" if it was not recorded.
    """

    jobs: Mapping[str, KnownTemplates]
    pooled: KnownTemplates
    vocabulary: str = VOCABULARY

    @property
    def is_current(self) -> bool:
        """Whether this version of ciml reads outputs as the one that made the data set."""
        return self.vocabulary == VOCABULARY

    def of(self, job: str) -> KnownTemplates:
        """Return the templates of a job, or those of all jobs where it has too few passing runs."""
        return self.jobs.get(job, self.pooled)

    def to_json(self) -> dict[str, Any]:
        """Encode as in a resolved definition; equal ones have equal texts."""
        vocabulary = {"vocabulary": self.vocabulary} if self.vocabulary else {}
        jobs = {job: _encode(self.jobs[job]) for job in sorted(self.jobs)}
        return {"jobs": jobs, "pooled": _encode(self.pooled), **vocabulary}

    @classmethod
    def from_json(cls, value: Any) -> KnownOutputs:
        """Decode `to_json`. Raises `CimlError` for malformed JSON."""
        try:
            jobs = {str(job): _decode(text) for job, text in value["jobs"].items()}
            return cls(jobs, _decode(value["pooled"]), str(value.get("vocabulary", "")))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CimlError(f"known outputs: malformed ({type(error).__name__}: {error!s:.200})") from None


def known_outputs(runs: Iterable[tuple[str, Iterable[str]]]) -> KnownOutputs:
    """Collect what passing runs print. The order of runs matters only beyond `MAX_PROFILE_JOBS` jobs.

    Args:
      runs: job and templates of the output of each passing run, read once.
    """
    digests: dict[str, Set[bytes]] = {}
    counts: dict[str, int] = {}
    pooled: Set[bytes] = set()
    for job, templates in runs:
        new = {template_digest(template) for template in telling_templates(tuple(templates))}
        pooled = _bounded(pooled | new)
        if job in digests or len(digests) < MAX_PROFILE_JOBS:
            digests[job] = _bounded(digests.get(job, set()) | new)
            counts[job] = counts.get(job, 0) + 1
    jobs = {job: KnownTemplates(digests[job]) for job in digests if counts[job] >= MIN_RUNS}
    return KnownOutputs(jobs, KnownTemplates(pooled))


def _bounded(digests: Set[bytes]) -> Set[bytes]:
    if len(digests) <= MAX_KNOWN_TEMPLATES:
        return digests
    return set(sorted(digests)[:MAX_KNOWN_TEMPLATES])


def _encode(templates: KnownTemplates) -> str:
    return base64.b64encode(b"".join(sorted(templates.digests))).decode()


def _decode(text: str) -> KnownTemplates:
    data = base64.b64decode(text, validate=True)
    if len(data) % DIGEST_BYTES:
        raise ValueError(f"{len(data)} bytes are not a list of digests")
    starts = range(0, len(data), DIGEST_BYTES)
    return KnownTemplates({data[start : start + DIGEST_BYTES] for start in starts})
