"""Commits the spans of a data set: those of each planned step at most once, although several updaters may write them.

A pipeline leaves the records of its spans in a folder of *results*, from which they are committed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ciml.datasets.state import DatasetState, SpanVersion, span_folder
from ciml.errors import CimlError, IntegrityError
from ciml.manifest.log import Delta, ManifestLog, catch_up, commit
from ciml.storage import Store
from ciml.transforms.examples.plan import SpanPlan, Step
from ciml.transforms.examples.spans import result_path

#: Version of a manifest that holds the definition alone. The next delta has the first spans and what they resolved.
_DEFINED = 1


class WrittenStep(NamedTuple):
    """A step, and its spans as they were written."""

    step: Step
    spans: Sequence[SpanVersion]


def commit_step(root: Store, state: DatasetState, written: WrittenStep, *, now_us: int | None = None) -> bool:
    """Commit the spans of a step, and remove the files that other updaters wrote for the same spans.

    Args:
      root: the data set's folder.
      state: of the data set; updated in place.
      written: the step, which follows the delta ``step.base``.
      now_us: the time of the commit; the present by default.

    Returns:
      Whether it was committed; False if another updater committed first.
    """
    delta = _delta_of(written, time.time_ns() // 1000 if now_us is None else now_us)

    def delta_if_next() -> Delta | None:
        # `commit` has just brought ``state`` up to date. A later version than the base is another updater's commit.
        return delta if state.version == written.step.base else None

    version = commit(ManifestLog(root), state, delta_if_next)
    _collect_garbage(root, state, written.spans)
    return version is not None


def _delta_of(written: WrittenStep, now_us: int) -> Delta:
    step = written.step
    delta: dict[str, Any] = {
        "time_us": now_us,
        "cursor": list(step.cursor),
        "corrections_to": step.corrections_to,
        "spans": [span.to_json() for span in written.spans],
        "corrections": [
            {"run_id": run_id, "outcome": outcome, "result": result}
            for run_id, (outcome, result) in step.corrections.items()
        ],
    }
    if step.causes:
        delta["causes"] = [{"run_id": run_id, "cause": cause} for run_id, cause in step.causes.items()]
    if step.base == _DEFINED:
        delta["resolved"] = step.resolved.to_json()
    return delta


def _collect_garbage(root: Store, state: DatasetState, spans: Sequence[SpanVersion]) -> None:
    """Remove all files that the manifest does not name from the folders of committed spans.

    They are from updaters that wrote the same spans but did not commit first. A version of a span is committed only
    once, so the manifest will never name them.
    """
    for span in spans:
        committed = state.spans.get(span.span, {}).get(span.version)
        if committed is None:
            continue
        for path in root.list(span_folder(span.span, span.version)):
            if path not in committed.paths:
                root.delete(path)


def commit_steps(root: Store, steps: Sequence[Step], results: str) -> int:
    """Commit the steps of a plan whose spans are written, and remove their results.

    Args:
      root: the data set's folder.
      steps: in order.
      results: the folder in which `ciml.pipelines.datasets.beam.build_spans` left the records of the spans.

    Returns:
      The number of steps that this call committed.

    Raises:
      CimlError: meanwhile another updater has sealed other spans; nothing is lost, and a new plan continues.
      IntegrityError: a result is missing.
    """
    state = catch_up(ManifestLog(root), DatasetState())
    committed = 0
    for step in steps:
        if _is_committed(state, step):
            continue
        if commit_step(root, state, read_results(root, results, step)):
            committed += 1
        elif not _is_committed(state, step):  # else a retry of this stage, or an updater with the same plan, did it
            raise CimlError(
                f"another update has changed {root.url()} after version {step.base}; start this update again, and it "
                "continues from the present version"
            )
    remove_results(root, results, steps)
    return committed


def _is_committed(state: DatasetState, step: Step) -> bool:
    """Return whether the spans of a step are in the manifest. Their contents do not depend on the updater."""
    return state.version > step.base and all(plan.version in state.spans.get(plan.span, {}) for plan in step.spans)


def read_results(root: Store, results: str, step: Step) -> WrittenStep:
    """Read the records of the written spans of a step. Raises `IntegrityError` if one is missing."""
    return WrittenStep(step, [_read_result(root, results, plan) for plan in step.spans])


def _read_result(root: Store, results: str, plan: SpanPlan) -> SpanVersion:
    try:
        return SpanVersion.from_json(json.loads(root.read(result_path(results, plan.span, plan.version))))
    except FileNotFoundError:
        raise IntegrityError(f"the pipeline returned no result for span {plan.span} of {root.url()}") from None


def remove_results(root: Store, results: str, steps: Sequence[Step]) -> None:
    """Remove the records of all spans of some steps."""
    for step in steps:
        for plan in step.spans:
            root.delete(result_path(results, plan.span, plan.version))


def count_runs(step: Step) -> int:
    """Return the number of runs in the spans of a step."""
    return sum(len(plan.runs) for plan in step.spans)
