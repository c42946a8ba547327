"""Examines a data root: every object is listed, and read by the reader of its kind."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import NamedTuple

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.manifest.checkpoints import Checkpoints
from ciml.manifest.log import ManifestLog
from ciml.manifest.verify import verify_log
from ciml.raw.state import RAW
from ciml.services.stored.data import check_datasets, check_raw, check_tables
from ciml.services.stored.findings import Findings, Progress
from ciml.services.stored.kinds import Kind, kind_of
from ciml.services.stored.learning import check_exclusions, check_experiments, check_sweeps, check_trainers
from ciml.services.stored.served import check_feedback, check_models, check_predictions

_DELTA = re.compile(r"/_manifest/[0-9]{12}\.json$")


class _Check(NamedTuple):
    """A step of the work, and the kind that is reported broken where a manifest's content is not as it should be."""

    run: Callable[[DataRoot, Findings, Progress], None]
    kind: Kind


_CHECKS = (
    _Check(check_raw, "raw deltas"),
    _Check(check_datasets, "data set deltas"),
    _Check(check_tables, "derived"),
    _Check(check_experiments, "results"),
    _Check(check_sweeps, "sweeps"),
    _Check(check_exclusions, "exclusions"),
    _Check(check_trainers, "snapshots"),
    _Check(check_models, "registry deltas"),
    _Check(check_predictions, "predictions deltas"),
    _Check(check_feedback, "feedback deltas"),
)


def examine(data: DataRoot, progress: Progress | None = None) -> Findings:
    """List and verify all objects below a data root. Changes nothing; may run beside services.

    Time is linear in the objects. Memory grows by 20 bytes for each run, as in `ciml runs verify`.

    Args:
      data: the data root.
      progress: called with (activity, number done, total or None).

    Raises:
      EngineError: the store does not answer.
    """
    found, report = Findings(), progress or (lambda what, done, total: None)
    for number, entry in enumerate(data.store.entries(), 1):
        found.objects[kind := kind_of(entry.path)] += 1
        if kind == "other" and found.objects["other"] <= 10:
            found.notes.append(f"{data.store.url(entry.path)} is no object of ciml's; it is not read")
        if not number % 1000:
            report("objects", number, None)
    for check in _CHECKS:
        with found.guard(check.kind, f"{check.kind} of {data.url}"):
            check.run(data, found, report)
    return found


def seal_older(data: DataRoot) -> int:
    """Add digests to the deltas that an older version appended after deltas with digests; return their number.

    Services must be stopped. Repeating it is safe, also after a kill. A damaged log is left as it is: `examine`
    reports it.

    Raises:
      EngineError: the store does not answer.
    """
    folders = {path.rpartition("/_manifest/")[0] for path in data.store.list() if _DELTA.search(path)}
    sealed = 0
    for folder in sorted(folders):
        with contextlib.suppress(IntegrityError):
            sealed += ManifestLog(data.store.child(folder)).seal_older()
    return sealed


def rewrite(data: DataRoot, found: Findings, progress: Progress | None = None) -> int:
    """Make the objects again that older versions wrote with less in them, from the objects that are kept forever.

    These are the checkpoints of the raw manifest and its index. Repeating it is safe, also after a kill.

    Args:
      data: the data root.
      found: of `examine`.
      progress: as that of `examine`.

    Returns:
      The number of new checkpoints.

    Raises:
      IntegrityError: deltas or segments are damaged, so nothing is changed; or the new checkpoints are not right.
    """
    if not found.rewritten:
        return 0
    report = progress or (lambda what, done, total: None)
    if found.broken["raw deltas"] or found.broken["segments"]:
        raise IntegrityError(f"{data.raw.url()}: the manifest is damaged; restore a backup first. Nothing was changed")
    log = ManifestLog(data.raw)
    made = Checkpoints(log, RAW).rebuild(lambda version: report("checkpoints", version, None))
    for fault in verify_log(log, RAW, lambda done, total: report("manifest again", done, total)):
        if fault.what != "unsealed":
            raise IntegrityError(f"after rewriting: {fault.text}")
    return made
