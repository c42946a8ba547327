"""Writes the spans of a data set in one bounded Beam pipeline: examples by `MakeExamples`, files by `WriteSpans`.

The process that waits for a pipeline commits its spans (`write_spans`). Where no process waits, as on Dataflow, the
last stage of the pipeline does (`CommitSpans`).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import apache_beam as beam

from ciml.datasets.definition import ResolvedDefinition
from ciml.pipelines.datasets.commit import WrittenStep, commit_steps, read_results, remove_results
from ciml.pipelines.flink.submit import run_bounded
from ciml.storage import Store
from ciml.transforms.examples.beam import MakeExamples, WriteSpans
from ciml.transforms.examples.plan import Step
from ciml.transforms.examples.spans import batches_of
from ciml.transforms.guard import keep_error


def write_spans(
    raw: Store, root: Store, steps: Sequence[Step], *, runner: str, job_endpoint: str = ""
) -> list[WrittenStep]:
    """Make and write the spans of all steps in one bounded pipeline, and wait for its end.

    Args:
      raw: the raw store.
      root: the data set's folder.
      steps: at least one, in order.
      runner: ``fnapi`` (in this process) or ``flink``.
      job_endpoint: ``host:port`` of Beam's job server, for ``flink``.

    Returns:
      The steps with their spans, in order.

    Raises:
      CimlError, EngineError: see `ciml.pipelines.flink.submit.run_bounded`.
      IntegrityError: a result is missing.
    """
    results = new_results_folder()
    try:
        build = partial(build_spans, raw=raw, root=root, steps=steps, results=results)
        run_bounded(build, runner, job_endpoint, "ciml-dataset")
        return [read_results(root, results, step) for step in steps]
    finally:
        remove_results(root, results, steps)


def new_results_folder() -> str:
    """Return a path that no other updater uses."""
    return f"results/{uuid.uuid4().hex}"


def build_spans(
    pipeline: beam.Pipeline, raw: Store, root: Store, steps: Sequence[Step], results: str
) -> beam.PCollection[str]:
    """Wire the bounded pipeline of spans; return the paths written to ``results``, a folder of ``root``."""
    resolved: ResolvedDefinition = steps[0].resolved
    plans = [plan for step in steps for plan in step.spans]
    parts = [part for plan in plans for part in enumerate(batches_of(plan, resolved))]
    return (
        pipeline
        | "parts" >> beam.Create(parts)
        | "MakeExamples" >> MakeExamples(raw, resolved)
        | "WriteSpans" >> WriteSpans(root, plans, resolved, results)
    )


class CommitSpans(beam.PTransform):
    """The paths that `WriteSpans` returns -> the number of steps committed when all spans are written.

    It may run twice: steps that are committed already are skipped.

    Args:
      root: the data set's folder.
      steps: of the plan, in order.
      results: the folder of the results.
    """

    def __init__(self, root: Store, steps: Sequence[Step], results: str) -> None:
        super().__init__()
        # The commit takes the runs from the records of the written spans, so the job description need not hold them.
        steps = [replace(step, spans=tuple(replace(plan, runs=()) for plan in step.spans)) for step in steps]
        self._commit = partial(_commit, root=root, steps=steps, results=results)

    def expand(self, written: beam.PCollection[str]) -> beam.PCollection[int]:
        return (
            written
            | "key" >> beam.Map(lambda path: ("", path)).with_output_types(tuple[str, str])
            | "all" >> beam.GroupByKey()
            | "commit" >> beam.Map(self._commit).with_output_types(int)
        )


def _commit(element: tuple[str, Iterable[str]], root: Store, steps: Sequence[Step], results: str) -> int:
    with keep_error():
        return commit_steps(root, steps, results)
