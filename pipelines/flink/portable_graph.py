"""Reads, checks and draws the portable form of a pipeline, which every engine receives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2 as api
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import ExternalEnvironment, python_sdk_capabilities

_PRIMITIVES, _COMBINES = common_urns.primitives, common_urns.combine_components
#: Transforms that engines execute themselves; Python workers execute all others.
_OF_ENGINES = {
    _PRIMITIVES.IMPULSE.urn: "Impulse",
    _PRIMITIVES.FLATTEN.urn: "Flatten",
    _PRIMITIVES.GROUP_BY_KEY.urn: "GroupByKey",
}
_OF_WORKERS = {
    _PRIMITIVES.PAR_DO.urn: "ParDo",
    _PRIMITIVES.ASSIGN_WINDOWS.urn: "Window",
    **{one.urn: "Combine" for one in (
        _COMBINES.COMBINE_PER_KEY_PRECOMBINE, _COMBINES.COMBINE_PER_KEY_MERGE_ACCUMULATORS,
        _COMBINES.COMBINE_PER_KEY_EXTRACT_OUTPUTS, _COMBINES.COMBINE_GROUPED_VALUES,
    )},
}  # fmt: skip
_PYTHON_FUNCTIONS = (python_urns.PICKLED_DOFN_INFO, python_urns.KEY_WITH_NONE_DOFN)
_PYTHON = "beam:version:sdk_base:apache/beam_python"
_ELSEWHERE = ("external", "xlang", "schematransform", "org.apache.beam", "javasdk", "go:")


def portable(build: Callable[[beam.Pipeline], object]) -> api.Pipeline:
    """Return the portable form of the pipeline that ``build`` wires, without running it or using a network."""
    environment = ExternalEnvironment("localhost:50000", capabilities=python_sdk_capabilities())
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    build(pipeline)
    return pipeline.to_runner_api(default_environment=environment)


def is_unbounded(proto: api.Pipeline) -> bool:
    """Return whether the pipeline is unbounded."""
    return any(one.is_bounded == api.IsBounded.UNBOUNDED for one in proto.components.pcollections.values())


def foreign(proto: api.Pipeline) -> list[str]:
    """Return why a pipeline needs more than Python workers: a line for each such stage or coder.

    A stage expanded by another language runs in that language's environment, so an engine would need its containers; a
    stage that only some runners know (a Java source by its URN) would not run on the others.
    """
    parts, found = proto.components, []
    python = {name for name, one in parts.environments.items() if any(c.startswith(_PYTHON) for c in one.capabilities)}
    for each in parts.transforms.values():
        urn, stage = each.spec.urn, each.unique_name or "pipeline"
        if each.environment_id and each.environment_id not in python:
            found.append(f"{stage}: its environment {each.environment_id} is not Python's")
        if any(word in urn for word in _ELSEWHERE):
            found.append(f"{stage}: {urn} is from another language")
        elif _works(each) and urn not in _OF_ENGINES and urn not in _OF_WORKERS:
            found.append(f"{stage}: {urn} is not known to every engine")
        if urn == _PRIMITIVES.PAR_DO.urn:
            function = api.ParDoPayload.FromString(each.spec.payload).do_fn.urn
            if function not in _PYTHON_FUNCTIONS:
                found.append(f"{stage}: its function is {function}")
    for name, coder in parts.coders.items():
        if any(word in coder.spec.urn for word in _ELSEWHERE):
            found.append(f"coder {name}: {coder.spec.urn} is from another language")
    return found


def stages(proto: api.Pipeline) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield (stage, kind, input stages) of all executed stages, each after its inputs."""
    parts = proto.components.transforms
    makers: dict[str, str] = {}
    names: dict[str, str] = {}

    def walk(identity: str) -> Iterator[str]:
        for child in parts[identity].subtransforms:
            yield from walk(child)
        if _works(parts[identity]):
            yield identity

    ordered = [identity for root in proto.root_transform_ids for identity in walk(root)]
    for identity in ordered:
        names[identity] = parts[identity].unique_name
        makers.update(dict.fromkeys(parts[identity].outputs.values(), identity))
    for identity in ordered:
        each = parts[identity]
        reads = [names[makers[one]] for one in sorted(each.inputs.values()) if one in makers]
        yield names[identity], _kind(each), tuple(dict.fromkeys(reads))


def _works(transform: api.PTransform) -> bool:
    """Return whether a transform does work: it is not a composite, and not an identity."""
    return not transform.subtransforms and not set(transform.outputs.values()) <= set(transform.inputs.values())


def _kind(transform: api.PTransform) -> str:
    urn = transform.spec.urn
    kind = _OF_ENGINES.get(urn) or _OF_WORKERS.get(urn, urn)
    if urn == _PRIMITIVES.PAR_DO.urn:
        payload = api.ParDoPayload.FromString(transform.spec.payload)
        marks = [
            *(["splittable"] if payload.restriction_coder_id else []),
            *(["state"] if payload.state_specs else []),
            *(["timers"] if payload.timer_family_specs else []),
        ]
        kind += f" ({', '.join(marks)})" if marks else ""
    return kind


def as_text(name: str, proto: api.Pipeline) -> str:
    """Render a pipeline as text: a line for each stage, with the numbers of its inputs."""
    rows = list(stages(proto))
    number = {stage: at for at, (stage, _, _) in enumerate(rows, 1)}
    width = max(len(kind) for _, kind, _ in rows)
    kind = "unbounded" if is_unbounded(proto) else "bounded"
    elsewhere = foreign(proto)
    workers = "only Python workers" if not elsewhere else "NOT ONLY PYTHON"
    lines = [f"{name}: {kind}, {len(rows)} stages, {workers}"]
    for stage, what, reads in rows:
        read = f"  <- {', '.join(str(number[one]) for one in reads)}" if reads else ""
        lines.append(f"{number[stage]:>3}  {what:<{width}}  {stage}{read}")
    return "\n".join([*lines, *elsewhere])


def as_dot(proto: api.Pipeline) -> str:
    """Render a pipeline for Graphviz, with composites as clusters."""
    from apache_beam.runners.render import PipelineRenderer, RenderOptions

    return str(PipelineRenderer(proto, RenderOptions([])).to_dot())
