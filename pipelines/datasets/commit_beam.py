"""The commit of a data set's spans as the last stage of their pipeline, for engines that no process waits for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import apache_beam as beam

from ciml.datasets.state import DatasetState, SpanVersion
from ciml.errors import CimlError, IntegrityError
from ciml.manifest.log import ManifestLog, catch_up
from ciml.pipelines.datasets.update import commit_step
from ciml.storage import Store
from ciml.transforms.examples.beam import result_path
from ciml.transforms.examples.plan import Step
from ciml.transforms.ingest.run_stages import keep_error


class CommitSpans(beam.PTransform):
    """The paths that `WriteSpans` returns -> the number of committed steps, when all spans are written.

    It may be repeated: a step that is committed already is passed over.

    Args:
      root: the data set's folder.
      steps: of the plan, in order.
      results: the folder of the results.
    """

    def __init__(self, root: Store, steps: Sequence[Step], results: str) -> None:
        super().__init__()
        self._root = root
        self._results = results
        # The runs are in the records of the written spans.
        self._steps = [replace(step, spans=tuple(replace(plan, runs=()) for plan in step.spans)) for step in steps]

    def expand(self, written: beam.PCollection[str]) -> beam.PCollection[int]:
        return (
            written
            | "key" >> beam.Map(lambda path: ("", path)).with_output_types(tuple[str, str])
            | "all" >> beam.GroupByKey()
            | "commit" >> beam.ParDo(_Commit(self._root, self._steps, self._results))
        )


class _Commit(beam.DoFn):
    def __init__(self, root: Store, steps: Sequence[Step], results: str) -> None:
        self._root = root
        self._steps = steps
        self._results = results

    def process(self, element: tuple[str, Iterable[str]]) -> Iterator[int]:
        with keep_error():
            yield commit_steps(self._root, self._steps, self._results)


def commit_steps(root: Store, steps: Sequence[Step], results: str) -> int:
    """Commit the steps of a plan whose spans are written; return how many this call committed.

    Args:
      root: the data set's folder.
      steps: in order.
      results: the folder of the results of `WriteSpans`, which is removed afterwards.

    Raises:
      CimlError: another updater has sealed other spans meanwhile; nothing is lost, and a new plan continues.
      IntegrityError: a result is missing.
    """
    state = DatasetState()
    committed = 0
    catch_up(ManifestLog(root), state)
    for step in steps:
        if _is_committed(state, step):
            continue
        spans = [_result(root, results, plan.span, plan.version) for plan in step.spans]
        if not commit_step(root, state, step, spans):
            if _is_committed(state, step):
                continue  # by a copy of this stage
            raise CimlError(
                f"another update of {root.url()} came first, from version {step.base} on; start this one again: it "
                "continues there"
            )
        committed += 1
    for step in steps:
        for plan in step.spans:
            root.delete(result_path(results, plan.span, plan.version))
    return committed


def _is_committed(state: DatasetState, step: Step) -> bool:
    """Return whether the spans of a step are in the manifest, which are the same for every updater."""
    return state.version > step.base and all(plan.version in state.spans.get(plan.span, {}) for plan in step.spans)


def _result(root: Store, results: str, span: int, version: int) -> SpanVersion:
    try:
        return SpanVersion.from_json(json.loads(root.read(result_path(results, span, version))))
    except FileNotFoundError:
        raise IntegrityError(f"the pipeline returned no result for span {span} of {root.url()}") from None
