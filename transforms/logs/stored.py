"""The templates of stored outputs, and the profile of a job by its stored passing runs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ciml.events.records import OutputFile
from ciml.manifest.log import ManifestLog
from ciml.runs.latest_runs import StoredRun, latest_runs
from ciml.runs.outputs import OutputTemplates, read_output, read_templates
from ciml.runs.state import RawState
from ciml.storage import Store
from ciml.transforms.logs.profile import OutputProfile, Printed, printed_templates
from ciml.transforms.logs.ranking import scan
from ciml.transforms.logs.templates import MASKS

#: The last passing runs of a job with which a failed run is compared.
PASSING_RUNS = 20


def stored_printed(raw: Store, output: OutputFile | None) -> dict[str, Printed] | None:
    """Return what a run printed whose row names an output, by template; None without one.

    Templates that were made by other masks are made again from the text; None if that has expired.

    Raises:
      IntegrityError: the output is damaged.
      EngineError: the store does not answer.
    """
    stored = read_templates(raw, output)
    if isinstance(stored, str):
        return None
    if stored.masks == MASKS:
        return printed_of(stored)
    kept_output = read_output(raw, output)
    return None if isinstance(kept_output, str) else printed_templates(scan(kept_output.data))


def printed_of(stored: OutputTemplates) -> dict[str, Printed]:
    """Return stored templates in the form of `ciml.transforms.logs.profile.printed_templates`."""
    last = max(stored.lines - 1, 1)
    rows = zip(stored.templates, stored.counts, stored.first_lines, strict=True)
    return {template: Printed(count, (first - 1) / last) for template, count, first in rows}


def passing_runs(log: ManifestLog, state: RawState, job: str) -> Iterator[StoredRun]:
    """Yield the trusted runs of a job that passed and have an output, the last committed first."""
    for run in latest_runs(log, state):
        has_output = run.output is not None and bool(run.output.path)
        if has_output and run.facts.build_name == job and run.outcome == "success" and run.trust.trusted:
            yield run


def stored_profile(raw: Store, log: ManifestLog, state: RawState, job: str, most: int = PASSING_RUNS) -> OutputProfile:
    """Return the profile of a job by its last trusted passing runs, at most ``most``.

    Raises:
      IntegrityError: an output is damaged.
      EngineError: the store does not answer.
    """
    profile = OutputProfile()
    printed = (stored_printed(raw, run.output) for run in passing_runs(log, state, job))
    for templates in islice((templates_of_run for templates_of_run in printed if templates_of_run is not None), most):
        profile.add(templates)
    return profile
